"""Policies and messages of a given size, for speed."""

from __future__ import annotations

from csrm_guard import Message, OnnxRewardModel, Policy, Rule, ScoringRequest

TEXTS = [
    "I ordered a kettle two weeks ago and it has still not arrived, although the tracking page says it did.",
    "Can you tell me what happens if I cancel the subscription before the end of the month?",
    "The assistant on the phone promised that somebody would call me back, and nobody has done so yet.",
    "My son used my card in the game last night and I would like to know how to get the money back.",
    "What is the difference between the two plans, and which of them would you take for a small office?",
]


def policy(rules: int) -> Policy:
    texts = [rule.text for rule in Policy.builtin("support-desk").rules if rule.stance != "permit"]
    picked = [texts[i % len(texts)] for i in range(rules)]
    return Policy(name=f"{rules} rules", rules=tuple(Rule(id=f"r{i}", text=text) for i, text in enumerate(picked)))


def text(model: OnnxRewardModel, tokens: int, seed: int = 0) -> str:
    """Return a message of so many tokens; another seed, another message."""
    words = f"case {seed}: " + " ".join(TEXTS[(seed + i) % len(TEXTS)] for i in range(tokens // 12 + 2))
    encoded = model.encoder._tokenizer.encode(words, add_special_tokens=False)
    return words[: encoded.offsets[tokens - 1][1]]


def request(model: OnnxRewardModel, rules: int, tokens: int, seed: int = 0) -> ScoringRequest:
    return ScoringRequest((Message("user", text(model, tokens, seed)),), policy(rules).rules)


def tokens_run(model: OnnxRewardModel, asked: ScoringRequest) -> int:
    """Return the tokens that one check has to run: every window and, once per window, every rule."""
    windows = model.encoder.conversation(asked.messages).windows
    rules = sum(len(chunk) for rule in asked.rules for chunk in model.encoder.rule(rule.text)[0])
    return sum(len(w.context) + len(w.judged) + rules for w in windows)
