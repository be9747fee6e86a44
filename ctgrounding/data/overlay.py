"""A supervision file laid over the scans of an index: the shards stay the truth, and a differing report is an error."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pyarrow as pa

from ctgrounding.data.index import ScanIndex
from ctgrounding.data.records import ScanRecord
from ctgrounding.data.supervision import (
    FOLDER,
    ScanSupervision,
    read_supervision,
    report_sha256,
    supervision_path,
)
from ctgrounding.errors import ConfigError

Key = tuple[str, str]


def lay_over(index: ScanIndex, name: str) -> ScanIndex:
    """An index whose records have the snippets, organ sentences and labels of ``supervision/<name>.parquet``.

    Snippets and organ sentences of a scan are replaced altogether; a label that the file states takes the
    place of the shard's, one that it leaves open does not. Scans without report keep what they have. Rows of
    scans that are in no shard are passed over.

    Args:
        index: The scans.
        name: Of the file, in the folder ``supervision`` beside the shards; each folder of shards needs one.

    Raises:
        ConfigError: If a folder has no such file, a scan with a report is not in it, its report is not the one
            that was read, or an organ is none of the shards'.
    """
    rows = {folder: _rows(folder, name) for folder in dict.fromkeys(shard.path.parent for shard in index.shards)}
    organs = frozenset(index.classes.values())
    packed, label_names = [], set(index.label_names)
    for position in range(len(index)):
        record = index.record(position)
        found = rows[index.shard(position)[0].path.parent].get((record.dataset, record.scan_id))
        if found is not None:
            _check(record, found, organs, name)
            record = laid(record, found)
        elif record.report:
            raise ConfigError(
                f"Supervision '{name}' has no row for scan {record.scan_id} of dataset {record.dataset}, which has a "
                "report. Mine these shards again."
            )
        label_names.update(record.labels)
        packed.append(json.dumps(record.to_json(), ensure_ascii=False).encode())
    return replace(
        index, label_names=tuple(sorted(label_names)), packed_records=pa.array(packed, index.packed_records.type)
    )


def laid(record: ScanRecord, found: ScanSupervision) -> ScanRecord:
    """A record with the words of a supervision row."""
    stated = {name: value for name, value in found.labels.items() if value is not None or name not in record.labels}
    return replace(
        record,
        snippets=found.snippets,
        organ_sentences=found.organ_sentences,
        labels={**record.labels, **stated},
    )


def _rows(folder: Path, name: str) -> Mapping[Key, ScanSupervision]:
    path = supervision_path(folder, name)
    if not path.is_file():
        there = ", ".join(sorted(file.stem for file in (folder / FOLDER).glob("*.parquet"))) or "none"
        raise ConfigError(
            f"data.supervision is '{name}', but there is no {path}. Found beside these shards: {there}. "
            "Write it with ctgrounding mine."
        )
    return {(row.dataset, row.scan_id): row for row in read_supervision(path)}


def _check(record: ScanRecord, found: ScanSupervision, organs: frozenset[str], name: str) -> None:
    if found.report_sha256 != report_sha256(record.report):
        raise ConfigError(
            f"Supervision '{name}' was mined from another report of scan {record.scan_id} than its shard holds. "
            "Mine these shards again."
        )
    named = {organ for sentence in found.organ_sentences for organ in sentence.organs}
    named |= {snippet.organ for snippet in found.snippets if snippet.organ}
    if unknown := sorted(named - organs):
        raise ConfigError(
            f"Supervision '{name}' speaks of organ '{unknown[0]}' in scan {record.scan_id}, which the shards' class "
            "table lacks. Mine with the card that they were ingested by."
        )
