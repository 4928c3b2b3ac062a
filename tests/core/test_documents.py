import pytest

from csrm_guard.documents import MAX_DOCUMENT_BYTES, read_document, read_text
from csrm_guard.errors import DocumentError


@pytest.fixture
def write(tmp_path):
    def to_file(name, content):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return to_file


@pytest.mark.parametrize(
    ("name", "text"),
    [("d.yaml", "a: [1, x]"), ("d.YML", "a: [1, x]"), ("d.json", '{"a": [1, "x"]}'), ("d.toml", 'a = [1, "x"]')],
)
def test_every_format_gives_the_same_data(write, name, text):
    assert read_document(write(name, text)) == {"a": [1, "x"]}


def test_a_byte_order_mark_is_passed_over(write):
    assert read_document(write("d.json", b'\xef\xbb\xbf{"a": 1}')) == {"a": 1}


def test_an_unknown_suffix_is_refused_with_the_known_ones(write):
    with pytest.raises(DocumentError, match=r"d\.ini: unknown suffix '\.ini'; use one of \.yaml, .*\.toml"):
        read_document(write("d.ini", "a = 1"))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DocumentError, match=r"none\.yaml: cannot be read: No such file"):
        read_document(tmp_path / "none.yaml")


def test_a_folder_is_not_a_document(tmp_path):
    (tmp_path / "d.yaml").mkdir()
    with pytest.raises(DocumentError, match=r"d\.yaml: cannot be read"):
        read_document(tmp_path / "d.yaml")


def test_text_that_is_not_utf8_is_refused_with_its_line(write):
    with pytest.raises(DocumentError, match=r"d\.yaml:2: not UTF-8 .*; save the file as UTF-8"):
        read_text(write("d.yaml", b"a: 1\nb: caf\xe9\n"))


def test_a_file_of_more_than_two_megabytes_is_refused(write):
    with pytest.raises(DocumentError, match=rf"d\.yaml: 2000001 bytes; the limit is {MAX_DOCUMENT_BYTES}"):
        read_text(write("d.yaml", b"a" * 2_000_001))


def test_a_yaml_bomb_is_refused_at_its_first_alias(write):
    bomb = "a: &a [x, x]\nb: &b [*a, *a, *a]\nc: &c [*b, *b, *b]\n"
    with pytest.raises(DocumentError, match=r"d\.yaml:2: YAML aliases are not read; write the value out"):
        read_document(write("d.yaml", bomb))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("d.yaml", "a: " + "[" * 5000 + "]" * 5000),
        ("d.yaml", "{a: " * 5000 + "1" + "}" * 5000),
        ("d.json", "[" * 100_000 + "]" * 100_000),
        ("d.toml", "a = " + "[" * 5000 + "]" * 5000),
    ],
    ids=["yaml lists", "yaml mappings", "json", "toml"],
)
def test_a_deeply_nested_document_is_refused(write, name, text):
    with pytest.raises(DocumentError, match=rf"{name}: .*(nested too deeply|recursion)"):
        read_document(write(name, text))


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("d.yaml", "a: 1\nb: 2\na: 3\n", r"d\.yaml:3: key 'a' is given twice"),
        ("d.yaml", "x:\n  - {a: 1, a: 2}\n", r"d\.yaml:2: key 'a' is given twice"),
        ("d.json", '{"x": [{"a": 1, "a": 2}]}', r"d\.json: key 'a' is given twice"),
        ("d.toml", "a = 1\na = 2\n", r"d\.toml: not TOML: .*line 2"),
    ],
    ids=["yaml", "nested yaml", "json", "toml"],
)
def test_a_duplicate_key_is_refused_with_its_place(write, name, text, message):
    with pytest.raises(DocumentError, match=message):
        read_document(write(name, text))


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("d.yaml", "a: 1\nb: [", r"d\.yaml:2: not YAML"),
        ("d.yaml", "a: 1\n---\nb: 2", r"d\.yaml:2: not YAML"),
        ("d.yaml", "a: 1\nb: !!python/object/apply:os.system [ls]", r"d\.yaml:2: not YAML"),
        ("d.yaml", "? [a, b]\n: c", r"d\.yaml:1: a key must be plain text"),
        ("d.yaml", "a: 2024-13-45", r"d\.yaml: not YAML: month"),
        ("d.yaml", "a: " + "1" * 5000, r"d\.yaml: not YAML"),
        ("d.json", '{"a":\n1,}', r"d\.json:2: not JSON"),
        ("d.json", "1" * 5000, r"d\.json: not JSON"),
        ("d.toml", "a = ", r"d\.toml: not TOML"),
        ("d.toml", "a = " + "1" * 5000, r"d\.toml: not TOML"),
    ],
    ids=["open", "two", "tag", "key", "date", "yaml number", "comma", "json number", "value", "toml number"],
)
def test_wrong_syntax_is_refused_with_its_place(write, name, text, message):
    with pytest.raises(DocumentError, match=message):
        read_document(write(name, text))
