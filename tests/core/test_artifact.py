import json
import random

import pytest
from pydantic import ValidationError

from csrm_guard import ArtifactError
from csrm_guard.artifact import DEFAULT_ARTIFACT, MANIFEST, Manifest, digest, read_manifest, write_manifest


def rewrite(folder, **changes):
    data = json.loads((folder / MANIFEST).read_text()) | changes
    (folder / MANIFEST).write_text(json.dumps(data))
    return folder


def test_a_manifest_survives_writing_and_reading(artifact):
    manifest = read_manifest(artifact)
    write_manifest(artifact, manifest)
    assert read_manifest(artifact) == manifest


def test_the_shipped_artifact_is_in_order():
    assert read_manifest(DEFAULT_ARTIFACT).name


@pytest.mark.parametrize("name", ["model.onnx", "tokenizer.json"])
def test_an_altered_file_is_refused_by_its_hash(artifact, name):
    (artifact / name).write_bytes(b"altered")
    with pytest.raises(ArtifactError, match=rf"{name}: SHA-256 .* is not the manifest's .*copy it again, or reinstall"):
        read_manifest(artifact)


@pytest.mark.parametrize("name", ["model.onnx", "tokenizer.json"])
def test_a_missing_file_is_named_with_the_fix(artifact, name):
    (artifact / name).unlink()
    with pytest.raises(ArtifactError, match=rf"{name}: missing; copy the whole model directory, or reinstall"):
        read_manifest(artifact)


def test_a_folder_without_a_manifest_is_refused_with_the_fix(tmp_path):
    with pytest.raises(ArtifactError, match=r"manifest\.json: cannot be read .*; give a folder that csrm-export wrote"):
        read_manifest(tmp_path)


def test_another_template_version_is_refused_with_both_versions(artifact):
    with pytest.raises(ArtifactError, match="template version 99, this csrm-guard reads 1; export the model again"):
        read_manifest(rewrite(artifact, template="99"))


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"null", b"\xff"], ids=["empty", "cut", "list", "null", "binary"])
def test_a_broken_manifest_is_refused_with_the_fix(artifact, text):
    (artifact / MANIFEST).write_bytes(text)
    with pytest.raises(ArtifactError, match=r"manifest\.json: not a manifest .*; export the model again"):
        read_manifest(artifact)


@pytest.mark.parametrize(
    ("change", "place"),
    [
        ({"colour": "red"}, "colour: Extra inputs"),
        ({"calibration": {"colour": 1}}, r"calibration\.colour: Extra inputs"),
        ({"calibration": {"slope": 0}}, r"calibration\.slope: "),
        ({"calibration": {"benign": [[0.1, 0.5], [0.01, 0.6]]}}, "calibration: .*rates must rise"),
        ({"precision": "int4"}, "precision: "),
        ({"format": 2}, "format: "),
        ({"limits": {"judged": "many"}}, r"limits\.judged: "),
    ],
    ids=["unknown key", "unknown key of calibration", "slope", "benign", "precision", "format", "limits"],
)
def test_a_wrong_manifest_is_refused_with_its_place(artifact, change, place):
    with pytest.raises(ArtifactError, match=place):
        read_manifest(rewrite(artifact, **change))


def test_an_unknown_limit_is_refused(artifact):
    with pytest.raises(ArtifactError, match="colour"):
        read_manifest(rewrite(artifact, limits={"colour": 1}))


def test_windows_that_would_skip_tokens_are_refused(artifact):
    with pytest.raises(ArtifactError, match="stride"):
        read_manifest(rewrite(artifact, limits={"judged": 256, "stride": 300}))


@pytest.mark.parametrize("field", ["graph", "tokenizer"])
def test_a_file_without_a_hash_is_refused(artifact, field):
    with pytest.raises(ArtifactError, match=r"other\.bin has no hash in `files`"):
        read_manifest(rewrite(artifact, **{field: "other.bin"}))


def test_the_id_names_the_content(artifact):
    before = read_manifest(artifact).id
    assert before.startswith("test@")
    assert read_manifest(rewrite(artifact, calibration={"slope": 2.0})).id != before


def test_the_card_does_not_change_the_id(artifact):
    before = read_manifest(artifact).id
    assert read_manifest(rewrite(artifact, card={"note": "better words"})).id == before


def test_the_digest_is_the_sha256(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    assert digest(tmp_path / "a") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_a_manifest_cannot_be_changed(artifact):
    with pytest.raises(ValidationError, match="frozen"):
        read_manifest(artifact).name = "other"


def test_the_default_limits_are_written_out(artifact):
    assert Manifest.model_validate_json((artifact / MANIFEST).read_bytes()).limits.judged == 256


def damaged(data: bytes, chance: random.Random) -> bytes:
    at, size = chance.randrange(len(data)), chance.choice([1, 1, 3, 50])
    match chance.choice(["flip", "cut", "lose", "twice", "zero"]):
        case "flip":
            return data[:at] + bytes([data[at] ^ 1 << chance.randrange(8)]) + data[at + 1 :]
        case "cut":
            return data[:at]
        case "lose":
            return data[:at] + data[at + size :]
        case "twice":
            return data[: at + size] + data[at:]
    return data[:at] + bytes(size) + data[at + size :]


@pytest.mark.parametrize("name", ["model.onnx", "tokenizer.json", MANIFEST])
def test_a_damaged_folder_is_refused_or_says_that_it_is_another_model(artifact, name):
    sound, own = (artifact / name).read_bytes(), read_manifest(artifact)
    for seed in range(60):
        (artifact / name).write_bytes(damaged(sound, random.Random(seed)))
        try:
            found = read_manifest(artifact)
        except ArtifactError:
            continue
        same = (artifact / name).read_bytes() == sound or found == own
        assert same or (name == MANIFEST and found.id != own.id), seed
