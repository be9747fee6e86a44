"""No key that a user wrote is lost: two of one name are refused, whatever the file is for."""

from pathlib import Path

import pytest

from ctgrounding import questions
from ctgrounding.errors import CardError, ConfigError
from ctgrounding.ingest.card_files import load_card
from ctgrounding.mappings import from_json, from_yaml
from ctgrounding.objectives.organ_dictionary import read_dictionary
from ctgrounding.reports.dictionary import Dictionary
from ctgrounding.written import Written

ROOT = Path(__file__).parent.parent
OURS = sorted(
    path
    for folder in ("ctgrounding", "configs", "data_manifests")
    for path in (ROOT / folder).rglob("*.yaml")
    if "_packaged" not in path.parts
)


@pytest.mark.parametrize(
    ("text", "key", "where"),
    [
        ("a: 1\nb: 2\na: 3\n", "a", "in lines 1 and 3"),
        ("{a: 1, a: 1}", "a", "in line 1"),
        ("x:\n  - {y: [1]}\n  - {y: 1, z: 2,\n     y: 3}\n", "y", "in lines 3 and 4"),
        ("1: a\n'1': b\n", "1", "in lines 1 and 2"),
        ("? [p, q]\n: {r: 1, r: 2}\n", "r", "in line 2"),
    ],
)
def test_a_key_twice_is_refused_with_its_lines(text, key, where):
    with pytest.raises(ConfigError, match=f"own.yaml has the key '{key}' twice, {where}. Keep one"):
        from_yaml(text, "own.yaml")


def test_the_rest_of_yaml_is_as_it_was():
    merged = "base: &base {a: 1, b: 2}\none: {<<: *base, a: 3}\nother: {<<: *base}\n"
    assert from_yaml(merged, "own.yaml") == {
        "base": {"a": 1, "b": 2},
        "one": {"a": 3, "b": 2},
        "other": {"a": 1, "b": 2},
    }
    assert from_yaml("a: {x: 1}\nb: [{x: 1}, {x: 1}]\n", "own.yaml") == {"a": {"x": 1}, "b": [{"x": 1}, {"x": 1}]}
    assert from_yaml("", "own.yaml") is None
    assert from_json('{"a": {"x": 1}, "b": [{"x": 1}]}', "own.json") == {"a": {"x": 1}, "b": [{"x": 1}]}
    with pytest.raises(ConfigError, match=r"own.json has the key 'x' twice\. Keep one of them"):
        from_json('[{"x": {}, "y": 1, "x": 2}]', "own.json")


@pytest.mark.parametrize("path", OURS, ids=lambda path: path.name)
def test_the_files_that_come_along_lose_no_key(path):
    from_yaml(path.read_text(encoding="utf-8"), str(path))


QUESTION = "{positive: [A cyst.], negative: [None.]}"


@pytest.mark.parametrize(
    ("name", "text", "read"),
    [
        ("own.yaml", f"cyst: {QUESTION}\nstone: {QUESTION}\ncyst: {QUESTION}\n", questions.load),
        ("own.yaml", "cyst: {positive: [A.], negative: [B.], positive: [C.]}", questions.load),
        ("own.yaml", "liver: [A cyst.]\nliver: [A mass.]\n", lambda path: read_dictionary(path, {5: "liver"})),
        ("own.json", '{"liver": ["A cyst."], "liver": ["A mass."]}', lambda path: read_dictionary(path, {5: "liver"})),
        ("own.yaml", "liver: []\nspleen: []\nliver: []\n", lambda path: Dictionary.load(Path(path))),
        ("own.yaml", "data: {batch_size: 2}\nmodel: {}\ndata: {seed: 1}\n", lambda path: Written(["fit", "-c", path])),
    ],
)
def test_files_of_the_user_lose_no_key(tmp_path, name, text, read):
    (tmp_path / name).write_text(text)
    with pytest.raises(ConfigError, match=rf"{name}'? has the key '\w+' twice"):
        read(str(tmp_path / name))


def test_cards_lose_no_key(tmp_path):
    (tmp_path / "own.yaml").write_text("name: own\nroot: .\nname: other\n")
    with pytest.raises(CardError, match=r"own\.yaml cannot be read: .*duplicate key name.*line 3"):
        load_card(tmp_path / "own.yaml")
