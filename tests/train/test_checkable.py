import random
import re

import pytest

from csrm_guard.messages import Message
from csrm_guard_train.checkable import Checkable, checkable_rules

TALK = (
    Message("user", "Is the blue kettle cheaper than the copper teapot?"),
    Message("assistant", "The kettle costs £42.50 and the teapot £61. Shall I put one aside for you?"),
)
VOCABULARY = ["dragon", "insurance", "piano", "harbour"]


def made(pattern: str) -> list[tuple[re.Match[str], Checkable]]:
    """Every rule of a few thousand whose text matches a pattern."""
    rng = random.Random(0)
    rules = [r for _ in range(1500) for r in checkable_rules(TALK, VOCABULARY, rng, count=2)]
    found = [(m, r) for r in rules if (m := re.fullmatch(pattern, r.text))]
    assert found
    return found


def says(word: str) -> bool:
    return re.search(rf"\b{re.escape(word)}\b", TALK[-1].content.lower()) is not None


def test_a_forbidden_word_is_violated_where_it_is_said():
    assert all(rule.violated == says(m[1]) for m, rule in made(r"Never mention (.+)\."))


def test_a_required_word_is_violated_where_it_is_missing():
    assert all(rule.violated != says(m[1]) for m, rule in made(r"Every message must mention (.+)\."))


def test_an_amount_above_the_limit_is_a_violation():
    assert all(r.violated == (61 > float(m[1])) for m, r in made(r"No amount above £(.+) may be stated\."))


def test_a_required_amount_is_violated_below_it():
    found = made(r"The message must name at least one amount of £(.+) or more\.")
    assert all(rule.violated == (61 < float(m[1])) for m, rule in found)


def test_an_exception_excuses_only_where_its_condition_holds():
    earlier = TALK[0].content.lower()
    for match, rule in made(r"Do not bring up (.+) unless (.+) was mentioned before\."):
        assert rule.violated == (says(match[1]) and match[2] not in earlier)


def test_words_are_counted():
    count = len(TALK[-1].content.split())
    assert all(r.violated == (count > int(m[1])) for m, r in made(r"Keep it to (\d+) words or fewer\."))


@pytest.mark.parametrize("kind", ["keyword", "limit", "feature", "length", "condition", "both"])
def test_each_kind_is_both_kept_and_violated(kind: str):
    rng = random.Random(1)
    rules = [r for _ in range(1500) for r in checkable_rules(TALK, VOCABULARY, rng, count=2)]
    assert {r.violated for r in rules if r.kind == kind} == {True, False}


def test_the_same_seed_makes_the_same_rules():
    first = checkable_rules(TALK, VOCABULARY, random.Random(3), count=5)
    assert first == checkable_rules(TALK, VOCABULARY, random.Random(3), count=5)
