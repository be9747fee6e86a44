"""Negatives of the abnormality dictionary: none is opposed to an organ of which it may be true."""

import random

import pytest
import torch
import yaml

from ctgrounding.errors import ConfigError
from ctgrounding.objectives import OrganGrounding
from ctgrounding.objectives.organ_dictionary import read_dictionary
from ctgrounding.reports import read
from ctgrounding.reports.dictionary import Dictionary
from ctgrounding.testing.scans import tiny_scans
from ctgrounding.testing.tiny import tiny_batch, tiny_dims, tiny_encoded, with_fixed_texts

LIVER, SPLEEN = 5, 1
FULL = {
    "liver": [
        {"finding": "steatosis", "text": "fatty liver", "may_be": ["fatty change"]},
        {"finding": "mass", "text": "liver mass", "may_be": ["hepatic cyst"]},
    ],
    "spleen": [{"finding": "splenomegaly", "text": "large spleen"}],
    "known_findings": ["steatosis", "fatty change", "mass", "hepatic cyst", "splenomegaly", "cirrhosis"],
}
TEXTS = ["Fatty liver. Liver cyst.", "Hepatic steatosis.", "Liver lesion.", "Cirrhosis. Splenomegaly.", "Splenic cyst."]


def diagnosis(path, table, findings=()):
    """Total and weight of the diagnosis term where scans have findings, given as (scan, organ, name)."""
    path.write_text(yaml.safe_dump(table))
    objective = OrganGrounding(tiny_dims(), dictionary=str(path), negatives=9)
    scans = tiny_scans(8)
    batch = tiny_batch(scans)
    if findings:
        scan, organ, names = zip(*findings, strict=True)
        batch = {
            **batch,
            "organ_finding": list(names),
            "organ_finding_scan": torch.tensor(scan),
            "organ_finding_class": torch.tensor(organ),
        }
    encoded = with_fixed_texts(tiny_encoded(scans, batch), objective, batch)
    return torch.stack(objective(encoded, batch)["diagnosis"]).detach()


def everywhere(organ, name):
    return [(scan, organ, name) for scan in range(8)]


def without(organ, text):
    kept = [entry for entry in FULL[organ] if entry["text"] != text]
    return {**FULL, organ: kept}


@pytest.mark.parametrize(
    ("findings", "same_as"),
    [
        (everywhere(LIVER, "steatosis"), without("liver", "fatty liver")),
        (everywhere(LIVER, "fatty change"), without("liver", "fatty liver")),
        (everywhere(LIVER, "hepatic cyst"), without("liver", "liver mass")),
        (everywhere(LIVER, "cirrhosis"), FULL),
        (everywhere(LIVER, "something unheard of"), {**FULL, "liver": []}),
        (everywhere(LIVER, ""), {**FULL, "liver": []}),
        ([*everywhere(LIVER, "steatosis"), *everywhere(LIVER, "mass")], {**FULL, "liver": []}),
        (everywhere(SPLEEN, "splenomegaly"), {**FULL, "spleen": []}),
    ],
)
def test_an_entry_that_may_be_true_is_no_negative(tmp_path, findings, same_as):
    found = diagnosis(tmp_path / "a.yaml", FULL, findings)
    torch.testing.assert_close(found, diagnosis(tmp_path / "b.yaml", same_as), rtol=1e-10, atol=0)


def test_entries_are_negatives_else(tmp_path):
    full, none = (diagnosis(tmp_path / "a.yaml", table) for table in (FULL, {"spleen": []}))
    assert full[0] > none[0]
    plain = {"liver": ["fatty liver", "liver mass"], "spleen": ["large spleen"]}
    torch.testing.assert_close(diagnosis(tmp_path / "b.yaml", plain), full, rtol=1e-10, atol=0)
    only_normal = diagnosis(tmp_path / "b.yaml", plain, everywhere(LIVER, "cirrhosis"))
    torch.testing.assert_close(only_normal, diagnosis(tmp_path / "c.yaml", {**plain, "liver": []}), rtol=1e-10, atol=0)


def test_the_reader_and_the_objective_agree_on_what_may_be_true(tmp_path):
    built = Dictionary.build(map(read, TEXTS), least=1)
    built.save(tmp_path / "built.yaml")
    entries = {entry.text: entry for entry in read_dictionary(str(tmp_path / "built.yaml"), {5: "liver", 1: "spleen"})}
    for organ in ("liver", "spleen"):
        for present in [*built.known, "unheard of", ""]:
            drawn = set(built.negatives(organ, [present], 99, random.Random(0)))
            apart = {one.text for one in built.entries[organ] if present in entries[one.text].apart}
            assert apart == (drawn if present in built.known else set())


def test_an_entry_without_text_is_named(tmp_path):
    (tmp_path / "a.yaml").write_text("liver: [{finding: mass}]")
    with pytest.raises(ConfigError, match=r"An entry of 'liver' in abnormality dictionary .* has no 'text'"):
        OrganGrounding(tiny_dims(), dictionary=str(tmp_path / "a.yaml"))


def test_names_that_are_no_list_are_not_taken_letter_by_letter(tmp_path):
    path = tmp_path / "dictionary.yaml"
    path.write_text("known_findings: [cyst]\nliver: [{finding: mass, text: liver mass, may_be: cyst}]\n")
    with pytest.raises(ConfigError, match=r"'may_be' of an entry of 'liver' .* must be a list\. Write \[cyst\]"):
        read_dictionary(str(path), {LIVER: "liver"})
    path.write_text("liver: [{text: liver mass, may_be: 3}]\n")
    with pytest.raises(ConfigError, match=r"is '3', but must be a list"):
        read_dictionary(str(path), {LIVER: "liver"})
    path.write_bytes(b"liver: [\xff\xfe]")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_dictionary(str(path), {LIVER: "liver"})
