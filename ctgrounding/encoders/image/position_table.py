"""A fixed table of positions that is added to patches."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Float64
from torch import Tensor, nn
from torch.nn import functional

from ctgrounding.errors import ConfigError


class PositionTable(nn.Module):
    """Sines and cosines of a cell's place along each axis, a third of the channels each; not trained.

    A buffer, so that published tables can be loaded into it. Places between its cells are interpolated, places
    beyond its edge have the edge's.

    Args:
        cells: Cells of the table along ``D H W``.
        width: Channels, a multiple of 6.

    Raises:
        ConfigError: If the width is no multiple of 6.
    """

    values: Tensor

    def __init__(self, cells: Sequence[int], width: int) -> None:
        super().__init__()
        if width % 6:
            raise ConfigError(f"A table of positions needs a width that is a multiple of 6, but it is {width}.")
        self.register_buffer("values", _waves(cells, width))

    def forward(self, place: Float64[Tensor, "*tokens 3"]) -> Float[Tensor, "*tokens C"]:
        """Positions of cells.

        Args:
            place: Distance from the table's middle in cells along ``D H W``.
        """
        sides = place.new_tensor(self.values.shape[:3])
        scaled = (2 * place / (sides - 1).clamp(min=1)).float()  # -1 and 1 are the centres of the outer cells
        table = self.values.permute(3, 0, 1, 2)[None]
        rows = scaled.flip(-1).to(table.dtype).view(1, 1, 1, -1, 3)
        found = functional.grid_sample(table, rows, padding_mode="border", align_corners=True)
        return found[0, :, 0, 0].t().unflatten(0, place.shape[:-1])  # type: ignore[no-untyped-call, no-any-return]


def _waves(cells: Sequence[int], width: int) -> Float[Tensor, "d h w C"]:
    planes = width // 6
    frequency = 1 / 10000 ** (torch.arange(planes, dtype=torch.float64) / planes)
    parts = []
    for axis, count in enumerate(cells):
        angle = torch.arange(count, dtype=torch.float64)[:, None] * frequency
        waves = torch.cat([angle.sin(), angle.cos()], dim=1)
        shape = [1, 1, 1, 2 * planes]
        shape[axis] = count
        parts.append(waves.view(shape).expand(*cells, 2 * planes))
    return torch.cat(parts[::-1], dim=-1).float()
