"""What every benchmark prints: the machine, its speed at the moment, fair alternation, tables as markdown and JSON."""

from __future__ import annotations

import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import TypeAlias

import numpy as np
import onnxruntime
from onnx import NodeProto, TensorProto, helper

RESULTS = Path(__file__).parent / "results"
SIZE = 1024
Rows: TypeAlias = Sequence[Mapping[str, object]]


def session(
    nodes: Sequence[NodeProto], inputs: Sequence[tuple[str, int]], output: int, threads: int
) -> onnxruntime.InferenceSession:
    values = [helper.make_tensor_value_info(name, kind, [SIZE, SIZE]) for name, kind in inputs]
    out = helper.make_tensor_value_info("c", output, [SIZE, SIZE])
    graph = helper.make_graph(nodes, "probe", values, [out])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def probe(threads: int = 0, *, peak: bool = False) -> dict[str, float]:
    """Return GOP/s of 1024 x 1024 x 1024 products in ONNX Runtime: fp32, and u8 x s8.

    The median of 15; `peak`: the fastest of 60, which other work on the machine hardly moves.
    """
    f = TensorProto.FLOAT
    fp32 = session([helper.make_node("MatMul", ["a", "b"], ["c"])], [("a", f), ("b", f)], f, threads)
    int8 = session(
        [helper.make_node("MatMulInteger", ["a", "b"], ["c"])],
        [("a", TensorProto.UINT8), ("b", TensorProto.INT8)],
        TensorProto.INT32,
        threads,
    )
    ones = np.ones((SIZE, SIZE))
    feeds = {"fp32": (fp32, np.float32, np.float32), "int8": (int8, np.uint8, np.int8)}
    rounds, of = (60, min) if peak else (15, statistics.median)
    found = {}
    for name, (run, a, b) in feeds.items():
        feed = {"a": ones.astype(a), "b": ones.astype(b)}
        found[name] = 2 * SIZE**3 / seconds(lambda r=run, f=feed: r.run(None, f), rounds, of) / 1e9
    return found


# Seconds between calls of unlike libraries.
REST = 0.1


def seconds(call: Callable[[], object], rounds: int, of: Callable[[list[float]], float] = statistics.median) -> float:
    call()
    return of([once(call) for _ in range(rounds)])


def once(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def alternate(calls: Mapping[str, Callable[[], object]], rounds: int, *, warm: bool = False) -> dict[str, list[float]]:
    """Return seconds of each call in each round; all take turns, so that a slow phase hits all alike."""
    for call in calls.values():
        call()
    found: dict[str, list[float]] = {name: [] for name in calls}
    for i in range(rounds):
        order = list(calls) if i % 2 == 0 else list(calls)[::-1]
        for name in order:
            time.sleep(REST)  # threads of the call before still spin, and would run on this one's cores
            if warm:
                calls[name]()  # as in a loop of its own, with its weights in the caches
            found[name].append(once(calls[name]))
    return found


def spread(times: Sequence[float], unit: float = 1e3) -> str:
    """Return the median with the quartiles."""
    low, middle, high = (np.quantile(times, q) * unit for q in (0.25, 0.5, 0.75))
    return f"{middle:.1f} ({low:.1f}-{high:.1f})"


def ratio(times: Sequence[float], ours: Sequence[float]) -> float:
    """Return the median over rounds of how many times longer one took than the other."""
    return float(np.median(np.array(times) / np.array(ours)))


def table(rows: Rows) -> str:
    heads = list(rows[0])
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    lines += ["| " + " | ".join(str(row.get(head, "")) for head in heads) + " |" for row in rows]
    return "\n".join(lines)


def machine(packages: Sequence[str] = ("onnxruntime",)) -> str:
    cpu = "unnamed CPU"
    flags = ""
    if Path("/proc/cpuinfo").is_file():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next((x.split(":")[1].strip() for x in lines if x.startswith("model name")), cpu)
        have = next((x.split(":")[1].split() for x in lines if x.startswith("flags")), [])
        flags = " ".join(x for x in ("avx2", "avx512f", "avx512_vnni", "amx_int8") if x in have)
    names = ", ".join(f"{name} {version(name)}" for name in packages)
    return f"{cpu} ({flags}), {os.cpu_count()} cores, Python {platform.python_version()}, {names}, {date.today()}"


def write(
    name: str, title: str, parts: Sequence[tuple[str, Sequence[Mapping[str, object]]]], notes: Sequence[str]
) -> None:
    """Print a report and write it as markdown and JSON."""
    text = f"# {title}\n\n" + "\n\n".join(f"{head}\n\n{table(rows)}" for head, rows in parts)
    text += "\n\n" + "\n".join(f"- {note}" for note in notes) + "\n"
    print(text)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.md").write_text(text, encoding="utf-8")
    data = {"title": title, "parts": [{"head": head, "rows": list(rows)} for head, rows in parts], "notes": list(notes)}
    (RESULTS / f"{name}.json").write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
