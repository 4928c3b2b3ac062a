"""Guard a LangChain chain: python examples/langchain_chain.py (its model is scripted)."""

from langchain_core.language_models import GenericFakeChatModel
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import RunnableLambda

from csrm_guard import Blocked, Guard, Policy
from csrm_guard.checks import DenylistCheck, pii_check
from csrm_guard_adapters.langchain import GuardRunnable

policy = Policy.from_dict(
    {
        "name": "kettle-shop",
        "rules": [
            {"id": "no-personal-data", "text": "No e-mail addresses.", "action": "redact"},
            {"id": "no-competitors", "text": "Do not name other shops."},
        ],
    }
)
checks = {"no-personal-data": pii_check("email"), "no-competitors": DenylistCheck(["Acme"])}
guard = GuardRunnable(Guard(policy, checks=checks))

prompt = ChatPromptTemplate.from_messages([("system", "You sell kettles."), ("user", "{question}")])
model = GenericFakeChatModel(messages=iter(["Of course. I write to you today.", "Go to Acme for that."]))
chain = prompt | guard | model | guard | StrOutputParser()

# Without `exceptions_to_handle`, a fallback answers errors as well as blocks.
answered = chain.with_fallbacks([RunnableLambda(lambda _: "Let me get a colleague.")], exceptions_to_handle=(Blocked,))
for question in ("I am ann@example.com, may I have an offer?", "Who repairs kettles?"):
    print(answered.invoke({"question": question}))
print((prompt | guard).invoke({"question": "I am ann@example.com, hello."}).to_messages()[-1].content)
