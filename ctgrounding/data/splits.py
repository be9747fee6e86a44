"""Which scans each stage of a run shows: a split for each, and how much of the training patients are trained on."""

from dataclasses import dataclass
from typing import Literal

from ctgrounding.data.index import ScanIndex
from ctgrounding.errors import ConfigError

SplitName = Literal["train", "dev", "val", "test", "all"]
Stage = Literal["train", "val", "test", "predict"]


@dataclass(frozen=True)
class Splits:
    """The split that each stage of a run shows, and what becomes of the training patients.

    Attributes:
        train: Split to train on.
        val: Split to validate on.
        test: Split to test on.
        predict: Split to predict on.
        dev_fraction: Share of the training patients that are split ``dev`` instead.
        train_fraction: Share of the others that are trained on.
        train_fraction_seed: Which patients those are.

    Raises:
        ConfigError: If a share is out of range, a stage shows ``dev`` without a share for it, or a share of the
            training patients is asked for where another split is trained on.

    Examples:
        >>> Splits(val="dev", dev_fraction=0.1).of_stage("val")
        'dev'
    """

    train: SplitName = "train"
    val: SplitName = "val"
    test: SplitName = "test"
    predict: SplitName = "test"
    dev_fraction: float = 0.0
    train_fraction: float = 1.0
    train_fraction_seed: int = 0

    def __post_init__(self) -> None:
        if not 0.0 <= self.dev_fraction < 1.0:
            raise ConfigError(f"data.dev_fraction is {self.dev_fraction}; a share of training patients lies in [0, 1).")
        if not self.dev_fraction and "dev" in (self.train, self.val, self.test, self.predict):
            raise ConfigError("A split is dev, but data.dev_fraction is 0. Give the share of training patients for it.")
        if not 0.0 < self.train_fraction <= 1.0:
            raise ConfigError(
                f"data.train_fraction is {self.train_fraction}; a share of training patients lies in (0, 1]."
            )
        if self.train_fraction < 1 and self.train != "train":
            raise ConfigError(
                f"data.train_fraction takes patients of the split train, but data.train_split is {self.train}. "
                "Remove one of the two."
            )

    @property
    def has_idle_seed(self) -> bool:
        """Whether a seed is given for a share, and all training patients are taken."""
        return self.train_fraction_seed != 0 and self.train_fraction == 1

    def of_stage(self, stage: Stage) -> SplitName:
        """Name of the split that a stage shows."""
        return {"train": self.train, "val": self.val, "test": self.test, "predict": self.predict}[stage]

    def divide(self, index: ScanIndex) -> ScanIndex:
        """The same scans with training patients as split ``dev`` and ``unused``, by the two shares."""
        return index.with_dev(self.dev_fraction).with_train_fraction(self.train_fraction, self.train_fraction_seed)
