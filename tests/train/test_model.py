from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from csrm_guard.encoding import Window
from csrm_guard.packing import collate, pack
from csrm_guard_train.checkpoint import CheckpointError, Trained, start
from csrm_guard_train.model import attention_mask, pairs
from csrm_guard_train.recipe import Recipe, Structure

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


KINDS = ["tiny", "mpnet", "modernbert", "deberta-v2", "llama", "qwen2"]
STRUCTURES = ["context-first", "conversation", "pairwise", "probes"]


@pytest.mark.parametrize("kind", KINDS)
def test_no_backbone_lets_a_rule_read_another(backbones: Path, kind: str):
    trained = start(Recipe(backbone=kind, dropout=0.0), backbones / kind)
    assert torch.allclose(logits(trained, WINDOW, RULES)[1:2], logits(trained, WINDOW, RULES[1:2]), atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_every_backbone_reads_the_message_and_the_rule(backbones: Path, kind: str):
    trained = start(Recipe(backbone=kind, dropout=0.0), backbones / kind)
    message = logits(trained, Window(WINDOW.context, (20, 99, 22, 23), 0, 1), RULES)
    rule = logits(trained, WINDOW, [(101, 30, 99, 102), *RULES[1:]])
    real = logits(trained, WINDOW, RULES)
    assert not torch.allclose(real, message, atol=1e-5)
    assert not torch.allclose(real[:1], rule[:1], atol=1e-5)


@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("kind", ["tiny", "llama"])
def test_no_structure_depends_on_the_order_of_rules(backbones: Path, kind: str, structure: Structure):
    trained = start(Recipe(backbone=kind, structure=structure, dropout=0.0), backbones / kind)
    forward, backward = logits(trained, WINDOW, RULES), logits(trained, WINDOW, RULES[::-1])
    assert torch.allclose(forward, backward.flip(0), atol=1e-5)


@pytest.mark.parametrize("structure", STRUCTURES)
def test_padding_changes_nothing_in_any_structure(backbones: Path, structure: Structure):
    trained = start(Recipe(backbone="tiny", structure=structure, dropout=0.0), backbones / "tiny")
    assert torch.allclose(logits(trained, WINDOW, RULES), logits(trained, WINDOW, RULES, pad=40), atol=1e-5)


def test_a_pair_holds_the_conversation_and_one_rule():
    blocks = torch.tensor([[0, 1, 2, 2, 3, -1], [0, 1, 1, 2, -1, -1]])
    row = torch.arange(6)[None].expand(2, -1)
    heads = torch.tensor([[2, 4], [3, 0]])
    ids, alone, _, at, exists = pairs(row, blocks, row, heads)
    assert exists.tolist() == [[True, True], [True, False]]
    assert alone.tolist() == [[0, 1, 2, 2], [0, 1, 2, -1], [0, 1, 1, 2]]
    assert ids.gather(1, at[:, None])[:, 0].tolist() == [2, 4, 3]


def test_probes_read_rules_and_conversation_apart():
    mask = attention_mask(torch.tensor([[0, 1, 2, 3, -1]]), "probes")[0, 0]
    assert mask.tolist() == [
        [True, True, False, False, False],
        [True, True, False, False, False],
        [False, False, True, False, False],
        [False, False, False, True, False],
        [False, False, False, False, True],
    ]


def test_the_verbalizer_head_is_the_log_odds_of_the_answer_words(backbones: Path):
    recipe = Recipe(backbone="llama", head="verbalizer", dropout=0.0)
    model = start(recipe, backbones / "llama").model
    features = torch.randn(3, 32)
    p = (features @ torch.cat([model.unsafe, model.safe]).T).softmax(-1)
    cut = len(model.unsafe)
    odds = torch.log(p[:, :cut].sum(-1) / p[:, cut:].sum(-1))
    assert torch.allclose(model._logits(features), odds, atol=1e-5)


def test_an_encoder_has_no_verbalizer(backbones: Path):
    with pytest.raises(CheckpointError, match="decoder"):
        start(Recipe(backbone="tiny", head="verbalizer"), backbones / "tiny")


def test_the_context_reads_neither_message_nor_rules():
    mask = attention_mask(torch.tensor([[0, 1, 2, 3, -1]]))[0, 0]
    assert mask.tolist() == [
        [True, False, False, False, False],
        [True, True, False, False, False],
        [True, True, True, False, False],
        [True, True, False, True, False],
        [False, False, False, False, True],
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_hidden_states_are_dropped_where_the_recipe_says_so_and_attention_is_left_alone(backbones: Path, kind: str):
    trained = start(Recipe(backbone=kind), backbones / kind)
    trained.model.drop_hidden(0.25)
    shares = {n: m.p for n, m in trained.model.backbone.named_modules() if isinstance(m, nn.Dropout)}
    attention = {n for n in shares if n.endswith(("self.dropout", "attn.dropout"))}
    assert {shares[n] for n in attention} <= {0.0}
    assert {shares[n] for n in shares.keys() - attention} <= {0.25}


def test_a_backbone_that_drops_hidden_states_scores_alike_only_when_it_does_not_train(untrained: Trained):
    untrained.model.drop_hidden(0.5)
    batch = collate([pack(WINDOW, RULES)])
    arrays = [torch.from_numpy(a) for a in (batch.ids, batch.blocks, batch.positions, batch.heads)]
    untrained.model.dropout.p = 0.0
    with torch.no_grad():
        resting = [untrained.model.eval()(*arrays) for _ in range(2)]
        training = [untrained.model.train()(*arrays) for _ in range(2)]
    assert torch.equal(*resting)
    assert not torch.equal(*training)


def test_frozen_words_stay_and_all_else_learns(backbones: Path):
    model = start(Recipe(backbone="tiny"), backbones / "tiny").model
    model.freeze_words()
    frozen = {name for name, value in model.named_parameters() if not value.requires_grad}
    assert frozen == {"backbone.embeddings.word_embeddings.weight"}
