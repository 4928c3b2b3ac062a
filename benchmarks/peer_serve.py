"""Runs in a peer's own environment: reads its configuration, then requests, as lines of JSON; answers in the same way.

Kinds: nemo, openai-guardrails (callers at once, see `load.py`); optimum, llm-guard (rules against messages).
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Callable
from importlib.metadata import version
from types import SimpleNamespace
from typing import Any

import load

Answer = Callable[[dict[str, Any]], dict[str, Any]]


def nemo(config: dict[str, Any]) -> tuple[str, Answer]:
    """One input rail: an action that looks for a word."""
    from nemoguardrails import LLMRails, RailsConfig

    flow = """
define bot refuse to respond
  "Refused."

define flow check keyword
  $allowed = execute keyword_allowed
  if not $allowed
    bot refuse to respond
    stop
"""
    rails = LLMRails(
        RailsConfig.from_content(
            colang_content=flow, yaml_content="models: []\nrails:\n  input:\n    flows:\n      - check keyword\n"
        )
    )

    async def keyword_allowed(context: dict[str, Any] | None = None) -> bool:
        return load.BLOCKED not in (context or {}).get("user_message", "")

    rails.register_action(keyword_allowed, "keyword_allowed")

    async def acheck(text: str) -> bool:
        result = await rails.check_async([{"role": "user", "content": text}])
        return bool(result.status.value != "blocked")

    def check(text: str) -> bool:
        return bool(rails.check([{"role": "user", "content": text}]).status.value != "blocked")

    asyncio.run(acheck("warm up"))
    return version("nemoguardrails"), lambda request: _loaded(acheck, check, request)


def openai_guardrails(config: dict[str, Any]) -> tuple[str, Answer]:
    """The engine alone: `run_guardrails` with its own keyword check; nothing is sent anywhere."""
    from guardrails.runtime import instantiate_guardrails, load_config_bundle, run_guardrails

    bundle = {"version": 1, "guardrails": [{"name": "Keyword Filter", "config": {"keywords": [load.BLOCKED]}}]}
    rails = instantiate_guardrails(load_config_bundle(bundle))
    nobody = SimpleNamespace()

    async def acheck(text: str) -> bool:
        results = await run_guardrails(nobody, text, "text/plain", rails, suppress_tripwire=True)
        return not any(result.tripwire_triggered for result in results)

    def check(text: str) -> bool:
        return asyncio.run(acheck(text))  # it has no other way for threads

    asyncio.run(acheck("warm up"))
    return version("openai-guardrails"), lambda request: _loaded(acheck, check, request)


def _loaded(acheck: Callable[..., Any], check: Callable[..., bool], request: dict[str, Any]) -> dict[str, Any]:
    run, call = (load.tasks, acheck) if request["mode"] == "asyncio" else (load.threads, check)
    return run(call, request["callers"], request["seconds"])  # type: ignore[operator]


def optimum(config: dict[str, Any]) -> tuple[str, Answer]:
    """ORTModelForSequenceClassification over padded batches of (rule, message)."""
    from optimum.onnxruntime import ORTModelForSequenceClassification
    from transformers import AutoTokenizer

    model = ORTModelForSequenceClassification.from_pretrained(config["folder"], file_name=config["file"])
    tokenizer = AutoTokenizer.from_pretrained(config["folder"])
    pairs, batch = config["pairs"], 32

    def answer(request: dict[str, Any]) -> dict[str, Any]:
        rows = 0
        for i in range(0, len(pairs), batch):
            part = [list(side) for side in zip(*pairs[i : i + batch], strict=True)]
            arrays = tokenizer(*part, padding=True, truncation=True, return_token_type_ids=True, return_tensors="np")
            rows += len(model(**arrays).logits)
        return {"rows": rows}

    return f"{version('optimum-onnx')} (onnxruntime {version('onnxruntime')})", answer


def llm_guard(config: dict[str, Any]) -> tuple[str, Answer]:
    """BanTopics with the ONNX runtime: each topic is a pair with the message; here topics are the rules."""
    from llm_guard.input_scanners import BanTopics
    from llm_guard.model import Model
    from llm_guard.util import configure_logger

    configure_logger("ERROR")
    by_message: dict[str, list[str]] = {}
    for rule, message in config["pairs"]:
        by_message.setdefault(message, []).append(rule)
    model = Model(
        path=config["folder"], onnx_path=config["folder"], onnx_filename=config["file"],
        pipeline_kwargs={"max_length": 512, "truncation": True},
    )  # fmt: skip
    scanners: dict[tuple[str, ...], Any] = {}
    for rules in by_message.values():
        scanners.setdefault(tuple(rules), None)
    for key in scanners:
        scanners[key] = BanTopics(topics=list(key), threshold=0.5, model=model, use_onnx=True)

    def answer(request: dict[str, Any]) -> dict[str, Any]:
        return {"rows": sum(len(scanners[tuple(r)].scan(m)) > 0 for m, r in by_message.items())}

    return f"{version('llm-guard')} (optimum {version('optimum')}, onnxruntime {version('onnxruntime')})", answer


KINDS = {"nemo": nemo, "openai-guardrails": openai_guardrails, "optimum": optimum, "llm-guard": llm_guard}


def main() -> None:
    # Libraries print where they like; answers have a channel of their own.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    os.environ.setdefault("OPENAI_API_KEY", "none")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    found, answer = KINDS[sys.argv[1]](json.loads(sys.stdin.readline()))
    print(json.dumps({"version": found}), file=answers, flush=True)
    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line))), file=answers, flush=True)


if __name__ == "__main__":
    main()
