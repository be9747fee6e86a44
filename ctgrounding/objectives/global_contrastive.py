"""Which report belongs to which scan."""

from typing import ClassVar, Literal

import torch
from torch import Tensor

from ctgrounding import distributed
from ctgrounding.errors import ConfigError
from ctgrounding.functional.contrast import Duplicates, RowIds
from ctgrounding.functional.sigmoid_contrast import sigmoid_contrast
from ctgrounding.functional.softmax_contrast import softmax_contrast
from ctgrounding.objectives.base import Objective, check_heads, check_readout
from ctgrounding.types import Batch, Encoded, EncoderDims, Term


class GlobalContrastive(Objective):
    """Contrast of whole scans and whole reports, over the scans of all ranks.

    ``sigmoid`` is SigLIP's loss (arXiv 2303.15343) as RadFinder uses it (arXiv 2603.02026), with its logit
    scale of 10 and bias of -10 declared under ``model.heads.logit``; the weight of a term is the number of
    scans, which is the published normaliser. ``softmax`` is CLIP's, the mean of both directions.

    A scan without a usable report takes no part, neither as image nor as text: what it shows may be what
    another report says. Scans of one study and scans with identical reports are not opposed unless
    ``duplicates`` says so; RadFinder and CLIP oppose them (``negative``).

    Args:
        dims: Sizes of the encoders and heads.
        image_head: Head of the scans.
        text_head: Head of the reports.
        logit: Logit scale and bias.
        loss: ``sigmoid`` or ``softmax``.
        duplicates: What a pair is whose reports are equal or whose scans are of one study.

    Raises:
        ConfigError: If a head or the loss does not exist, or the model makes no readout ``global``.

    Examples:
        >>> from ctgrounding.testing.tiny import tiny_encoded_and_batch
        >>> encoded, batch, dims = tiny_encoded_and_batch()
        >>> term = GlobalContrastive(dims)(encoded, batch)["contrast"]
        >>> bool(term.total > 0), int(term.weight)
        (True, 5)
    """

    requires: ClassVar[frozenset[str]] = frozenset({"global", "report_text", "report_group", "study"})

    def __init__(
        self,
        dims: EncoderDims,
        *,
        image_head: str = "main",
        text_head: str = "main",
        logit: str = "main",
        loss: Literal["sigmoid", "softmax"] = "sigmoid",
        duplicates: Duplicates = "ignore",
    ) -> None:
        super().__init__()
        check_heads(dims, image_head, text_head)
        check_readout(dims, "global")
        if loss not in ("sigmoid", "softmax"):
            raise ConfigError(f"Loss '{loss}' is not known. Use sigmoid or softmax.")
        self.image_head, self.text_head, self.logit = image_head, text_head, logit
        self.loss, self.duplicates = loss, duplicates

    def forward(self, encoded: Encoded, batch: Batch) -> dict[str, Term]:
        """The one term, ``contrast``."""
        reported = batch["report_text"] >= 0
        scans = encoded.image("global", self.image_head)[reported]
        reports = encoded.texts(batch["report_text"][reported], self.text_head)
        ids = RowIds(
            target=distributed.row_ids(len(reports), reports.device),
            group=torch.stack([batch["study"][reported], batch["report_group"][reported]], dim=1),
        )
        return {"contrast": self._contrast(encoded, scans, reports, ids)}

    def _contrast(self, encoded: Encoded, scans: Tensor, reports: Tensor, ids: RowIds) -> Term:
        scale, bias = encoded.logit(self.logit)
        if self.loss == "sigmoid":
            return sigmoid_contrast(
                scans, reports, scale, bias, image_ids=ids, text_ids=ids, duplicates=self.duplicates
            )
        to_text = softmax_contrast(scans, reports, scale, image_ids=ids, text_ids=ids, duplicates=self.duplicates)
        to_scan = softmax_contrast(reports, scans, scale, image_ids=ids, text_ids=ids, duplicates=self.duplicates)
        return Term((to_text.total + to_scan.total) / 2, to_text.weight)
