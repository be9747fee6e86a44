"""Readouts against slow loops, with padding and absent organs."""

import math

import pytest
import torch

from ctgrounding.encoders.readouts import DepthReadout, GlobalReadout, OrganReadout, ReadoutContext
from ctgrounding.errors import ConfigError
from ctgrounding.types import DenseFeatures

CELL = (2, 4, 3)
SPACING = torch.tensor([[3.0, 2.0, 2.0], [3.0, 2.0, 2.0]], dtype=torch.float64)


@pytest.fixture
def dense() -> DenseFeatures:
    torch.manual_seed(0)
    valid = torch.zeros(2, 4, 3, 3, dtype=torch.bool)
    valid[0] = True
    valid[1, 1:3, :2, 1:] = True
    features = torch.randn(2, 5, 4, 3, 3, requires_grad=True)
    return DenseFeatures(features, valid, CELL, tuple((vox - 1) / 2 for vox in CELL), torch.randn(2, 5))


def labels() -> torch.Tensor:
    organs = torch.zeros(2, 8, 12, 9, dtype=torch.uint8)
    organs[0, 1:4, 2:9, 1:5] = 3
    organs[0, 5, 6, 7] = 7
    organs[0, :, 11, 8] = 117
    organs[1, 1:4, 1:6, 4:9] = 3
    organs[1, 7, 11, 8] = 9  # lies in a cell that is not valid
    return organs


def test_global_parts_against_loops(dense):
    readout = GlobalReadout(5, parts=("mean", "max", "summary", "attention"), queries=2)
    torch.nn.init.normal_(readout.queries.queries)
    rows = readout(dense, ReadoutContext(SPACING)).values
    assert rows.shape == (2, readout.width) == (2, 25)
    for scan in range(2):
        cells = dense.map[scan][:, dense.valid[scan]].T
        torch.testing.assert_close(rows[scan, :5], cells.mean(0))
        torch.testing.assert_close(rows[scan, 5:10], cells.max(0).values)
        torch.testing.assert_close(rows[scan, 10:15], dense.summary[scan])
        for query in range(2):
            scores = cells @ readout.queries.queries[query] / math.sqrt(5)
            weight = torch.softmax(12 * torch.tanh(scores / 12), dim=0)
            torch.testing.assert_close(rows[scan, 15 + 5 * query : 20 + 5 * query], weight @ cells)


def test_projected_queries_have_the_width_of_a_cell(dense):
    readout = GlobalReadout(5, parts=("attention",), queries=3, project_queries=True)
    assert readout(dense, ReadoutContext(SPACING)).values.shape == (2, 5)
    assert readout.width == 5


def test_depth_parts_against_loops(dense):
    readout = DepthReadout(5, parts=("mean", "max", "summary"))
    rows = readout(dense, ReadoutContext(SPACING))
    assert rows.depth_valid.tolist() == [[True] * 4, [False, True, True, False]]
    for scan in range(2):
        for depth in range(4):
            cells = dense.map[scan, :, depth][:, dense.valid[scan, depth]].T
            if not len(cells):
                assert rows.values[scan, depth].eq(0).all()
                continue
            expected = torch.cat([cells.mean(0), cells.max(0).values, dense.summary[scan]])
            torch.testing.assert_close(rows.values[scan, depth], expected)


@pytest.mark.parametrize("mixing", ["conv", "transformer"])
def test_depth_mixing_does_not_see_padding(dense, mixing):
    readout = DepthReadout(5, parts=("mean", "max"), width=24, mixing=mixing, layers=2, heads=2)
    rows = readout(dense, ReadoutContext(SPACING)).values
    alone = DenseFeatures(dense.map[1:, :, 1:3], dense.valid[1:, 1:3], dense.cell_vox, dense.offset_vox)
    torch.testing.assert_close(rows[1, 1:3], readout(alone, ReadoutContext(SPACING[1:])).values[0])
    assert rows[1, [0, 3]].eq(0).all()
    rows.square().sum().backward()
    assert dense.map.grad.isfinite().all()
    assert all(parameter.grad is not None for parameter in readout.parameters())


