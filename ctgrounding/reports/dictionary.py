"""An abnormality dictionary: what training reports say is wrong with each organ, to draw negatives from.

The idea is CT-GLIP's (arXiv 2404.15272), which published neither size, building nor sampling; all of that is this
project's own choice. Wordings of one finding are merged under its name in the vocabulary; sizes, references and
comparisons are cut away.
"""

import random
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Self

import yaml

from ctgrounding import label_sets
from ctgrounding.errors import ReportError
from ctgrounding.mappings import from_yaml
from ctgrounding.reports.cleaning import without_comparison, without_sizes
from ctgrounding.reports.entries import Finding
from ctgrounding.reports.lexicon import lexicon, tokens_of
from ctgrounding.reports.references import find_references
from ctgrounding.reports.report import OrganStatement, Report

KNOWN = "known_findings"
SHORTEST_WORDS = 1
LONGEST_WORDS = 24


@dataclass(frozen=True)
class Entry:
    """One abnormality of an organ.

    Attributes:
        finding: Its name.
        text: The wording used to say it; edit it freely.
        count: Reports that state it.
        synonyms: Other wordings with their counts.
        may_be: Other findings of the training reports by whose name a report may mean this one.
    """

    finding: str
    text: str
    count: int
    synonyms: Mapping[str, int]
    may_be: tuple[str, ...] = ()


