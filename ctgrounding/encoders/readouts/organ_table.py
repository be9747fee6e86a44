"""One vector a scan that also says what each of its organs looks like."""

from collections.abc import Sequence

import torch
from jaxtyping import Int64
from torch import Tensor, nn
from torch.nn import functional

from ctgrounding import label_sets
from ctgrounding.encoders.branches import is_exporting
from ctgrounding.encoders.readouts.base import Readout, ReadoutContext, Rows
from ctgrounding.encoders.readouts.organ import OrganPart, OrganReadout
from ctgrounding.encoders.readouts.whole import GlobalPart, GlobalReadout
from ctgrounding.types import ORGAN_IDS, DenseFeatures


class OrganTableReadout(Readout):
    """The parts of a :class:`GlobalReadout`, followed by a short code of every organ of the label set.

    An organ's code is one linear map of its pooled row, shared by all organs; organs that the label map does
    not show, and scans without one, have zeros. So retrieval can use organ masks where they exist; a model
    that must do without them takes :class:`GlobalReadout`.

    Args:
        channels: Channels of the map.
        parts: Parts over all cells, as of :class:`GlobalReadout`.
        queries: Number of queries of its ``attention``.
        organ_parts: Parts of an organ's row, as of :class:`OrganReadout`.
        code: Width of an organ's code.
        label_set: Organs of the table, by ascending label id.

    Raises:
        ConfigError: If a part or the label set is unknown.

    Examples:
        >>> OrganTableReadout(64, parts=("mean",), code=4, label_set="total_v2").width
        532
    """

    column: Int64[Tensor, "256"]

    def __init__(
        self,
        channels: int,
        parts: Sequence[GlobalPart] = ("mean",),
        queries: int = 1,
        organ_parts: Sequence[OrganPart] = ("mean", "log_volume", "histogram"),
        code: int = 8,
        label_set: str = "total_v2",
    ) -> None:
        labels = sorted(label_sets.load(label_set))
        whole = GlobalReadout(channels, parts, queries)
        super().__init__(whole.width + code * len(labels))
        self.whole = whole
        self.organs = OrganReadout(channels, organ_parts)
        self.encode = nn.Linear(self.organs.width, code)
        self.columns = len(labels)
        column = torch.full((ORGAN_IDS,), -1, dtype=torch.int64)
        column[labels] = torch.arange(len(labels))
        self.register_buffer("column", column, persistent=False)

    def forward(self, dense: DenseFeatures, context: ReadoutContext) -> Rows:
        """One row a scan."""
        whole = self.whole(dense, context).values
        if is_exporting() and context.organs is None:  # how many organs there are cannot be looked up
            return Rows(functional.pad(whole, (0, self.width - whole.shape[1])))
        found: Rows = self.organs(dense, context)
        codes = self.encode(found.values)
        table = codes.new_zeros(len(whole) * self.columns, codes.shape[1])
        if found.organ_scan is not None and found.organ_class is not None:
            column = self.column[found.organ_class]
            known = column >= 0
            place = found.organ_scan[known] * self.columns + column[known]
            table = table.index_copy(0, place, codes[known])
        return Rows(torch.cat([whole, table.view(len(whole), -1).to(whole.dtype)], dim=-1))
