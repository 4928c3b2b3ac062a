from hypothesis import given, settings
from hypothesis import strategies as st

from csrm_guard.batched import batches

LENGTHS = st.lists(st.integers(1, 384), min_size=1, max_size=80)


@settings(max_examples=200, deadline=None)
@given(LENGTHS, st.integers(1, 400))
def test_batches_hold_every_window_once(lengths: list[int], rules: int):
    assert sorted(i for batch in batches(lengths, rules, 2048) for i in batch) == list(range(len(lengths)))


@settings(max_examples=200, deadline=None)
@given(LENGTHS, st.integers(1, 4000))
def test_a_batch_exceeds_its_tokens_only_for_a_single_window(lengths: list[int], rules: int):
    for batch in batches(lengths, rules, 2048):
        assert len(batch) == 1 or sum(lengths[i] + rules for i in batch) <= 2048


def test_windows_of_like_length_stand_together():
    assert batches([300, 10, 290, 12], 100, 900) == [[1, 3, 2], [0]]
