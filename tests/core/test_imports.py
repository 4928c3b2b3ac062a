import ast
import subprocess
import sys
from pathlib import Path

import pytest

import csrm_guard

ROOT = Path(csrm_guard.__file__).parents[1]
HEAVY = {"torch", "transformers", "openai", "langchain_core", "onnxruntime", "numpy", "pydantic", "tokenizers", "yaml"}


def python(code):
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)


def test_importing_the_package_loads_nothing_heavy():
    done = python("import sys, csrm_guard; print(*{name.partition('.')[0] for name in sys.modules})")
    assert done.returncode == 0, done.stderr
    assert not HEAVY & set(done.stdout.split())


def test_a_guard_with_a_fake_needs_no_runtime_and_no_tokenizer():
    code = (
        "import sys\nfrom csrm_guard import Guard\nfrom csrm_guard.testing import KeywordRewardModel\n"
        "Guard('bank', KeywordRewardModel('x')).check('hello')\n"
        "print(*{name.partition('.')[0] for name in sys.modules})"
    )
    done = python(code)
    assert done.returncode == 0, done.stderr
    assert not {"torch", "transformers", "openai", "langchain_core", "onnxruntime", "tokenizers"} & set(
        done.stdout.split()
    )


def test_the_command_line_needs_no_torch():
    done = python("import sys, csrm_guard.__main__; print(*{name.partition('.')[0] for name in sys.modules})")
    assert done.returncode == 0, done.stderr
    assert not {"torch", "transformers", "openai", "langchain_core", "onnxruntime"} & set(done.stdout.split())


def test_all_is_sorted():
    assert csrm_guard.__all__ == sorted(csrm_guard.__all__)


def test_all_is_what_type_checkers_see():
    tree = ast.parse(Path(csrm_guard.__file__).read_text(encoding="utf-8"))
    block = next(node for node in tree.body if isinstance(node, ast.If))
    assert sorted(alias.name for node in block.body for alias in node.names) == csrm_guard.__all__


def test_dir_lists_the_shop_window():
    assert dir(csrm_guard) == sorted([*csrm_guard.__all__, "__version__"])


@pytest.mark.parametrize("name", csrm_guard.__all__)
def test_every_name_is_importable(name):
    assert getattr(csrm_guard, name).__name__ == name


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'csrm_guard' has no attribute 'Gaurd'"):
        _ = csrm_guard.Gaurd


def test_every_module_declares_a_sorted_all():
    for path in Path(csrm_guard.__file__).parent.glob("[a-z]*.py"):
        module = __import__(f"csrm_guard.{path.stem}", fromlist=["__all__"])
        assert sorted(module.__all__) == sorted(set(module.__all__)), path
        assert all(hasattr(module, name) for name in module.__all__), path


@pytest.mark.parametrize(
    "name",
    ["ArtifactError", "DocumentError", "MessageError", "PolicyError", "RowError", "RuntimeMissing", "ScoringError"],
)
def test_every_error_is_a_csrm_guard_error(name):
    from csrm_guard import errors

    assert issubclass(getattr(errors, name), csrm_guard.CsrmGuardError)
