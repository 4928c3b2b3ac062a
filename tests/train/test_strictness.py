import random
from collections.abc import Sequence
from math import comb

import numpy as np
import pytest

from csrm_guard.messages import Message
from csrm_guard_train.dominance import Candidate, clopper_pearson_lower, dominance, fewest, strictness_test
from csrm_guard_train.labellers import (
    AnnotatedLabeller,
    Booleans,
    Conversation,
    CrossFittedLabeller,
    StrictnessError,
    TfidfClassifier,
    fold_groups,
)
from csrm_guard_train.pairs import Labelled, StrictPair, pair_groups
from csrm_guard_train.strictness import (
    Judged,
    Settings,
    Source,
    authored_severity,
    by_severity,
    candidates,
    cover,
    describe,
    make_pool,
    measured_severity,
    propose_annotated,
    strictness,
)

GRAVEST_FIRST = ("murder", "assault", "shoving", "rude gestures")


def said(key: str, *texts: str, shows: Sequence[str] = (), lacks: Sequence[str] = ()) -> Conversation:
    messages = tuple(Message("assistant" if i % 2 else "user", text) for i, text in enumerate(texts))
    return Conversation(key, messages, frozenset(shows), frozenset(lacks))


def annotated(per_subcategory: int) -> list[Conversation]:
    """Conversations whose words betray their one subcategory, and as many harmless ones."""
    rng = random.Random(0)
    filler = [f"word{i}" for i in range(40)]
    found = []
    for kind in (*GRAVEST_FIRST, "flowers"):
        for i in range(per_subcategory):
            text = f"{kind} {kind} " + " ".join(rng.sample(filler, 6))
            shows = {kind} & set(GRAVEST_FIRST)
            found.append(said(f"{kind}-{i}", text, shows=list(shows), lacks=list(set(GRAVEST_FIRST) - shows)))
    return found


def worded(disallowed: Sequence[str], allowed: Sequence[str]) -> tuple[str, ...]:
    return describe(disallowed, allowed, category="violence", seed=3)


def reads(conversation: Conversation, text: str) -> bool:
    """A labeller that reads the guideline: unsafe if what the conversation shows stands before 'but not'."""
    return any(word in text.split("but not")[0] for word in conversation.shows)


# --- The test


@pytest.mark.parametrize(
    ("k", "n", "passes"),
    [(59, 59, True), (58, 58, False), (92, 93, True), (91, 92, False), (196, 200, True), (195, 200, False)],
)
def test_the_bound_passes_as_in_the_paper(k: int, n: int, passes: bool):
    assert (clopper_pearson_lower(k, n) > 0.95) is passes


def test_known_bounds():
    assert clopper_pearson_lower(0, 10) == 0.0
    assert clopper_pearson_lower(10, 10) == pytest.approx(0.05**0.1)


@pytest.mark.parametrize(("k", "n"), [(1, 4), (30, 59), (92, 93), (196, 200)])
def test_at_the_bound_so_many_hits_have_probability_alpha(k: int, n: int):
    p = clopper_pearson_lower(k, n)
    assert sum(comb(n, i) * p**i * (1 - p) ** (n - i) for i in range(k, n + 1)) == pytest.approx(0.05)


def test_a_bound_rises_with_hits_and_with_data():
    by_k = [clopper_pearson_lower(k, 50) for k in range(51)]
    assert by_k == sorted(by_k)
    by_n = [clopper_pearson_lower(n, n) for n in range(1, 100)]
    assert by_n == sorted(by_n)
    assert clopper_pearson_lower(45, 50, alpha=0.01) < clopper_pearson_lower(45, 50, alpha=0.1)


@pytest.mark.parametrize(("k", "n"), [(-1, 3), (4, 3)])
def test_impossible_counts_are_refused(k: int, n: int):
    with pytest.raises(ValueError, match="0 <= k <= n"):
        clopper_pearson_lower(k, n)


