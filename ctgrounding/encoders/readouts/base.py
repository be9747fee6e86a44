"""What a readout is, and the parts that several are made of."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float, Float64, Int64, Shaped, UInt8
from torch import Tensor, nn

from ctgrounding.errors import ConfigError
from ctgrounding.types import DenseFeatures


@dataclass(frozen=True)
class ReadoutContext:
    """What is known of a micro-batch of scans besides their features.

    Attributes:
        spacing_mm: Voxel size of each scan along ``D H W``.
        organs: Label maps on the volumes' voxels, None where no scan of the micro-batch has one.
        organ_voxels: Voxels of each organ in the whole scan, None where unknown: then what is seen is all.
        image_hu: The volumes themselves, as the image encoder got them.
        tables: What :meth:`once` gave for these scans before, by key, where features are stored and there are neither
            volumes nor label maps.
    """

    spacing_mm: Float64[Tensor, "b 3"]
    organs: UInt8[Tensor, "b D H W"] | None = None
    organ_voxels: Int64[Tensor, "b 256"] | None = None
    image_hu: Shaped[Tensor, "b D H W"] | None = None
    tables: Mapping[str, Tensor] | None = None
    _made: dict[str, Tensor] = field(default_factory=dict, init=False, repr=False, compare=False)

    def once(self, key: str, make: Callable[[], Float[Tensor, "b ..."]]) -> Float[Tensor, "b ..."]:
        """What ``make`` gives, made by the first readout of this micro-batch that asks for ``key``.

        For what has no gradient and depends on the scans alone, such as counts of label map voxels. It is what
        stored features keep of volumes and label maps; so a table starts with the scans, and filling it up with zeros
        at its far ends, as padding a scan does, must not matter. Scan by scan it must be what it is of several.

        Raises:
            ConfigError: If the scans are known by stored features that lack it.
        """
        if key not in self._made:
            if self.tables is not None and key not in self.tables:
                raise ConfigError(
                    f"A readout needs '{key}' of each scan, which the stored features lack. Run ctgrounding embed "
                    "with the readouts of this run, or keep readouts instead of maps."
                )
            self._made[key] = make() if self.tables is None else self.tables[key]
        return self._made[key]

    @property
    def made(self) -> Mapping[str, Tensor]:
        """What :meth:`once` has given so far, by key."""
        return self._made


@dataclass(frozen=True)
class Rows:
    """What a readout made of a micro-batch, with the index of its rows.

    Attributes:
        values: ``(b, C)`` for a vector a scan, ``(b, Z, C)`` for one a depth bin, ``(O, C)`` for one an organ.
        depth_valid: Of a depth readout, the bins that hold real voxels; the others' values are zero.
        organ_scan: Of an organ readout, the scan of each row, within the micro-batch.
        organ_class: The label id of each row.
        organ_visible: Visible share of each row's organ, in (0, 1].
    """

    values: Float[Tensor, "..."]
    depth_valid: Bool[Tensor, "b Z"] | None = None
    organ_scan: Int64[Tensor, "O"] | None = None
    organ_class: Int64[Tensor, "O"] | None = None
    organ_visible: Float[Tensor, "O"] | None = None


class Readout(nn.Module, ABC):
    """Base of readouts; a plug-in subclasses it and is named by class_path under ``model.readouts``.

    Its first constructor argument is the number of channels of the map, which the task gives. It must leave
    cells that are not valid out, run all of its parameters even when it has no rows, and give each scan what it
    would give it alone.

    Args:
        width: Width of a row.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self._width = width

    @property
    def width(self) -> int:
        """Width of a row."""
        return self._width

    @abstractmethod
    def forward(self, dense: DenseFeatures, context: ReadoutContext) -> Rows:
        """Reduce the features of a micro-batch.

        Raises:
            ConfigError: If it needs a summary that the image encoder does not give.
        """


class LearnedQueries(nn.Module):
    """Scores of cells by learned queries, bounded so that their exponentials need no shift.

    A score is ``bound * tanh(query . cell / (sqrt(C) * bound))``. A key projection would change nothing: its
    product with a query is another query.

    Args:
        channels: Channels of a cell.
        queries: Number of queries.
        bound: Largest absolute score; weights of two cells differ at most by ``exp(2 * bound)``.
    """

    def __init__(self, channels: int, queries: int, bound: float = 12.0) -> None:
        super().__init__()
        if queries < 1:
            raise ConfigError(f"Attention pooling needs at least one query, but queries is {queries}.")
        self.bound = bound
        self.queries = nn.Parameter(torch.randn(queries, channels) * 0.02)

    def forward(self, cells: Float[Tensor, "b n C"]) -> Float[Tensor, "b n queries"]:
        """Positive weight of each cell for each query, not normalised, in at least float32."""
        scores = cells @ self.queries.t() * (cells.shape[-1] ** -0.5)
        if scores.dtype in (torch.float16, torch.bfloat16):
            scores = scores.float()
        return torch.exp(self.bound * torch.tanh(scores / self.bound))


def check_parts(readout: str, parts: Collection[str], known: Collection[str]) -> None:
    """Refuse parts that a readout does not have.

    Raises:
        ConfigError: If there is no part, one is unknown, or one is named twice.
    """
    unknown = sorted(set(parts) - set(known))
    if unknown or not parts or len(set(parts)) != len(parts):
        raise ConfigError(f"{readout} takes parts among {sorted(known)}, each once; parts is {list(parts)}.")


def summary_of(dense: DenseFeatures) -> Float[Tensor, "b C"]:
    """The summary of each scan.

    Raises:
        ConfigError: If the image encoder has none.
    """
    if dense.summary is None:
        raise ConfigError(
            "A readout has the part 'summary', but the image encoder makes no summary token. "
            "Remove that part or use an encoder with one, such as ViT."
        )
    return dense.summary


def volume_of(context: ReadoutContext) -> Shaped[Tensor, "b D H W"]:
    """The volumes of a micro-batch.

    Raises:
        ConfigError: If the caller did not pass them on.
    """
    if context.image_hu is None:
        raise ConfigError("A readout looks at HU, but its context has no image_hu. Pass the volumes in ReadoutContext.")
    return context.image_hu


def masked_mean(cells: Float[Tensor, "R n C"], valid: Bool[Tensor, "R n"]) -> Float[Tensor, "R C"]:
    """Mean of the valid cells of each row; zeros where none is valid. Other cells must be finite."""
    share = valid.to(cells.dtype)
    share = share / share.sum(1, keepdim=True).clamp(min=1)
    return torch.bmm(share[:, None], cells)[:, 0]


def masked_max(cells: Float[Tensor, "R n C"], valid: Bool[Tensor, "R n"]) -> Float[Tensor, "R C"]:
    """Maximum of the valid cells of each row; zeros where none is valid."""
    lowest = torch.finfo(cells.dtype).min
    barred = torch.zeros_like(valid, dtype=cells.dtype).masked_fill(~valid, lowest / 2)
    highest = (cells + barred[..., None]).max(1).values
    return highest.masked_fill(~valid.any(1, keepdim=True), 0)
