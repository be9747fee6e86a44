"""Hashed ids: keyed, stable, private."""

import csv
import stat

import pytest

from ctgrounding.errors import CardError
from ctgrounding.ingest.identity import SALT_NAME, Identity, load_identity, write_private_map


def test_hashes_are_stable_under_one_salt_and_differ_under_another(tmp_path):
    first, again = load_identity("hash", tmp_path / "out"), load_identity("hash", tmp_path / "other")
    assert first.write("patient", "MRN 1") == again.write("patient", "MRN 1")
    assert first.write("patient", "MRN 1") != first.write("study", "MRN 1")
    assert first.write("patient", "MRN 1") != Identity(bytes(32)).write("patient", "MRN 1")
    assert first.write("slice", "") == ""
    assert "MRN" not in first.write("patient", "MRN 1")


def test_salt_and_map_lie_beside_the_output_for_its_owner_alone(tmp_path):
    output = tmp_path / "shards"
    output.mkdir()
    identity = load_identity("hash", output)
    path = write_private_map(output, identity, [("patient", "MRN 1"), ("scan", "s1")])
    for private in (tmp_path / SALT_NAME, path):
        assert stat.S_IMODE(private.stat().st_mode) == 0o600
    assert list(output.iterdir()) == []
    rows = list(csv.DictReader(path.open()))
    assert {(row["kind"], row["given"]): row["written"] for row in rows}[("scan", "s1")] == identity.write("scan", "s1")
    assert write_private_map(output, identity, [("patient", "MRN 2")]) == path


def test_a_salt_that_is_not_to_be_kept_leaves_nothing(tmp_path):
    identity = load_identity("hash", tmp_path / "new" / "out", keep=False)
    assert "MRN" not in identity.write("patient", "MRN 1")
    assert list(tmp_path.iterdir()) == []
    known = load_identity("hash", tmp_path / "out")
    assert load_identity("hash", tmp_path / "out", keep=False) == known


def test_kept_ids_need_neither(tmp_path):
    identity = load_identity("keep", tmp_path / "out")
    assert identity.write("patient", "p1") == "p1"
    assert write_private_map(tmp_path / "out", identity, [("patient", "p1")]) is None
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", ["not hex", "abcd"])
def test_a_damaged_salt_stops_everything(tmp_path, content):
    (tmp_path / SALT_NAME).write_text(content)
    with pytest.raises(CardError, match="Restore it"):
        load_identity("hash", tmp_path / "out")
