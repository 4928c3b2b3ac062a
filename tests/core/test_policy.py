import json
import math
import pickle

import pytest
import yaml

from csrm_guard import Policy, PolicyError, Rule
from csrm_guard.policy import BUILTINS, MAX_RULES

NORMS = {
    "name": "shop",
    "rules": [{"id": "a", "text": "Never shout."}, {"id": "b", "text": "Cite.", "stance": "require"}],
}


@pytest.fixture
def write(tmp_path):
    def to_file(name, **fields):
        path = tmp_path / name
        path.write_text(yaml.safe_dump(fields), encoding="utf-8")
        return path

    return to_file


def rule(name, text="Never shout.", **fields):
    return {"id": name, "text": text, **fields}


@pytest.mark.parametrize("name", BUILTINS)
def test_every_builtin_loads_with_rules_and_a_setting(name):
    policy = Policy.builtin(name)
    assert policy.rules
    assert policy.setting.strip()
    assert policy.extends == ()


def test_an_unknown_builtin_is_refused_with_the_known_ones():
    with pytest.raises(
        PolicyError, match=r"no built-in policy 'suport-desk'; there are baseline-harms, .*support-desk"
    ):
        Policy.load("suport-desk")


def test_json_yaml_and_toml_give_equal_policies(tmp_path):
    texts = {
        "p.yaml": "name: shop\nrules:\n  - {id: a, text: Never shout.}\n  - {id: b, text: Cite., stance: require}\n",
        "p.json": json.dumps(NORMS),
        "p.toml": 'name = "shop"\n[[rules]]\nid = "a"\ntext = "Never shout."\n'
        '[[rules]]\nid = "b"\ntext = "Cite."\nstance = "require"\n',
    }
    for name, text in texts.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
        assert Policy.from_file(tmp_path / name) == Policy.from_dict(NORMS)
        assert Policy.from_file(tmp_path / name).hash == Policy.from_dict(NORMS).hash


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"colour": "red", "rules": [rule("a")]}, "p: colour: Extra inputs are not permitted"),
        ({"rules": [rule("a", colour="red")]}, r"p: rules\.0\.colour: Extra inputs are not permitted"),
        ({"rules": [rule("a")], "defaults": {"colour": 1}}, r"p: defaults\.colour: Extra inputs"),
        ({"rules": [rule("a"), rule("b"), rule("a", "Other.")]}, "p: policy: rule id given twice: a"),
        ({}, "p: the policy has no rules; add `rules` or `extends`"),
        ({"rules": []}, "p: the policy has no rules"),
        ({"rules": [rule("a", threshold=0.3, fpr=0.01)]}, r"p: rules\.0: give `threshold` or `fpr`, not both"),
        ({"rules": [rule("a", "  \n")]}, r"p: rules\.0\.text: the rule has no words"),
        ({"rules": [rule("a", "x" * 20_001)]}, r"p: rules\.0\.text: .*at most 20000"),
        ({"rules": [rule("a", stages=[])]}, r"p: rules\.0\.stages: "),
        ({"rules": [rule("a", stages=["answer"])]}, r"p: rules\.0\.stages\.0: Input should be 'prompt', "),
        ({"rules": [rule("a", stance="avoid")]}, r"p: rules\.0\.stance: Input should be 'forbid', "),
        ({"rules": [rule("a", action="explode")]}, r"p: rules\.0\.action: Input should be 'observe', "),
        ({"rules": [rule("a", on_error="allow")]}, r"p: rules\.0\.on_error: Input should be 'block' or "),
        ({"rules": [{"id": "a"}]}, r"p: rules\.0\.text: Field required"),
        ({"rules": [{"text": "x"}]}, r"p: rules\.0\.id: Field required"),
        ({"rules": "Never shout."}, "p: rules: Input should be"),
        ({"rules": [rule("a", "\ud800")]}, r"p: rules\.0\.text: Input should be a valid string"),
    ],
    ids=[
        "unknown key", "unknown key of a rule", "unknown default", "duplicate id", "nothing", "no rules",
        "threshold and fpr", "blank", "long", "no stage", "stage", "stance", "action", "on_error", "no text", "no id",
        "rules as text", "surrogate",
    ],
)  # fmt: skip
def test_a_wrong_policy_is_refused_with_its_place(fields, message):
    with pytest.raises(PolicyError, match=message):
        Policy.from_dict(fields, source="p")


@pytest.mark.parametrize("number", [math.nan, 0, 1, 1.5, -0.1, math.inf, "high"])
@pytest.mark.parametrize("field", ["threshold", "fpr"])
def test_a_number_that_is_no_probability_is_refused_with_its_place(field, number):
    with pytest.raises(PolicyError, match=rf"rules\.0\.{field}: Input should be"):
        Policy.from_dict({"rules": [rule("a", **{field: number})]})


