"""The README's ten lines."""

from csrm_guard import Blocked, Guard, Policy

policy = Policy.from_dict(
    {
        "name": "kettle-shop",
        "rules": [
            {"id": "no-refund-promises", "text": "Never promise a refund or say that one has been made."},
            {"id": "no-competitors", "text": "Do not recommend products of other shops."},
        ],
    }
)
guard = Guard(policy)

question = {"role": "user", "content": "My kettle leaks. Can I get my money back?"}
answer = {"role": "assistant", "content": "I promise you a full refund: the money is on its way."}

try:
    guard.require([question, answer])
    print("allowed")
except Blocked as blocked:
    print(blocked.verdict.summary())
