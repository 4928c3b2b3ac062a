import random

import torch

from csrm_guard.messages import Message
from csrm_guard_train.augment import Augmenter
from csrm_guard_train.batches import Encoded, batches, encode, to_batch
from csrm_guard_train.checkpoint import Trained
from csrm_guard_train.data import Authored
from csrm_guard_train.groups import Example, Group, LabelledRule
from csrm_guard_train.recipe import Mixture


def rows(authored: Authored, trained: Trained):
    groups = Augmenter(authored, Mixture()).epoch(random.Random(0))
    return [row for group in groups if (row := encode(group, trained.encoder)) is not None]


def test_no_group_is_lost_or_doubled(authored: Authored, untrained: Trained):
    encoded = rows(authored, untrained)
    found = [row.group.id for part in batches(encoded, tokens=4096, rng=random.Random(0)) for row in part]
    assert sorted(found) == sorted(row.group.id for row in encoded)


def test_batches_of_several_groups_stay_within_the_budget(authored: Authored, untrained: Trained):
    for part in batches(rows(authored, untrained), tokens=4096, rng=random.Random(0)):
        size = max(r.longest for r in part) * sum(r.count for r in part)
        assert size <= 4096 or len(part) == 1


def test_a_label_takes_the_largest_logit_of_its_views(authored: Authored, untrained: Trained):
    augmenter = Augmenter(authored, Mixture())
    row = encode(augmenter.transcript(authored.transcripts[0], random.Random(0)), untrained.encoder)
    assert row is not None
    batch = to_batch([row])
    logits = torch.randn(batch.heads.shape)
    assert torch.equal(batch.pooled(logits), logits[:, : len(batch.labels)].amax(dim=0))


def test_orders_point_at_the_right_labels(authored: Authored, untrained: Trained):
    augmenter = Augmenter(authored, Mixture())
    encoded = [encode(augmenter.item(item, random.Random(0)), untrained.encoder) for item in authored.items[:3]]
    batch = to_batch([row for row in encoded if row])
    assert batch.labels[batch.more].eq(1).all()
    assert batch.labels[batch.less].eq(0).all()


SAID = (Message("user", "Is it open?"), Message("assistant", "Yes, until ten."))


def make_example(*rules: tuple[bool, float], unsafe: bool | None = None) -> Example:
    made = tuple(LabelledRule(f"rule number {i}", broken, "here", (), w) for i, (broken, w) in enumerate(rules))
    return Example((SAID,), made, unsafe)


def encoded(trained: Trained, *examples: Example) -> Encoded:
    row = encode(Group("g", examples), trained.encoder)
    assert row is not None
    return row


def test_rules_that_do_not_fit_one_sequence_are_split_and_each_keeps_its_logit(untrained: Trained):
    long = "a rule of quite some length about what may be said and when " * 8
    rules = tuple(LabelledRule(f"{i} {long}", False, "here") for i in range(12))
    row = encoded(untrained, Example((SAID, SAID[:1]), rules))
    assert len(row.parts[0]) > 1
    assert row.count == 2 * len(row.parts[0])
    batch = to_batch([row])
    logits = torch.full(batch.heads.shape, -9.0)
    last = row.parts[0][-1]
    # The first rule of the last part, in the second view.
    logits[-1, 0] = 5.0
    pooled = batch.pooled(logits)
    assert pooled.argmax() == last[0]
    assert int((pooled == 5.0).sum()) == 1


def test_an_examples_bag_holds_its_labels_and_no_others(untrained: Trained):
    batch = to_batch([encoded(untrained, make_example((True, 1.0), (False, 1.0)), make_example((False, 1.0)))])
    assert [sorted(set(bag)) for bag in batch.bags.tolist()] == [[0, 1], [2]]
    assert batch.verdicts.tolist() == [1.0, 0.0]


def test_a_verdict_that_nobody_knows_is_left_out(untrained: Trained):
    batch = to_batch([encoded(untrained, make_example((False, 1.0), (False, 0.0)), make_example((False, 1.0)))])
    assert batch.verdicts.tolist() == [0.0]


def test_a_verdict_may_be_known_where_no_label_is(untrained: Trained):
    batch = to_batch([encoded(untrained, make_example((False, 0.0), (False, 0.0), unsafe=True))])
    assert batch.verdicts.tolist() == [1.0]
    assert batch.weights.tolist() == [0.0, 0.0]
