"""Both contrasts: value and every gradient against the plain form in float64, on 1 to 4 simulated ranks."""

import contrast_reference as plain
import pytest
import torch

from ctgrounding.errors import ConfigError, CTGroundingError
from ctgrounding.functional import sigmoid_contrast as sigmoid_module
from ctgrounding.functional.contrast import RowIds
from ctgrounding.functional.sigmoid_contrast import sigmoid_contrast
from ctgrounding.functional.softmax_contrast import softmax_contrast
from ctgrounding.testing.ranks import simulate_ranks

SPLITS = {
    "one": ([9], [7]),
    "two uneven": ([6, 3], [1, 6]),
    "images here, texts there": ([9, 0], [0, 7]),
    "four with empty ranks": ([4, 0, 2, 3], [3, 1, 3, 0]),
    "no images": ([0, 0], [3, 4]),
    "no texts": ([4, 5], [0, 0]),
}


class Case:
    """Random rows of all ranks with targets, groups and subsets, some of them missing."""

    def __init__(self, split, dtype=torch.float64, scale=12.0, seed=0):
        self.images, self.texts = SPLITS[split]
        generator = torch.Generator().manual_seed(seed)

        def unit(rows):
            return torch.nn.functional.normalize(torch.randn(rows, 6, generator=generator, dtype=torch.float64), dim=1)

        def ids(rows, groups):
            numbers = [
                torch.randint(-1, 6, (rows,), generator=generator),
                torch.randint(-1, 4, (rows, groups), generator=generator),
                torch.randint(0, 2, (rows,), generator=generator),
            ]
            return list(zip(*(part.tolist() for part in numbers), strict=True))

        m, n = sum(self.images), sum(self.texts)
        self.image, self.text = unit(m).to(dtype), unit(n).to(dtype)
        self.image_ids, self.text_ids = ids(m, 3), ids(n, 2)
        self.weight = torch.rand(m, generator=generator, dtype=torch.float64)
        self.scale, self.bias = torch.tensor(scale, dtype=dtype), torch.tensor(-3.0, dtype=dtype)

    def part(self, rank, side):
        counts = self.images if side == "image" else self.texts
        return slice(sum(counts[:rank]), sum(counts[: rank + 1]))

    def leaves(self, rank=None, dtype=None):
        image = self.image if rank is None else self.image[self.part(rank, "image")]
        text = self.text if rank is None else self.text[self.part(rank, "text")]
        return [leaf.clone().to(dtype or leaf.dtype).requires_grad_() for leaf in (image, text, self.scale, self.bias)]


def row_ids(rows, groups):
    return RowIds(
        torch.tensor([row[0] for row in rows], dtype=torch.int64),
        torch.tensor([row[1] for row in rows], dtype=torch.int64).view(len(rows), groups),
        torch.tensor([row[2] for row in rows], dtype=torch.int64),
    )


def fused(case, rank, loss, duplicates, **options):
    image, text, scale, bias = case.leaves(rank)
    offset = [scale, bias] if loss is sigmoid_contrast else [scale]
    term = loss(
        image,
        text,
        *offset,
        image_ids=row_ids(case.image_ids[case.part(rank, "image")], 3),
        text_ids=row_ids(case.text_ids[case.part(rank, "text")], 2),
        duplicates=duplicates,
        weight=case.weight[case.part(rank, "image")],
        **options,
    )
    ((rank + 1) * term.total).backward()
    return term.total.detach(), term.weight, image.grad, text.grad, scale.grad, bias.grad


def expected(case, loss, duplicates, dtype=torch.float64):
    """What all ranks together must give when rank r multiplies its sum by r + 1."""
    image, text, scale, bias = case.leaves(dtype=dtype)
    positive, compared = plain.pairs(case.image_ids, case.text_ids, duplicates)
    totals, weights = [], []
    for rank in range(len(case.images)):
        part = case.part(rank, "image")
        masks = positive[part], compared[part], case.weight[part]
        if loss is sigmoid_contrast:
            total, weight = plain.sigmoid(image[part], text, scale, bias, *masks)
        else:
            total, weight = plain.softmax(image[part], text, scale, *masks)
        totals.append(total)
        weights.append(weight)
    sum((rank + 1) * total for rank, total in enumerate(totals)).backward()
    gradients = [torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for leaf in (image, text, scale, bias)]
    return totals, weights, *gradients


def relative(found, wanted):
    return float((found.double() - wanted).norm() / wanted.norm().clamp(min=1e-3))


