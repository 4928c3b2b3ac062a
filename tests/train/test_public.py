import json
import random
from pathlib import Path

import pytest

from csrm_guard.policy import Policy
from csrm_guard_train.augment import Augmenter
from csrm_guard_train.data import Authored
from csrm_guard_train.public import read_public
from csrm_guard_train.recipe import Mixture


def write(folder: Path, name: str, *rows: dict[str, object]) -> None:
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def row(harmful: bool | None, *categories: str) -> dict[str, object]:
    messages = [{"role": "user", "content": "How do I do it?"}, {"role": "assistant", "content": "Like this."}]
    return {"id": "1", "messages": messages, "labels": {"harmful": harmful, "categories": list(categories)}}


def test_a_harmful_row_is_forbidden_and_permitted(authored: Authored, tmp_path: Path):
    write(tmp_path, "pyrit_scorer_evals", row(True, "violence"))
    group, *_ = read_public(tmp_path, authored.ladders, 0)
    labels = {rule.origin.rsplit("/", 1)[1]: rule.violated for rule in group.examples[0].rules}
    assert labels["harm"]
    assert labels["violence"]
    assert not labels["allowed"]
    assert not labels["violence-7"]


def test_a_harmless_row_violates_nothing(authored: Authored, tmp_path: Path):
    write(tmp_path, "benign_conversations", row(False))
    group, *_ = read_public(tmp_path, authored.ladders, 0)
    assert not any(rule.violated for rule in group.examples[0].rules)


def test_rows_without_a_label_are_left_out(authored: Authored, tmp_path: Path):
    write(tmp_path, "pyrit_scorer_evals", row(None))
    assert read_public(tmp_path, authored.ladders, 0) == []


@pytest.mark.parametrize("name", ["davidson_hate_offensive", "wildguard_aegis_train_prompts"])
def test_sets_of_unclear_licence_are_not_read(authored: Authored, tmp_path: Path, name: str):
    write(tmp_path, name, row(True))
    assert read_public(tmp_path, authored.ladders, 0) == []


@pytest.mark.parametrize(("harmful", "expected"), [(True, 2), (False, 4)])
def test_harmless_rows_outnumber_harmful_ones_under_all_built_in_rules(
    authored: Authored, tmp_path: Path, harmful: bool, expected: int
):
    write(tmp_path, "red_instruct_prompts", *(row(harmful) for _ in range(4)))
    found = [g for g in read_public(tmp_path, authored.ladders, 0) if g.id.endswith("/baseline")]
    assert len(found) == expected
    example = found[0].examples[0]
    assert len(example.rules) == len(Policy.builtin("baseline-harms").rules)
    assert example.verdict is harmful


def test_nobody_says_which_rule_a_harmful_row_breaks(authored: Authored, tmp_path: Path):
    write(tmp_path, "red_instruct_prompts", row(True))
    group = read_public(tmp_path, authored.ladders, 0)[1]
    assert {rule.weight for rule in group.examples[0].rules} == {0.0}


def test_half_of_the_rows_see_the_built_in_rules_in_other_words(authored: Authored, tmp_path: Path):
    write(tmp_path, "red_instruct_prompts", *(row(False) for _ in range(40)))
    built_in = Policy.builtin("baseline-harms").rules
    others = {rule.id: (f"Other words for {rule.id}.",) for rule in built_in}
    found = [g for g in read_public(tmp_path, authored.ladders, 0, others) if g.id.endswith("/baseline")]
    usual = [g for g in found if [rule.text for rule in g.examples[0].rules] == [rule.text for rule in built_in]]
    assert 10 < len(usual) < 30
    assert all(len(g.examples[0].rules) == len(built_in) for g in found)


def test_a_category_is_also_worded_as_a_harm_rule(authored: Authored, tmp_path: Path):
    write(tmp_path, "diasafety", row(True, "Biased Opinion"))
    (group,) = read_public(tmp_path, authored.ladders, 0, {"hate": ("No contempt.",)})
    (rule,) = [rule for rule in group.examples[0].rules if rule.origin.endswith("/hate")]
    assert rule.violated


def test_a_harmful_row_stays_harmful_among_more_rules(authored: Authored, tmp_path: Path):
    write(tmp_path, "red_instruct_prompts", row(True))
    group = read_public(tmp_path, authored.ladders, 0)[1]
    wider = Augmenter(authored, Mixture(foreign=2)).public(group, random.Random(0))
    assert wider.examples[0].verdict is True
    assert len(wider.examples[0].rules) > len(group.examples[0].rules)


def test_the_question_of_a_harmless_answer_is_a_harmless_prompt(authored: Authored, tmp_path: Path):
    write(tmp_path, "benign_conversations", row(False))
    (question,) = [g for g in read_public(tmp_path, authored.ladders, 0) if "/question" in g.id]
    (view,) = question.examples[0].views
    assert [message.role for message in view] == ["user"]
    assert question.examples[0].verdict is False
    assert len(question.examples[0].rules) == len(Policy.builtin("baseline-harms").rules)


def test_the_question_of_other_sets_may_be_an_attack_and_is_left_out(authored: Authored, tmp_path: Path):
    write(tmp_path, "pyrit_scorer_evals", row(False))
    assert not [g for g in read_public(tmp_path, authored.ladders, 0) if "/question" in g.id]
