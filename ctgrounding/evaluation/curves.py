"""ROC and precision-recall curves, thinned to what a page can show."""

from typing import Any

import numpy as np
from jaxtyping import Float, Float64, Int64

from ctgrounding.functional.auroc import precision_recall_curve, roc_curve

_MOST_POINTS = 100


def curves(scores: Float[np.ndarray, "R"], labels: Int64[np.ndarray, "R"]) -> dict[str, Any]:
    """Both curves of one finding: ``roc`` and ``precision_recall``, each horizontal and vertical values."""
    false, true, _ = roc_curve(scores, labels)
    precision, recall, _ = precision_recall_curve(scores, labels)
    return {"roc": [_thinned(false), _thinned(true)], "precision_recall": [_thinned(recall), _thinned(precision)]}


def _thinned(values: Float64[np.ndarray, "k"]) -> list[float]:
    last = max(0, len(values) - 1)
    index = np.unique(np.linspace(0, last, num=min(_MOST_POINTS, len(values))).round().astype(int))
    return [round(float(value), 5) for value in values[index]]