class Dictionary:
    """Abnormalities by organ.

    Args:
        entries: TotalSegmentator v2 organ to its entries, the most frequent first.
        known: All findings of the training reports, those included that are too rare for an entry.

    Examples:
        >>> from ctgrounding.reports import read
        >>> reports = [read("Fatty liver."), read("Hepatic steatosis."), read("Cyst in the liver, 14 mm.")]
        >>> dictionary = Dictionary.build(reports, least=1)
        >>> [(entry.finding, entry.count) for entry in dictionary.entries["liver"]]
        [('steatosis', 2), ('hepatic cyst', 1)]
        >>> dictionary.negatives("liver", present=["steatosis"], number=5, rng=random.Random(0))
        ['Cyst in the liver']
    """

    def __init__(self, entries: Mapping[str, tuple[Entry, ...]], known: Iterable[str] = ()) -> None:
        self.entries = dict(entries)
        self.known = tuple(sorted(set(known)))

    @classmethod
    def build(cls, reports: Iterable[Report], least: int = 3) -> Self:
        """Count what reports state.

        Args:
            reports: Reports of the training split alone.
            least: Reports that must state a finding of an organ for it to be kept.
        """
        wordings: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
        counts: Counter[tuple[str, str]] = Counter()
        for report in reports:
            seen: set[tuple[str, str]] = set()
            for statement in report.organ_statements:
                if statement.status != "abnormal" or not statement.finding:
                    continue
                wording = plain(statement)
                for key in ((mask, statement.finding) for mask in statement.masks):
                    seen.add(key)
                    if SHORTEST_WORDS <= len(wording.split()) <= LONGEST_WORDS:
                        wordings[key][wording] += 1
            counts.update(seen)
        known = sorted({finding for _, finding in counts})
        entries: dict[str, list[Entry]] = defaultdict(list)
        for (organ, finding), count in counts.items():
            if count >= least and wordings[organ, finding]:
                entries[organ].append(_entry(finding, count, wordings[organ, finding], known))
        ordered = {
            organ: tuple(sorted(entries[organ], key=lambda one: (-one.count, one.finding))) for organ in sorted(entries)
        }
        return cls(ordered, known)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a file that :meth:`save` wrote, edits included.

        Raises:
            ReportError: If it is no such file.
            ConfigError: If it names an organ twice, or one that does not exist.
        """
        if not path.is_file():
            raise ReportError(f"There is no dictionary '{path}'. Build one from training reports.")
        try:
            table = from_yaml(path.read_text(encoding="utf-8"), f"Dictionary '{path}'")
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            reason = " ".join(str(error).split())
            raise ReportError(f"Dictionary '{path}' cannot be read as YAML: {reason}. Mend it.") from error
        if not isinstance(table, dict):
            raise ReportError(
                f"Dictionary '{path}' is no table of organs. Write 'liver: [{{finding: ..., text: ...}}]'."
            )
        known = table.pop(KNOWN, ())
        entries = {}
        for organ, found in table.items():
            label_sets.label_of(organ)
            entries[organ] = tuple(_read_entry(one, organ, path) for one in found)
        return cls(entries, map(str, known))

    def save(self, path: Path) -> None:
        """Write all entries with counts and synonyms, to be read, edited and given to ``OrganGrounding``."""
        table: dict[str, Any] = {
            organ: [
                {
                    "finding": one.finding,
                    "text": one.text,
                    "count": one.count,
                    "synonyms": dict(one.synonyms),
                    "may_be": list(one.may_be),
                }
                for one in entries
            ]
            for organ, entries in self.entries.items()
        }
        _write(path, {**table, KNOWN: list(self.known)})

    def negatives(self, organ: str, present: Collection[str], number: int, rng: random.Random) -> list[str]:
        """Sentences about an organ that are not true of a scan.

        Left out are the findings that the scan has, whatever may be another word for one of them (a lesion is any
        focal finding, any focal finding may be a lesion), and all of them where the scan has a finding without a name.

        Args:
            organ: TotalSegmentator v2 class.
            present: Findings of the organ that the report affirms or leaves open.
            number: Most sentences to draw.
            rng: Draws them.
        """
        if any(not finding for finding in present):
            return []
        fitting = [
            one for one in self.entries.get(organ, ()) if not any(contradicts(one.finding, had) for had in present)
        ]
        return [one.text for one in rng.sample(fitting, min(number, len(fitting)))]


def contradicts(finding: str, present: str) -> bool:
    """Whether a scan with one finding may have the other too, by another name.

    Examples:
        >>> contradicts("mass", "hepatic cyst"), contradicts("steatosis", "hepatic cyst")
        (True, False)
    """
    if finding == present:
        return True
    one, other = _family(finding), _family(present)
    if one is None or other is None:
        return True
    if one is other:
        return True
    return one.focal and other.focal and (one.vague or other.vague)


def plain(statement: OrganStatement) -> str:
    """A statement without references, sizes and comparisons."""
    text = statement.text
    for reference in reversed(find_references(text)):
        text = text[: reference.start] + text[reference.end :]
    text = without_sizes(without_comparison(re.sub(r"\(\s*\)", "", text)))
    return re.sub(r"\s+", " ", text).strip(" ,;.")


@lru_cache(maxsize=8192)
def _family(finding: str) -> Finding | None:
    """Vocabulary entry of a finding's name."""
    table = lexicon()
    if finding in table.findings:
        return table.findings[finding]
    for entry in table.findings.values():
        if finding == entry.name or finding in entry.by_organ.values():
            return entry
    for mention in table.mentions(tokens_of(finding)):
        if mention.kind in ("finding", "device") and isinstance(mention.entry, Finding):
            return mention.entry
    return None


def _entry(finding: str, count: int, wordings: Counter[str], known: Iterable[str]) -> Entry:
    ordered = sorted(wordings.items(), key=lambda item: (-item[1], len(item[0]), item[0]))
    may_be = tuple(name for name in known if name != finding and contradicts(finding, name))
    return Entry(finding, ordered[0][0], count, dict(ordered[1:]), may_be)


def _read_entry(values: Any, organ: str, path: Path) -> Entry:  # noqa: ANN401  what a YAML file holds
    if not isinstance(values, dict) or not {"finding", "text"} <= set(values):
        raise ReportError(f"An entry of '{organ}' in dictionary '{path}' lacks 'finding' or 'text'. Write both.")
    return Entry(
        str(values["finding"]),
        str(values["text"]),
        int(values.get("count", 1)),
        values.get("synonyms") or {},
        tuple(map(str, values.get("may_be") or ())),
    )


def _write(path: Path, table: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    written = yaml.safe_dump(dict(table), allow_unicode=True, sort_keys=False, width=120)
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(written, encoding="utf-8")
    partial.replace(path)
