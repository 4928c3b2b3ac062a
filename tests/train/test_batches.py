import random

import torch

from csrm_guard_train.augment import Augmenter
from csrm_guard_train.batches import batches, encode, to_batch
from csrm_guard_train.checkpoint import Trained
from csrm_guard_train.data import Authored
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
