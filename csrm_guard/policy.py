"""A policy: who deploys the assistant, and the rules that its messages must follow."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from csrm_guard.documents import read_document
from csrm_guard.errors import DocumentError, PolicyError
from csrm_guard.messages import Stage

__all__ = ["BUILTINS", "MAX_RULES", "Action", "Defaults", "OnError", "Policy", "Rule", "Severity", "Stance"]

Stance: TypeAlias = Literal["forbid", "require", "permit"]
Severity: TypeAlias = Literal["low", "medium", "high", "critical"]
Action: TypeAlias = Literal["observe", "redact", "rewrite", "fallback", "block"]
OnError: TypeAlias = Literal["block", "observe"]

MAX_RULES = 256
_FOLDER = Path(__file__).parent / "builtins"
BUILTINS = ("baseline-harms", "bank", "childrens-publisher", "game-studio", "support-desk")

Slug = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
Probability = Annotated[float, Field(gt=0.0, lt=1.0, allow_inf_nan=False)]


class Rule(BaseModel):
    """One norm of a policy.

    Attributes:
        id: names the rule in verdicts; unique in its policy.
        text: the norm in plain words, with its limits and exceptions.
        stance: `forbid` (the text says what must not or must be done, as written), `require`
            (the text names an act that must be done), `permit` (an exception from the others).
        severity: for people and reports; it does not change the decision.
        stages: which messages the rule judges.
        threshold: violation probability from which the rule is triggered; None: the default.
        fpr: instead of a threshold, the share of harmless messages that may trigger the rule.
        action: what a violation leads to; None: the policy's default.
        on_error: what happens when the rule cannot be scored; None: the policy's default.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: Slug
    text: Annotated[str, Field(min_length=1, max_length=20_000)]
    stance: Stance = "forbid"
    severity: Severity = "medium"
    stages: tuple[Stage, ...] = Field(default=("prompt", "response"), min_length=1)
    threshold: Probability | None = None
    fpr: Probability | None = None
    action: Action | None = None
    on_error: OnError | None = None

    @field_validator("text")
    @classmethod
    def _not_blank(cls, text: str) -> str:
        if not text.strip():
            raise ValueError("the rule has no words")
        return text.strip()

    @model_validator(mode="after")
    def _one_target(self) -> Rule:
        if self.threshold is not None and self.fpr is not None:
            raise ValueError("give `threshold` or `fpr`, not both")
        return self


class Defaults(BaseModel):
    """What a rule does where it says nothing itself.

    Attributes:
        threshold: violation probability from which a rule is triggered.
        action: what a violation leads to.
        on_error: what happens when a rule cannot be scored; `block` refuses.
        fallback: the text that stands in for a blocked answer.
        redaction: the text that stands in for a removed part of a message.
        max_rewrites: how many times the model is asked again under the action `rewrite`, before the fallback.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    threshold: Probability = 0.5
    action: Action = "block"
    on_error: OnError = "block"
    fallback: Annotated[str, Field(min_length=1)] = "I can't help with that here."
    redaction: str = "[removed]"
    max_rewrites: int = Field(default=1, ge=0, le=10)


class Policy(BaseModel):
    """The rules of one deployment; equal content has an equal `hash`.

    Attributes:
        name: names the policy in reports.
        version: the owner's version of it.
        setting: who deploys the assistant, for whom; for people, the model reads the rules.
        extends: policies whose rules come first: built-in names or files, in order.
        rules: the norms; their order does not matter to the decision.
        defaults: what rules do where they say nothing themselves.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Annotated[str, Field(min_length=1, max_length=200)] = "policy"
    version: str = "1"
    setting: str = ""
    extends: tuple[str, ...] = ()
    rules: tuple[Rule, ...] = ()
    defaults: Defaults = Defaults()

    @model_validator(mode="after")
    def _unique_ids(self) -> Policy:
        ids = [rule.id for rule in self.rules]
        twice = sorted({i for i in ids if ids.count(i) > 1})
        if twice:
            raise ValueError(f"rule id given twice: {', '.join(twice)}")
        return self

    @cached_property
    def hash(self) -> str:
        """The content's identity: the first 16 hex digits of a SHA-256 over the whole policy."""
        content = json.dumps(self.model_dump(mode="json"), sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(content.encode()).hexdigest()[:16]

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Policy:
        """Return a copy, with some fields changed, that has the hash of its own content."""
        copied = super().model_copy(update=update, deep=deep)
        copied.__dict__.pop("hash", None)  # cached in the original
        return copied

    def action_of(self, rule: Rule) -> Action:
        """Return what a violation of the rule leads to."""
        return rule.action or self.defaults.action

    def on_error_of(self, rule: Rule) -> OnError:
        """Return what happens when the rule cannot be scored."""
        return rule.on_error or self.defaults.on_error

    def rules_at(self, stages: Sequence[Stage]) -> tuple[Rule, ...]:
        """Return the rules, permissions among them, that judge a message at any of the stages."""
        wanted = set(stages)
        return tuple(rule for rule in self.rules if wanted & set(rule.stages))

    @classmethod
    def builtin(cls, name: str) -> Policy:
        """Return a shipped policy by name; `BUILTINS` lists them."""
        return cls.from_file(_builtin_path(name))

    @classmethod
    def from_file(cls, path: str | Path) -> Policy:
        """Read a .yaml, .yml, .json or .toml policy with all that it extends.

        Raises:
            PolicyError: unreadable, or it does not say what to do; names the file and the place.
        """
        return _load(Path(path), ())

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], *, base: str | Path = ".", source: str = "policy") -> Policy:
        """Build a policy from plain data with all that it extends.

        Args:
            data: the fields of a policy.
            base: the folder from which relative files in `extends` are read.
            source: what errors call the data.

        Raises:
            PolicyError: it does not say what to do; names the source and the place.
        """
        return _build(data, Path(base), source, ())

    @classmethod
    def load(cls, spec: str | Path) -> Policy:
        """Return the built-in of that name, else read the file at that path."""
        misspelt = not Path(spec).suffix and not Path(spec).exists()
        return cls.builtin(str(spec)) if str(spec) in BUILTINS or misspelt else cls.from_file(spec)