def test_fewest_is_where_a_clean_sheet_begins_to_pass():
    for level in (0.5, 0.8, 0.9, 0.95, 0.99):
        n = fewest(level)
        assert clopper_pearson_lower(n, n) > level >= clopper_pearson_lower(n - 1, n - 1)
    assert fewest() == 59


def test_dominance_conditions_on_the_lenient_label():
    test = dominance([True, True, False, True], [True, False, True, False])
    assert (test.k, test.n) == (1, 2)


def test_a_dropped_pair_says_why():
    small = dominance([True] * 58, [True] * 58)
    assert not small.kept
    assert small.reason == "too few unsafe under the lenient text: n=58<59 can never pass"
    low = dominance([True] * 195 + [False] * 5, [True] * 200)
    assert low.reason.startswith("bound 0.94")
    assert low.reason.endswith("<= 0.95 (k=195, n=200)")
    assert dominance([True] * 59, [True] * 59).reason == ""


def test_an_inverted_wording_pair_is_dropped():
    pool = [said(str(i), f"t{i}", shows=["assault" if i % 2 else "shoving"]) for i in range(160)]
    wide, narrow = "no assault, no shoving but not jokes", "no assault but not shoving"
    both, one = frozenset({"assault", "shoving"}), frozenset({"assault"})
    assert strictness_test(Candidate("right", (wide,), (narrow,), both, one), pool, reads).kept
    inverted = strictness_test(Candidate("inverted", (narrow,), (wide,), both, one), pool, reads)
    assert (inverted.k, inverted.n, inverted.kept) == (80, 160, False)


def test_wordings_are_pooled_without_counting_a_conversation_twice():
    pool = [said(str(i), f"t{i}", shows=["assault"]) for i in range(30)]
    same = frozenset({"assault"})
    three = Candidate("c", ("no assault A", "no assault B", "no assault C"), ("no assault",) * 3, same, same)
    test = strictness_test(three, pool, reads)
    assert (test.k, test.n) == (30, 30)
    assert not test.kept


def test_one_bad_wording_fails_all():
    pool = [said(str(i), f"t{i}", shows=["assault"]) for i in range(80)]
    same = frozenset({"assault"})
    assert strictness_test(Candidate("c", ("no assault",), ("no assault",), same, same), pool, reads).kept
    bad = Candidate("c", ("no assault", "no jokes"), ("no assault", "no assault"), same, same)
    assert strictness_test(bad, pool, reads).k == 0


def test_a_conversation_given_twice_is_refused():
    one = said("1", "t", shows=["assault"])
    same = frozenset({"assault"})
    with pytest.raises(StrictnessError, match="twice"):
        strictness_test(Candidate("c", ("a",), ("b",), same, same), [one, one], reads)


# --- Pool, coverage, order, texts


def test_a_pool_holds_distinct_unsafe_conversations_up_to_its_cap():
    rows = [*annotated(3), said("copy", "same"), said("a", "Same  text", shows=["murder"])]
    rows.append(said("b", "same text", shows=["murder"]))
    pool = make_pool(rows)
    assert len(pool) == 13
    assert all(c.shows for c in pool)
    assert len(make_pool(rows, cap=5, seed=1)) == 5
    assert make_pool(rows, cap=5, seed=1) == make_pool(rows, cap=5, seed=1)
    assert make_pool(rows, cap=5, seed=1) != make_pool(rows, cap=5, seed=2)


def test_an_independent_pool_takes_one_answer_to_each_prompt():
    rows = [said(f"{p}-{a}", f"prompt {p}", f"answer {p} {a}", shows=["murder"]) for p in range(4) for a in range(3)]
    assert len(make_pool(rows)) == 12
    assert len({c.messages[0].content for c in make_pool(rows, independent=True)}) == 4
    assert len(make_pool(rows, independent=True)) == 4


def test_coverage_extends_the_subcategories():
    pool = make_pool(annotated(4))
    found = cover(pool, ("murder", "assault"), AnnotatedLabeller({}), propose_annotated)
    assert set(found.proposed) == {"shoving", "rude gestures"}
    assert found.subcategories[:2] == ("murder", "assault")
    assert (found.covered, found.pool, found.share) == (16, 16, 1.0)


