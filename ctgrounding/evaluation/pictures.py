"""Where a sentence points in a scan, as a picture."""

import io
import textwrap
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from ctgrounding.evaluation.examples import CoronalView

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WINDOW_HU = (-450.0, 350.0)
_SIZE_INCHES = (5.6, 3.7)
_GROUND, _INK, _FAINT = "#10141a", "#e8ecf1", "#8b96a5"
_CHOSEN, _TRUE = "#ffb454", "#5fd3a6"


def depth_picture(
    view: CoronalView,
    depth_mm: Float[np.ndarray, "Z"],
    probability: Float[np.ndarray, "Z"],
    chosen_mm: float,
    true_mm: tuple[float, float] | None = None,
    text: str = "",
) -> "Figure":
    """Coronal view with the chosen slice, the true one where known, and the probability over depth.

    Shown as radiologists look at it: the head is up and the patient's right is on the left.

    Args:
        view: Of the scan.
        depth_mm: Centres of the depth bins, rising.
        probability: Of each bin; sums to 1.
        chosen_mm: Depth that the model says.
        true_mm: Lowest and highest depth of the slice that the author named.
        text: The sentence, shown above.
    """
    from matplotlib.figure import Figure

    rows, columns = view.hu.shape
    high_mm, wide_mm = rows * view.spacing_mm[0], columns * view.spacing_mm[1]
    lines = textwrap.wrap(text, 58)[:3]
    figure = Figure(figsize=_SIZE_INCHES, dpi=120, facecolor=_GROUND)
    body, curve = _side_by_side(figure, high_mm / wide_mm, lines=len(lines))
    low = view.low_mm - view.spacing_mm[0] / 2
    body.imshow(
        view.hu[:, ::-1],
        origin="lower",
        extent=(0.0, wide_mm, low, low + high_mm),
        cmap="gray",
        vmin=WINDOW_HU[0],
        vmax=WINDOW_HU[1],
        interpolation="bilinear",
        aspect="auto",
    )
    body.set_xticks([])
    body.set_ylabel("depth (mm)")
    for side, place in (("R", 0.03), ("L", 0.97)):
        body.text(place, 0.02, side, transform=body.transAxes, color=_INK, fontsize=9, ha="center")
    _draw_probability(curve, depth_mm, probability)
    curve.set_ylim(low, low + high_mm)
    for axes in (body, curve):
        _mark(axes, chosen_mm, true_mm)
        _style(axes)
    curve.set_yticklabels([])
    if lines:
        figure.text(0.02, 0.97, "\n".join(lines), color=_INK, fontsize=10, va="top", parse_math=False)
    handles, labels = body.get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower left", ncols=2, frameon=False, labelcolor=_INK, fontsize=10)
    return figure


def png(figure: "Figure") -> bytes:
    """A figure as a PNG file, the same bytes for the same picture."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    target = io.BytesIO()
    FigureCanvasAgg(figure).print_png(target, metadata={"Software": None})
    return target.getvalue()


def _side_by_side(figure: "Figure", proportion: float, lines: int) -> tuple["Axes", "Axes"]:
    """Axes for the view, in its true proportions, and for the curve, of the same height beside it."""
    width, height = _SIZE_INCHES
    left, gap, curve, bottom, top = 0.62, 0.12, 1.15, 0.75, 0.12 + 0.19 * lines
    room_wide, room_high = width - left - gap - curve - 0.15, height - bottom - top
    wide = min(room_wide, room_high / proportion)
    high = wide * proportion
    left += (room_wide - wide) / 2
    bottom += (room_high - high) / 2
    places = ((left, bottom, wide, high), (left + wide + gap, bottom, curve, high))
    scale = np.array([width, height, width, height])
    view, beside = (figure.add_axes(tuple(np.array(place) / scale)) for place in places)
    return view, beside


def _draw_probability(axes: "Axes", depth_mm: Float[np.ndarray, "Z"], probability: Float[np.ndarray, "Z"]) -> None:
    axes.fill_betweenx(depth_mm, 0.0, probability, color="#7aa7ff", alpha=0.35, linewidth=0)
    axes.plot(probability, depth_mm, color="#7aa7ff", linewidth=1.2)
    axes.set_xlim(0.0, max(1e-6, float(np.max(probability, initial=0.0))) * 1.08)
    axes.set_xlabel("probability")
    axes.locator_params(axis="x", nbins=3)


def _mark(axes: "Axes", chosen_mm: float, true_mm: tuple[float, float] | None) -> None:
    if true_mm is not None:
        low, high = true_mm
        axes.axhspan(low, high, color=_TRUE, alpha=0.35, linewidth=0)
        axes.axhline((low + high) / 2, color=_TRUE, linewidth=1.3, label=f"named slice {(low + high) / 2:.0f} mm")
    axes.axhline(chosen_mm, color=_CHOSEN, linewidth=1.5, linestyle=(0, (5, 2)), label=f"chosen {chosen_mm:.0f} mm")


def _style(axes: "Axes") -> None:
    axes.set_facecolor(_GROUND)
    axes.tick_params(colors=_FAINT, labelsize=9, length=2)
    for spine in axes.spines.values():
        spine.set_color("#313a46")
    axes.xaxis.label.set(color=_FAINT, size=9)
    axes.yaxis.label.set(color=_FAINT, size=9)
