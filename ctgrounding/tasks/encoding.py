"""The passes of one step, cut into segments that can be replayed."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import torch

from ctgrounding.encoders.readouts import ReadoutContext
from ctgrounding.encoders.stems import STEMS
from ctgrounding.encoders.vision_language import VisionLanguageEncoder, VolumeRows
from ctgrounding.tasks import randomness
from ctgrounding.tasks.accumulation import Outputs, Segment
from ctgrounding.tasks.recolour import Recolour
from ctgrounding.tasks.texts import StepTexts
from ctgrounding.types import Batch, Encoded

_TEXT_PASS = 1 << 20
"""Number of a step's first text pass among the keys of its random numbers; volumes count from 0."""


@dataclass
class StepWork:
    """Image and text passes of a step.

    Attributes:
        encoder: The model.
        batch: All scans of the step on this rank.
        texts: Its unique texts.
        key: What the step's random numbers are keyed by; None leaves the generators alone (evaluation).
        recolour: Intensity augmentation.
        texts_per_pass: Texts encoded at a time in a split step; None for all at once.
    """

    encoder: VisionLanguageEncoder
    batch: Batch
    texts: StepTexts
    key: tuple[int, ...] | None = None
    recolour: Recolour | None = None
    texts_per_pass: int | None = None
    _parts: dict[int, VolumeRows] = field(default_factory=dict)

    @property
    def is_split(self) -> bool:
        """Whether the step has several passes of a kind, so that it is replayed."""
        return len(self._filled()) > 1 or len(self._text_rows()) > 1

    @property
    def is_frozen(self) -> bool:
        """Whether nothing before the heads is trained."""
        parts = (self.encoder.image, self.encoder.text, self.encoder.readouts)
        return not any(parameter.requires_grad for part in parts for parameter in part.parameters())

    @property
    def segments(self) -> list[Segment]:
        """Text passes, then one pass for each micro-batch that has volumes; an empty rank has text passes only."""
        texts = [partial(self._encode_texts, number, rows) for number, rows in enumerate(self._text_rows())]
        volumes: list[Segment] = [partial(self._encode_volumes, number) for number in self._filled()]
        return [*texts, *volumes]

    def encoded(self, outputs: Sequence[Outputs]) -> Encoded:
        """Join the outputs of all segments, which may be detached copies of what the segments gave."""
        passes = len(self._text_rows())
        text = torch.cat([group[0] for group in outputs[:passes]])
        names = list(self.encoder.readouts)
        parts = []
        for number, group in zip(self._filled(), outputs[passes:], strict=True):
            made = self._parts[number]
            rows = {name: replace(made.rows[name], values=value) for name, value in zip(names, group, strict=True)}
            parts.append(VolumeRows(rows, made.depth_mm))
        return self.encoder.join(parts, text)

    def for_role(self, encoded: Encoded, role: str) -> Encoded:
        """The same, with the fixed texts that this role planned."""
        rows = self.texts.planned_rows[role]
        return replace(encoded, planned=self.texts.planned[role].to(rows.device), planned_text=rows)

    def _filled(self) -> list[int]:
        return [number for number, volume in enumerate(self.batch["volume"]) if len(volume)]

    def _text_rows(self) -> list[slice]:
        count = len(self.texts.tokens)
        size = self.texts_per_pass if self.texts_per_pass and len(self.batch["volume"]) > 1 else max(count, 1)
        return [slice(start, start + size) for start in range(0, max(count, 1), size)]

    def _encode_texts(self, number: int, rows: slice) -> Outputs:
        self._seed(_TEXT_PASS + number)
        return (self.encoder.encode_tokens(self.texts.tokens[rows], self.texts.mask[rows]),)

    def _encode_volumes(self, number: int) -> Outputs:
        device = self.texts.tokens.device
        scans = self._scans(number)
        if "features" in self.batch:
            made = self._from_features(number, scans)
            self._parts.setdefault(number, made)
            return tuple(rows.values for rows in made.rows.values())
        volume = self.batch["volume"][number].to(device, non_blocking=True)
        box = self.batch["valid_box"][scans]
        if self.recolour is not None and self.key is not None:
            volume = self.recolour(volume.float(), box, randomness.generator(*self.key, number))
        self._seed(number)
        made = self.encoder.encode_volumes(volume, box, self.batch["origin_mm"][scans], self._context(number, scans))
        self._parts.setdefault(number, made)
        return tuple(rows.values for rows in made.rows.values())

    def _from_features(self, number: int, scans: slice) -> VolumeRows:
        device = self.texts.tokens.device
        features = {name: value.to(device, non_blocking=True) for name, value in self.batch["features"][number].items()}
        voxels = self.batch["organ_voxels"][scans] if "organ_voxels" in self.batch else None
        context = ReadoutContext(self.batch["spacing_mm"][scans], organ_voxels=voxels)
        self._seed(number)
        stem = STEMS[self.batch["features_kept"]](self.encoder)
        return stem.rows(features, self.batch["origin_mm"][scans], context)

    def _context(self, number: int, scans: slice) -> ReadoutContext:
        spacing_mm = self.batch["spacing_mm"][scans]
        if "organs" not in self.batch:
            return ReadoutContext(spacing_mm)
        organs = self.batch["organs"][number].to(spacing_mm.device, non_blocking=True)
        return ReadoutContext(spacing_mm, organs, self.batch["organ_voxels"][scans])

    def _scans(self, number: int) -> slice:
        sizes = [len(volume) for volume in self.batch["volume"]]
        return slice(sum(sizes[:number]), sum(sizes[: number + 1]))

    def _seed(self, number: int) -> None:
        if self.key is not None:
            randomness.set_seed(*self.key, number)
