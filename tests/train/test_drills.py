"""Drills: labels are checked by a second way, which reads the texts."""

import random
import re
from dataclasses import replace
from pathlib import Path

import pytest

from csrm_guard_train.augment import Augmenter
from csrm_guard_train.data import Authored
from csrm_guard_train.drill_words import DrillError, Wordings
from csrm_guard_train.drills import drill, drill_talk
from csrm_guard_train.grids import Grid
from csrm_guard_train.recipe import Mixture
from csrm_guard_train.talks import Talk

SHIPPED = Path(__file__).parents[2] / "train" / "data" / "authored" / "drills.yaml"
PLAIN = """
acts:
  offer: {says: ["I offer {x}."], bare: ["offer {x}"]}
  book: {says: ["I book {x}."], bare: ["book {x}"]}
  ban: {says: ["I ban {x}."], bare: ["ban {x}"]}
close: [[offer, book]]
denials: [ban]
negated: ["I refuse to {a}."]
wishes: ["Please {a}."]
unwanted: ["Do not {a}."]
wish_forbid: ["Users never ask to {a}."]
wish_require: ["Users always ask to {a}."]
user_forbid: ["Users never {a}."]
user_require: ["Users always {a}."]
any: {bare: ["mention {x}"]}
forbid: ["Never {a}."]
require: ["Always {a}."]
when: ["If {c}, {f}."]
unless: ["Unless {c}, {f}."]
forbid_bare: ["never {a}"]
require_bare: ["always {a}"]
also: ["{a} needs {b}."]
never_both: ["{a} bars {b}."]
before: ["{a} precedes {b}."]
numbers:
  cost: {says: ["It costs {n}."], noun: [cost], unit: "{n}", range: [2, 50]}
  wait: {says: ["It takes {n}."], noun: [wait], unit: "{n}", range: [2, 50]}
at_most: ["The {k} is {u} at most."]
at_least: ["The {k} is {u} at least."]
exactly: ["The {k} is {u} exactly."]
choices:
  day: {says: ["Come {v}."], noun: [day], values: [Monday, Tuesday, Friday]}
only_one: ["The {k}: only {v}."]
only_two: ["The {k}: only {v} or {w}."]
not_one: ["The {k}: not {v}."]
not_two: ["The {k}: not {v} or {w}."]
facts:
  member: {present: ["I belong."], absent: ["I do not belong."], when: [member], other: [stranger]}
acks: ["Noted."]
openings: ["Yes?"]
fillers: [["Nice day.", "It is."], ["Where are you?", "In town."]]
asks: ["And {x}?"]
asked: {when: ["{x} asked"], other: ["{x} unasked"]}
tails:
  question: {present: ["Well?"], absent: ["Well."], require: ["Ask."], forbid: ["Tell."]}
heads:
  sorry: {present: ["Sorry."], absent: ["Hm."], require: ["Regret."], forbid: ["No regret."]}
names: [Ada]
things:
  shop: [tea, soap, rope, wax]
"""


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Wordings:
    path = tmp_path_factory.mktemp("drills") / "drills.yaml"
    path.write_text(PLAIN, encoding="utf-8")
    return Wordings.from_file(path)


def made(words: Wordings, count: int) -> list[Grid]:
    rng = random.Random(5)
    return [drill(words, rng, i) for i in range(count)]


def breaks(rule: str, context: str, message: str) -> bool:
    """Tell from the texts alone whether a message breaks a rule of the plain wordings."""
    if found := re.fullmatch(r"(If|Unless) (.+?), (.+)\.", rule):
        word, condition, norm = found.groups()
        if condition in ("member", "stranger"):
            holds = ("I belong." in context) == (condition == "member")
        else:
            thing, asked = condition.split()
            holds = (f"And {thing}?" in context) == (asked == "asked")
        return holds == (word == "If") and breaks(norm[0].upper() + norm[1:] + ".", context, message)
    if found := re.fullmatch(r"(Never|Always) (\w+) (\w+)\.", rule):
        way, act, thing = found.groups()
        done = thing in message if act == "mention" else f"I {act} {thing}." in message
        return done == (way == "Never")
    if found := re.fullmatch(r"Users (never|always) (ask to )?(\w+) (\w+)\.", rule):
        way, asked, act, thing = found.groups()
        done = f"Please {act} {thing}." in message if asked else thing in message
        return done == (way == "never")
    if found := re.fullmatch(r"(\w+) (\w+) (needs|bars|precedes) (\w+) (\w+)\.", rule):
        one, two = f"I {found[1].lower()} {found[2]}.", f"I {found[4]} {found[5]}."
        first, second = one in message, two in message
        both = first and second and message.index(one) > message.index(two)
        return {"needs": first and not second, "bars": first and second, "precedes": both}[found[3]]
    if found := re.fullmatch(r"The (cost|wait) is (\d+) (at most|at least|exactly)\.", rule):
        said = re.search(r"It costs (\d+)" if found[1] == "cost" else r"It takes (\d+)", message)
        if said is None:
            return False
        value, bound = int(said[1]), int(found[2])
        return {"at most": value > bound, "at least": value < bound, "exactly": value != bound}[found[3]]
    if found := re.fullmatch(r"The day: (only|not) (\w+)(?: or (\w+))?\.", rule):
        said = re.search(r"Come (\w+)\.", message)
        return said is not None and (said[1] in (found[2], found[3])) == (found[1] == "not")
    return {
        "Ask.": "Well?" not in message, "Tell.": "Well?" in message,
        "Regret.": "Sorry." not in message, "No regret.": "Sorry." in message,
    }[rule]  # fmt: skip


