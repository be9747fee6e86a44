"""How scans become samples: what is shown of them, how it is worded, and what is drawn at random."""

from dataclasses import dataclass, field

from ctgrounding.data.augment import Crop
from ctgrounding.data.feature_reading import StoredFeatures
from ctgrounding.data.report_text import ReportText
from ctgrounding.data.spatial import SpatialTransform
from ctgrounding.errors import ConfigError


@dataclass(frozen=True)
class Recipe:
    """How scans become samples.

    Attributes:
        crop: The part that a sample shows.
        report_text: How its report is worded.
        label_names: Label columns, in the order of ``Batch["labels"]``.
        with_organs: Whether label maps are read.
        mirror_probability: How often a sample is mirrored.
        spatial: What else moves a sample, None for nothing; used where draws are random.
        is_random: Whether crops, mirror and wording are drawn at random; the middle and the full text else.
        seed: Key of the draws.
        skips_damaged: Whether a scan that cannot be read is left out and counted; it stops the run else.
        features: What stands in the place of image and label map; None reads these.

    Raises:
        ConfigError: If ``mirror_probability`` lies outside [0, 1].

    Examples:
        >>> Recipe(crop=Crop((8, 16, 16)), is_random=True).moved_by()
        'crop'
    """

    crop: Crop = field(default_factory=Crop)
    report_text: ReportText = field(default_factory=ReportText)
    label_names: tuple[str, ...] = ()
    with_organs: bool = True
    mirror_probability: float = 0.0
    spatial: SpatialTransform | None = None
    is_random: bool = False
    seed: int = 0
    skips_damaged: bool = False
    features: StoredFeatures | None = None

    def __post_init__(self) -> None:
        if not 0.0 <= self.mirror_probability <= 1.0:
            raise ConfigError(f"data.mirror_probability is {self.mirror_probability}; a probability lies in [0, 1].")

    def moved_by(self) -> str | None:
        """The first setting that draws another view of a scan each time, None where nothing does."""
        moves = {
            "mirror_probability": self.mirror_probability > 0,
            "spatial": self.spatial is not None,
            "crop": self.crop.shape is not None and self.crop.place == "random",
        }
        return next((name for name, does in moves.items() if does and self.is_random), None)
