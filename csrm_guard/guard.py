"""The guard: judge messages against a policy."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from csrm_guard.checks import Check, find_all
from csrm_guard.decision import checked, decide, overlook, refuse, unchecked
from csrm_guard.errors import Blocked, MessageError, PolicyError, ScoringError
from csrm_guard.messages import Message, MessagesLike, Stage, parse_messages, stages_of
from csrm_guard.model import AsyncRewardModel, Reading, RewardModel, ScoringRequest
from csrm_guard.observers import Observer, Observers
from csrm_guard.policy import MAX_RULES, Policy, Rule
from csrm_guard.ranking import Objective, Ranking, rank
from csrm_guard.resilience import Resilient
from csrm_guard.scheduler import Scheduler
from csrm_guard.verdict import RuleResult, Timings, Verdict

__all__ = ["MAX_MESSAGE_CHARS", "Guard", "Observer"]

logger = logging.getLogger(__name__)
logging.getLogger("csrm_guard").addHandler(logging.NullHandler())

# About 50,000 tokens: beyond this a judgement takes minutes, which no caller expects.
MAX_MESSAGE_CHARS = 200_000


@dataclass(frozen=True, slots=True)
class _Question:
    """A parsed conversation with the rules that apply to it: for the model, for checks, permissions."""

    messages: tuple[Message, ...]
    stages: tuple[Stage, ...]
    rules: tuple[Rule, ...]
    checked: tuple[Rule, ...]
    permits: tuple[Rule, ...]


class Guard:
    """Judge messages against one policy. Safe to share between threads.

    Args:
        policy: a policy, the name of a built-in one, or a policy file.
        model: what scores; None: the model that ships with the package.
        max_chars: the longest single message that is judged.
        checks: by rule id a function that decides the rule instead of the model.
        shadow: let everything pass and record in `Verdict.would` what the policy would have done.
        deadline: seconds for one scoring; after them the rules' `on_error` decides. None: no limit.
        observers: told of every verdict.

    Raises:
        PolicyError: the policy is wrong, or a check is given for a rule that it does not have.
        ArtifactError, RuntimeMissing: the shipped model cannot be loaded.
        ScoringError: a rule asks for a false-positive rate that the model cannot answer.
    """

    def __init__(
        self,
        policy: Policy | str | Path,
        model: RewardModel | None = None,
        *,
        max_chars: int = MAX_MESSAGE_CHARS,
        checks: Mapping[str, Check] | None = None,
        shadow: bool = False,
        deadline: float | None = None,
        observers: Sequence[Observer] = (),
    ) -> None:
        self.policy = _usable(policy) if isinstance(policy, Policy) else Policy.load(policy)
        self.shadow = shadow
        self._checks = dict(checks or {})
        _must_have(self.policy, self._checks)
        read = [rule for rule in self.policy.rules if rule.stance != "permit" and rule.id not in self._checks]
        scorer = model if model is not None else _default_model() if read else _NoModel()
        self.model = scorer if deadline is None else _within(scorer, deadline)
        self._max_chars = max_chars
        self._observers = Observers(self.policy, observers)
        self._thresholds = {rule.id: self._threshold(rule) for rule in self.policy.rules}
        self._applicable: dict[tuple[Stage, ...], tuple[tuple[Rule, ...], tuple[Rule, ...], tuple[Rule, ...]]] = {}

    def check(self, messages: MessagesLike, stage: Stage | None = None) -> Verdict:
        """Return the verdict on the last message; the ones before it are context.

        Args:
            messages: a string, a message, an OpenAI-style dict, or a list of these.
            stage: what the judged message is; None: told from its role.

        Raises:
            MessageError: nothing to judge, an unknown role, or a message over the limit.
        """
        return self.score([messages], stage)[0]

    async def acheck(self, messages: MessagesLike, stage: Stage | None = None) -> Verdict:
        """Return what `check` returns without blocking the event loop."""
        return (await self.ascore([messages], stage))[0]

    def require(self, messages: MessagesLike, stage: Stage | None = None) -> Verdict:
        """Return the verdict if the message is allowed.

        Raises:
            Blocked: it is not; the exception carries the verdict.
            MessageError: as in `check`.
        """
        verdict = self.check(messages, stage)
        if not verdict.allowed:
            raise Blocked(verdict)
        return verdict

    def rerank(
        self, messages: MessagesLike, candidates: Sequence[MessagesLike], objective: Objective | None = None
    ) -> Ranking:
        """Return candidate answers to one conversation, the best first, judged in one pass.

        Args:
            messages: the conversation that all answer; its last message is context, too.
            candidates: texts or assistant messages.
            objective: what is best; None: the largest reward.

        Raises:
            MessageError: no candidates, or one of them is empty.
        """
        texts, views = _candidates(messages, candidates)
        return rank(texts, self.score(views), objective, fallback=self.policy.defaults.fallback)

    async def arerank(
        self, messages: MessagesLike, candidates: Sequence[MessagesLike], objective: Objective | None = None
    ) -> Ranking:
        """Return what `rerank` returns without blocking the event loop."""
        texts, views = _candidates(messages, candidates)
        verdicts = await self.ascore(views)
        return rank(texts, verdicts, objective, fallback=self.policy.defaults.fallback)

    def score(self, items: Sequence[MessagesLike], stage: Stage | None = None) -> list[Verdict]:
        """Return one verdict per conversation, in order, scored together.

        Raises:
            MessageError: one of them cannot be judged; none is scored then.
        """
        questions = [self._question(item, stage) for item in items]
        requests = _requests(questions)
        with self._observers.watched(len(questions)):
            try:
                found = self.model.score(requests) if requests else []
                readings: list[Reading] | Exception = self._valid(requests, found)
            except Exception as exc:
                readings = exc
            return self._settled(questions, readings)

    async def ascore(self, items: Sequence[MessagesLike], stage: Stage | None = None) -> list[Verdict]:
        """Return what `score` returns without blocking the event loop.

        With a `Scheduler` no thread waits, so that thousands of calls can; otherwise, and where checks of the user's
        own decide, a thread does the work.
        """
        if self._checks or not isinstance(self.model, AsyncRewardModel):
            return await asyncio.to_thread(self.score, items, stage)
        questions = [self._question(item, stage) for item in items]
        requests = _requests(questions)
        with self._observers.watched(len(questions)):
            try:
                found = await self.model.ascore(requests) if requests else []
                readings: list[Reading] | Exception = self._valid(requests, found)
            except Exception as exc:
                readings = exc
            return self._settled(questions, readings)

    def _settled(self, questions: Sequence[_Question], readings: list[Reading] | Exception) -> list[Verdict]:
        if isinstance(readings, Exception):
            # The fail-closed edge: whatever went wrong inside a model, the policy's on_error
            # decides, and nothing passes unscored by accident.
            logger.error("scoring failed; the rules' on_error decides", exc_info=readings)
            error = f"{type(readings).__name__}: {readings}"
            verdicts = [self._unscored(q, error) if q.rules else self._free(q) for q in questions]
        else:
            answers = iter(readings)
            verdicts = [self._decide(q, next(answers)) if q.rules else self._free(q) for q in questions]
        if self.shadow:
            verdicts = [overlook(verdict) for verdict in verdicts]
        for question, verdict in zip(questions, verdicts, strict=True):
            self._observers.tell(question.messages, verdict)
        return verdicts

    def _valid(self, requests: Sequence[ScoringRequest], readings: list[Reading]) -> list[Reading]:
        for request, reading in zip(requests, readings, strict=True):
            shape = (len(reading.spans), len(request.rules))
            # NaN compares false with every threshold and would pass as safe.
            if reading.q.shape != shape or not shape[0] or not ((reading.q >= 0) & (reading.q <= 1)).all():
                raise ValueError(f"model {self.model.id} answered q of shape {reading.q.shape}, or outside [0, 1]")
        return readings

    def _decide(self, question: _Question, reading: Reading) -> Verdict:
        began = time.perf_counter()
        others, error = self._checked(question)
        verdict = decide(
            self.policy,
            question.rules,
            reading,
            thresholds=self._thresholds,
            stages=question.stages,
            model=self.model.id,
            unread=question.messages[-1].unread,
            others=others,
            error=error,
        )
        took = Timings(reading.tokenise, reading.run, time.perf_counter() - began, reading.wait)
        return replace(verdict, timings=took)

    def _free(self, question: _Question) -> Verdict:
        """Return the verdict on a message that no rule of the model's judges at its stage."""
        import numpy as np

        return self._decide(question, Reading(np.zeros((0, 0)), ()))

    def _unscored(self, question: _Question, error: str) -> Verdict:
        return refuse(
            self.policy,
            question.rules,
            error,
            thresholds=self._thresholds,
            stages=question.stages,
            model=self.model.id,
            others=self._checked(question)[0],
        )

    def _checked(self, question: _Question) -> tuple[list[RuleResult], str | None]:
        """Return the results of the rules that checks decide, and what failed."""
        results, error = [], None
        for rule in question.checked:
            threshold = self._thresholds[rule.id]
            try:
                found, q = find_all(self._checks[rule.id], question.messages)
            except Exception as exc:
                # A check is a user's code: whatever it raises, the rule's on_error decides.
                logger.exception("check %s failed; its on_error decides", rule.id)
                error = f"check {rule.id}: {type(exc).__name__}: {exc}"
                results.append(unchecked(self.policy, rule, threshold))
            else:
                results.append(checked(self.policy, rule, found, q, threshold))
        return results, error

    def _question(self, item: MessagesLike, stage: Stage | None) -> _Question:
        messages = parse_messages(item, stage)
        for i, message in enumerate(messages):
            size = len(message.content) + sum(len(call.name) + len(call.arguments) for call in message.tool_calls)
            if size > self._max_chars:
                raise MessageError(
                    f"messages[{i}]: {size} characters; a guard judges at most {self._max_chars} a message: "
                    "split it, or raise Guard(max_chars=...)"
                )
        stages = stages_of(messages[-1], stage)
        if stages not in self._applicable:
            rules = self.policy.rules_at(stages)
            norms = [r for r in rules if r.stance != "permit"]
            self._applicable[stages] = (
                tuple(r for r in norms if r.id not in self._checks),
                tuple(r for r in norms if r.id in self._checks),
                tuple(r for r in rules if r.stance == "permit"),
            )
        return _Question(messages, stages, *self._applicable[stages])

    def _threshold(self, rule: Rule) -> float:
        if rule.fpr is not None:
            found = self.model.threshold_at(rule.fpr)
            if not 0.0 <= found <= 1.0:  # NaN as well: no q would ever reach it
                raise ScoringError(f"model {self.model.id}: threshold {found} for rule {rule.id!r} (fpr {rule.fpr})")
            return found
        return rule.threshold if rule.threshold is not None else self.policy.defaults.threshold


