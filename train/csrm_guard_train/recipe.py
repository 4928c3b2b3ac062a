"""Recipe: the frozen description of one reproducible training run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from csrm_guard.documents import read_document
from csrm_guard.encoding import Limits

__all__ = ["Lora", "Mixture", "Recipe", "RecipeError", "Structure"]

Structure = Literal["context-first", "conversation", "pairwise", "probes"]

Share = Annotated[float, Field(ge=0.0, le=1.0)]


class RecipeError(Exception):
    """A recipe cannot be used; the message names the file and the place."""


class Mixture(BaseModel):
    """How much of each source one epoch holds.

    Attributes:
        items: share of the minimal pairs.
        rungs: share of the severity ladders' conversations.
        transcripts: share of the multi-rule transcripts.
        grids: share of the grids (alternative messages x rules).
        talks: share of the conversations with alternative turns, turn by turn.
        whole_talks: share of them that is shown whole, as it is and with one turn rewritten, any turn judged.
        twins: share of the harmful and harmless requests that sound alike, with their answers.
        drills: grids that a program puts together, new ones in each epoch.
        drill_talks: conversations that a program puts together, each shown whole as it is and with one turn rewritten.
        drill_words: share of the drills' wordings, the first ones. From all at once a small encoder learns nothing in
            0.8 million tokens; from a quarter it learns to read, and then all of them.
        public: share of the public conversations, if any are given.
        strict: share of the conversations under pairs that Algorithm 1 kept and under proposed rules,
            if any are given.
        responses: share of the chosen/rejected answers, if public sets are given.
        checkable: rules whose violation a program can tell, added to each conversation.
        foreign: rules of other deployments added to each conversation.
        content: rules about harmful content, of ladders and of the built-in policy
            `baseline-harms`, added to each conversation that they do not concern.
        permits: probability that a rule is also shown with permissions, apt or not.
        distractors: share of a deployment's other rules shown beside a minimal pair's.
        paraphrases: probability that a rule is shown in its other wording.
        wordings: probability that a conversation is shown under stricter and more lenient
            wordings, and with their orders (paper 3.2, strictness).
        manners: probability that the messages of a minimal pair, a grid or a talk's turn get openings at random,
            careful or eager ones, where no rule is about form.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    items: Share = 1.0
    rungs: Share = 0.5
    transcripts: Share = 1.0
    grids: Share = 1.0
    talks: Share = 1.0
    whole_talks: Share = 0.0
    twins: Share = 1.0
    drills: int = Field(default=0, ge=0)
    drill_talks: int = Field(default=0, ge=0)
    drill_words: Annotated[float, Field(gt=0, le=1)] = 1.0
    public: Share = 1.0
    strict: Share = 1.0
    responses: Share = 0.0
    checkable: int = Field(default=2, ge=0)
    foreign: int = Field(default=1, ge=0)
    content: int = Field(default=0, ge=0)
    permits: Share = 0.35
    distractors: Share = 0.7
    paraphrases: Share = 0.4
    wordings: Share = 1.0
    manners: Share = 0.0


class Lora(BaseModel):
    """Low-rank adapters instead of all weights (Hu et al. 2021, by peft).

    Attributes:
        rank: of each adapter.
        alpha: scale; an adapter's update is multiplied by alpha / rank.
        dropout: on an adapter's input.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    rank: int = Field(default=16, gt=0)
    alpha: float = Field(default=32.0, gt=0)
    dropout: Share = 0.0


class Recipe(BaseModel):
    """Everything that decides a run apart from the data's location.

    Attributes:
        backbone: name of a pretrained encoder or decoder; its folder is found under `--backbones`.
        structure: who reads whom, see `csrm_guard_train.model`.
        head: `linear` on the token where a rule is read, or the paper's `verbalizer`
            (decoders only): log-odds of its answer words.
        lora: train low-rank adapters and the head only.
        seed: seeds sampling, order and new weights.
        epochs: passes over the mixture.
        step_tokens: tokens (padded) behind one optimizer step.
        batch_tokens: tokens (padded) computed at once; a step of more accumulates gradients.
        lr: peak learning rate of the backbone.
        head_lr: peak learning rate of new weights.
        warmup: share of the steps in which the rate rises.
        weight_decay: AdamW's.
        betas: AdamW's.
        dropout: before the last layer.
        backbone_dropout: of the backbone's hidden states (after embeddings, attention and feed-forward layers; not of
            attention's weights).
        freeze_words: leave the word embeddings as the backbone has them: half of a small backbone's weights, of which a
            step reads few rows and the optimizer moves all.
        skip_below: a step in one part whose loss is below this is not gone back through: late in a course a quarter of
            the steps are of rows that the model knows.
        pair_weight: weight of the ordering terms (paper 3.3: gamma).
        margin: margin of the ordering terms (paper 3.3: m).
        list_weight: weight of the listwise term: the violated rule above the others.
        distil: share of a teacher's soft labels in the classification term; the rest are the given ones.
        policy_weight: weight of the policy's own term: the largest violation logit of an example's
            rules against whether any is broken, which is what p_safe is made of.
        validation: share of the deployments that is held out for calibration and selection.
        precision: what matrix products run in; float32 in any case on a CPU without AVX-512, which emulates bfloat16.
        limits: how many tokens the model reads at once.
        mixture: how much of each source one epoch holds.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    backbone: str
    structure: Structure = "context-first"
    head: Literal["linear", "verbalizer"] = "linear"
    lora: Lora | None = None
    seed: int = 0
    epochs: float = Field(default=4.0, gt=0)
    step_tokens: int = Field(default=8192, gt=0)
    batch_tokens: int = Field(default=8192, gt=0)
    lr: float = Field(default=1e-4, gt=0)
    head_lr: float = Field(default=5e-4, gt=0)
    warmup: Share = 0.06
    weight_decay: float = Field(default=0.01, ge=0)
    betas: tuple[Share, Share] = (0.9, 0.98)
    dropout: Share = 0.1
    backbone_dropout: Share = 0.0
    freeze_words: bool = False
    skip_below: float = Field(default=0.0, ge=0)
    pair_weight: float = Field(default=0.1, ge=0)
    margin: float = 0.0
    list_weight: float = Field(default=0.3, ge=0)
    distil: Share = 0.0
    policy_weight: float = Field(default=0.0, ge=0)
    validation: Share = 0.1
    precision: Literal["float32", "bfloat16"] = "bfloat16"
    limits: Limits = Limits()
    mixture: Mixture = Mixture()

    @classmethod
    def from_file(cls, path: Path) -> Recipe:
        """Read a .toml, .yaml or .json recipe.

        Raises:
            RecipeError: unknown key or a value out of range.
            DocumentError: unreadable.
        """
        try:
            return cls.model_validate(read_document(path))
        except ValidationError as exc:
            places = [f"{path}: {'.'.join(map(str, e['loc']))}: {e['msg']}" for e in exc.errors()]
            raise RecipeError("\n".join(places)) from exc
