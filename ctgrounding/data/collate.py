"""Samples to the batch of one step, outside the workers."""

import re
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from ctgrounding.data.feature_format import padded_stack
from ctgrounding.data.keys import stable_hash
from ctgrounding.types import ORGAN_IDS, Batch, Sample

PADDING_HU = -1024
EMPTY_SHAPE = (32, 64, 64)
"""Voxels of a micro-batch without scans, at least: a multiple of usual patches, so that it can be encoded."""

_NOT_WORD = re.compile(r"[\W_]+")
Triple = tuple[int, int, int]


class Collate:
    """Makes the batch of a step from the samples of its micro-batches.

    Volumes and label maps are padded to the largest scan of their micro-batch, at the far end of each axis,
    so that origins and valid boxes stay true. Texts are kept once each.

    Args:
        pad_id: Token that fills up shorter texts.
        minimum_shape: Voxels along ``D H W`` that every micro-batch has at least, so that crops keep one shape.
        with_organs: Whether batches carry label maps; scans that have none get zeros.
        questions: Number of label columns.
        features_kept: What stored features are, where samples have them in the place of voxels; else None.

    Examples:
        >>> collate = Collate(pad_id=0, minimum_shape=(4, 8, 8), with_organs=False, questions=2)
        >>> batch = collate([[]])
        >>> tuple(batch["volume"][0].shape), tuple(batch["labels"].shape)
        ((0, 32, 64, 64), (0, 2))
    """

    def __init__(
        self,
        pad_id: int,
        minimum_shape: Triple,
        with_organs: bool,
        questions: int,
        features_kept: str | None = None,
    ) -> None:
        self._pad_id = pad_id
        self._minimum_shape = minimum_shape if features_kept is None else (0, 0, 0)
        self._features_kept = features_kept
        self._with_organs = with_organs
        self._questions = questions

    def __call__(self, micro_batches: Sequence[Sequence[Sample]]) -> Batch:
        """The batch of one step on this rank.

        Args:
            micro_batches: The samples of each forward pass; empty ones are legal.
        """
        samples = [sample for micro in micro_batches for sample in micro]
        shapes = [self._shape(micro) for micro in micro_batches]
        texts = _Texts(samples)
        snippets = [(i, item) for i, s in enumerate(samples) for item in s["snippets"]]
        sentences = [(i, item) for i, s in enumerate(samples) for item in s["organ_sentences"]]
        findings = [(i, organ, name) for i, s in enumerate(samples) for organ, name in s.get("organ_findings", ())]
        batch = Batch(
            scan_id=[s["scan_id"] for s in samples],
            study_id=[s["study_id"] for s in samples],
            patient_id=[s["patient_id"] for s in samples],
            dataset=[s["dataset"] for s in samples],
            volume=[
                _padded([s["volume"] for s in micro], shape, PADDING_HU, torch.int16)
                for micro, shape in zip(micro_batches, shapes, strict=True)
            ],
            has_organs=torch.tensor([_has_organs(s) for s in samples], dtype=torch.bool),
            valid_box=_stacked([s["valid_box"] for s in samples], (3, 2), torch.int64),
            spacing_mm=_stacked([s["spacing_mm"] for s in samples], (3,), torch.float64),
            origin_mm=_stacked([s["origin_mm"] for s in samples], (3,), torch.float64),
            study=_ints([stable_hash("study", s["dataset"], s["study_id"]) for s in samples]),
            patient=_ints([stable_hash("patient", s["dataset"], s["patient_id"]) for s in samples]),
            report_group=_ints([_report_group(s) for s in samples]),
            texts=texts.unique,
            tokens=texts.tokens(self._pad_id),
            token_mask=texts.mask(),
            report_text=_ints([texts.row[s["report"]] if s["report"] else -1 for s in samples]),
            snippet_scan=_ints([scan for scan, _ in snippets]),
            snippet_text=_ints([texts.row[item["text"]] for _, item in snippets]),
            snippet_depth_mm=_floats([item["depth_mm"] for _, item in snippets]).reshape(-1, 2),
            snippet_organ=_ints([item["organ"] for _, item in snippets]),
            snippet_size_mm=_floats([item["size_mm"] for _, item in snippets]),
            snippets_dropped=_ints([s["snippets_dropped"] for s in samples]),
            organ_text=_ints([texts.row[item["text"]] for _, item in sentences]),
            organ_text_scan=_ints([scan for scan, _ in sentences]),
            organ_text_class=_ints([item["organ"] for _, item in sentences]),
            organ_text_abnormal=torch.tensor([item["is_abnormal"] for _, item in sentences], dtype=torch.bool),
            organ_finding=[name for _, _, name in findings],
            organ_finding_scan=_ints([scan for scan, _, _ in findings]),
            organ_finding_class=_ints([organ for _, organ, _ in findings]),
            labels=_stacked([s["labels"] for s in samples], (self._questions,), torch.int64),
        )
        if self._features_kept is not None:
            batch["features"] = [padded_stack([s["features"] for s in micro]) for micro in micro_batches]
            batch["features_kept"] = self._features_kept
        if self._with_organs and self._features_kept is None:
            batch["organs"] = [_organs(micro, shape) for micro, shape in zip(micro_batches, shapes, strict=True)]
        if self._with_organs:
            none = torch.zeros(ORGAN_IDS, dtype=torch.int64)
            batch["organ_voxels"] = _stacked([s.get("organ_voxels", none) for s in samples], (ORGAN_IDS,), torch.int64)
        return batch

    def _shape(self, micro: Sequence[Sample]) -> Triple:
        if not micro:
            d, h, w = (max(sides) for sides in zip(self._minimum_shape, EMPTY_SHAPE, strict=True))
            return d, h, w
        d, h, w = (max(sides) for sides in zip(self._minimum_shape, *(s["volume"].shape for s in micro), strict=True))
        return d, h, w