def test_every_label_is_what_a_reader_of_the_texts_says(plain: Wordings):
    for grid in made(plain, 400):
        for view, broken in zip(grid.views, grid.broken, strict=True):
            context = " ".join(m.content for m in view[:-1])
            read = {i for i, rule in enumerate(grid.rules) if breaks(rule, context, view[-1].content)}
            assert read == broken, (grid, view)


def test_every_rule_is_broken_by_some_messages_and_kept_by_others():
    for grid in made(Wordings.from_file(SHIPPED), 200):
        for i in range(len(grid.rules)):
            assert 0 < sum(i in broken for broken in grid.broken) < len(grid.views)


def test_no_rule_asks_for_an_act_where_a_message_does_one_that_comes_close(plain: Wordings):
    for grid in made(plain, 400):
        texts = [view[-1].content for view in grid.views]
        for rule in grid.rules:
            for thing in re.findall(r"(?:Never|Always|never|always) offer (\w+)", rule):
                assert not any(f"I book {thing}." in t and f"I offer {thing}." not in t for t in texts)


def test_some_drills_judge_what_users_ask_for_and_some_messages_deny_an_act(plain: Wordings):
    grids = made(plain, 200)
    last = [view[-1] for grid in grids for view in grid.views]
    assert {message.role for message in last if "Please" in message.content} == {"user"}
    assert any("I refuse to" in message.content for message in last)
    assert all((grid.stage == "prompt") == (grid.views[0][-1].role == "user") for grid in grids)


def test_messages_of_one_drill_differ(plain: Wordings):
    assert all(len({view[-1].content for view in grid.views}) == 4 for grid in made(plain, 100))


def test_the_same_seed_makes_the_same_drills_and_another_seed_others(plain: Wordings):
    assert made(plain, 5) == made(plain, 5)
    assert drill(plain, random.Random(1), 0) != drill(plain, random.Random(2), 0)


def test_a_wrong_key_is_named_with_its_place(tmp_path: Path):
    path = tmp_path / "drills.yaml"
    path.write_text(PLAIN.replace('bare: ["ban {x}"]', 'bear: ["ban {x}"]'), encoding="utf-8")
    with pytest.raises(DrillError, match=r"drills\.yaml: acts\.ban\.bear"):
        Wordings.from_file(path)


def test_few_words_are_the_first_of_each_kind_and_name_no_act_that_is_gone():
    whole = Wordings.from_file(SHIPPED)
    few = whole.few(0.25)
    assert list(few.acts) == list(whole.acts)[: len(whole.acts) // 4]
    assert few.forbid == whole.forbid[: round(len(whole.forbid) / 4)]
    assert few.close
    assert all(near <= few.acts.keys() for near in (*few.close, few.denials))


def test_drills_of_few_words_keep_to_them():
    whole = Wordings.from_file(SHIPPED)
    few = whole.few(0.1)
    assert {grid.setting for grid in made(few, 100)} <= set(few.things) < set(whole.things)


def test_all_words_are_the_whole(plain: Wordings):
    assert plain.few(1.0) == plain


def talks(words: Wordings, count: int) -> list[Talk]:
    rng = random.Random(7)
    return [drill_talk(words, rng, i) for i in range(count)]


def test_every_turn_of_a_talk_keeps_its_rules_and_every_other_text_breaks_those_named(plain: Wordings):
    for talk in talks(plain, 150):
        alternatives = {(a.turn, a.text): a.broken for a in talk.alternatives}
        cases = {**{(turn, talk.messages[turn].content): frozenset() for turn in talk.turns}, **alternatives}
        for (turn, text), broken in cases.items():
            context = " ".join(m.content for m in talk.messages[:turn])
            read = {i for i, rule in enumerate(talk.rules) if breaks(rule, context, text)}
            assert read == broken, (talk, turn, text)


def test_talks_have_several_turns_and_rules_that_some_other_text_breaks():
    for talk in talks(Wordings.from_file(SHIPPED), 100):
        assert 2 <= len(talk.turns) <= 4
        assert 6 <= len(talk.rules) <= 9
        assert [m.role for m in talk.messages[-2:]] == ["user", "assistant"]
        assert all(1 <= len(a.broken) <= 2 for a in talk.alternatives)
        assert len(frozenset().union(*(a.broken for a in talk.alternatives))) >= len(talk.rules) - 3


def test_an_epoch_shows_as_many_whole_talks_as_the_recipe_asks_for(plain: Wordings, authored: Authored):
    mixture = Mixture(items=0, rungs=0, transcripts=0, drill_talks=3)
    groups = Augmenter(replace(authored, drills=plain), mixture).epoch(random.Random(0))
    assert sorted(group.id for group in groups) == [f"drill-talk-{i}/whole" for i in range(3)]
    for group in groups:
        kept, rewritten = group.examples
        assert not any(rule.violated for rule in kept.rules)
        assert any(rule.violated for rule in rewritten.rules)
