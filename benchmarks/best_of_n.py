"""Candidates of one prompt, together and apart: python benchmarks/best_of_n.py."""

from __future__ import annotations

import argparse

import machine
from questions import policy, text

from csrm_guard import Guard, Message, OnnxRewardModel
from csrm_guard.artifact import DEFAULT_ARTIFACT

PROMPT, ANSWER = 400, 48


def tokens(model: OnnxRewardModel, rules: int, prompt: str, answers: list[str]) -> float:
    """Return the share of tokens that has to be run where the prompt is read once: each rule reads every answer."""
    own = sum(len(model.encoder.rule(rule.text)[0][0]) for rule in policy(rules).rules)
    views = [(Message("user", prompt), Message("assistant", answer)) for answer in answers]
    windows = [model.encoder.conversation(view).windows[0] for view in views]
    apart = sum(len(w.context) + len(w.judged) + own for w in windows)
    # Prompts that are cut to unlike lengths are prompts of their own.
    together = sum(map(len, {w.context for w in windows})) + sum(len(w.judged) + own for w in windows)
    return together / apart


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    sharing = OnnxRewardModel.load(DEFAULT_ARTIFACT)
    apart = OnnxRewardModel.load(DEFAULT_ARTIFACT, prefix_bytes=0)
    before = machine.probe()
    rows = []
    for rules in (1, 4, 8):
        together, single = Guard(policy(rules), sharing), Guard(policy(rules), apart)
        for n in (4, 16, 64):
            prompt = text(sharing, PROMPT, seed=n)
            answers = [text(sharing, ANSWER + i % 16, seed=100 + i) for i in range(n)]

            def ranked(g: Guard = together, p: str = prompt, a: list[str] = answers) -> object:
                sharing.prefixes.clear()  # as if the prompt were new
                return g.rerank(p, a)

            def checked(g: Guard = single, p: str = prompt, a: list[str] = answers) -> object:
                user = {"role": "user", "content": p}
                return [g.check([user, {"role": "assistant", "content": answer}]) for answer in a]

            times = machine.alternate({"together": ranked, "apart": checked}, options.rounds)
            share = 1 / machine.ratio(times["apart"], times["together"])
            rows.append({
                "rules": rules, "n": n, "rerank, ms": machine.spread(times["together"]),
                "n checks, ms": machine.spread(times["apart"]), "share": f"{share:.0%}",
                "of the tokens": f"{tokens(sharing, rules, prompt, answers):.0%}",
            })  # fmt: skip
    after = machine.probe()
    machine.write(
        "best_of_n",
        "Best of n: one reranking against n checks",
        [(f"Prompt of {PROMPT} tokens, answers of {ANSWER}-{ANSWER + 15}, all cores", rows)],
        [
            "The model reads 384 tokens of a conversation at once: of the prompt, what the answer leaves room for.",
            f"Probe before and after: int8 {before['int8']:.0f} and {after['int8']:.0f} GOP/s.",
            f"Model {sharing.id}. {machine.machine()}.",
            "`of the tokens`: what the structure leaves to run, the prompt once, but each answer and each rule on it.",
            f"Command: `python benchmarks/best_of_n.py --rounds {options.rounds}`.",
        ],
    )


if __name__ == "__main__":
    main()
