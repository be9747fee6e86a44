"""Where the image path can be cut: what lies before the cut is frozen, what comes out there can be stored.

A :class:`Stem` is the frozen beginning of the way from a volume to the rows that objectives see. Its features of a
scan are named arrays. Scans of several sizes stand side by side with their arrays filled up with zeros at the far ends.
The rest of the way gives the same rows from them as the whole way gives from volumes.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Literal

import torch
from jaxtyping import Float64, Int64, Shaped
from torch import Tensor, nn

from ctgrounding.encoders.image.windowed import WindowedViT
from ctgrounding.encoders.readouts import ReadoutContext, Rows
from ctgrounding.encoders.text.cache import weights_digest
from ctgrounding.encoders.vision_language import VisionLanguageEncoder, VolumeRows
from ctgrounding.errors import ConfigError
from ctgrounding.geometry import depth_bins
from ctgrounding.types import DenseFeatures

Keep = Literal["map", "windows", "readouts"]
Features = Mapping[str, Tensor]

_TABLE = "table "
"""Start of the names of what readouts look up of volumes and label maps, see :meth:`ReadoutContext.once`."""


class Stem(ABC):
    """One place to cut the image path of a model.

    Args:
        encoder: The model.

    Attributes:
        encoder: The model.

    Raises:
        ConfigError: If the model has no such place.
    """

    def __init__(self, encoder: VisionLanguageEncoder) -> None:
        self.encoder = encoder

    @property
    @abstractmethod
    def parts(self) -> dict[str, nn.Module]:
        """What lies before the cut, by name in the model."""

    @abstractmethod
    def of_scan(
        self, image_hu: Shaped[Tensor, "1 D H W"], valid_box: Int64[Tensor, "1 3 2"], context: ReadoutContext
    ) -> Features:
        """Features of one scan, without the axis of scans.

        Args:
            image_hu: The volume in HU.
            valid_box: Half-open box of its real voxels.
            context: Spacing and label map.
        """

    @abstractmethod
    def rest(self, features: Features, context: ReadoutContext) -> tuple[Mapping[str, Rows], int]:
        """Rows of every readout, and the number of depth bins, from the features of several scans.

        Args:
            features: Arrays with the axis of scans in front.
            context: Spacing and sizes of organs; no volumes.
        """

    def rows(self, features: Features, origin_mm: Float64[Tensor, "b 3"], context: ReadoutContext) -> VolumeRows:
        """What :meth:`VisionLanguageEncoder.encode_volumes` gives of the volumes that the features were made of.

        Args:
            features: Arrays with the axis of scans in front.
            origin_mm: World position of the centre of each volume's first voxel.
            context: Spacing and sizes of organs; no volumes.
        """
        kind = next(self.encoder.heads.parameters(), torch.zeros(())).dtype
        features = {name: _as(value, kind) for name, value in features.items()}
        rows, bins = self.rest(features, context)
        image = self.encoder.image
        depth_mm = depth_bins(origin_mm[:, 2], context.spacing_mm[:, 0], image.cell_vox[0], image.offset_vox[0], bins)
        return VolumeRows(rows, depth_mm)


class MapStem(Stem):
    """The image encoder; readouts and heads are the rest."""

    @property
    def parts(self) -> dict[str, nn.Module]:
        """The image encoder."""
        return {"image": self.encoder.image}

    def of_scan(
        self, image_hu: Shaped[Tensor, "1 D H W"], valid_box: Int64[Tensor, "1 3 2"], context: ReadoutContext
    ) -> Features:
        """The map, its views, and what the readouts look up of volume and label map."""
        dense = self.encoder.image(image_hu, valid_box)
        return {**_of_dense(dense), **self._tables(dense, image_hu, context)}

    def rest(self, features: Features, context: ReadoutContext) -> tuple[Mapping[str, Rows], int]:
        """Every readout of the map."""
        return self._read_out(_to_dense(features), features, context)

    def _tables(self, dense: DenseFeatures, image_hu: Tensor, context: ReadoutContext) -> Features:
        looking = ReadoutContext(context.spacing_mm, context.organs, context.organ_voxels, image_hu)
        for readout in self.encoder.readouts.values():
            readout(dense, looking)
        return {_TABLE + key: table[0] for key, table in looking.made.items()}

    def _read_out(
        self, dense: DenseFeatures, features: Features, context: ReadoutContext
    ) -> tuple[Mapping[str, Rows], int]:
        tables = {name.removeprefix(_TABLE): value for name, value in features.items() if name.startswith(_TABLE)}
        known = ReadoutContext(context.spacing_mm, organ_voxels=context.organ_voxels, tables=tables)
        rows = {name: readout(dense, known) for name, readout in self.encoder.readouts.items()}
        return rows, dense.map.shape[2]


class WindowStem(MapStem):
    """The local transformer of :class:`WindowedViT`; combiner, depth branch, readouts and heads are the rest."""

    def __init__(self, encoder: VisionLanguageEncoder) -> None:
        super().__init__(encoder)
        if not isinstance(encoder.image, WindowedViT):
            raise ConfigError(
                f"Only WindowedViT has windows to keep, but the image encoder is {type(encoder.image).__name__}. Keep "
                "map or readouts."
            )
        self.image = encoder.image

    @property
    def parts(self) -> dict[str, nn.Module]:
        """What sees a window alone."""
        return {"image.embed": self.image.embed, "image.local": self.image.local}

    def of_scan(
        self, image_hu: Shaped[Tensor, "1 D H W"], valid_box: Int64[Tensor, "1 3 2"], context: ReadoutContext
    ) -> Features:
        """Summary and cells of every window, and what the readouts look up of volume and label map."""
        tokens = self.image.window_tokens(image_hu, valid_box)
        tables = self._tables(self.image.from_window_tokens(tokens), image_hu, context)
        return {**{name: value[0] for name, value in tokens.items()}, **tables}

    def rest(self, features: Features, context: ReadoutContext) -> tuple[Mapping[str, Rows], int]:
        """The combiner over the windows, then every readout."""
        return self._read_out(self.image.from_window_tokens(features), features, context)


class ReadoutStem(Stem):
    """Image encoder and readouts; heads are the rest."""

    @property
    def parts(self) -> dict[str, nn.Module]:
        """Image encoder and readouts."""
        return {"image": self.encoder.image, "readouts": self.encoder.readouts}

    def of_scan(
        self, image_hu: Shaped[Tensor, "1 D H W"], valid_box: Int64[Tensor, "1 3 2"], context: ReadoutContext
    ) -> Features:
        """Rows of every readout."""
        origin_mm = torch.zeros(1, 3, dtype=torch.float64, device=valid_box.device)
        made = self.encoder.encode_volumes(image_hu, valid_box, origin_mm, context)
        found: dict[str, Tensor] = {"depth_bins": torch.ones(made.depth_mm.shape[1], dtype=torch.bool)}
        for name, rows in made.rows.items():
            of_organs = rows.organ_class is not None
            columns = {
                "values": rows.values if of_organs else rows.values[0],
                "depth_valid": None if rows.depth_valid is None else rows.depth_valid[0],
                "organ_class": rows.organ_class,
                "organ_visible": rows.organ_visible,
            }
            found |= {f"{name} {column}": value for column, value in columns.items() if value is not None}
        return found

    def rest(self, features: Features, context: ReadoutContext) -> tuple[Mapping[str, Rows], int]:
        """The rows as they are."""
        rows = {name: _rows_of(name, features) for name in self.encoder.readouts}
        return rows, features["depth_bins"].shape[1]


STEMS: Mapping[str, Callable[[VisionLanguageEncoder], Stem]] = {
    "map": MapStem,
    "windows": WindowStem,
    "readouts": ReadoutStem,
}
"""By what is kept."""


def stem_digest(stem: Stem) -> str:
    """SHA-256 of every weight before the cut, by name."""
    return weights_digest(nn.ModuleDict({name.replace(".", "/"): part for name, part in stem.parts.items()}))


def is_made(name: str, value: Tensor) -> bool:
    """Whether an array is what a network made in float32, and no table that a readout looks things up in."""
    return value.dtype == torch.float32 and not name.startswith(_TABLE)


def check_rest(
    stem: Stem,
    features: Features,
    image_hu: Shaped[Tensor, "1 D H W"],
    valid_box: Int64[Tensor, "1 3 2"],
    context: ReadoutContext,
) -> None:
    """See that the rest of a model gives from a scan's features what the whole model gives from the scan.

    Args:
        stem: The beginning of the model.
        features: What it made of the scan.
        image_hu: The scan.
        valid_box: Half-open box of its real voxels.
        context: Spacing and label map.

    Raises:
        ConfigError: If it does not: a readout looks at volumes or label maps past :meth:`ReadoutContext.once`.
    """
    origin_mm = torch.zeros(1, 3, dtype=torch.float64, device=valid_box.device)
    whole = stem.encoder.encode_volumes(image_hu, valid_box, origin_mm, context)
    cut = stem.rows({name: value[None] for name, value in features.items()}, origin_mm, context)
    same = whole.depth_mm.shape == cut.depth_mm.shape and torch.allclose(whole.depth_mm, cut.depth_mm)
    for name, rows in whole.rows.items():
        values = cut.rows[name].values
        if (
            not same
            or values.shape != rows.values.shape
            or not torch.allclose(values, rows.values, rtol=1e-4, atol=1e-5)
        ):
            raise ConfigError(
                f"Readout '{name}' reads more of a scan than a map keeps, such as label maps at voxel resolution. Keep "
                "readouts instead."
            )


def _of_dense(dense: DenseFeatures, prefix: str = "") -> Features:
    found = {"map": dense.map[0], "valid": dense.valid[0]}
    found |= {"cell_vox": torch.tensor(dense.cell_vox).double(), "offset_vox": torch.tensor(dense.offset_vox).double()}
    if dense.summary is not None:
        found["summary"] = dense.summary[0]
    for name, view in dense.views.items():
        found |= _of_dense(view, f"{name} ")
    return {prefix + name: value for name, value in found.items()}


def _to_dense(features: Features, prefix: str = "") -> DenseFeatures:
    cell, offset = features[f"{prefix}cell_vox"][0].tolist(), features[f"{prefix}offset_vox"][0].tolist()
    views = [] if prefix else [name.removesuffix(" map") for name in features if name.endswith(" map")]
    return DenseFeatures(
        features[f"{prefix}map"],
        features[f"{prefix}valid"],
        (cell[0], cell[1], cell[2]),
        (offset[0], offset[1], offset[2]),
        features.get(f"{prefix}summary"),
        {name: _to_dense(features, f"{name} ") for name in views},
    )


def _rows_of(name: str, features: Features) -> Rows:
    if f"{name} values" not in features:
        raise ConfigError(
            f"The stored features have no readout '{name}'. Run ctgrounding embed with the readouts of this run."
        )
    values, valid = features[f"{name} values"], features.get(f"{name} depth_valid")
    kinds = features.get(f"{name} organ_class")
    if kinds is None:
        return Rows(values, depth_valid=valid)
    scan, place = kinds.nonzero(as_tuple=True)
    visible = features[f"{name} organ_visible"][scan, place].float()
    return Rows(values[scan, place], organ_scan=scan, organ_class=kinds[scan, place], organ_visible=visible)


def _as(value: Tensor, kind: torch.dtype) -> Tensor:
    return value.to(kind) if value.dtype in (torch.float32, torch.float16) else value
