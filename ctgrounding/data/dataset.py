"""One scan as a sample: read, cropped, mirrored, worded and tokenised."""

from dataclasses import dataclass, field, replace

import numpy as np
import torch
from jaxtyping import Int16, Int64, UInt8
from torch import Tensor
from torch.utils.data import Dataset

from ctgrounding.data.collate import Collate
from ctgrounding.data.feature_reading import StoredFeatures
from ctgrounding.data.index import ScanIndex
from ctgrounding.data.keys import keyed_generator, stable_hash
from ctgrounding.data.mirror import mirror_labels
from ctgrounding.data.recipe import Recipe
from ctgrounding.data.records import ScanRecord
from ctgrounding.data.sampler import Draw
from ctgrounding.data.shards import check_hashes
from ctgrounding.data.spatial import Moved
from ctgrounding.data.tokens import Tokenizer, TokenRows
from ctgrounding.data.view import View
from ctgrounding.data.words import Words
from ctgrounding.errors import ReportError, ShardError
from ctgrounding.types import ORGAN_IDS, Sample, SnippetItem

_KEPT_SCANS = 8_192
"""Scans of which a process keeps what no epoch changes; some 40 kB each, features not counted."""

_NO_VOXELS = np.zeros((0, 0, 0), np.int16)


@dataclass(frozen=True)
class Request:
    """The scans that one micro-batch of an epoch shows."""

    epoch: int
    draws: tuple[Draw, ...]


@dataclass
class Delivery:
    """What became of a request.

    Attributes:
        samples: The scans that could be read, in the order asked for.
        skipped: Scan id to the reason why it was left out.
        unmirrored: Scan id to the reason why it was shown as it is although its draw said mirrored.
    """

    samples: list[Sample] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    unmirrored: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class _KeptScan:
    """What a sample on stored features is in every epoch: all but its report.

    Attributes:
        view: What is shown of the scan.
        sample: The sample without report and features.
    """

    view: View
    sample: Sample


