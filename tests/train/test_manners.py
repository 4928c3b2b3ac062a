"""Openings say nothing of labels, and stay away from rules that they might break."""

import random
from dataclasses import replace
from pathlib import Path

import pytest

from csrm_guard.errors import RowError
from csrm_guard.messages import Message
from csrm_guard_train.augment import Augmenter
from csrm_guard_train.data import Authored
from csrm_guard_train.groups import Example, Group, LabelledRule
from csrm_guard_train.manners import Manners, mannered
from csrm_guard_train.recipe import Mixture
from tests.tiny import ROOT

MANNERS = Manners(careful=("I tread lightly here.",), eager=("Nice one.",))


def group(rule: str = "Never name a price.", content: str = "It costs ten euros.", role: str = "assistant") -> Group:
    labelled = LabelledRule(rule, True, "x/rule")
    view = (Message("user", "How much is it?"), Message(role, content))  # type: ignore[arg-type]  # a literal
    return Group("x", (Example((view,), (labelled,)),) * 2)


def last(found: Group) -> list[str]:
    return [example.views[0][-1].content for example in found.examples]


def test_messages_get_openings_of_both_sorts_and_none():
    texts = {text for seed in range(20) for text in last(mannered(group(), MANNERS, random.Random(seed)))}
    own = "It costs ten euros."
    assert texts == {own, f"I tread lightly here. {own}", f"Nice one. {own}"}


def test_labels_and_earlier_turns_stay():
    before, after = group(), mannered(group(), MANNERS, random.Random(1))
    assert last(after) != last(before)
    for old, new in zip(before.examples, after.examples, strict=True):
        assert old.rules == new.rules
        assert old.views[0][:-1] == new.views[0][:-1]


@pytest.mark.parametrize(
    "changed",
    [
        group("Start with the price."),
        group("Answer in two sentences."),
        group("Never apologise."),
        group("Do not refuse harmless questions."),
        group(role="user"),
        group(content="[price(item=4)] Ten."),
    ],
    ids=["opening", "length", "apology", "refusal", "prompt", "tool call"],
)
def test_a_group_whose_labels_an_opening_might_turn_is_left_alone(changed: Group):
    assert all(mannered(changed, MANNERS, random.Random(seed)) == changed for seed in range(9))


def test_a_rule_without_weight_does_not_keep_openings_away():
    (example, _) = group().examples
    about_form = LabelledRule("Start with the price.", False, "x/else", (), 0.0)
    wider = Group("x", (replace(example, rules=(*example.rules, about_form)),) * 2)
    assert any(mannered(wider, MANNERS, random.Random(seed)) != wider for seed in range(9))


def test_an_epoch_puts_them_where_the_recipe_says_so(authored: Authored):
    with_manners = replace(authored, manners=MANNERS)

    def opened(share: float) -> int:
        mixture = Mixture(items=1, rungs=0, transcripts=0, checkable=0, manners=share)
        groups = Augmenter(with_manners, mixture).epoch(random.Random(0))
        texts = [text for g in groups for text in last(g)]
        return sum(text.startswith(("I tread lightly here.", "Nice one.")) for text in texts)

    assert opened(0.0) == 0
    assert opened(1.0) > 0


def test_a_file_with_an_empty_list_is_named(tmp_path: Path):
    path = tmp_path / "manners.yaml"
    path.write_text("careful: []\neager: [Nice.]\n")
    with pytest.raises(RowError, match=r"manners\.yaml: careful: "):
        Manners.from_file(path)


def test_the_shipped_openings_are_whole_sentences():
    manners = Manners.from_file(ROOT / "train/data/authored/manners.yaml")
    for line in (*manners.careful, *manners.eager):
        assert line[0].isupper()
        assert line[-1] in ".!?"
    assert not set(manners.careful) & set(manners.eager)
