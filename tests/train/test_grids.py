import json
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from csrm_guard import Message
from csrm_guard_train.data import Authored, read_authored
from csrm_guard_train.grids import Grid, grid_group
from csrm_guard_train.monitor import within_rules
from csrm_guard_train.validation import validation_rows

ASK = Message("user", "Two tickets for Friday?")
TEXTS = ("Here they are: 20.", "Here they are: 20. Enjoy!", "Sold out, sorry.", "Which film? They are 20.")
GRID = Grid(
    "g-1",
    "A cinema's chat.",
    "response",
    ("Quote no prices.", "Never wish anything.", "Ask for the film first.", "Say sorry for nothing."),
    tuple((ASK, Message("assistant", text)) for text in TEXTS),
    (frozenset({0, 2}), frozenset({0, 1, 2}), frozenset({2, 3}), frozenset({0})),
)


def test_every_cell_of_a_grid_is_a_label():
    group = grid_group(GRID, [], random.Random(0))
    for example, broken in zip(group.examples, GRID.broken, strict=True):
        assert {rule.text: rule.violated for rule in example.rules} == {
            text: i in broken for i, text in enumerate(GRID.rules)
        }


def test_orders_stay_within_a_rule_and_point_from_broken_to_kept():
    group = grid_group(GRID, [], random.Random(0))
    pairs = 0
    for order in group.orders:
        more, less = (group.examples[e].rules[r] for e, r in (order.more, order.less))
        assert more.text == less.text
        assert (more.violated, less.violated) == (True, False)
        pairs += 1
    # broken x kept messages, rule by rule
    assert pairs == 3 * 1 + 1 * 3 + 3 * 1 + 1 * 3


def test_all_messages_keep_the_rules_of_others():
    group = grid_group(GRID, ["Never mention trams."], random.Random(0))
    assert all(not e.rules[-1].violated and e.rules[-1].text == "Never mention trams." for e in group.examples)


def test_what_two_readers_saw_differently_has_no_label():
    grid = replace(GRID, unclear=frozenset({(0, 0), (3, 2)}))
    group = grid_group(grid, [], random.Random(0))
    weights = {(e, rule.text): rule.weight for e, example in enumerate(group.examples) for rule in example.rules}
    assert [place for place, weight in weights.items() if weight == 0.0] == [(0, GRID.rules[0]), (3, GRID.rules[2])]
    assert not any(
        0.0 in (weights[e, group.examples[e].rules[r].text] for e, r in (o.more, o.less)) for o in group.orders
    )
    rows = {row.id: row for row in validation_rows(Authored((), {}, (), (), grids=(grid,)), 0)}
    assert [rule.id for rule in rows["g-1-m0"].policy.rules] == ["r1", "r2", "r3"]


def test_a_broken_message_is_also_held_out_under_the_rules_it_keeps():
    rows = {row.id: row for row in validation_rows(Authored((), {}, (), (), grids=(GRID,)), 0)}
    assert rows["g-1-m1"].violated == ("r0", "r1", "r2")
    kept = rows["g-1-m1-kept"]
    assert kept.policy is not None
    assert ([rule.id for rule in kept.policy.rules], kept.label) == (["r3"], False)


def test_orders_within_rules_are_read_off_each_rules_own_logit():
    rows = validation_rows(Authored((), {}, (), (), grids=(GRID,)), 0)
    right = [np.array([r.id in row.violated for r in row.policy.rules], np.float32) for row in rows]
    assert within_rules(rows, right) == [True] * 12
    assert within_rules(rows, [-logits for logits in right]) == [False] * 12


def test_grids_are_read_from_files_and_held_out_by_deployment(authored_folder: Path, tmp_path: Path):
    for path in authored_folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    rows = [
        {"id": f"g-{i}", "domain": "d", "setting": f"shop {i // 2}", "target": "prompt",
         "rules": [{"text": "No rudeness.", "kind": "style"}], "context": [], "messages": ["Hi", "Oi, you"],
         "broken": [[], [0]]}
        for i in range(40)
    ]  # fmt: skip
    (tmp_path / "grids-1.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = read_authored(tmp_path)
    train, out = found.split(0.3, seed=0)
    assert len(train.grids) + len(out.grids) == 40
    assert not {g.setting for g in train.grids} & {g.setting for g in out.grids}
    assert found.grids[0].views[1] == (Message("user", "Oi, you"),)
    assert found.grids[0].broken == (frozenset(), frozenset({0}))


@pytest.mark.parametrize("seed", range(3))
def test_the_order_of_rules_is_the_same_for_all_messages(seed: int):
    group = grid_group(GRID, [], random.Random(seed))
    assert len({tuple(rule.text for rule in example.rules) for example in group.examples}) == 1
