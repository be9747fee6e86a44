"""Organ histograms against a loop over voxels."""

import pytest
import torch

from ctgrounding.encoders.readouts import OrganReadout, OrganTableReadout, ReadoutContext
from ctgrounding.encoders.readouts.histogram import organ_histograms
from ctgrounding.errors import ConfigError
from ctgrounding.types import DenseFeatures


def test_organ_histograms__against_a_loop() -> None:
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(-1024, 1500, (2, 4, 5, 6), generator=generator).to(torch.int16)
    labels = torch.randint(0, 4, (2, 4, 5, 6), generator=generator).to(torch.uint8)
    scan, label = torch.tensor([0, 0, 1]), torch.tensor([1, 3, 2])
    found = organ_histograms(image, labels, torch.tensor([-100.0, 0.0, 300.0]))[scan, label]
    for row, (s, k) in enumerate(zip(scan.tolist(), label.tolist(), strict=True)):
        values = [v for v, o in zip(image[s].flatten().tolist(), labels[s].flatten().tolist(), strict=True) if o == k]
        bins = [0, 0, 0, 0]
        for value in values:
            bins[sum(value >= edge for edge in (-100, 0, 300))] += 1
        torch.testing.assert_close(found[row] ** 2, 4 * torch.tensor(bins) / len(values))


def test_organ_histograms__no_organ_and_no_scan() -> None:
    edges = torch.tensor([0.0])
    assert organ_histograms(torch.zeros(0, 2, 2, 2), torch.zeros(0, 2, 2, 2).byte(), edges).shape == (0, 256, 2)
    assert not organ_histograms(torch.zeros(1, 2, 2, 2), torch.zeros(1, 2, 2, 2).byte(), edges).any()


class TestOrganReadout:
    def dense(self) -> DenseFeatures:
        return DenseFeatures(torch.ones(1, 4, 1, 1, 1), torch.ones(1, 1, 1, 1, dtype=torch.bool), (4, 4, 4), (1.5,) * 3)

    def test_forward__a_stone_shows(self) -> None:
        labels = torch.ones(1, 4, 4, 4, dtype=torch.uint8)
        image = torch.full((1, 4, 4, 4), 10.0)
        image[0, 0, 0, :2] = 500.0
        readout = OrganReadout(4, parts=("histogram",), bins_hu=(0.0, 200.0))
        rows = readout(self.dense(), ReadoutContext(torch.ones(1, 3).double(), labels, None, image)).values
        torch.testing.assert_close(rows**2, 3 * torch.tensor([[0.0, 62 / 64, 2 / 64]]))

    def test_forward__without_volumes(self) -> None:
        labels = torch.ones(1, 4, 4, 4, dtype=torch.uint8)
        with pytest.raises(ConfigError, match="no image_hu"):
            OrganReadout(4, parts=("histogram",))(self.dense(), ReadoutContext(torch.ones(1, 3).double(), labels))

    def test_init__edges_must_ascend(self) -> None:
        with pytest.raises(ConfigError, match="ascending edges"):
            OrganReadout(4, parts=("histogram",), bins_hu=(10.0, 0.0))


class TestOrganTableReadout:
    def test_forward__a_row_a_scan_with_each_organ_in_its_column(self) -> None:
        torch.manual_seed(0)
        table = OrganTableReadout(2, parts=("mean",), organ_parts=("mean",), code=3)
        cells = torch.arange(8.0).view(2, 2, 1, 1, 2)
        dense = DenseFeatures(cells, torch.ones(2, 1, 1, 2, dtype=torch.bool), (1, 4, 4), (0, 1.5, 1.5))
        labels = torch.zeros(2, 1, 4, 8, dtype=torch.uint8)
        labels[0, 0, :, :4] = 5
        context = ReadoutContext(torch.ones(2, 3).double(), labels)
        rows = table(dense, context).values
        torch.testing.assert_close(rows[:, :2], cells.mean((2, 3, 4)))
        codes = rows[:, 2:].view(2, 117, 3)
        torch.testing.assert_close(codes[0, 4], table.encode(cells[0, :, 0, 0, 0]))
        assert codes[0, torch.arange(117) != 4].abs().max() == 0
        assert codes[1].abs().max() == 0

    def test_forward__no_masks_at_all_keeps_every_parameter_in_the_graph(self) -> None:
        table = OrganTableReadout(2, organ_parts=("mean",), code=3)
        dense = DenseFeatures(torch.ones(1, 2, 1, 1, 1), torch.ones(1, 1, 1, 1, dtype=torch.bool), (1, 1, 1), (0, 0, 0))
        table(dense, ReadoutContext(torch.ones(1, 3).double())).values.sum().backward()
        assert table.encode.weight.grad is not None
