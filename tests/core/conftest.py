import shutil
from pathlib import Path

import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

from csrm_guard import OnnxRewardModel
from csrm_guard.artifact import DEFAULT_ARTIFACT, Manifest, digest, write_manifest
from csrm_guard.encoding import Encoder, Limits
from csrm_guard.template import TEMPLATE_VERSION

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
FIRST_WORD = 100


@pytest.fixture(scope="session")
def default_model() -> OnnxRewardModel:
    return OnnxRewardModel.default()


@pytest.fixture(scope="session")
def encoder() -> Encoder:
    """The shipped tokenizer at work."""
    tokenizer = Tokenizer.from_file(str(DEFAULT_ARTIFACT / "tokenizer.json"))
    return Encoder(tokenizer, cls="[CLS]", sep="[SEP]", limits=Limits())


@pytest.fixture(scope="session")
def words() -> Encoder:
    """An encoder with small limits in which the word w7 is the token 107: countable by hand."""
    vocabulary = {token: i for i, token in enumerate([*SPECIAL, "latest", "user", "allowed", ":", ";"])}
    vocabulary |= {f"w{i}": FIRST_WORD + i for i in range(2000)}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.add_special_tokens(SPECIAL)
    limits = Limits(conversation=64, judged=32, stride=16, rule=24, rule_stride=12, sequence=128)
    return Encoder(tokenizer, cls="[CLS]", sep="[SEP]", limits=limits)


@pytest.fixture
def artifact(tmp_path: Path) -> Path:
    """A model directory that is in order but for its graph, which is no graph."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "model.onnx").write_bytes(b"not a graph")
    shutil.copy(DEFAULT_ARTIFACT / "tokenizer.json", folder)
    files = {name: digest(folder / name) for name in ("model.onnx", "tokenizer.json")}
    manifest = Manifest(
        name="test", template=TEMPLATE_VERSION, files=files, precision="fp32", opset=18, limits=Limits()
    )
    write_manifest(folder, manifest)
    return folder