def _candidates(
    messages: MessagesLike, candidates: Sequence[MessagesLike]
) -> tuple[list[str], list[tuple[Message, ...]]]:
    """Return candidate answers as texts, and as conversations that end with them."""
    prompt = parse_messages(messages)
    if not candidates:
        raise MessageError("no candidates: give at least one answer to rank")
    turns = [parse_messages(candidate, "response") for candidate in candidates]
    return [turn[-1].content for turn in turns], [(*prompt, *turn) for turn in turns]


def _requests(questions: Sequence[_Question]) -> list[ScoringRequest]:
    return [ScoringRequest(q.messages, q.rules, q.permits) for q in questions if q.rules]


class _NoModel:
    """Stands where checks decide every rule: nothing is ever asked of it."""

    id = "checks-only"

    def score(self, requests: Sequence[ScoringRequest]) -> list[Reading]:
        raise ScoringError("no model: every rule is decided by a check")

    def threshold_at(self, fpr: float) -> float:
        raise ScoringError("a rule that a check decides takes `threshold`, not `fpr`")


def _must_have(policy: Policy, checks: Mapping[str, Check]) -> None:
    known = {rule.id for rule in policy.rules if rule.stance != "permit"}
    unknown = sorted(set(checks) - known)
    if unknown:
        raise PolicyError(
            f"checks: policy {policy.name!r} has no rule {', '.join(map(repr, unknown))} to decide; "
            f"there are {', '.join(sorted(known))}"
        )


def _usable(policy: Policy) -> Policy:
    """Return a policy built in Python if it holds what a policy from a file must hold."""
    if policy.extends:
        # Its parents' rules are not there: it would let pass what they forbid.
        raise PolicyError(
            f"policy {policy.name!r}: `extends` is not resolved; use Policy.from_dict or Policy.from_file"
        )
    if not policy.rules:
        raise PolicyError(f"policy {policy.name!r}: it has no rules and would allow everything; add `rules`")
    if len(policy.rules) > MAX_RULES:
        raise PolicyError(f"policy {policy.name!r}: {len(policy.rules)} rules; a policy has at most {MAX_RULES}")
    return policy


def _within(model: RewardModel, deadline: float) -> RewardModel:
    # A scheduler's queue knows deadlines itself, and lets more callers wait than there are threads.
    return model.within(deadline) if isinstance(model, Scheduler) else Resilient(model, deadline=deadline)


def _default_model() -> RewardModel:
    # Imported here: a guard with its own model needs no ONNX Runtime.
    from csrm_guard.onnx_model import OnnxRewardModel

    return OnnxRewardModel.default()
