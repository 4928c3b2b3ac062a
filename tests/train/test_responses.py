"""Chosen and rejected answers: an order under one rule, and no label."""

import json
import random
from pathlib import Path

import pytest

from csrm_guard.errors import RowError
from csrm_guard_train.augment import Augmenter
from csrm_guard_train.batches import encode, to_batch
from csrm_guard_train.checkpoint import Trained
from csrm_guard_train.data import Authored
from csrm_guard_train.groups import Group
from csrm_guard_train.recipe import Mixture
from csrm_guard_train.responses import read_responses

PAIR = {"id": "7", "messages": [{"role": "user", "content": "Hi?"}], "chosen": "Hello.", "rejected": "Go away."}


def write(folder: Path, *rows: dict) -> Path:
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "hh_harmless_test_pairs.jsonl").write_text(text)
    return folder


@pytest.fixture
def group(tmp_path: Path) -> Group:
    return read_responses(write(tmp_path, PAIR), 0)[0]


def test_the_rejected_answer_is_the_one_violated_more(group: Group):
    order = group.orders[0]
    assert group.examples[order.more[0]].views[0][-1].content == "Go away."
    assert group.examples[order.less[0]].views[0][-1].content == "Hello."


def test_both_answers_are_read_under_the_same_rule(group: Group):
    assert group.examples[0].rules == group.examples[1].rules


def test_a_preference_is_no_label(group: Group, untrained: Trained):
    batch = to_batch([row for row in [encode(group, untrained.encoder)] if row])
    assert batch.weights.tolist() == [0.0, 0.0]
    assert (len(batch.more), len(batch.less)) == (1, 1)


def test_a_pair_without_an_answer_is_named(tmp_path: Path):
    with pytest.raises(RowError, match=r"hh_harmless_test_pairs\.jsonl: line 1: .*rejected"):
        read_responses(write(tmp_path, {**PAIR, "rejected": ""}), 0)


def test_long_answers_are_left_out(tmp_path: Path):
    assert read_responses(write(tmp_path, {**PAIR, "chosen": "a" * 1_201}), 0) == []


def tuned(folder: Path, system: str, chosen: str, **labels: str) -> list[Group]:
    """Return the groups of one pair that was made to tune a model to a system prompt."""
    messages = [{"role": "system", "content": system}, *PAIR["messages"]]
    row = {**PAIR, "messages": messages, "chosen": chosen, "labels": labels or {"criterion": "harmless"}}
    (folder / "configurable_safety_tuning_pairs.jsonl").write_text(json.dumps(row) + "\n")
    return read_responses(folder, 0)


def test_a_system_prompt_that_asks_for_harmless_answers_is_not_shown(tmp_path: Path):
    (group,) = tuned(tmp_path, "You are helpful yet harmless.", "Hello.")
    assert [message.role for message in group.examples[0].views[0]] == ["user", "assistant"]


@pytest.mark.parametrize(
    ("system", "labels"),
    [("You are completely uncensored.", {}), ("You are truthful.", {"criterion": "truthfulness"})],
)
def test_pairs_tuned_to_something_else_are_left_out(tmp_path: Path, system: str, labels: dict[str, str]):
    assert tuned(tmp_path, system, "Hello.", **labels) == []


def test_a_long_answer_of_a_tuning_set_is_cut_after_a_sentence(tmp_path: Path):
    (group,) = tuned(tmp_path, "You are harmless.", "A sentence. " * 200)
    text = group.examples[1].views[0][-1].content
    assert len(text) <= 1_200
    assert text.endswith("A sentence.")


def test_an_epoch_holds_the_share_that_the_recipe_asks_for(group: Group, authored: Authored):
    def count(share: float) -> int:
        mixture = Mixture(items=0, rungs=0, transcripts=0, responses=share)
        return len(Augmenter(authored, mixture, responses=[group] * 10).epoch(random.Random(0)))

    assert (count(0.0), count(0.5), count(1.0)) == (0, 5, 10)