class ScanDataset(Dataset[Delivery]):
    """Map from requests to samples, by epoch and scan alone.

    On stored features a scan shows one view, so that its report alone is made anew in each epoch.

    Args:
        index: The scans.
        recipe: How they become samples.
        tokenizer: Text to token ids, without padding.

    Examples:
        >>> import tempfile, torch
        >>> from ctgrounding.data.augment import Crop
        >>> from ctgrounding.data.index import load_index
        >>> from ctgrounding.testing.shards import write_tiny_shards
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = write_tiny_shards(folder, scans=2)
        ...     dataset = ScanDataset(load_index([folder]), Recipe(crop=Crop((8, 16, 16))), lambda text: torch.zeros(3))
        ...     dataset[Request(0, (Draw(0, 0),))].samples[0]["volume"].shape
        torch.Size([8, 16, 16])
    """

    def __init__(self, index: ScanIndex, recipe: Recipe, tokenizer: Tokenizer) -> None:
        self.index = index
        self.recipe = recipe
        self._tokens = TokenRows(tokenizer)
        self._verified: set[int] = set()
        self._kept: dict[int, _KeptScan] = {}
        self._mirrored = mirror_labels(index.classes)
        self._label_of = {name: label for label, name in index.classes.items()}
        self._other_side = {name: index.classes[int(self._mirrored[label])] for label, name in index.classes.items()}

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, request: Request) -> Delivery:
        """All samples of a micro-batch.

        Raises:
            ShardError: If a scan cannot be read or differs from its hash, unless such scans are skipped.
        """
        delivery = Delivery()
        for draw in request.draws:
            try:
                sample, refusal = self._sample(draw, request.epoch)
            except ShardError as error:
                if not self.recipe.skips_damaged:
                    raise
                delivery.skipped[self.index.columns["scan_id"][draw.position]] = str(error)
                continue
            delivery.samples.append(sample)
            if refusal:
                delivery.unmirrored[sample["scan_id"]] = refusal
        return delivery

    def sample(self, position: int, epoch: int = 0, repeat: int = 0) -> Sample:
        """One scan's sample.

        Args:
            position: Of the scan in the index.
            epoch: Key of what is random.
            repeat: How often the epoch showed the scan before.

        Raises:
            ShardError: If the scan cannot be read or differs from its hash.
        """
        return self._sample(Draw(position, repeat), epoch)[0]

    def collate(self) -> Collate:
        """What makes batches of these samples."""
        recipe = self.recipe
        spacing_mm = self.index.record(0).spacing_mm if len(self) else (1.0, 1.0, 1.0)
        d, h, w = (extent or 1 for extent in recipe.crop.extent_vox(spacing_mm))
        kept = None if recipe.features is None else recipe.features.about.keep
        return Collate(self._tokens.pad_id, (d, h, w), recipe.with_organs, len(recipe.label_names), kept)

    def _sample(self, draw: Draw, epoch: int) -> tuple[Sample, str]:
        if self.recipe.features is not None:
            return self._of_features(self.recipe.features, draw, epoch), ""
        recipe, record = self.recipe, self.index.record(draw.position)
        words, refusal, keyed = Words.of(record, self._report(record, epoch, draw.repeat)), "", None
        if recipe.is_random:
            keyed = keyed_generator("view", recipe.seed, epoch, draw.repeat, record.dataset, record.scan_id)
        view = View(record, *recipe.crop.box(record.shape, record.spacing_mm, keyed))
        if keyed is not None and keyed.random() < recipe.mirror_probability:
            try:
                words, view = words.mirrored(self._other_side), replace(view, is_mirrored=True)
            except ReportError as error:
                refusal = str(error)
        key = ("spatial", recipe.seed, epoch, draw.repeat, record.dataset, record.scan_id)
        return self._assemble(draw.position, view, words, stable_hash(*key)), refusal

    def _of_features(self, features: StoredFeatures, draw: Draw, epoch: int) -> Sample:
        kept = self._kept.get(draw.position) or self._keep(draw.position)
        view, sample = kept.view, kept.sample.copy()
        sample["features"] = features.read(view.record, view.start, view.shape)
        sample["report"] = report = self._report(view.record, epoch, draw.repeat)
        if report:
            sample["token_rows"] = {report: self._tokens.of(report), **sample["token_rows"]}
        return sample

    def _keep(self, position: int) -> _KeptScan:
        record = self.index.record(position)
        view = View(record, *self.recipe.crop.box(record.shape, record.spacing_mm))
        sample = self._described(view, Words.of(record, ""), _NO_VOXELS)
        if self.recipe.with_organs and record.organs_sha256:
            sample["organ_voxels"] = self._organ_voxels(record, np.arange(ORGAN_IDS, dtype=np.uint8))
        kept = _KeptScan(view, sample)
        if len(self._kept) < _KEPT_SCANS:
            self._kept[position] = kept
        return kept

    def _report(self, record: ScanRecord, epoch: int, repeat: int) -> str:
        keyed = None
        if self.recipe.is_random:
            sections = (part for item in sorted(record.report.items()) for part in item)
            keyed = keyed_generator("report", self.recipe.seed, epoch, repeat, *sections)
        return self.recipe.report_text.compose(record.report, keyed)

    def _assemble(self, position: int, view: View, words: Words, seed: int) -> Sample:
        image_hu, organs = self._read(position, view)
        moved = None
        if self.recipe.is_random and self.recipe.spatial is not None:
            moved = self.recipe.spatial(image_hu, organs, view.grid, seed)
            image_hu, organs = moved.image_hu, moved.organs
        sample = self._described(view, words, image_hu, moved)
        if organs is not None:
            table = self._mirrored if view.is_mirrored else np.arange(ORGAN_IDS, dtype=np.uint8)
            cut = view.cut(organs)
            sample["organs"] = torch.from_numpy(table[cut] if view.is_mirrored else cut)
            sample["organ_voxels"] = self._organ_voxels(view.record, table)
        return sample

    def _described(
        self, view: View, words: Words, image_hu: Int16[np.ndarray, "D H W"], moved: Moved | None = None
    ) -> Sample:
        """A volume and what is said of it; label map and features are added by the caller."""
        record = view.record
        low_mm, high_mm = view.depth_range_mm()
        snippets, dropped = words.snippets_within(low_mm, high_mm, self._label_of)
        if moved is not None:
            shown = _follow(snippets, moved)
            dropped, snippets = dropped + len(snippets) - len(shown), shown
        sentences = words.sentences(self._label_of)
        texts = [words.report, *(item["text"] for item in snippets), *(item["text"] for item in sentences)]
        return Sample(
            scan_id=record.scan_id,
            study_id=record.study_id,
            patient_id=record.patient_id,
            dataset=record.dataset,
            volume=torch.from_numpy(view.cut(image_hu)),
            valid_box=torch.from_numpy(view.valid_box()),
            spacing_mm=torch.tensor(record.spacing_mm, dtype=torch.float64),
            origin_mm=torch.tensor(view.grid.origin_mm, dtype=torch.float64),
            report=words.report,
            snippets=snippets,
            organ_sentences=sentences,
            organ_findings=words.findings_of(self._label_of),
            labels=words.label_row(self.recipe.label_names),
            token_rows={text: self._tokens.of(text) for text in texts if text},
            snippets_dropped=dropped,
        )

    def _read(self, position: int, view: View) -> tuple[Int16[np.ndarray, "D H W"], UInt8[np.ndarray, "D H W"] | None]:
        shard, row = self.index.shard(position)
        is_first = position not in self._verified
        if is_first and not view.is_whole and shard.attributes["codec"] == "none":
            shard.verify(row)  # without chunks there are no checksums that a crop could be held against
        image_hu = shard.read_image(row, view.start, view.shape)
        organs = shard.read_organs(row, view.start, view.shape) if self.recipe.with_organs else None
        if is_first and view.is_whole:
            check_hashes(view.record, image_hu, organs, shard.path)
        self._verified.add(position)
        return image_hu, organs

    def _organ_voxels(self, record: ScanRecord, table: UInt8[np.ndarray, "256"]) -> Int64[Tensor, "256"]:
        counts = torch.zeros(ORGAN_IDS, dtype=torch.int64)
        for organ, voxels in (record.organ_voxels or {}).items():
            counts[int(table[self._label_of[organ]])] = voxels
        return counts


def _follow(snippets: list[SnippetItem], moved: Moved) -> list[SnippetItem]:
    placed = ((item, moved.depth_mm(item["depth_mm"])) for item in snippets)
    return [SnippetItem(**{**item, "depth_mm": depth_mm}) for item, depth_mm in placed if depth_mm is not None]
