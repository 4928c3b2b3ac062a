"""Candidates of one prompt, together and apart: python benchmarks/best_of_n.py."""

from __future__ import annotations

import machine
from questions import policy, text

from csrm_guard import Guard, OnnxRewardModel
from csrm_guard.artifact import DEFAULT_ARTIFACT

PROMPT, ANSWER, ROUNDS = 400, 48, 5


def main() -> None:
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

            times = machine.alternate({"together": ranked, "apart": checked}, ROUNDS)
            share = 1 / machine.ratio(times["apart"], times["together"])
            rows.append({
                "rules": rules, "n": n, "rerank, ms": machine.spread(times["together"]),
                "n checks, ms": machine.spread(times["apart"]), "share": f"{share:.0%}",
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
            "Command: `python benchmarks/best_of_n.py`.",
        ],
    )


if __name__ == "__main__":
    main()
