"""Pick the best of several answers: python examples/best_of_n.py."""

from itertools import cycle

from csrm_guard import Guard, best_of_n

guard = Guard("support-desk")
drafts = cycle(
    [
        "I promise you will get all your money back this week.",
        "I have passed your request to our returns team; they will write to you.",
        "Buy a better kettle elsewhere.",
    ]
)
question = {"role": "user", "content": "My kettle leaks. Can I get my money back?"}
ranking = best_of_n(guard, question, lambda: next(drafts), n=3)
for candidate in ranking.candidates:
    print(f"{candidate.score:+.2f} {'passed' if candidate.passed else 'not'}: {candidate.text}")
print("chosen:", ranking.text)
