"""At which depth of its scan a snippet's finding lies."""

import math
from typing import ClassVar

from ctgrounding.errors import ConfigError
from ctgrounding.functional.localization import (
    TargetForm,
    depth_logits,
    depth_targets,
    reachable,
    soft_cross_entropy,
)
from ctgrounding.objectives.base import Objective, check_heads, check_readout
from ctgrounding.types import Batch, Encoded, EncoderDims, Term


class SnippetLocalization(Objective):
    """Soft cross-entropy of a snippet over the depth bins of its own scan (RadFinder, arXiv 2603.02026).

    The logits are cosines over a fixed ``tau``; other scans are no negatives. The target is a Gaussian in mm
    around the depth interval that the snippet's author named, see
    :func:`ctgrounding.functional.localization.depth_targets` for how it differs from the published code.
    A snippet whose interval touches no real bin of its scan weighs nothing.

    Args:
        dims: Sizes of the encoders and heads.
        image_head: Head of the depth bins.
        text_head: Head of the snippets.
        tau: Temperature, above 0.
        sigma_mm: Width of the target, above 0.
        target: ``renormalized`` or, as published, ``release``.

    Raises:
        ConfigError: If a head or the readout ``depth`` does not exist, or a number is not above 0 and finite.

    Examples:
        >>> from ctgrounding.testing.tiny import tiny_encoded_and_batch
        >>> encoded, batch, dims = tiny_encoded_and_batch()
        >>> term = SnippetLocalization(dims)(encoded, batch)["depth"]
        >>> len(batch["snippet_scan"]), int(term.weight)  # one snippet is cropped away
        (7, 6)
    """

    requires: ClassVar[frozenset[str]] = frozenset({"depth", "snippet_scan", "snippet_text", "snippet_depth_mm"})

    def __init__(
        self,
        dims: EncoderDims,
        *,
        image_head: str = "main",
        text_head: str = "main",
        tau: float = 0.1,
        sigma_mm: float = 24.0,
        target: TargetForm = "renormalized",
    ) -> None:
        super().__init__()
        check_heads(dims, image_head, text_head)
        check_readout(dims, "depth")
        for name, value in (("tau", tau), ("sigma_mm", sigma_mm)):
            if not 0 < value < math.inf:
                raise ConfigError(f"{name} is {value}, but must be above 0 and finite.")
        if target not in ("renormalized", "release"):
            raise ConfigError(f"Target '{target}' is not known. Use renormalized or release.")
        self.image_head, self.text_head = image_head, text_head
        self.tau, self.sigma_mm, self.target = tau, sigma_mm, target
        self.axial_mm = dims.axial_mm

    def forward(self, encoded: Encoded, batch: Batch) -> dict[str, Term]:
        """The one term, ``depth``."""
        scan, interval_mm = batch["snippet_scan"], batch["snippet_depth_mm"]
        depth_mm, valid = encoded.depth_mm[scan], encoded.depth_valid[scan]
        targets = depth_targets(
            depth_mm, valid, interval_mm, sigma_mm=self.sigma_mm, axial_mm=self.axial_mm, form=self.target
        )
        slices = encoded.image("depth", self.image_head)[scan]
        snippets = encoded.texts(batch["snippet_text"], self.text_head)
        loss = soft_cross_entropy(depth_logits(slices, snippets, self.tau), targets, valid)
        weight = reachable(depth_mm, valid, interval_mm, self.axial_mm).to(loss.dtype)
        return {"depth": Term((loss * weight).sum(), weight.sum())}