@pytest.mark.parametrize("number", [math.nan, 0, 1.5])
def test_a_default_threshold_that_is_no_probability_is_refused(number):
    with pytest.raises(PolicyError, match=r"defaults\.threshold: Input should be"):
        Policy.from_dict({"rules": [rule("a")], "defaults": {"threshold": number}})


@pytest.mark.parametrize("slug", ["", " ", "a b", "-a", "ä", "a/b", "[a]", "a\n", "x" * 65])
def test_a_bad_rule_id_is_refused_with_its_place(slug):
    with pytest.raises(PolicyError, match=r"rules\.0\.id: String should match"):
        Policy.from_dict({"rules": [rule(slug)]})


@pytest.mark.parametrize("slug", ["a", "no-refunds", "3.1_b", "x" * 64])
def test_a_good_rule_id_is_read(slug):
    assert Policy.from_dict({"rules": [rule(slug)]}).rules[0].id == slug


@pytest.mark.parametrize("data", [None, [], "text", 3], ids=["none", "list", "text", "int"])
def test_what_is_no_mapping_is_refused_by_type(data):
    with pytest.raises(PolicyError, match=f"a policy is a mapping .*, not {type(data).__name__}"):
        Policy.from_dict(data)


def test_500_rules_are_refused_with_the_limit():
    with pytest.raises(PolicyError, match=f"500 rules; a policy has at most {MAX_RULES}: split it"):
        Policy.from_dict({"rules": [rule(f"r{i}") for i in range(500)]})


