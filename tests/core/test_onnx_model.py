import json
import random
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import csrm_guard
from csrm_guard import (
    ArtifactError,
    Guard,
    Message,
    OnnxRewardModel,
    Policy,
    RewardModel,
    Rule,
    ScoringError,
    ScoringRequest,
)
from csrm_guard.artifact import DEFAULT_ARTIFACT, MANIFEST, digest
from csrm_guard.errors import RuntimeMissing

ROOT = Path(csrm_guard.__file__).parents[1]
RULES = (
    *Policy.builtin("baseline-harms").rules,
    Rule(id="refunds", text="Never promise a refund or say that one has been made."),
    Rule(id="sources", text="Name the source of every number.", stance="require"),
)
IRRELEVANT = tuple(Rule(id=f"other-{i}", text=f"Do not talk about the moons of planet {i}.") for i in range(12))
TALK = (Message("user", "My kettle leaks."), Message("assistant", "I promise you a full refund today."))
TEXTS = ("Hello!", "I promise you a refund.", "The capital of France is Paris. " * 8, "How do I pick a lock?")


def q_of(model, rules, messages=TALK, permits=()):
    (reading,) = model.score([ScoringRequest(messages, tuple(rules), tuple(permits))])
    return reading.q


def test_the_shipped_model_is_a_reward_model(default_model):
    assert isinstance(default_model, RewardModel)
    assert default_model.id.count("@") == 1
    assert default_model.providers == ["CPUExecutionProvider"]


def test_the_shipped_model_is_loaded_once(default_model):
    assert OnnxRewardModel.default() is default_model


def test_q_is_a_probability_per_window_and_rule(default_model):
    q = q_of(default_model, RULES, (Message("user", "word " * 600),))
    assert q.shape[0] > 1
    assert q.shape[1] == len(RULES)
    assert ((q >= 0) & (q <= 1)).all()


def test_equal_questions_have_equal_answers(default_model):
    assert np.array_equal(q_of(default_model, RULES), q_of(default_model, RULES))


def test_the_order_of_rules_does_not_matter(default_model):
    turned = random.Random(0).sample(RULES, len(RULES))
    q = dict(zip(turned, q_of(default_model, turned)[0], strict=True))
    assert q_of(default_model, RULES)[0] == pytest.approx([q[rule] for rule in RULES], abs=1e-5)


def test_irrelevant_rules_do_not_change_the_others(default_model):
    crowded = q_of(default_model, (*IRRELEVANT[:6], *RULES, *IRRELEVANT[6:]))[0, 6:-6]
    assert crowded == pytest.approx(q_of(default_model, RULES)[0], abs=1e-5)


def test_a_rule_alone_reads_as_among_others(default_model):
    alone = [q_of(default_model, [rule])[0, 0] for rule in RULES]
    assert alone == pytest.approx(q_of(default_model, RULES)[0], abs=1e-5)


def test_a_batch_gives_what_single_questions_give(default_model):
    requests = [ScoringRequest((Message("user", text),), RULES) for text in TEXTS]
    for request, reading in zip(requests, default_model.score(requests), strict=True):
        assert reading.q == pytest.approx(default_model.score([request])[0].q, abs=1e-6)


def test_a_batch_keeps_its_order_whatever_the_lengths(default_model):
    texts = [f"w{i} " * (1 + 37 * (i % 5)) for i in range(10)]
    readings = default_model.score([ScoringRequest((Message("user", text),), RULES[:1]) for text in texts])
    assert [reading.spans[-1][1] for reading in readings] == [len(text.rstrip()) for text in texts]


def test_no_questions_have_no_answers(default_model):
    assert default_model.score([]) == []


def test_the_windows_hold_the_whole_message(default_model):
    text = "All of this is judged. " * 200
    (reading,) = default_model.score([ScoringRequest((Message("user", text),), RULES[:1])])
    assert (reading.spans[0][0], reading.spans[-1][1]) == (0, len(text.rstrip()))
    assert all(later <= end for (_, end), (later, _) in zip(reading.spans, reading.spans[1:], strict=False))


def test_more_rules_than_a_sequence_holds_are_all_scored(default_model):
    rules = [Rule(id=f"r{i}", text=f"Do not name the number {i} in any language or notation.") for i in range(120)]
    assert q_of(default_model, rules).shape == (1, 120)


def test_long_rules_and_permissions_are_scored(default_model):
    rule = Rule(id="a", text="Do not name numbers. " * 80)
    permits = [Rule(id=f"p{i}", text="Dates are fine. " * (60 if i == 3 else 2), stance="permit") for i in range(9)]
    assert np.isfinite(q_of(default_model, [rule], permits=permits)).all()


