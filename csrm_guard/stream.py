"""Hold back what a stream has not been judged on yet: a state machine without input or output.

Text is kept per (choice, channel): content, refusal, reasoning, tool arguments. In mode

* `gated` nothing leaves before the sentence that holds it was judged with what came before it: no violating character
  leaks. A sentence longer than `hold` characters is judged in parts. Tool arguments leave when all of them are there.
* `sampled` everything leaves at once and is judged every `every` characters: at most these and one chunk leak.
* `end` everything leaves at once and is judged once, at the end: all but the last chunk of a choice may leak.

In every mode a choice's last chunk waits for the judgement on all of it, and a blocked choice ends there.

What is computed again: the judged part (at most 900 characters) is read from its beginning each time, since its tokens
read each other in both directions; so a judgement is the one that `Guard.check` would give on the same text. What
stands before it (the conversation, and what was said more than 450 to 900 characters ago) stays the same for several
sentences; from its second judgement on the shipped model keeps its keys and values (`csrm_guard.prefixes`). The last
judgement, on all that was said, reads all of it once more.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, Literal, TypeAlias, TypeVar

from csrm_guard.flow import Ending
from csrm_guard.messages import Message, ToolCall
from csrm_guard.policy import Policy
from csrm_guard.redaction import cut
from csrm_guard.sentences import sentence_end, sentence_spans
from csrm_guard.verdict import Verdict

__all__ = ["Channel", "Ended", "Gated", "Key", "Mode", "Part", "Passed", "StreamGate"]

Chunk = TypeVar("Chunk")
Mode: TypeAlias = Literal["gated", "sampled", "end"]
Channel: TypeAlias = Literal["content", "refusal", "reasoning", "tool"]
# Choice, channel, and which tool call.
Key: TypeAlias = tuple[int, Channel, int]

# About one window of the shipped model: a sentence is judged with what was said just before it, between half of this
# and all of it.
_WINDOW = 900


@dataclass(frozen=True, slots=True)
class Part:
    """Text of one channel in a chunk; `name`: the tool's, where it is called."""

    key: Key
    text: str
    name: str = ""


@dataclass(frozen=True, slots=True)
class Gated(Generic[Chunk]):
    """A chunk as a vendor sent it, with what it holds.

    Attributes:
        chunk: the vendor's object.
        parts: the text in it, in order.
        choices: that it belongs to; none: to the stream as a whole (usage).
        ends: choices whose last chunk it is.
        closes: texts and tool calls that are complete with it, before their choice ends.
    """

    chunk: Chunk
    parts: tuple[Part, ...] = ()
    choices: frozenset[int] = frozenset()
    ends: frozenset[int] = frozenset()
    closes: frozenset[Key] = frozenset()


@dataclass(frozen=True, slots=True)
class Passed(Generic[Chunk]):
    """A chunk that may leave.

    Attributes:
        chunk: the vendor's object.
        texts: by key, what stands in for its text, where that was cut.
        without: its choices that have ended before.
    """

    chunk: Chunk
    texts: Mapping[Key, str] = field(default_factory=dict)
    without: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class Ended:
    """A choice that the policy ended; nothing more of it leaves.

    Attributes:
        choice: its index.
        verdict: for which it ended.
        ending: `blocked` or `fallback`.
        text: the policy's fallback.
    """

    choice: int
    verdict: Verdict
    ending: Ending
    text: str


@dataclass(slots=True)
class _Lane:
    """The text of one key: judged pieces (start, end, what leaves of it) and what is still to be judged.

    Attributes:
        name: the tool's.
        raw: all that came.
        cleared: up to where it was judged.
        said: what leaves of that.
        start: of what is said, where the part begins that a new piece is judged with.
        partly: some judgement did not read all that was said.
        fine: up to here it is judged sentence by sentence: a part of it is to be cut.
        pieces: judged.
    """

    name: str = ""
    raw: str = ""
    cleared: int = 0
    said: str = ""
    start: int = 0
    partly: bool = False
    fine: int = 0
    pieces: list[tuple[int, int, str]] = field(default_factory=list)

    def clear(self, end: int, out: str) -> None:
        self.pieces.append((self.cleared, end, out))
        self.said += out
        self.cleared = end

    def leaves(self, start: int, end: int) -> str:
        """Return what leaves of the raw characters [start, end)."""
        out = ""
        for p, q, text in self.pieces:
            if p < end and q > start:
                whole = text == self.raw[p:q]
                out += text[max(start, p) - p : min(end, q) - p] if whole else text if start <= p else ""
        return out


@dataclass(frozen=True, slots=True)
class _Ask:
    """A question: which lanes, up to where, on which conversation; the new piece begins at `offset` of the judged."""

    keys: tuple[Key, ...]
    ends: tuple[int, ...]
    view: tuple[Message, ...]
    offset: int = 0