@pytest.mark.parametrize("dense_limit", [2**24, 0])
def test_organ_rows_against_voxel_loops(dense, dense_limit, monkeypatch):
    monkeypatch.setattr("ctgrounding.encoders.readouts.organ.DENSE_LIMIT", dense_limit)
    readout = OrganReadout(5, parts=("mean", "attention", "log_volume"), queries=2, min_voxels=2)
    torch.nn.init.normal_(readout.queries.queries)
    organs = labels()
    whole = torch.zeros(2, 256, dtype=torch.int64)
    whole[0, 3], whole[0, 117], whole[1, 3] = 2 * int((organs[0] == 3).sum()), 8, 100
    rows = readout(dense, ReadoutContext(SPACING, organs, whole))
    assert list(zip(rows.organ_scan.tolist(), rows.organ_class.tolist(), strict=True)) == [(0, 3), (0, 117), (1, 3)]
    for place, (scan, organ) in enumerate([(0, 3), (0, 117), (1, 3)]):
        voxels = (organs[scan] == organ).nonzero()
        cells = voxels // torch.tensor(CELL)
        cells = cells[dense.valid[scan][tuple(cells.T)]]
        features = dense.map[scan][:, cells[:, 0], cells[:, 1], cells[:, 2]].T
        torch.testing.assert_close(rows.values[place, :5], features.mean(0))
        for query in range(2):
            scores = features @ readout.queries.queries[query] / math.sqrt(5)
            weight = torch.softmax(12 * torch.tanh(scores / 12), dim=0)
            torch.testing.assert_close(rows.values[place, 5 + 5 * query : 10 + 5 * query], weight @ features)
        assert rows.values[place, -1].item() == pytest.approx(math.log10(len(voxels) * 12 / 1000), rel=1e-5)
    assert rows.organ_visible.tolist() == pytest.approx([0.5, 1.0, int((organs[1] == 3).sum()) / 100])


def test_organ_rows_without_any_mask_are_none_but_attached(dense):
    readout = OrganReadout(5, parts=("mean", "attention"))
    rows = readout(dense, ReadoutContext(SPACING))
    assert rows.values.shape == (0, 10)
    assert rows.organ_visible.shape == (0,)
    rows.values.sum().backward()
    assert readout.queries.queries.grad.eq(0).all()


def test_small_organs_count_from_min_voxels_on(dense):
    context = ReadoutContext(SPACING, labels())
    assert OrganReadout(5, min_voxels=1)(dense, context).organ_class.tolist() == [3, 7, 117, 3]
    assert OrganReadout(5, min_voxels=9)(dense, context).organ_class.tolist() == [3, 3]


@pytest.mark.parametrize(
    "make", [lambda: GlobalReadout(5, ("mean", "attention")), lambda: OrganReadout(5, ("attention",))]
)
def test_scores_may_be_extreme(dense, make):
    readout = make()
    with torch.no_grad():
        readout.queries.queries.mul_(1e6)
    rows = readout(dense, ReadoutContext(SPACING, labels())).values
    rows.square().sum().backward()
    assert rows.isfinite().all()
    assert dense.map.grad.isfinite().all()


def test_refusals(dense):
    with pytest.raises(ConfigError, match=r"GlobalReadout takes parts among .* parts is \['middle'\]"):
        GlobalReadout(5, parts=("middle",))
    with pytest.raises(ConfigError, match="only with mixing"):
        DepthReadout(5, width=7)
    with pytest.raises(ConfigError, match="odd kernel, but kernel is 4"):
        DepthReadout(5, mixing="conv", kernel=4)
    bare = DenseFeatures(dense.map, dense.valid, dense.cell_vox, dense.offset_vox)
    with pytest.raises(ConfigError, match="makes no summary token"):
        GlobalReadout(5, parts=("summary",))(bare, ReadoutContext(SPACING))