class _Texts:
    """The texts of a step, once each in order of first appearance."""

    def __init__(self, samples: Sequence[Sample]) -> None:
        rows = {text: tokens for s in samples for text, tokens in s["token_rows"].items()}
        self.unique = list(rows)
        self.row = {text: number for number, text in enumerate(rows)}
        self._rows = list(rows.values())
        lengths = np.array([tokens.shape[0] for tokens in self._rows], np.int64)
        self._real = np.arange(lengths.max(initial=0) or 1) < lengths[:, None]

    def tokens(self, pad_id: int) -> Int64[Tensor, "T L"]:
        tokens = np.full(self._real.shape, pad_id, np.int64)
        if self._rows:
            tokens[self._real] = torch.cat(self._rows).numpy()
        return torch.from_numpy(tokens)

    def mask(self) -> Bool[Tensor, "T L"]:
        return torch.from_numpy(self._real)


def _report_group(sample: Sample) -> int:
    words = _NOT_WORD.sub(" ", sample["report"].casefold()).strip()
    if not words:
        return stable_hash("no report", sample["dataset"], sample["scan_id"])
    return stable_hash("report", words)


def _has_organs(sample: Sample) -> bool:
    return "organs" in sample or ("features" in sample and "organ_voxels" in sample)


def _organs(micro: Sequence[Sample], shape: Triple) -> Tensor:
    maps = [s["organs"] if "organs" in s else s["volume"].new_zeros(0, 0, 0, dtype=torch.uint8) for s in micro]
    return _padded(maps, shape, 0, torch.uint8)


def _padded(arrays: Sequence[Tensor], shape: Triple, fill: int, dtype: torch.dtype) -> Tensor:
    if len(arrays) == 1 and tuple(arrays[0].shape) == shape:
        return arrays[0][None]
    padded = torch.empty((len(arrays), *shape), dtype=dtype)
    for target, array in zip(padded, arrays, strict=True):
        d, h, w = array.shape
        target[:d, :h, :w] = array
        target[d:] = fill
        target[:d, h:] = fill
        target[:d, :h, w:] = fill
    return padded


def _stacked(rows: Sequence[Tensor], shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    return torch.stack(list(rows)) if rows else torch.empty((0, *shape), dtype=dtype)


def _ints(values: Sequence[int]) -> Int64[Tensor, "..."]:
    return torch.tensor(values, dtype=torch.int64)


def _floats(values: Sequence[float] | Sequence[tuple[float, float]]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)