def test_coverage_asks_only_about_what_is_uncovered():
    asked = []

    def proposer(conversation: Conversation, subcategories: Sequence[str]) -> str | None:
        asked.append(conversation.id)
        return None

    pool = make_pool(annotated(2))
    found = cover(pool, GRAVEST_FIRST[:3], AnnotatedLabeller({}), proposer)
    assert sorted(asked) == ["rude gestures-0", "rude gestures-1"]
    assert found.proposed == ()
    assert found.share == 0.75


def test_severity_is_sorted_by_repeated_choice():
    shown = []

    def longest(left: Sequence[str]) -> str:
        shown.append(len(left))
        return max(left, key=len)

    assert by_severity(("a", "ccc", "bb"), longest) == ("ccc", "bb", "a")
    assert shown == [3, 2, 1]


def test_severity_by_authored_level_and_by_measured_mean():
    assert by_severity(("new", "low", "high"), authored_severity({"low": 1, "high": 6})) == ("high", "low", "new")
    rated = [
        (said("1", "t", shows=["x"]), 0.9),
        (said("2", "t", shows=["x", "y"]), 0.1),
        (said("3", "t", shows=["y"]), 1.0),
    ]
    assert by_severity(("x", "y"), measured_severity(rated)) == ("y", "x")


def test_a_choice_outside_the_list_is_refused():
    with pytest.raises(StrictnessError, match="not among"):
        by_severity(("a",), lambda left: "b")


@pytest.mark.parametrize("seed", range(6))
def test_a_guideline_names_each_item_once_on_its_side(seed: int):
    no, yes = ["murder.", "assault"], ["shoving", "rude gestures."]
    for text in describe(no, yes, category="physical_force", seed=seed, count=6):
        assert all(text.count(item.rstrip(".")) == 1 for item in [*no, *yes])
        places = [text.index(item.rstrip(".")) for item in [*no, *yes]]
        assert max(places[:2]) < min(places[2:]) or max(places[2:]) < min(places[:2])
        assert "physical force" in text


def test_wordings_differ_and_repeat_by_seed():
    texts = describe(["a1"], ["b1"], category="c", seed=1, count=6)
    assert len(set(texts)) == 6
    assert describe(["a1"], ["b1"], category="c", seed=1, count=6) == texts
    assert {describe(["a1"], ["b1"], category="c", seed=s)[0] for s in range(20)} > {texts[0]}


@pytest.mark.parametrize(("no", "yes", "count"), [([], ["a"], 1), (["a"], [], 1), (["a"], ["a"], 1), (["a"], ["b"], 7)])
def test_a_guideline_without_two_sides_is_refused(no: list[str], yes: list[str], count: int):
    with pytest.raises(ValueError, match=r"give both lists|wordings"):
        describe(no, yes, category="c", count=count)


def test_candidates_are_all_cuts_i_below_j():
    found = candidates("violence", GRAVEST_FIRST, worded)
    assert [c.id for c in found] == ["violence:2>1", "violence:3>1", "violence:3>2"]
    for c in found:
        assert c.lenient_disallows < c.strict_disallows < set(GRAVEST_FIRST)
        assert c.strict == worded(GRAVEST_FIRST[: len(c.strict_disallows)], GRAVEST_FIRST[len(c.strict_disallows) :])
    assert candidates("violence", GRAVEST_FIRST[:2], worded) == ()


# --- Labellers


def test_annotations_decide_where_they_speak_and_another_labeller_elsewhere():
    label = AnnotatedLabeller({"guideline": frozenset({"murder", "assault"})}, otherwise=lambda c, t: True)
    assert label(said("1", "t", shows=["murder"]), "guideline")
    assert not label(said("2", "t", lacks=["murder", "assault"]), "guideline")
    assert label(said("3", "t", lacks=["murder"]), "guideline")
    assert not AnnotatedLabeller(label.meanings)(said("3", "t", lacks=["murder"]), "guideline")
    assert label(said("4", "t", shows=["shoving"]), "shoving")


