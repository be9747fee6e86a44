"""The texts that organ grounding brings along: names, normal sentences and a dictionary of abnormal ones."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from ctgrounding import label_sets
from ctgrounding.errors import BatchError, ConfigError
from ctgrounding.functional.prompts import text_keys
from ctgrounding.objectives.organ_dictionary import read_dictionary
from ctgrounding.types import ORGAN_IDS, Encoded


@dataclass(frozen=True)
class OrganTexts:
    """A flat list of fixed texts and, for each, the organ it is about.

    Attributes:
        texts: Names of all organs, their normal sentences, then dictionary entries.
        kind: Label id that each text is about.
        key: Number of each text, see :func:`ctgrounding.functional.prompts.text_keys`.
        name_of: Index of each label id's name, -1 where the label set has no such id.
        normal_of: Index of its normal sentence, -1 where there is none.
        first_entry: Index of the first dictionary entry.
        finding_of: Number of each finding that the dictionary knows.
        apart: For each dictionary entry, the findings that an organ may have without the entry being true of it.
    """

    texts: tuple[str, ...]
    kind: Int64[Tensor, "F"]
    key: Int64[Tensor, "F"]
    name_of: Int64[Tensor, "256"]
    normal_of: Int64[Tensor, "256"]
    first_entry: int
    finding_of: Mapping[str, int]
    apart: Bool[Tensor, "E K"]

    @classmethod
    def of(cls, organs: Mapping[int, str], name_text: str, normal_text: str | None, dictionary: str | None) -> Self:
        """Word the texts of all organs of a label set.

        Raises:
            ConfigError: If a text lacks ``{organ}`` or the dictionary cannot be used.
        """
        for setting, text in (("name_text", name_text), ("normal_text", normal_text)):
            if text is not None and "{organ}" not in text:
                raise ConfigError(f"{setting} is '{text}', which does not name the organ. Write {{organ}} in it.")
        kinds = sorted(organs)
        spoken = [label_sets.spoken(organs[kind]) for kind in kinds]
        names = [name_text.replace("{organ}", organ) for organ in spoken]
        normal = [] if normal_text is None else [normal_text.replace("{organ}", organ) for organ in spoken]
        entries = read_dictionary(dictionary, organs)
        texts = (*names, *normal, *(entry.text for entry in entries))
        name_of = torch.full((ORGAN_IDS,), -1)
        name_of[kinds] = torch.arange(len(kinds))
        normal_of = torch.full((ORGAN_IDS,), -1)
        if normal:
            normal_of[kinds] = torch.arange(len(kinds)) + len(kinds)
        about = kinds + (kinds if normal else []) + [entry.kind for entry in entries]
        findings = {name: number for number, name in enumerate(sorted({f for entry in entries for f in entry.apart}))}
        apart = torch.zeros(len(entries), len(findings), dtype=torch.bool)
        for number, entry in enumerate(entries):
            apart[number, [findings[name] for name in entry.apart]] = True
        first = len(names) + len(normal)
        return cls(texts, torch.tensor(about), text_keys(texts), name_of, normal_of, first, findings, apart)

    def is_known(self, kinds: Int64[Tensor, "R"]) -> Bool[Tensor, "R"]:
        """Whether the label set has an organ of that id."""
        return self.name_of.to(kinds.device)[kinds] >= 0

    def kinds(self, fixed: Int64[Tensor, "R"]) -> Int64[Tensor, "R"]:
        """Label ids that fixed texts are about."""
        return self.kind.to(fixed.device)[fixed]

    def keys(self, fixed: Int64[Tensor, "R"]) -> Int64[Tensor, "R"]:
        """Numbers of fixed texts."""
        return self.key.to(fixed.device)[fixed]

    def entries(self, fixed: Int64[Tensor, "R"]) -> Int64[Tensor, "E"]:
        """Those of the fixed texts that are dictionary entries."""
        return fixed[fixed >= self.first_entry]

    def may_be_true(
        self, entries: Int64[Tensor, "E"], kinds: Int64[Tensor, "M"], findings: Sequence[str]
    ) -> Bool[Tensor, "M E"]:
        """Which dictionary entries may be true of an organ that has a finding; all where the finding is not known.

        Args:
            entries: Indices of fixed texts.
            kinds: Label id of each organ.
            findings: What it has.
        """
        numbers = torch.tensor([self.finding_of.get(name, -1) for name in findings], dtype=torch.int64)
        numbers, rows = numbers.to(entries.device), entries - self.first_entry
        known = torch.nn.functional.pad(self.apart.to(entries.device), (0, 1))[rows][:, numbers].T
        return ~known & (self.kinds(entries)[None] == kinds[:, None])

    def draw(self, number: int, generator: torch.Generator) -> Int64[Tensor, "E"]:
        """At most ``number`` dictionary entries of each organ, each equally likely."""
        order = torch.randperm(len(self.texts) - self.first_entry, generator=generator) + self.first_entry
        kinds = self.kind[order]
        drawn = [order[kinds == kind][:number] for kind in set(kinds.tolist())]
        return torch.cat([*drawn, order[:0]])

    def of_organs(
        self, present: Bool[Tensor, "256"], spoken_of: Bool[Tensor, "256"], drawn: Int64[Tensor, "E"]
    ) -> Int64[Tensor, "P"]:
        """Names of the organs present; normal sentences and drawn entries of those spoken of; ascending."""
        names, normal = self.name_of[present], self.normal_of[spoken_of]
        wanted = torch.cat([names, normal, drawn[spoken_of[self.kind[drawn]]]])
        return torch.sort(wanted[wanted >= 0]).values

    def rows_of_names(self, encoded: Encoded, kinds: Int64[Tensor, "R"]) -> Int64[Tensor, "R"]:
        """Rows of ``encoded.text`` that hold the names of organs."""
        return self.rows(encoded, self.name_of.to(kinds.device)[kinds])

    def rows(self, encoded: Encoded, fixed: Int64[Tensor, "R"]) -> Int64[Tensor, "R"]:
        """Rows of ``encoded.text`` that hold fixed texts.

        Raises:
            BatchError: If one of them was not planned for this step.
        """
        row_of = torch.full((len(self.texts),), -1, device=encoded.planned_text.device)
        row_of[encoded.planned.to(row_of.device)] = encoded.planned_text
        rows = row_of[fixed]
        if bool((rows < 0).any()):
            missing = self.texts[int(fixed[rows < 0][0])]
            raise BatchError(
                f"Text '{missing}' is needed but was not encoded. Call plan with the step's own batch on every rank."
            )
        return rows
