import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from csrm_guard import OnnxRewardModel
from csrm_guard.artifact import DEFAULT_ARTIFACT
from csrm_guard.encoding import Window
from csrm_guard.graphs import alike

CHANCE = random.Random(0)


def ids(count: int) -> tuple[int, ...]:
    return tuple(CHANCE.randrange(1000, 20000) for _ in range(count))


CONTEXT, JUDGED = ids(60), ids(40)
RULES = [(101, *ids(n), 102) for n in (12, 14, 30, 9, 150)]


@pytest.fixture(scope="module")
def bare():
    """The shipped model without a cache."""
    return OnnxRewardModel.load(DEFAULT_ARTIFACT, prefix_bytes=0)


def read(model: OnnxRewardModel, context=CONTEXT, judged=JUDGED, rules=RULES, **options):
    return model.graph.read(Window(context, judged, 0, 0), rules, **options)


def test_a_cached_prompt_changes_nothing(default_model, bare):
    kept = [read(default_model, shared=True) for _ in range(3)]
    assert default_model.prefixes.get(CONTEXT) is not None
    assert np.abs(np.array(kept) - read(bare)).max() < 1e-4


def test_a_cached_prompt_serves_another_message(default_model, bare):
    read(default_model, shared=True)
    other = ids(55)
    assert np.abs(read(default_model, judged=other) - read(bare, judged=other)).max() < 1e-4


def test_rules_read_alone_as_together(bare):
    alone = [float(read(bare, rules=[rule])[0]) for rule in RULES]
    assert read(bare) == pytest.approx(alone, abs=1e-4)


def test_a_message_without_context_is_read(bare):
    assert np.isfinite(read(bare, context=())).all()


def test_context_is_read(bare):
    assert np.abs(read(bare) - read(bare, context=ids(60))).max() > 0.01


def test_many_rules_are_read_in_several_runs(bare):
    many = [(101, *ids(40), 102) for _ in range(60)]
    together = read(bare, rules=many)
    assert together[-1] == pytest.approx(float(read(bare, rules=many[-1:])[0]), abs=1e-4)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(3, 160), min_size=1, max_size=80))
def test_groups_hold_every_rule_once(lengths: list[int]):
    assert sorted(i for group in alike(lengths) for i in group) == list(range(len(lengths)))


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(3, 160), min_size=1, max_size=80))
def test_a_group_is_of_like_length_and_bounded(lengths: list[int]):
    for group in alike(lengths):
        longest = max(lengths[i] for i in group)
        assert len(group) * longest <= 2048
        assert all(n * (longest - sorted(lengths[i] for i in group)[n - 1]) <= 64 for n in range(1, len(group)))


def test_rules_of_one_length_stay_together():
    assert alike([20] * 8) == [[0, 1, 2, 3, 4, 5, 6, 7]]