def _builtin_path(name: str) -> Path:
    if name not in BUILTINS:
        raise PolicyError(f"no built-in policy {name!r}; there are {', '.join(BUILTINS)}; or give a file")
    return _FOLDER / f"{name}.yaml"


def _load(path: Path, above: tuple[Path, ...]) -> Policy:
    resolved = path.resolve()
    if resolved in above:
        chain = " -> ".join(str(p.name) for p in [*above, resolved])
        raise PolicyError(f"{path}: `extends` goes in a circle: {chain}")
    try:
        data = read_document(path)
    except DocumentError as exc:
        raise PolicyError(str(exc)) from exc
    return _build(data, path.parent, str(path), (*above, resolved))


def _build(data: object, base: Path, source: str, above: tuple[Path, ...]) -> Policy:
    if not isinstance(data, Mapping):
        raise PolicyError(f"{source}: a policy is a mapping with `name` and `rules`, not {type(data).__name__}")
    try:
        policy = Policy.model_validate(dict(data))
    except ValidationError as exc:
        raise PolicyError(_explain(exc, source)) from exc
    parents = [_load(_parent_path(name, base, source), above) for name in policy.extends]
    merged = _merge(policy, parents, source)
    if not merged.rules:
        raise PolicyError(f"{source}: the policy has no rules; add `rules` or `extends`")
    if len(merged.rules) > MAX_RULES:
        raise PolicyError(
            f"{source}: {len(merged.rules)} rules; a policy has at most {MAX_RULES}: split it by stage or merge rules"
        )
    return merged


def _parent_path(name: str, base: Path, source: str) -> Path:
    if name in BUILTINS:
        return _builtin_path(name)
    path = base / name
    if not path.is_file():
        raise PolicyError(f"{source}: extends {name!r}: no such file under {base}, and not a built-in")
    return path


def _merge(policy: Policy, parents: Sequence[Policy], source: str) -> Policy:
    """Return the policy with its parents' rules in front, each keeping its own defaults."""
    if not parents:
        return policy
    inherited = [_pin(rule, parent) for parent in parents for rule in parent.rules]
    own = {rule.id for rule in policy.rules}
    rules: dict[str, Rule] = {}
    for rule in inherited:
        if rule.id in own:
            continue  # a policy replaces an inherited rule by using its id
        if rules.get(rule.id, rule) != rule:
            raise PolicyError(f"{source}: two extended policies define rule {rule.id!r} differently; define it here")
        rules[rule.id] = rule
    merged = (*rules.values(), *policy.rules)
    return policy.model_copy(update={"rules": merged, "extends": ()})


def _pin(rule: Rule, parent: Policy) -> Rule:
    """Write the parent's defaults into a rule, so that it means the same elsewhere."""
    threshold = rule.threshold
    if threshold is None and rule.fpr is None:
        threshold = parent.defaults.threshold
    return rule.model_copy(
        update={
            "threshold": threshold,
            "action": parent.action_of(rule),
            "on_error": parent.on_error_of(rule),
        }
    )


def _explain(exc: ValidationError, source: str) -> str:
    lines = []
    for error in exc.errors():
        place = ".".join(str(part) for part in error["loc"]) or "policy"
        lines.append(f"{source}: {place}: {error['msg'].removeprefix('Value error, ')}")
    return "\n".join(lines)
