import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = sorted((Path(__file__).resolve().parents[2] / "examples").glob("*.py"))

# What a newcomer looks for.
WANTED = {
    "quickstart", "openai_chat", "streaming", "tools", "langchain_chain", "langchain_agent", "best_of_n", "shadow_mode",
    "custom_check",
}  # fmt: skip


def test_there_is_an_example_of_each_kind():
    assert {path.stem for path in EXAMPLES} >= WANTED


@pytest.mark.slow
@pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: p.stem)
def test_every_example_runs(path: Path):
    tree = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}  # this checkout, not one that is installed
    done = subprocess.run([sys.executable, str(path)], capture_output=True, text=True, timeout=300, env=tree)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


@pytest.mark.parametrize("path", [p for p in EXAMPLES if p.stem != "demo"], ids=lambda p: p.stem)
def test_every_example_but_the_demo_is_short(path: Path):
    assert len(path.read_text().splitlines()) < 40