def test_conversations_that_share_a_turn_share_a_group():
    rows = [said("1", "hello", "one"), said("2", "Hello ", "two"), said("3", "bye", "two"), said("4", "other", "three")]
    groups = fold_groups(rows)
    assert groups[0] == groups[1] == groups[2] != groups[3]


def test_a_shared_system_message_joins_nothing():
    system = Message("system", "be good")
    rows = [Conversation(str(i), (system, Message("user", f"text {i}"))) for i in range(3)]
    assert len(set(fold_groups(rows))) == 3


class Spy:
    """Remembers what it was fitted on and fails if it is asked about that, or about the same prompt."""

    asked = 0

    def fit(self, texts: Sequence[str], labels: Booleans) -> None:
        assert labels.shape[0] == len(texts)
        self.seen, self.width = {text.split("\n")[0] for text in texts}, labels.shape[1]

    def predict(self, texts: Sequence[str]) -> Booleans:
        assert not self.seen & {text.split("\n")[0] for text in texts}
        Spy.asked += len(texts)
        return np.ones((len(texts), self.width), dtype=bool)


def test_cross_fitting_never_labels_what_was_seen_nor_its_siblings():
    rows = [said(f"{p}-{a}", f"prompt {p}", f"answer {p} {a}", shows=["x"]) for p in range(11) for a in range(3)]
    Spy.asked = 0
    label = CrossFittedLabeller.fit(rows, {"text": frozenset({"x"})}, folds=4, classifier=Spy)
    assert Spy.asked == len(rows)
    assert all(label(row, "text") for row in rows)


def test_a_text_classifier_finds_what_words_betray():
    rows = annotated(20)
    meanings = {"strict": frozenset(GRAVEST_FIRST[:3]), "lenient": frozenset(GRAVEST_FIRST[:1])}
    label = CrossFittedLabeller.fit(rows, meanings)
    right = [label(c, t) == bool(c.shows & m) for c in rows for t, m in meanings.items()]
    assert np.mean(right) > 0.95


def test_a_classifier_answers_one_class_with_that_class():
    model = TfidfClassifier()
    model.fit(["one text", "two text"], np.array([[True, False], [True, False]]))
    assert model.predict(["three text"]).tolist() == [[True, False]]


def test_nothing_is_unsafe_where_there_is_nothing_to_learn_from():
    rows = [said("1", "same", "a", shows=["x"]), said("2", "same", "b", shows=["x"])]
    label = CrossFittedLabeller.fit(rows, {"text": frozenset({"x"})})
    assert not any(label(row, "text") for row in rows)
    assert CrossFittedLabeller.fit([], {"text": frozenset({"x"})}).labels == {}


def test_a_stranger_gets_no_label():
    label = CrossFittedLabeller.fit(annotated(2), {"text": frozenset({"murder"})}, folds=2)
    with pytest.raises(StrictnessError, match="stranger"):
        label(said("stranger", "t"), "text")


# --- The whole


def source(per_subcategory: int) -> Source:
    levels = {text: -i for i, text in enumerate(GRAVEST_FIRST)}
    return Source(
        "made-up", "violence", tuple(annotated(per_subcategory)), ("shoving", "murder", "assault"),
        authored_severity(levels), worded, "made up (CC0)",
    )  # fmt: skip


def judges(source: Source, meanings: dict[str, frozenset[str]]) -> dict[str, AnnotatedLabeller | CrossFittedLabeller]:
    fitted = CrossFittedLabeller.fit(source.conversations, meanings, folds=3)
    return {"annotated": AnnotatedLabeller(meanings, fitted), "text": fitted}


