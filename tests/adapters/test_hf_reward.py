import shutil
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

import torch
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer, PreTrainedTokenizerFast

from csrm_guard import Guard, Message, Policy, best_of_n
from csrm_guard.artifact import DEFAULT_ARTIFACT
from csrm_guard.ranking import Constrained, Product
from csrm_guard.testing import KeywordRewardModel
from csrm_guard_adapters.hf_reward import hf_helpfulness
from tests.fresh import python

TALK = (Message("user", "My kettle leaks."), Message("assistant", "Oh."), Message("user", "What now?"))
ANSWERS = ["Bring it to us.", "No idea.", "Take the warranty card with you, it is a matter of minutes."]
TEMPLATE = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"


def write(folder: Path, *, labels: int = 1, template: str | None = None, pad: bool = True) -> Path:
    """Write a random two-layer reward model of width 32."""
    torch.manual_seed(0)
    size = {"vocab_size": 30522, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = AutoConfig.for_model(
        "bert", intermediate_size=64, num_labels=labels, max_position_embeddings=64, initializer_range=0.5, **size
    )
    AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
    shutil.copy(DEFAULT_ARTIFACT / "tokenizer.json", folder)
    special = {"cls_token": "[CLS]", "sep_token": "[SEP]"}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "tokenizer.json"), pad_token="[PAD]" if pad else None, **special
    )
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("reward"))


@pytest.mark.parametrize("template", [None, TEMPLATE], ids=["pair", "chat"])
def test_the_score_is_the_models_logit(tmp_path: Path, template: str | None):
    path = write(tmp_path, template=template)
    tokenizer = AutoTokenizer.from_pretrained(path)
    model = AutoModelForSequenceClassification.from_pretrained(path).eval()
    if template is None:
        given = tokenizer("\n".join(m.content for m in TALK), ANSWERS[0], return_tensors="pt")
    else:
        text = "".join(f"{m.role}: {m.content}\n" for m in TALK) + f"assistant: {ANSWERS[0]}\n"
        given = tokenizer(text, add_special_tokens=False, return_tensors="pt")
    with torch.no_grad():
        expected = float(model(**given).logits[0, 0])
    assert hf_helpfulness(path)(TALK, ANSWERS[:1]) == [pytest.approx(expected, abs=1e-5)]


def test_a_batch_scores_as_each_alone(folder: Path):
    together, alone = hf_helpfulness(folder), hf_helpfulness(folder, batch_size=1)
    scores = together(TALK, ANSWERS)
    assert scores == pytest.approx(alone(TALK, ANSWERS), abs=1e-4)
    assert len(set(scores)) == 3
    assert together(TALK, []) == []


def test_a_model_that_cannot_pad_scores_one_at_a_time(tmp_path: Path):
    assert len(hf_helpfulness(write(tmp_path, pad=False))(TALK, ANSWERS)) == 3


def test_a_model_may_be_given_as_such(folder: Path):
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert hf_helpfulness(model, tokenizer)(TALK, ANSWERS) == pytest.approx(hf_helpfulness(folder)(TALK, ANSWERS))
    with pytest.raises(ValueError, match="needs the tokenizer"):
        hf_helpfulness(model)


def test_what_is_too_long_loses_its_oldest_turns(folder: Path):
    helpfulness = hf_helpfulness(folder)
    long = (Message("user", "word " * 200), Message("assistant", "Oh."), *TALK[2:])
    assert helpfulness(long, ANSWERS) == pytest.approx(helpfulness(TALK[2:], ANSWERS), abs=1e-4)


def test_an_answer_that_is_too_long_is_scored_by_its_beginning(folder: Path):
    (first, second) = hf_helpfulness(folder)(TALK, ["word " * 200, "word " * 300])
    assert first == pytest.approx(second, abs=1e-4)


def test_a_sigmoid_makes_it_positive(folder: Path):
    scores, logits = hf_helpfulness(folder, sigmoid=True)(TALK, ANSWERS), hf_helpfulness(folder)(TALK, ANSWERS)
    assert scores == pytest.approx([float(torch.tensor(x).sigmoid()) for x in logits], abs=1e-5)


def test_a_classifier_is_no_reward_model(tmp_path: Path):
    with pytest.raises(ValueError, match="has 1 label, this one has 3"):
        hf_helpfulness(write(tmp_path, labels=3))


def test_a_model_that_is_not_there_is_an_error_and_not_a_download(tmp_path: Path):
    with pytest.raises(OSError, match="nowhere"):
        hf_helpfulness(tmp_path / "nowhere")


@pytest.mark.parametrize("objective", [Constrained(), Product()], ids=["constrained", "product"])
def test_it_ranks_the_answers_of_a_model(folder: Path, objective: Any):
    policy = Policy.from_dict({"name": "p", "rules": [{"id": "a", "text": "No."}]})
    guard, helpfulness = Guard(policy, KeywordRewardModel("bomb")), hf_helpfulness(folder, sigmoid=True)
    answers = iter(ANSWERS)
    found = best_of_n(guard, list(TALK), lambda: next(answers), 3, objective=objective, helpfulness=helpfulness)
    scores = helpfulness(TALK, ANSWERS)
    assert found.text == ANSWERS[scores.index(max(scores))]


def test_without_torch_the_error_names_the_fix():
    code = "import sys; sys.modules['torch'] = None\nimport csrm_guard_adapters.hf_reward"
    assert 'pip install "csrm-guard[train]"' in python(code).stderr
