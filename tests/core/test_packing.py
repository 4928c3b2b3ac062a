import random

import numpy as np
import pytest

from csrm_guard.encoding import Window
from csrm_guard.packing import PADDING, Packed, collate, pack, split_rules

WINDOW = Window(context=(11, 12), judged=(21, 22, 23), start=0, end=9)


def test_rules_stand_behind_the_window():
    assert pack(WINDOW, [(31, 32), (41,)]).ids == (11, 12, 21, 22, 23, 31, 32, 41)


def test_blocks_tell_context_judged_and_rules_apart():
    assert pack(WINDOW, [(31, 32), (41,)]).blocks == (0, 0, 1, 1, 1, 2, 2, 3)


def test_each_rule_counts_its_positions_from_zero_and_the_window_from_32():
    assert pack(WINDOW, [(31, 32), (41,)]).positions == (32, 33, 34, 35, 36, 0, 1, 0)


def test_heads_point_at_the_first_token_of_each_rule():
    packed = pack(WINDOW, [(31, 32), (41,), (51, 52, 53)])
    assert [packed.ids[head] for head in packed.heads] == [31, 41, 51]


def test_a_rule_reads_the_same_wherever_it_stands():
    first, last = pack(WINDOW, [(31, 32), (41,)]), pack(WINDOW, [(41,), (31, 32)])
    assert first.positions[5:7] == last.positions[6:8]


def test_splitting_never_loses_or_reorders_a_rule():
    chance = random.Random(0)
    for _ in range(500):
        rules = [(0,) * chance.randint(1, 60) for _ in range(chance.randint(0, 30))]
        spans = split_rules(rules, room=chance.randint(1, 120))
        assert [i for start, stop in spans for i in range(start, stop)] == list(range(len(rules)))


def test_a_span_exceeds_the_room_only_for_a_single_rule():
    chance = random.Random(1)
    for _ in range(500):
        rules, room = [(0,) * chance.randint(1, 60) for _ in range(30)], chance.randint(1, 120)
        for start, stop in split_rules(rules, room=room):
            assert stop - start == 1 or sum(map(len, rules[start:stop])) <= room


def test_rules_that_fit_share_one_span():
    assert split_rules([(0,) * 10] * 4, room=40) == [(0, 4)]


def test_no_rules_make_no_span():
    assert split_rules([], room=10) == []


def test_a_batch_is_padded_to_its_longest_sequence():
    batch = collate([pack(WINDOW, [(31, 32), (41,)]), Packed((1,), (1,), (32,), ())])
    assert batch.ids.tolist()[1] == [1] + [0] * 7
    assert batch.blocks.tolist()[1] == [1] + [PADDING] * 7
    assert batch.heads.tolist() == [[5, 7], [0, 0]]


@pytest.mark.parametrize("name", ["ids", "blocks", "positions", "heads"])
def test_the_arrays_of_a_batch_are_int64(name):
    assert getattr(collate([pack(WINDOW, [(31,)])]), name).dtype == np.int64


def test_a_batch_holds_its_sequences():
    sequences = [pack(WINDOW, [(31,) * n, (41,)]) for n in range(1, 6)]
    batch = collate(sequences)
    assert all(batch.ids[i, : len(s.ids)].tolist() == list(s.ids) for i, s in enumerate(sequences))
