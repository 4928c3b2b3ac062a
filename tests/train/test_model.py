import pytest
import torch
from torch import Tensor

from csrm_guard.encoding import Window
from csrm_guard.packing import collate, pack
from csrm_guard_train.checkpoint import Trained
from csrm_guard_train.model import attention_mask

WINDOW = Window((10, 11, 12), (20, 21, 22, 23), 0, 1)
RULES = [(101, 30, 31, 102), (101, 40, 102), (101, 50, 51, 52, 102)]


def logits(trained: Trained, window: Window, rules: list[tuple[int, ...]], pad: int = 0) -> Tensor:
    longer = pack(Window((9,) * pad, (8,), 0, 1), rules)
    batch = collate([pack(window, rules)] + ([longer] if pad else []))
    trained.model.eval()
    torch.manual_seed(1)
    with torch.no_grad():
        # Freshly initialised weights are so small that nothing would move the logits.
        for weight in trained.model.parameters():
            weight.normal_(0.0, 0.3)
        arrays = (batch.ids, batch.blocks, batch.positions, batch.heads)
        return trained.model(*(torch.from_numpy(a) for a in arrays))[0]


def test_the_order_of_rules_does_not_matter(untrained: Trained):
    forward, backward = logits(untrained, WINDOW, RULES), logits(untrained, WINDOW, RULES[::-1])
    assert torch.allclose(forward, backward.flip(0), atol=1e-6)


def test_a_rule_is_not_changed_by_another_rule(untrained: Trained):
    assert torch.allclose(logits(untrained, WINDOW, RULES)[:1], logits(untrained, WINDOW, RULES[:1]), atol=1e-6)


def test_padding_changes_nothing(untrained: Trained):
    alone, padded = logits(untrained, WINDOW, RULES), logits(untrained, WINDOW, RULES, pad=40)
    assert torch.allclose(alone, padded, atol=1e-6)


def test_a_rule_reads_the_judged_message(untrained: Trained):
    other = Window(WINDOW.context, (20, 21, 99, 23), 0, 1)
    assert not torch.allclose(logits(untrained, WINDOW, RULES), logits(untrained, other, RULES), atol=1e-5)


def test_a_rule_reads_the_context(untrained: Trained):
    other = Window((10, 99, 12), WINDOW.judged, 0, 1)
    assert not torch.allclose(logits(untrained, WINDOW, RULES), logits(untrained, other, RULES), atol=1e-5)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_every_attention_obeys_the_mask(untrained: Trained, attention: str):
    untrained.model.backbone.set_attn_implementation(attention)
    assert torch.allclose(logits(untrained, WINDOW, RULES)[:1], logits(untrained, WINDOW, RULES[:1]), atol=1e-6)


def test_the_context_reads_neither_message_nor_rules():
    mask = attention_mask(torch.tensor([[0, 1, 2, 3, -1]]))[0, 0]
    assert mask.tolist() == [
        [True, False, False, False, False],
        [True, True, False, False, False],
        [True, True, True, False, False],
        [True, True, False, True, False],
        [False, False, False, False, True],
    ]