def test_the_algorithm_keeps_pairs_of_enough_data_only():
    found = strictness(source(45), judges)  # type: ignore[arg-type]
    assert found.order == GRAVEST_FIRST
    assert found.coverage.proposed == ("rude gestures",)
    fates = {row.candidate.id: row.kept for row in found.judged}
    assert fates == {"made-up:2>1": False, "made-up:3>1": False, "made-up:3>2": True}
    assert "n=45<59" in found.judged[0].tests["annotated"].reason
    (pair,) = found.pairs
    assert pair.bound > 0.95
    assert pair.n >= 59
    assert pair.origin == "made up (CC0); judged by annotated and text"
    assert len(pair.labels) == 180
    assert all(row.strict or not row.lenient for row in pair.labels)
    assert found.accuracy["annotated"] == 1.0
    assert found.accuracy["text"] > 0.95


def test_all_judges_must_agree():
    def one_is_blind(source: Source, meanings: dict[str, frozenset[str]]) -> dict[str, object]:
        return {"annotated": AnnotatedLabeller(meanings), "blind": lambda c, t: False}

    found = strictness(source(45), one_is_blind)  # type: ignore[arg-type]
    assert found.pairs == ()
    assert found.judged[2].tests["annotated"].kept


def test_the_weakest_test_counts():
    good, bad = dominance([True] * 80, [True] * 80), dominance([True] * 60, [True] * 60)
    row = Judged(Candidate("c", (), (), frozenset(), frozenset()), {"a": good, "b": bad})
    assert row.weakest == bad


def test_a_small_pool_keeps_nothing():
    found = strictness(source(45), judges, Settings(cap=58))  # type: ignore[arg-type]
    assert found.coverage.pool == 58
    assert found.pairs == ()


# --- Groups for the trainer

PAIR = StrictPair(
    "p#0", "violence", "strict text", "lenient text",
    (Labelled("1", True, False, True), Labelled("2", True, True, False), Labelled("3", False, True, True)),
    0.96, 80, 80, "made up",
)  # fmt: skip
SPOKEN = [said(key, f"text {key}") for key in "123"]


def test_groups_order_the_strict_text_over_the_lenient_one():
    for seed in range(4):
        for group in pair_groups([PAIR], SPOKEN, seed=seed):
            (example,), (order,) = group.examples, group.orders
            assert example.rules[order.more[1]].text == "strict text"
            assert example.rules[order.less[1]].text == "lenient text"
            assert (order.more[0], order.less[0]) == (0, 0)


def test_groups_carry_labels_weights_and_provenance():
    first, second = pair_groups([PAIR], SPOKEN)
    rules = {rule.text: rule for rule in first.examples[0].rules}
    assert (rules["strict text"].violated, rules["lenient text"].violated) == (True, False)
    assert rules["strict text"].origin == "p#0/1 (made up)/strict"
    assert {rule.weight for rule in first.examples[0].rules} == {1.0}
    assert {rule.weight for rule in second.examples[0].rules} == {0.5}


def test_a_label_against_the_order_makes_no_group():
    assert [group.id for group in pair_groups([PAIR], SPOKEN)] == ["p#0/1", "p#0/2"]


def test_groups_per_conversation_can_be_limited():
    pairs = [PAIR, StrictPair("q#0", "v", "s", "l", PAIR.labels, 0.96, 80, 80, "made up")]
    assert len(pair_groups(pairs, SPOKEN)) == 4
    limited = pair_groups(pairs, SPOKEN, most=1)
    assert sorted(group.id[-1] for group in limited) == ["1", "2"]


def test_place_does_not_tell_the_strict_text():
    pair = StrictPair(
        "p#0", "v", "strict", "lenient", tuple(Labelled(str(i), True, False, True) for i in range(40)), 1, 9, 9, "o"
    )
    groups = pair_groups([pair], [said(str(i), f"t{i}") for i in range(40)])
    assert {group.examples[0].rules[0].text for group in groups} == {"strict", "lenient"}


def test_a_missing_conversation_is_named():
    with pytest.raises(StrictnessError, match=r"'1'|'2'"):
        pair_groups([PAIR], [])
