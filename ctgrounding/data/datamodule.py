"""Shards to training and evaluation batches, as Lightning asks for them."""

import logging
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Literal

from jaxtyping import Int64
from lightning.pytorch import LightningDataModule
from torch import Tensor

from ctgrounding.data import facts
from ctgrounding.data.augment import Crop
from ctgrounding.data.buckets import Buckets, bucketed
from ctgrounding.data.dataset import ScanDataset
from ctgrounding.data.feature_reading import StoredFeatures
from ctgrounding.data.index import ScanIndex
from ctgrounding.data.loader import Position, StepLoader, Workers
from ctgrounding.data.recipe import Recipe
from ctgrounding.data.report_text import ReportText
from ctgrounding.data.resume import Progress
from ctgrounding.data.sampler import EvaluationSampler, FirstEpoch, Sampler, TrainingSampler
from ctgrounding.data.shares import Shares
from ctgrounding.data.sources import ShardSource, Sources
from ctgrounding.data.spatial import SpatialTransform
from ctgrounding.data.splits import SplitName, Splits, Stage
from ctgrounding.data.tokens import Tokenizer
from ctgrounding.errors import ConfigError
from ctgrounding.types import Batch

_log = logging.getLogger(__name__)


class ShardDataModule(LightningDataModule):
    """Streams shards: only the chunks that a crop needs, in an order that depends on seed, epoch and step alone.

    One item of a loader is the batch of a whole optimizer step on this rank, see
    :class:`ctgrounding.types.Batch`. Its checkpoint state is two integers, taken from completed steps.

    Args:
        shards: Shards or folders of shards; or several named sources with weights.
        batch_size: Scans of an optimizer step over all ranks.
        micro_batch_size: Scans of a forward pass; a rank's whole part if null.
        evaluation_batch_size: Scans of an evaluation step over all ranks; ``batch_size`` if null.
        crop: What training samples show of a scan.
        evaluation_crop: What evaluation samples show; the centre, whole scans by default.
        report_text: How reports are worded in training. Evaluation leaves nothing out.
        label_names: Label columns of a batch, in this order, or the question list whose order they take (the
            list that objectives and evaluators use); all that the shards have, sorted, if null.
        organs: Whether label maps are read.
        mirror_probability: How often a training sample is mirrored, texts and label map with it.
        spatial: torchio transform of image, label map and snippet depths together; nothing else moves if null.
        one_scan_per_study: Whether an epoch shows one reconstruction of each study, drawn anew each time.
        supervision: Name of a file that ``ctgrounding mine`` wrote beside the shards; its snippets, organ sentences
            and labels take the place of the shards' own.
        features: Folder that ``ctgrounding embed`` wrote: training and validation take what a frozen part of the model
            made of each scan from there and read no voxels. Testing and prediction do.
        shares: Shares of training by what supervises a scan: masks, snippets, both, neither; what there is if null.
        buckets: Puts scans of like size into one forward pass or step, where the crop leaves an axis open; null for
            the order as it is drawn.
        last_batch: ``drop`` or ``wrap`` the scans that do not fill the last training batch of an epoch.
        seed: Key of everything random here.
        on_error: What a damaged scan does: ``raise`` stops the run, ``skip`` leaves it out and counts it.
        num_workers: Worker processes that read ahead.
        prefetch: Micro-batches that each of them reads ahead.
        worker_start: ``fork``, ``spawn`` or ``forkserver``; the platform's default if null.
        dev_fraction: Share of the training patients that training leaves out, by a hash of their ids: split ``dev``,
            to choose a model on.
        train_fraction: Share of the training patients (without those of ``dev``) that are trained on, at least one;
            more of them with a larger share, never others.
        train_fraction_seed: Which patients those are; a fit on all of them warns that it chooses nothing.
        train_split: Split to train on.
        val_split: Split to validate on.
        test_split: Split to test on.
        predict_split: Split to predict on.

    Raises:
        ConfigError: If an argument is out of range.

    Examples:
        >>> data = ShardDataModule("shards/", batch_size=64, micro_batch_size=8, crop=Crop((96, 192, 192)))
        >>> data.state_dict()
        {'epoch': 0, 'steps': 0}
    """

    def __init__(
        self,
        shards: str | list[str] | dict[str, ShardSource],
        batch_size: int = 8,
        micro_batch_size: int | None = None,
        evaluation_batch_size: int | None = None,
        crop: Crop | None = None,
        evaluation_crop: Crop | None = None,
        report_text: ReportText | None = None,
        label_names: str | list[str] | None = None,
        organs: bool = True,
        mirror_probability: float = 0.0,
        spatial: SpatialTransform | None = None,
        one_scan_per_study: bool = True,
        supervision: str | None = None,
        features: str | None = None,
        shares: Shares | None = None,
        buckets: Buckets | None = None,
        last_batch: Literal["drop", "wrap"] = "drop",
        seed: int = 0,
        on_error: Literal["raise", "skip"] = "raise",
        num_workers: int = 0,
        prefetch: int = 2,
        worker_start: Literal["fork", "spawn", "forkserver"] | None = None,
        dev_fraction: float = 0.0,
        train_fraction: float = 1.0,
        train_fraction_seed: int = 0,
        train_split: SplitName = "train",
        val_split: SplitName = "val",
        test_split: SplitName = "test",
        predict_split: SplitName = "test",
    ) -> None:
        super().__init__()
        self._training = Recipe(
            crop=crop or Crop(),
            report_text=report_text or ReportText(),
            with_organs=organs,
            mirror_probability=mirror_probability,
            spatial=spatial,
            is_random=True,
            seed=seed,
            skips_damaged=on_error == "skip",
        )
        self._evaluation = replace(self._training, crop=evaluation_crop or Crop(), is_random=False)
        sizes = {"batch": batch_size, "micro_batch": micro_batch_size, "evaluation_batch": evaluation_batch_size}
        for name, size in sizes.items():
            if size is not None and size < 1:
                raise ConfigError(f"data.{name}_size is {size}; it must be at least 1.")
        if buckets is not None:
            buckets.check(batch_size, micro_batch_size, self._training.crop, shares is not None)
        self.batch_size = batch_size
        self.micro_batch_size = micro_batch_size
        self.evaluation_batch_size = evaluation_batch_size or batch_size
        self.seed = seed
        self._sources = Sources(shards, supervision, shares, one_scan_per_study)
        stages = (train_split, val_split, test_split, predict_split)
        self._splits = Splits(*stages, dev_fraction, train_fraction, train_fraction_seed)
        self._label_names = label_names
        self._buckets = buckets
        self._last_batch: Literal["drop", "wrap"] = last_batch
        self._workers = Workers(num_workers, prefetch, worker_start)
        self._features_folder = features
        self.features: StoredFeatures | None = None
        self._index: ScanIndex | None = None
        self._tokenizer: Tokenizer | None = None
        self._loaders: dict[str, StepLoader] = {}
        self._progress = Progress()

    @property
    def index(self) -> ScanIndex:
        """All scans of all sources and splits."""
        if self._index is None:
            self._index = self._splits.divide(self._sources.load())
        return self._index

    @property
    def label_names(self) -> tuple[str, ...]:
        """Label columns of a batch.

        Raises:
            ConfigError: If a name asked for is no label of the shards.
        """
        return facts.label_columns(self.index, self._label_names)

    def label_counts(self) -> Int64[Tensor, "Q 2"]:
        """Number of negatives and positives of each label column in the training data."""
        return facts.label_counts(self._scans("train"), self.label_names)

    def organ_depths(self) -> Iterator[tuple[int, float]]:
        """Where training snippets lie in their scans, with the organ that each names."""
        return facts.organ_depths(self._scans("train"))

    def identities(self, stage: Stage) -> Iterator[tuple[str, str, str, str, str]]:
        """Who is in the split of a stage: scan, dataset, patient, hash of voxels, report."""
        return facts.identities(self._scans(stage))

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Voxel size of the shards along ``D H W``.

        Raises:
            ConfigError: If the shards differ in it.
        """
        return self.index.spacing_mm

    @property
    def skipped(self) -> dict[str, str]:
        """Scans that this rank left out since the start, with the reason."""
        return {scan: why for loader in self._loaders.values() for scan, why in loader.counts.skipped.items()}

    def setup(self, stage: str) -> None:
        """Read the index and take the tokenizer of the task's text encoder.

        Raises:
            ConfigError: If the task has no tokenizer, the shards do not fit the arguments, or the split to evaluate
                holds no scan.
        """
        task = None if self.trainer is None else self.trainer.lightning_module
        self._tokenizer = getattr(task, "tokenizer", None)
        if self._tokenizer is None:
            raise ConfigError(f"{type(task).__name__} has no tokenizer, which ShardDataModule needs. Give it one.")
        if self._features_folder is not None and stage in ("fit", "validate"):
            self._use_features(StoredFeatures(self._features_folder))
        evaluated: dict[str, Stage] = {"validate": "val", "test": "test", "predict": "predict"}
        if stage in evaluated and not len(self._scans(evaluated[stage])):
            shown = evaluated[stage]
            raise ConfigError(
                f"No scan of data.shards is in split {self._splits.of_stage(shown)}, which '{stage}' shows. Set "
                f"data.{shown}_split, or check the shards with 'ctgrounding inspect'."
            )
        if stage == "fit" and self._splits.has_idle_seed:
            _log.warning("data.train_fraction_seed chooses nothing: data.train_fraction is 1, so all are trained on.")
        facts.check_sections(self.index, self._training.report_text.sections)
        _log.info("%d scans, %d label columns", len(self.index), len(self.label_names))

    def train_dataloader(self) -> StepLoader:
        """Batches of this rank's share of each training step."""
        scans = self._scans("train")
        sampler: Sampler = TrainingSampler(self._sources.training(scans), self.batch_size, self.seed, self._last_batch)
        if self._buckets is not None:
            sampler = self._bucketed(sampler, scans, self._buckets)
        if getattr(self.trainer, "overfit_batches", 0):
            sampler = FirstEpoch(sampler)
        return self._loader("train", scans, sampler, self._training)

    def val_dataloader(self) -> StepLoader:
        """Batches of this rank's share of each validation step; every scan once."""
        return self._evaluation_loader("val")

    def test_dataloader(self) -> StepLoader:
        """Batches of this rank's share of each test step; every scan once."""
        return self._evaluation_loader("test")

    def predict_dataloader(self) -> StepLoader:
        """Batches of this rank's share of each prediction step; every scan once."""
        return self._evaluation_loader("predict")

    def state_dict(self) -> dict[str, Any]:
        """Epoch and completed steps of it."""
        return self._progress.state(self.trainer, self._loaders.get("train"))

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on after the completed steps.

        Raises:
            CheckpointError: If the two integers are missing.
        """
        self._progress.load(state_dict)

    def proof(self) -> tuple[Batch, Batch] | None:
        """One scan of the training split, as voxels and as what is stored of it; None where nothing is stored."""
        if self.features is None:
            return None
        scans = self._scans("train")
        recipes = (self._evaluation, replace(self._evaluation, features=self.features))
        as_voxels, as_stored = (self.dataset(scans, recipe) for recipe in recipes)
        sample = as_voxels.sample(0)
        batch = as_voxels.collate()([[sample]])
        batch["volume"] = [sample["volume"][None]]  # as it was embedded, not filled up to the shape of a crop
        if "organs" in batch and "organs" in sample:
            batch["organs"] = [sample["organs"][None]]
        return batch, as_stored.collate()([[as_stored.sample(0)]])

    def dataset(self, scans: ScanIndex, recipe: Recipe | None = None) -> ScanDataset:
        """Samples of some scans, as evaluation sees them or by a recipe.

        Raises:
            ConfigError: If there is no tokenizer yet.
        """
        if self._tokenizer is None:
            raise ConfigError("ShardDataModule has no tokenizer yet. Run it in a Trainer, or call setup first.")
        return ScanDataset(scans, replace(recipe or self._evaluation, label_names=self.label_names), self._tokenizer)

    def _use_features(self, features: StoredFeatures) -> None:
        """Take features in the place of voxels in training and validation.

        Raises:
            ConfigError: If training samples are drawn at random, which stored features cannot follow, or scans
                have no features.
        """
        if (name := self._training.moved_by()) is not None:
            raise ConfigError(
                f"data.features are of one view of each scan, but data.{name} draws another one each time. "
                f"Set it as in {features.folder / 'features.yaml'}."
            )
        stages: tuple[Stage, ...] = ("train", "val")
        for stage in stages:
            features.check_holds(self._scans(stage), self._splits.of_stage(stage))
        self.features = features

    def _scans(self, stage: Stage) -> ScanIndex:
        return self.index.of_split(self._splits.of_stage(stage))

    def _begin(self) -> Position:
        return self._progress.begin(self.trainer, self._loaders["train"])

    def _bucketed(self, sampler: Sampler, scans: ScanIndex, buckets: Buckets) -> Sampler:
        world_size = 1 if self.trainer is None else self.trainer.world_size
        micro = self.micro_batch_size or -(-self.batch_size // world_size)
        buckets.check_ranks(self.batch_size, micro, world_size)
        made, (before, after) = bucketed(sampler, scans, self._training.crop, buckets, micro, self.seed)
        _log.info("Padding is %.1f %% of an epoch's voxels; without data.buckets %.1f %%.", 100 * after, 100 * before)
        return made

    def _evaluation_loader(self, stage: Stage) -> StepLoader:
        scans = self._scans(stage)
        sampler = EvaluationSampler(range(len(scans)), self.evaluation_batch_size)
        return self._loader(stage, scans, sampler, self._evaluation)

    def _loader(self, stage: Stage, scans: ScanIndex, sampler: Sampler, recipe: Recipe) -> StepLoader:
        if stage in ("train", "val"):
            recipe = replace(recipe, features=self.features)
        dataset = self.dataset(scans, recipe)
        self._loaders[stage] = StepLoader(
            dataset,
            sampler,
            dataset.collate(),
            rank=0 if self.trainer is None else self.trainer.global_rank,
            world_size=1 if self.trainer is None else self.trainer.world_size,
            micro_batch_size=self.micro_batch_size,
            begin=self._begin if stage == "train" else Position,
            workers=self._workers,
        )
        return self._loaders[stage]
