"""Specifications in files: what they may say, and what is said of them if they are wrong."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

from featurespeed import SpecError
from featurespeed.spec_files import complete, load_spec, parse_spec
from tests.client.reports import SPEC, SPEC_WITHOUT_KIND, request


def test_yaml_and_json_say_the_same(tmp_path: Path) -> None:
    (tmp_path / "spec.json").write_text(json.dumps(SPEC))
    (tmp_path / "spec.yaml").write_text(json.dumps(SPEC, indent=2))  # JSON is YAML
    assert load_spec(tmp_path / "spec.json") == load_spec(str(tmp_path / "spec.yaml")) == load_spec(SPEC)


@pytest.mark.parametrize("text", ["1e-3", "1.0e-3", "1E-3", ".1e-2", "+1e-3", "0.001"])
def test_numbers_of_yaml_are_those_of_json(text: str) -> None:
    assert parse_spec(f"lr: {text}".encode(), "spec.yaml") == {"lr": 0.001}


def test_words_of_yaml_stay_words() -> None:
    assert parse_spec(b"norm: none\na: 1e\nb: e3\nc: [-]", "spec.yaml") == {
        "norm": "none",
        "a": "1e",
        "b": "e3",
        "c": ["-"],
    }


def test_standard_input_may_be_either() -> None:
    assert parse_spec(b'{"a": 1}', "standard input") == parse_spec(b"a: 1", "standard input") == {"a": 1}
    assert parse_spec(b"\xef\xbb\xbfa: 1", "x.yaml") == {"a": 1}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("s.yaml", b"a: [1, 2\nb: 3", r"s\.yaml: not YAML at line 2, column 2: .*got \"b: 3\""),
        ("s.yaml", b"a: 1\na: 2", r"s\.yaml: not YAML at line 2, column 1: the key 'a' is given twice"),
        ("s.yaml", b"a: &x [*y]", r"not YAML at line 1, column 8: found undefined alias"),
        ("s.yaml", b"a: !!python/object/apply:os.system [ls]", r"could not determine a constructor"),
        ("s.yaml", b"a: \x07", r"not YAML: .*special characters"),
        ("s.yaml", b"\xff\xfe\xfa", r"should be UTF-8 text"),
        ("s.yaml", b"", r"should be a mapping of fields to values \(got null\)"),
        ("s.yaml", b"- 1", r"should be a mapping"),
        ("s.yaml", b"[" * 5000, r"nested too deeply"),
        ("s.json", b'{"a": 1,}', r"s\.json: not JSON at line 1, column 9: "),
        ("s.json", b'{"a": 1, "a": 2}', r"a key is given twice \(got \"a\"\)"),
        ("s.json", b'{"a": NaN}', r"not a number of JSON \(got \"NaN\"\)"),
        ("s.json", b"[" * 200_000, r"nested too deeply"),
    ],
)
def test_faults_say_where(name: str, content: bytes, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        parse_spec(content, name)


def test_missing_file_is_an_os_error() -> None:
    with pytest.raises(FileNotFoundError):
        load_spec("nowhere.yaml")


def test_kind_is_what_was_called_for() -> None:
    assert load_spec(SPEC_WITHOUT_KIND, "measure").document["kind"] == "measure"
    assert load_spec(SPEC, "recommend").document == SPEC
    assert "kind" not in load_spec(SPEC_WITHOUT_KIND).document
    for spec in (SPEC, request(), load_spec(SPEC)):
        with pytest.raises(SpecError, match=r"kind: .*'measure'.* \(got \"recommend\"\)"):
            load_spec(spec, "measure")


def test_dataset_is_found_beside_the_file(tmp_path: Path) -> None:
    (tmp_path / "set.safetensors").write_bytes(b"bytes")
    (tmp_path / "spec.yaml").write_text("data: {kind: dataset, path: set.safetensors}")
    found = load_spec(tmp_path / "spec.yaml")
    assert found.document == {"data": {"kind": "dataset", "sha256": hashlib.sha256(b"bytes").hexdigest()}}
    assert found.dataset == tmp_path / "set.safetensors"
    assert load_spec(found, "measure").dataset == found.dataset


def test_the_users_own_dict_stays_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "set").write_bytes(b"bytes")
    spec = {"data": {"kind": "dataset", "path": str(tmp_path / "set")}}
    load_spec(spec, "measure")
    assert spec == {"data": {"kind": "dataset", "path": str(tmp_path / "set")}}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"path": "nowhere"}, r"data\.path: No such file or directory \(got \"nowhere\"\)"),
        ({"path": "."}, r"data\.path: Is a directory"),
        ({"path": 3}, r"data\.path: .*path of a safetensors file \(got 3\)"),
        ({"path": "x", "sha256": "0"}, r"data\.path: path and sha256 exclude each other"),
    ],
)
def test_datasets_that_cannot_be(data: dict[str, object], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        complete({"data": {"kind": "dataset", **data}}, None, Path())


def test_path_of_other_data_is_left_to_validation() -> None:
    document = {"data": {"kind": "gaussian", "path": "x"}}
    assert complete(document, None, Path()).document == document


def test_json_needs_no_yaml() -> None:
    code = """
import sys
sys.modules["yaml"] = None
from featurespeed.spec_files import parse_spec
print(parse_spec(b'{"a": 1}', "s.json"), parse_spec(b'{"a": 1}', "s.yaml"))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "{'a': 1} {'a': 1}\n"
