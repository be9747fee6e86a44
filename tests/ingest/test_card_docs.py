"""Every key of a card stands on its page, and every packaged card on the page of datasets."""

from dataclasses import fields
from pathlib import Path

import pytest

from ctgrounding import label_sets
from ctgrounding.ingest.cards import (
    Card,
    JoinedTable,
    LabelsTable,
    OrgansRule,
    ReportsTable,
    ScansTable,
    SentencesTable,
    SlicesTable,
    SplitRule,
)

REPOSITORY = Path(__file__).parents[2]
PAGE = (REPOSITORY / "docs/reference/cards.md").read_text(encoding="utf-8")
SECTIONS = {
    "Card": Card,
    "scans": ScansTable,
    "reports": ReportsTable,
    "labels": LabelsTable,
    "slices": SlicesTable,
    "sentences": SentencesTable,
    "organs": OrgansRule,
    "split": SplitRule,
}


@pytest.mark.parametrize("section", SECTIONS)
def test_every_key_stands_in_its_section(section):
    text = PAGE.partition(f"\n## {section}\n")[2].partition("\n## ")[0]
    assert [entry.name for entry in fields(SECTIONS[section]) if f"`{entry.name}`" not in text] == []


def test_joined_tables_and_label_sets_stand_there_too():
    assert [entry.name for entry in fields(JoinedTable) if entry.name not in PAGE] == []
    assert [name for name in label_sets.NAMES if f"`{name}`" not in PAGE] == []


def test_every_packaged_card_stands_on_the_page_of_datasets():
    page = (REPOSITORY / "docs/how-to/ingest-a-published-dataset.md").read_text(encoding="utf-8")
    cards = [path.stem for path in (REPOSITORY / "data_manifests").glob("*.yaml")]
    assert [name for name in cards if not name.startswith(("own_", "phantom")) and f"`{name}`" not in page] == []