@pytest.mark.parametrize("duplicates", ["ignore", "positive", "negative"])
@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("loss", [sigmoid_contrast, softmax_contrast])
def test_value_and_gradients_equal_one_process(loss, split, duplicates, monkeypatch):
    monkeypatch.setattr(sigmoid_module, "TILE_ROWS", 3)
    monkeypatch.setattr(sigmoid_module, "TILE_COLUMNS", 2)
    monkeypatch.setattr(sigmoid_module, "STRIP_ROWS", 2)
    case = Case(split)
    totals, weights, image, text, scale, bias = expected(case, loss, duplicates)
    found = simulate_ranks(len(case.images), lambda rank: fused(case, rank, loss, duplicates))
    for rank, (total, weight, *_) in enumerate(found):
        torch.testing.assert_close(total, totals[rank].detach(), rtol=1e-11, atol=1e-12)
        torch.testing.assert_close(weight, weights[rank], rtol=1e-12, atol=1e-12)
    assert relative(torch.cat([part[2] for part in found]), image) < 1e-10
    assert relative(torch.cat([part[3] for part in found]), text) < 1e-10
    assert relative(sum(part[4] for part in found), scale) < 1e-10
    if loss is sigmoid_contrast:
        assert relative(sum(part[5] for part in found), bias) < 1e-10


@pytest.mark.parametrize("world", [1, 2, 4])
@pytest.mark.parametrize("scale", [10.0, 100.0])
def test_rows_pair_by_place_without_ids(world, scale):
    """The published SigLIP loss, tiles much smaller than the batch and not dividing it."""
    generator = torch.Generator().manual_seed(1)
    counts = {1: [700], 2: [650, 50], 4: [300, 0, 1, 399]}[world]
    image, text = (
        torch.nn.functional.normalize(torch.randn(700, 16, generator=generator, dtype=torch.float64), dim=1)
        for _ in range(2)
    )
    reference = [leaf.clone().requires_grad_() for leaf in (image, text)]
    positive = torch.eye(700, dtype=torch.bool)
    total, _ = plain.sigmoid(*reference, scale, -10.0, positive, torch.ones(700, 700), torch.ones(700))
    total.backward()

    def work(rank):
        part = slice(sum(counts[:rank]), sum(counts[: rank + 1]))
        leaves = [image[part].clone().requires_grad_(), text[part].clone().requires_grad_()]
        term = sigmoid_contrast(*leaves, torch.tensor(scale), torch.tensor(-10.0))
        term.total.backward()
        return term.total.detach(), leaves[0].grad, leaves[1].grad

    found = simulate_ranks(world, work)
    torch.testing.assert_close(sum(part[0] for part in found), total.detach(), rtol=1e-10, atol=0)
    assert relative(torch.cat([part[1] for part in found]), reference[0].grad) < 1e-10
    assert relative(torch.cat([part[2] for part in found]), reference[1].grad) < 1e-10


@pytest.mark.parametrize("loss", [sigmoid_contrast, softmax_contrast])
def test_gradcheck(loss):
    generator = torch.Generator().manual_seed(0)
    image, text = (torch.randn(4, 3, generator=generator, dtype=torch.float64, requires_grad=True) for _ in range(2))
    scale = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    bias = torch.tensor(-1.0, dtype=torch.float64, requires_grad=True)
    inputs = (image, text, scale, bias) if loss is sigmoid_contrast else (image, text, scale)
    assert torch.autograd.gradcheck(lambda *leaves: loss(*leaves).total, inputs)


@pytest.mark.parametrize("loss", [sigmoid_contrast, softmax_contrast])
@pytest.mark.parametrize("scale", [10.0, 100.0])
def test_single_precision_is_as_good_as_the_plain_form(loss, scale):
    case = Case("one", dtype=torch.float32, scale=scale)
    _, _, *exact = expected(case, loss, "ignore")
    _, _, *plainly = expected(case, loss, "ignore", dtype=torch.float32)
    _, _, *found = fused(case, 0, loss, "ignore")
    for ours, reference, single in zip(found, exact, plainly, strict=True):
        if ours is not None:
            assert relative(ours, reference) < max(2 * relative(single, reference), 1e-6)


