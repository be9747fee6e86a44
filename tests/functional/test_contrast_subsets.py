"""Rows that are compared within subsets are worked on subset by subset, and nothing changes by it."""

import pytest
import torch

from ctgrounding.functional import softmax_contrast as module
from ctgrounding.functional.contrast import RowIds


def result(monkeypatch, least_rows, duplicates):
    """Sum, weight and gradients, with tiles of so many rows at least."""
    monkeypatch.setattr(module, "SUBSET_ROWS", least_rows)
    draw = torch.Generator().manual_seed(0)
    image = torch.randn(150, 8, generator=draw, dtype=torch.float64, requires_grad=True)
    text = torch.randn(170, 8, generator=draw, dtype=torch.float64, requires_grad=True)
    scale = torch.tensor(3.0, dtype=torch.float64, requires_grad=True)
    ids = []
    for rows, groups in ((150, 3), (170, 2)):
        target = torch.randint(-1, 60, (rows,), generator=draw)
        group = torch.randint(-1, 40, (rows, groups), generator=draw)
        ids.append(RowIds(target, group, torch.randint(0, 9, (rows,), generator=draw)))
    ids[1].subset[ids[1].subset == 3] = 99  # one subset has images and no text, one has texts and no image
    weight = torch.rand(150, generator=draw, dtype=torch.float64)
    term = module.softmax_contrast(
        image, text, scale, image_ids=ids[0], text_ids=ids[1], duplicates=duplicates, weight=weight
    )
    term.total.backward()
    return [term.total.detach(), term.weight, image.grad, text.grad, scale.grad]


@pytest.mark.parametrize("duplicates", ["ignore", "positive", "negative"])
def test_subset_by_subset_is_all_at_once(monkeypatch, duplicates):
    whole = result(monkeypatch, 10**9, duplicates)
    assert whole[0] > 0
    for found, wanted in zip(result(monkeypatch, 8, duplicates), whole, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)