class StreamGate(Generic[Chunk]):
    """Decide what of one streamed answer may leave, and when.

    Push each chunk; then judge what is `due`, `settle` it and send on what is `ready`. Call `finish` at the end.

    Args:
        policy: says what follows from a violation.
        messages: the conversation that is answered.
        mode: when text leaves.
        every: characters between judgements in mode `sampled`.
        hold: longest piece that is held for want of a sentence's end.
        choices: how many the stream has.
    """

    def __init__(
        self,
        policy: Policy,
        messages: tuple[Message, ...],
        *,
        mode: Mode = "gated",
        every: int = 400,
        hold: int = 400,
        choices: int = 1,
    ) -> None:
        if every < 1 or hold < 1 or choices < 1:
            raise ValueError(f"every, hold and choices must be at least 1, not {every}, {hold}, {choices}")
        self._policy, self._messages, self._mode = policy, messages, mode
        self._every, self._hold, self._choices = every, hold, choices
        self._lanes: dict[Key, _Lane] = {}
        self._held: list[tuple[Gated[Chunk], tuple[tuple[Part, int, int], ...]]] = []
        self._over: set[int] = set()
        self._closed: set[Key] = set()
        self._calls: set[Key] = set()  # that were judged and may leave
        self._done: set[int] = set()
        self._stopped: dict[int, Ended] = {}
        self._told: set[int] = set()
        self._asked: list[_Ask] = []
        self.verdicts: dict[int, Verdict] = {}

    @property
    def closed(self) -> bool:
        """Whether nothing more can leave: the upstream may be closed."""
        return bool(self._stopped) and len(self._stopped.keys() | self._done) >= self._choices

    @property
    def endings(self) -> tuple[Ending, ...]:
        """What was done with each choice that was judged, so far."""
        cut = {key[0] for key, lane in self._lanes.items() if any(out != lane.raw[p:q] for p, q, out in lane.pieces)}
        return tuple(
            self._stopped[i].ending if i in self._stopped else "redacted" if i in cut else "kept"
            for i in sorted(self.verdicts)
        )

    def push(self, gated: Gated[Chunk]) -> None:
        """Take a chunk."""
        placed = []
        for part in gated.parts:
            lane = self._lanes.setdefault(part.key, _Lane())
            lane.name = lane.name or part.name
            start = len(lane.raw)
            lane.raw += part.text
            if part.text:
                self._done.discard(part.key[0])  # some servers go on after an end
            placed.append((part, start, len(lane.raw)))
        self._over |= gated.ends
        self._closed |= gated.closes & self._lanes.keys()
        self._held.append((gated, tuple(placed)))

    def finish(self) -> None:
        """Take note that nothing more comes."""
        self._over |= {key[0] for key in self._lanes} | {i for gated, _ in self._held for i in gated.choices}

    def due(self) -> tuple[tuple[Message, ...], ...]:
        """Return the conversations that must be judged now; `settle` takes their verdicts."""
        self._asked = []
        for key, lane in self._lanes.items():
            if key[0] not in self._stopped and key[0] not in self._done and key[1] != "tool":
                ask = self._ask(key, lane)
                self._asked += [ask] if ask else []
        whole = self._over | {key[0] for key in self._closed if key[1] == "tool"}
        for choice in sorted(whole - self._stopped.keys() - self._done):
            ask = self._ask_tools(choice)
            self._asked += [ask] if ask else []
        return tuple(ask.view for ask in self._asked)

    def settle(self, verdicts: Sequence[Verdict]) -> None:
        """Take the verdicts on what was due."""
        for ask, verdict in zip(self._asked, verdicts, strict=True):
            choice = ask.keys[0][0]
            if choice in self._stopped:
                continue
            if verdict.violated or choice not in self.verdicts:
                self.verdicts[choice] = verdict
            if verdict.allowed:
                for key, end in zip(ask.keys, ask.ends, strict=True):
                    lane = self._lanes[key]
                    lane.clear(end, lane.raw[lane.cleared : end])
                self._calls |= {key for key in ask.keys if key[1] == "tool"}
            elif verdict.action == "redact" and self._mode == "gated" and ask.keys[0][1] != "tool":
                self._cut(ask, verdict)
            else:
                self._stop(choice, verdict)
        self._asked = []
        self._done |= {c for c in self._over - self._stopped.keys() if self._all_cleared(c)}

    def ready(self) -> list[Passed[Chunk] | Ended]:
        """Return what may leave now, in order."""
        out: list[Passed[Chunk] | Ended] = []
        waiting: set[int] = set()
        held: list[tuple[Gated[Chunk], tuple[tuple[Part, int, int], ...]]] = []
        for gated, placed in self._held:
            live = gated.choices - self._stopped.keys()
            if gated.choices and not live:
                continue
            blocked = live & waiting or (not gated.choices and held)
            if blocked or not self._may_leave(gated, placed):
                waiting |= live
                held.append((gated, placed))
            else:
                out.append(Passed(gated.chunk, self._changed(placed), gated.choices - live))
        self._held = held
        for choice, ended in self._stopped.items():
            if choice not in self._told:
                self._told.add(choice)
                out.append(ended)
        return out

    def _ask(self, key: Key, lane: _Lane) -> _Ask | None:
        over = self._complete(key)
        end = self._boundary(lane, over=over)
        if end is None:
            return None
        piece = lane.raw[lane.cleared : end]
        last = over and end == len(lane.raw)
        if not piece.strip() and not (last and lane.partly):
            lane.clear(end, piece)
            return None
        size = len(lane.said) + len(piece)
        if size - lane.start > _WINDOW:
            # By halves, not sentence by sentence: what stands before it stays the same for a while, and is kept.
            start = min(len(lane.said), size - _WINDOW // 2)
            lane.start = sentence_end(lane.said[: start + 200], start) or start
        start = 0 if last else lane.start
        lane.partly = start > 0 or (lane.partly and not last)
        before = (Message("assistant", lane.said[:start]),) if lane.said[:start].strip() else ()
        view = (*self._messages, *before, Message("assistant", lane.said[start:] + piece))
        return _Ask((key,), (end,), view, len(lane.said) - start)

    def _boundary(self, lane: _Lane, *, over: bool) -> int | None:
        """Return up to where the lane can be judged now; None: not further."""
        size = len(lane.raw) - lane.cleared
        if not size and not (over and lane.partly):
            return None
        if lane.cleared < lane.fine:
            return lane.cleared + sentence_spans(lane.raw[lane.cleared : lane.fine])[0][1]
        if over:
            return len(lane.raw)
        if self._mode != "gated":
            return len(lane.raw) if self._mode == "sampled" and size >= self._every else None
        end = sentence_end(lane.raw, lane.cleared)
        if end is None and size >= self._hold:
            space = lane.raw.rfind(" ", lane.cleared + 1)
            end = space if space > lane.cleared else len(lane.raw)
        while end is not None and lane.raw[end : end + 1].isspace():
            end += 1  # spaces say nothing; a chunk may end with one
        return end

    def _ask_tools(self, choice: int) -> _Ask | None:
        keys = [key for key in self._lanes if key[0] == choice and key[1] == "tool" and self._complete(key)]
        if all(key in self._calls and self._lanes[key].cleared == len(self._lanes[key].raw) for key in keys):
            return None
        calls = tuple(ToolCall(self._lanes[key].name, self._lanes[key].raw) for key in keys)
        view = (*self._messages, Message("assistant", "", calls))
        return _Ask(tuple(keys), tuple(len(self._lanes[key].raw) for key in keys), view)

    def _complete(self, key: Key) -> bool:
        return key[0] in self._over or key in self._closed

    def _stop(self, choice: int, verdict: Verdict) -> None:
        ending: Ending = "blocked" if verdict.action == "block" else "fallback"
        self._stopped[choice] = Ended(choice, verdict, ending, self._policy.defaults.fallback)

    def _cut(self, ask: _Ask, verdict: Verdict) -> None:
        """Clear the new piece without what breaks a rule: the places that checks found, or its sentences."""
        lane, end = self._lanes[ask.keys[0]], ask.ends[0]
        piece, marker = lane.raw[lane.cleared : end], self._policy.defaults.redaction
        if not piece.strip():  # what breaks the rule has left already, sentence by sentence
            self._stop(ask.keys[0][0], verdict)
            return
        spans = [(0, len(piece))]
        if all(rule.exact for rule in verdict.violated):
            found = [(a - ask.offset, b - ask.offset) for rule in verdict.violated for a, b in rule.spans]
            spans = [(max(a, 0), b) for a, b in found if b > 0] or spans
        elif len(sentence_spans(piece)) > 1:
            lane.fine = end
            return
        lane.clear(end, cut(piece, spans, marker))

    def _all_cleared(self, choice: int) -> bool:
        return all(lane.cleared == len(lane.raw) for key, lane in self._lanes.items() if key[0] == choice)

    def _may_leave(self, gated: Gated[Chunk], placed: tuple[tuple[Part, int, int], ...]) -> bool:
        if gated.ends - self._stopped.keys() - self._done:
            return False
        if not all(self._lanes[key].cleared == len(self._lanes[key].raw) for key in gated.closes & self._lanes.keys()):
            return False
        return all(self._part_may_leave(part.key, end) for part, _, end in placed if part.key[0] not in self._stopped)

    def _part_may_leave(self, key: Key, end: int) -> bool:
        judged = self._lanes[key].cleared >= end
        if key[1] == "tool":
            return judged and key in self._calls
        return judged or self._mode != "gated"

    def _changed(self, placed: tuple[tuple[Part, int, int], ...]) -> dict[Key, str]:
        if self._mode != "gated":
            return {}
        found = {}
        for part, start, end in placed:
            text = self._lanes[part.key].leaves(start, end)
            if part.key[0] not in self._stopped and text != part.text:
                found[part.key] = text
        return found