def test_bfloat16_rows_have_single_precision_logits():
    case = Case("one", scale=100.0)
    rounded = Case("one", scale=100.0)
    rounded.image, rounded.text = case.image.bfloat16().double(), case.text.bfloat16().double()
    totals, *_ = expected(rounded, sigmoid_contrast, "ignore")
    case.image, case.text = case.image.bfloat16(), case.text.bfloat16()
    case.scale, case.bias = case.scale.float(), case.bias.float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        total, _, image_gradient, *_ = fused(case, 0, sigmoid_contrast, "ignore")
    assert total.dtype == torch.float32
    assert image_gradient.dtype == torch.bfloat16
    torch.testing.assert_close(total.double(), totals[0].detach(), rtol=1e-6, atol=0)


def test_large_positives_do_not_cancel():
    rows = torch.eye(64)
    term = sigmoid_contrast(rows, rows, torch.tensor(100.0), torch.tensor(-10.0))
    exact = 64 * torch.nn.functional.softplus(
        torch.tensor(-90.0, dtype=torch.float64)
    ) + 64 * 63 * torch.nn.functional.softplus(torch.tensor(-10.0, dtype=torch.float64))
    torch.testing.assert_close(term.total.double(), exact, rtol=1e-6, atol=0)


def test_a_frozen_side_gets_no_gradient_and_costs_no_reduce():
    calls = []

    def work(rank):
        image = torch.nn.functional.normalize(torch.randn(3, 4), dim=1).requires_grad_()
        text = torch.nn.functional.normalize(torch.randn(3, 4), dim=1)
        term = sigmoid_contrast(image, text, torch.tensor(5.0, requires_grad=True), torch.tensor(0.0))
        from ctgrounding.distributed.ranks import connection

        channel = connection()
        reduce = channel.reduce_scatter
        channel.reduce_scatter = lambda tensor: calls.append(rank) or reduce(tensor)
        term.total.backward()
        return image.grad is not None

    assert simulate_ranks(2, work) == [True, True]
    assert calls == []


def test_without_gradient_the_value_is_the_same():
    case = Case("one")
    with torch.no_grad():
        image, text, scale, bias = case.leaves()
        quiet = sigmoid_contrast(
            image, text[:7], scale, bias, image_ids=row_ids(case.image_ids, 3), text_ids=row_ids(case.text_ids, 2)
        )
    assert not quiet.total.requires_grad
    loud = sigmoid_contrast(
        image, text, scale, bias, image_ids=row_ids(case.image_ids, 3), text_ids=row_ids(case.text_ids, 2)
    )
    assert torch.equal(quiet.total, loud.total.detach())


def test_the_graph_may_be_used_twice_but_not_differentiated_twice():
    image, text = (torch.randn(5, 4, requires_grad=True) for _ in range(2))
    term = sigmoid_contrast(image, text, torch.tensor(1.0), torch.tensor(0.0))
    (first,) = torch.autograd.grad(term.total, image, retain_graph=True)
    (second,) = torch.autograd.grad(term.total, image, retain_graph=True)
    assert torch.equal(first, second)
    with pytest.raises(CTGroundingError, match="no second derivative"):
        torch.autograd.grad(term.total, image, create_graph=True)


def test_softmax_is_cross_entropy_in_the_plain_case():
    image, text = (torch.nn.functional.normalize(torch.randn(20, 8, dtype=torch.float64), dim=1) for _ in range(2))
    wanted = torch.nn.functional.cross_entropy(14.0 * image @ text.T, torch.arange(20), reduction="sum")
    term = softmax_contrast(image, text, torch.tensor(14.0, dtype=torch.float64))
    torch.testing.assert_close(term.total, wanted, rtol=1e-12, atol=0)
    assert term.weight == 20
    assert softmax_contrast(image[:1], text[:1], torch.tensor(14.0)).weight == 0  # nothing to tell it from


def test_what_does_not_fit_is_said():
    rows, scale = torch.ones(2, 3), torch.tensor(1.0)
    ids = RowIds(torch.arange(2))
    with pytest.raises(ConfigError, match="3 channels and text rows 4"):
        sigmoid_contrast(rows, torch.ones(2, 4), scale, scale)
    with pytest.raises(ConfigError, match="2 image and 5 text rows"):
        sigmoid_contrast(rows, torch.ones(5, 3), scale, scale)
    with pytest.raises(ConfigError, match="one side only"):
        sigmoid_contrast(rows, rows, scale, scale, image_ids=ids)
    with pytest.raises(ConfigError, match="'drop' for duplicates"):
        softmax_contrast(rows, rows, scale, duplicates="drop")