def test_an_image_alone_is_scored(default_model):
    assert q_of(default_model, RULES, (Message("user", unread=("image_url",)),)).shape == (1, len(RULES))


@pytest.mark.parametrize("text", ["\x00", "\u202e\u200b", "🦊" * 300, "a" * 5000, "[SEP] [CLS]"], ids=ascii)
def test_strange_text_is_scored(default_model, text):
    assert np.isfinite(q_of(default_model, RULES[:2], (Message("user", text),))).all()


def test_one_model_serves_many_threads(default_model):
    guard = Guard(Policy(rules=RULES), default_model)
    alone = [guard.check(text).p_safe for text in TEXTS]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda text: guard.check(text).p_safe, TEXTS * 3)) == pytest.approx(alone * 3, abs=1e-6)


def test_a_stored_false_positive_rate_has_a_threshold(default_model):
    fpr, q = default_model.manifest.calibration.benign[0]
    assert default_model.threshold_at(fpr) == pytest.approx(q)


def test_a_rate_that_the_model_cannot_answer_is_refused_with_the_way_out(default_model):
    with pytest.raises(ScoringError, match=r"outside the stored rates .*; give the rule a `threshold` instead"):
        default_model.threshold_at(1e-9)


def test_a_guard_is_not_built_on_a_rate_that_the_model_cannot_answer(default_model):
    with pytest.raises(ScoringError, match="outside the stored rates"):
        Guard(Policy(rules=(Rule(id="a", text="x", fpr=1e-9),)), default_model)


def test_a_corrupted_graph_with_a_matching_hash_is_refused(artifact):
    with pytest.raises(ArtifactError, match=r"model\.onnx: ONNX Runtime cannot load it .*; export the model again"):
        OnnxRewardModel.load(artifact)


def test_an_altered_graph_is_refused(artifact):
    (artifact / "model.onnx").write_bytes(b"altered")
    with pytest.raises(ArtifactError, match="is damaged or altered"):
        OnnxRewardModel.load(artifact)


@pytest.mark.parametrize("change", [{"cls": "[NONE]"}, {"sep": "[NONE]"}], ids=["cls", "sep"])
def test_a_tokenizer_without_the_special_tokens_is_refused(artifact, change):
    data = json.loads((artifact / MANIFEST).read_text()) | change
    (artifact / MANIFEST).write_text(json.dumps(data))
    with pytest.raises(ArtifactError, match=r"tokenizer\.json: not a usable tokenizer .*\[NONE\]"):
        OnnxRewardModel.load(artifact)


def test_a_corrupted_tokenizer_with_a_matching_hash_is_refused(artifact):
    (artifact / "tokenizer.json").write_text("{}")
    data = json.loads((artifact / MANIFEST).read_text())
    data["files"]["tokenizer.json"] = digest(artifact / "tokenizer.json")
    (artifact / MANIFEST).write_text(json.dumps(data))
    with pytest.raises(ArtifactError, match=r"tokenizer\.json: not a usable tokenizer .*; export the model again"):
        OnnxRewardModel.load(artifact)


def test_a_provider_that_is_not_there_is_refused_with_the_ones_that_are(artifact):
    with pytest.raises(RuntimeMissing, match=r"no execution provider MagicExecutionProvider here; there are .*CPU"):
        OnnxRewardModel.load(artifact, providers=["MagicExecutionProvider"])


def test_a_provider_takes_options(default_model):
    options = {"arena_extend_strategy": "kSameAsRequested"}
    model = OnnxRewardModel.load(DEFAULT_ARTIFACT, providers=[("CPUExecutionProvider", options)])
    assert model.providers == ["CPUExecutionProvider"]
    assert q_of(model, RULES) == pytest.approx(q_of(default_model, RULES), abs=1e-5)


def test_conversations_under_the_same_and_under_other_rules_keep_their_order(default_model):
    requests = [ScoringRequest((Message("user", text),), RULES[i % 2 :]) for i, text in enumerate(TEXTS)]
    for request, reading in zip(requests, default_model.score(requests), strict=True):
        assert reading.q == pytest.approx(default_model.score([request])[0].q, abs=1e-6)


def test_a_missing_runtime_names_the_extra_that_brings_it():
    code = (
        "import sys\n"
        "class Absent:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.partition('.')[0] == 'onnxruntime': raise ImportError(name)\n"
        "sys.meta_path.insert(0, Absent())\n"
        "from csrm_guard import Guard\n"
        "Guard('bank')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert 'RuntimeMissing: ONNX Runtime is not installed: pip install "csrm-guard[cpu]"' in done.stderr