def test_a_policy_may_have_the_most_rules():
    assert len(Policy.from_dict({"rules": [rule(f"r{i}") for i in range(MAX_RULES)]}).rules) == MAX_RULES


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("p.yaml", b"name: caf\xe9", r"p\.yaml:1: not UTF-8"),
        ("p.yaml", b"#" * 2_000_001, r"p\.yaml: 2000001 bytes; the limit is"),
        ("p.yaml", b"a: &a [x]\nb: [*a]", r"p\.yaml:2: YAML aliases are not read"),
        ("p.yaml", b"a: " + b"[" * 5000, r"p\.yaml: nested too deeply"),
        ("p.json", b'{"name": "x", "name": "y"}', r"p\.json: key 'name' is given twice"),
        ("p.yaml", b"name: x\nname: y", r"p\.yaml:2: key 'name' is given twice"),
        ("p.yaml", b"", r"p\.yaml: a policy is a mapping"),
    ],
    ids=["encoding", "size", "bomb", "depth", "json key", "yaml key", "empty"],
)
def test_a_file_that_cannot_be_read_is_a_policy_error(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(PolicyError, match=message):
        Policy.from_file(tmp_path / name)


def test_a_policy_that_extends_itself_is_refused_with_the_circle(write):
    write("a.yaml", extends=["b.yaml"])
    write("b.yaml", extends=["c.yaml"])
    path = write("c.yaml", extends=["a.yaml"])
    with pytest.raises(PolicyError, match=r"goes in a circle: c\.yaml -> a\.yaml -> b\.yaml -> c\.yaml"):
        Policy.from_file(path)


def test_a_missing_parent_is_named_with_its_child(write):
    with pytest.raises(PolicyError, match=r"a\.yaml: extends 'b\.yaml': no such file under .*, and not a built-in"):
        Policy.from_file(write("a.yaml", extends=["b.yaml"]))


def test_an_error_in_a_parent_names_the_parent(write):
    write("b.yaml", rules=[rule("b", colour="red")])
    with pytest.raises(PolicyError, match=r"b\.yaml: rules\.0\.colour"):
        Policy.from_file(write("a.yaml", extends=["b.yaml"]))


def test_inherited_rules_come_first_in_the_order_of_extends(write):
    write("x.yaml", rules=[rule("x1"), rule("x2")])
    write("y.yaml", rules=[rule("y1")], extends=["x.yaml"])
    write("z.yaml", rules=[rule("z1")])
    policy = Policy.from_file(write("a.yaml", extends=["z.yaml", "y.yaml"], rules=[rule("a1")]))
    assert [r.id for r in policy.rules] == ["z1", "x1", "x2", "y1", "a1"]


def test_a_policy_may_only_extend(write):
    write("x.yaml", rules=[rule("x1")])
    assert [r.id for r in Policy.from_file(write("a.yaml", extends=["x.yaml"])).rules] == ["x1"]


def test_a_builtin_is_extended_by_name():
    policy = Policy.from_dict({"extends": ["baseline-harms"], "rules": [rule("mine")]})
    assert len(policy.rules) == len(Policy.builtin("baseline-harms").rules) + 1


def test_parents_are_found_beside_their_child(tmp_path, write):
    (tmp_path / "deep").mkdir()
    write("deep/x.yaml", rules=[rule("x1")])
    write("deep/y.yaml", extends=["x.yaml"])
    assert Policy.from_file(write("a.yaml", extends=["deep/y.yaml"])).rules[0].id == "x1"


def test_an_own_rule_replaces_the_inherited_one_of_its_id(write):
    write("x.yaml", rules=[rule("one", "Old."), rule("two")])
    policy = Policy.from_file(write("a.yaml", extends=["x.yaml"], rules=[rule("one", "New.")]))
    assert [(r.id, r.text) for r in policy.rules] == [("two", "Never shout."), ("one", "New.")]


def test_inherited_rules_keep_their_own_defaults(write):
    write("x.yaml", rules=[rule("x")], defaults={"threshold": 0.2, "action": "redact", "on_error": "observe"})
    policy = Policy.from_file(write("a.yaml", extends=["x.yaml"], defaults={"threshold": 0.9}, rules=[rule("a")]))
    x, a = policy.rules
    assert (x.threshold, policy.action_of(x), policy.on_error_of(x)) == (0.2, "redact", "observe")
    assert (a.threshold, policy.action_of(a), policy.on_error_of(a)) == (None, "block", "block")


def test_an_inherited_false_positive_rate_gets_no_threshold(write):
    write("x.yaml", rules=[rule("x", fpr=0.01)])
    inherited = Policy.from_file(write("a.yaml", extends=["x.yaml"])).rules[0]
    assert (inherited.fpr, inherited.threshold) == (0.01, None)


def test_two_parents_that_disagree_are_refused(write):
    write("x.yaml", rules=[rule("same", "One.")])
    write("y.yaml", rules=[rule("same", "Two.")])
    with pytest.raises(PolicyError, match="define rule 'same' differently; define it here"):
        Policy.from_file(write("a.yaml", extends=["x.yaml", "y.yaml"]))


def test_two_parents_whose_defaults_disagree_on_a_rule_are_refused(write):
    write("x.yaml", rules=[rule("same")])
    write("y.yaml", rules=[rule("same")], defaults={"threshold": 0.9})
    with pytest.raises(PolicyError, match="define rule 'same' differently"):
        Policy.from_file(write("a.yaml", extends=["x.yaml", "y.yaml"]))


def test_an_own_rule_settles_what_two_parents_disagree_on(write):
    write("x.yaml", rules=[rule("same", "One.")])
    write("y.yaml", rules=[rule("same", "Two.")])
    policy = Policy.from_file(write("a.yaml", extends=["x.yaml", "y.yaml"], rules=[rule("same", "Mine.")]))
    assert [r.text for r in policy.rules] == ["Mine."]


def test_two_parents_may_share_a_grandparent(write):
    write("g.yaml", rules=[rule("g")])
    write("x.yaml", extends=["g.yaml"], rules=[rule("x")])
    write("y.yaml", extends=["g.yaml"], rules=[rule("y")])
    policy = Policy.from_file(write("a.yaml", extends=["x.yaml", "y.yaml"]))
    assert [r.id for r in policy.rules] == ["g", "x", "y"]


def test_the_hash_is_the_same_in_every_process():
    assert Policy.from_dict(NORMS).hash == "d81e03ca416fa148"


def test_the_hash_does_not_depend_on_the_order_of_keys():
    turned = {"rules": [dict(reversed(r.items())) for r in NORMS["rules"]], "name": "shop"}
    assert Policy.from_dict(turned).hash == Policy.from_dict(NORMS).hash


@pytest.mark.parametrize(
    "change",
    [
        {"name": "other"},
        {"version": "2"},
        {"setting": "A shop."},
        {"defaults": {"threshold": 0.4}},
        {"rules": [rule("a")]},
        {"rules": [rule("a", "Never whisper."), NORMS["rules"][1]]},
    ],
    ids=["name", "version", "setting", "defaults", "fewer rules", "text"],
)
def test_the_hash_changes_with_the_content(change):
    assert Policy.from_dict(NORMS | change).hash != Policy.from_dict(NORMS).hash


def test_a_changed_copy_has_a_hash_of_its_own():
    policy = Policy.from_dict(NORMS)
    before = policy.hash
    assert policy.model_copy(update={"name": "other"}).hash != before


def test_a_policy_survives_pickling():
    policy = Policy.from_dict(NORMS)
    assert pickle.loads(pickle.dumps(policy)) == policy


def test_rules_are_selected_by_stage():
    policy = Policy(rules=(Rule(id="a", text="x", stages=("prompt",)), Rule(id="b", text="x", stages=("tool_call",))))
    assert [r.id for r in policy.rules_at(("tool_call", "response"))] == ["b"]


def test_a_rule_says_more_than_the_defaults():
    policy = Policy.from_dict({"rules": [rule("a", action="redact", on_error="observe")]})
    assert policy.action_of(policy.rules[0]) == "redact"
    assert policy.on_error_of(policy.rules[0]) == "observe"
