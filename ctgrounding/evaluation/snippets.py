"""Snippets of a batch on the host: where their scans have real depth bins, and what the model scores there."""

import numpy as np
from jaxtyping import Float64
from numpy.typing import NDArray
from torch import Tensor

from ctgrounding.errors import BatchError
from ctgrounding.evaluation.rows import scan_keys
from ctgrounding.functional.prompts import text_keys
from ctgrounding.types import Batch, Encoded


class BatchSnippets:
    """Snippets of a batch with the real depth bins of their scans.

    Attributes:
        scan: Scan of each snippet in the batch.
        keys: Name of that scan.
        bins_mm: Centres of the real depth bins of each scan of the batch, rising.
        target_mm: Middle of each snippet's depth interval.
        middle_mm: Middle of each snippet's scan.
        inside: Whether the target lies in the scan's real bins.
        items: What each snippet is among those of its scan: a number of its text and its interval in tenths of a mm.
    """

    def __init__(self, encoded: Encoded, batch: Batch) -> None:
        valid, depth = encoded.depth_valid.cpu().numpy(), encoded.depth_mm.cpu().numpy()
        self.valid = valid
        self.bins_mm = [row[real] for row, real in zip(depth, valid, strict=True)]
        self.scan = batch["snippet_scan"].cpu().numpy()
        names = scan_keys(batch)
        self.keys = [names[scan] for scan in self.scan]
        self.target_mm: NDArray[np.float64] = batch["snippet_depth_mm"].double().cpu().numpy().mean(1)
        self.text = batch["snippet_text"]
        self.items = text_keys(
            f"{batch['texts'][row]} {low:.1f} {high:.1f}"
            for row, (low, high) in zip(self.text.tolist(), batch["snippet_depth_mm"].tolist(), strict=True)
        )
        self.middle_mm = np.array([_middle(self.bins_mm[scan]) for scan in self.scan], dtype=np.float64)
        self.inside = np.array(
            [_holds(self.bins_mm[scan], target) for scan, target in zip(self.scan, self.target_mm, strict=True)],
            dtype=bool,
        )

    def scores(self, encoded: Encoded, image_head: str, text_head: str) -> list[NDArray[np.float64]]:
        """Cosines of each snippet with the real bins of its scan."""
        image = _on_host(encoded.image("depth", image_head))
        text = _on_host(encoded.texts(self.text, text_head))
        # einsum without optimisation sums each product alone, so a score does not depend on the batch.
        found = [
            np.einsum("zm,m->z", image[scan][self.valid[scan]], row) for scan, row in zip(self.scan, text, strict=True)
        ]
        if not all(np.isfinite(row).all() for row in found):
            raise BatchError(
                "A depth or snippet embedding is not finite, so nothing can be located. Find what made it so."
            )
        return found

    def chosen_mm(self, scores: list[NDArray[np.float64]]) -> Float64[np.ndarray, "S"]:
        """Centre of the best bin of each snippet; NaN where its scan has no real bin."""
        best = [
            self.bins_mm[scan][row.argmax()] if len(row) else np.nan
            for scan, row in zip(self.scan, scores, strict=True)
        ]
        return np.array(best, dtype=np.float64)

    def random_error_mm(self) -> Float64[np.ndarray, "S"]:
        """Expected error of a real bin drawn at random."""
        pairs = zip(self.scan, self.target_mm, strict=True)
        errors = [
            np.abs(self.bins_mm[scan] - target).mean() if len(self.bins_mm[scan]) else np.nan for scan, target in pairs
        ]
        return np.array(errors, dtype=np.float64)


def _on_host(rows: Tensor) -> NDArray[np.float64]:
    values: NDArray[np.float64] = rows.detach().double().cpu().numpy()
    return values


def _middle(bins_mm: NDArray[np.float64]) -> float:
    return float(bins_mm[0] + bins_mm[-1]) / 2 if len(bins_mm) else float("nan")


def _holds(bins_mm: NDArray[np.float64], target_mm: float) -> bool:
    """Whether a depth lies in the scan's bins, their outer halves included."""
    if not len(bins_mm):
        return False
    half = float(bins_mm[1] - bins_mm[0]) / 2 if len(bins_mm) > 1 else float("inf")
    return bool(bins_mm[0] - half <= target_mm <= bins_mm[-1] + half)


def extent_mm(batch: Batch) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Lower and upper edge of each scan's real voxels."""
    box = batch["valid_box"][:, 0].double().cpu().numpy()
    spacing, origin = (batch[key].double().cpu().numpy() for key in ("spacing_mm", "origin_mm"))
    edges = origin[:, 2:3] + (box - 0.5) * spacing[:, :1]
    return edges[:, 0], edges[:, 1]
