"""The contract suite passes on the built-in image encoders and names what is wrong with others."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from ctgrounding.encoders.image.base import ImageEncoder
from ctgrounding.encoders.image.conv import PatchConv
from ctgrounding.encoders.image.dynunet import DynUNetEncoder
from ctgrounding.encoders.image.mit import MiTEncoder
from ctgrounding.encoders.image.resnet import ResNetEncoder
from ctgrounding.encoders.image.segresnet import SegResNetEncoder
from ctgrounding.encoders.image.slices import SlicesEncoder
from ctgrounding.encoders.image.swin import SwinEncoder
from ctgrounding.encoders.image.vit import ViT
from ctgrounding.encoders.image.windowed import WindowedViT
from ctgrounding.testing.encoders import check_image_encoder


@pytest.mark.parametrize(
    ("make", "cells"),
    [
        (lambda: PatchConv(patch=(2, 4, 4), width=32, heads=4), (5, 4, 4)),
        (lambda: PatchConv(patch=(3, 4, 2), width=24, heads=4, context_depth=0, convolutions=1), (5, 5, 5)),
        (lambda: PatchConv(patch=(2, 4, 4), width=24, heads=4, passes=2), (5, 4, 4)),
        (lambda: ViT(patch=(2, 4, 4), width=48, depth=2, heads=4), (5, 4, 4)),
        (lambda: ViT(patch=(2, 4, 4), width=48, depth=3, heads=4, attention="slice_scan", layer_scale=0.1), (5, 4, 4)),
        (lambda: ViT(patch=(2, 4, 4), width=48, depth=2, heads=4, checkpoint_every=1), (4, 4, 4)),
        (lambda: ViT(patch=(1, 2, 2), width=48, depth=2, heads=4, table=(4, 3, 3)), (4, 4, 4)),
        (
            lambda: WindowedViT(window=(2, 4, 4), patch=(1, 2, 2), width=36, depth=1, heads=2, combiner_depth=1),
            (4, 4, 4),
        ),
        (lambda: SegResNetEncoder(filters=8, blocks=(1, 1), norm="instance"), (12, 12, 12)),
    ],
    ids=[
        "patch_conv",
        "patch_conv_local",
        "patch_conv_passes",
        "vit_full",
        "vit_slice_scan",
        "vit_checkpointed",
        "vit_table",
        "windowed",
        "segresnet_instance",
    ],
)
def test_built_in_encoders_keep_the_contract(make, cells):
    check_image_encoder(make, cells)


@pytest.mark.slow
def test_deeper_segresnet_keeps_the_contract():
    check_image_encoder(lambda: SegResNetEncoder(filters=8, blocks=(1, 1), norm="group"), (12, 12, 12))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "cells"),
    [
        (lambda: DynUNetEncoder(filters=(16, 16, 16)), (12, 8, 8)),
        (lambda: MiTEncoder(widths=(12,), depths=(1,), heads=(1,), reductions=(2,), width=16), (12, 8, 8)),
        (lambda: SwinEncoder(width=12, stage=1, window=2), (4, 4, 4)),
        (lambda: SlicesEncoder("test_vit", slices=2), (3, 3, 3)),
        (lambda: SlicesEncoder("test_vit_relpos", slices=2, slice_shape=(160, 160)), (3, 3, 3)),
        (lambda: SegResNetEncoder(filters=8, blocks=(1, 1), norm="fixed", final_norm=False), (12, 12, 12)),
        (lambda: ResNetEncoder(filters=8, stage=1, norm="group"), (17, 17, 17)),
        (lambda: ResNetEncoder(filters=8, stage=1, norm="instance"), (17, 17, 17)),
    ],
    ids=["dynunet", "mit", "swin", "slices", "slices_in_air", "segresnet_fixed", "resnet_group", "resnet_instance"],
)
def test_encoders_of_other_libraries_keep_the_contract(make, cells):
    check_image_encoder(make, cells)


@pytest.mark.slow
@pytest.mark.parametrize("branch", ["zero_shot", "none"])
def test_windowed_vit_keeps_the_contract_with_any_depth_branch(branch):
    sizes = {"window": (4, 8, 8), "patch": (2, 4, 4), "width": 36, "depth": 2, "heads": 2, "combiner_depth": 2}
    check_image_encoder(lambda: WindowedViT(**sizes, depth_branch=branch, checkpoint_every=1), (5, 4, 4))


class Plain(ImageEncoder):
    """Patches and a linear map: right, and easy to break."""

    def __init__(self, **changes):
        super().__init__(**{"width": 8, "spacing_mm": (3, 2, 2), "cell_vox": (2, 4, 4)} | changes)
        self.embed = nn.Linear(len(self.windows) * 32, 8)

    def cells(self, image_hu, valid_box):
        return self.embed(self.patch_channels(image_hu, valid_box))

    def forward(self, image_hu, valid_box):
        cells = self.cells(image_hu, valid_box)
        return self.features(cells.permute(0, 4, 1, 2, 3), self.valid_cells(valid_box, cells.shape[1:4]))


class UpsideDown(Plain):
    def cells(self, image_hu, valid_box):
        return super().cells(image_hu, valid_box).flip(1)


class OtherCellInFeatures(Plain):
    def forward(self, image_hu, valid_box):
        return replace(super().forward(image_hu, valid_box), cell_vox=(4.0, 4.0, 4.0))


class CountsFromTheWrongCorner(Plain):
    """One voxel further along H than it says."""

    def padded(self, image_hu, valid_box):
        return super().padded(image_hu, valid_box).roll(-1, dims=2)


class LooksAtPadding(Plain):
    def padded(self, image_hu, valid_box):
        return super().padded(image_hu, torch.tensor([[0, size] for size in image_hu.shape[1:]]).expand_as(valid_box))


class NormalisesPadding(Plain):
    def cells(self, image_hu, valid_box):
        cells = super().cells(image_hu, valid_box)
        return cells - cells.mean((1, 2, 3), keepdim=True)


class SubtractsTheBatchMean(Plain):
    def cells(self, image_hu, valid_box):
        cells = super().cells(image_hu, valid_box)
        return cells - cells.mean(0, keepdim=True) / 2


class EverythingIsValid(Plain):
    def forward(self, image_hu, valid_box):
        dense = super().forward(image_hu, valid_box)
        return replace(dense, valid=torch.ones_like(dense.valid))


class KnowsOneSize(Plain):
    def __init__(self):
        super().__init__()
        self.position = nn.Parameter(torch.randn(5, 4, 4, 8))

    def cells(self, image_hu, valid_box):
        cells = super().cells(image_hu, valid_box)
        depth, row, column = cells.shape[1:4]
        missing = nn.functional.pad(
            self.position, (0, 0, 0, max(column - 4, 0), 0, max(row - 4, 0), 0, max(depth - 5, 0))
        )
        return cells + missing[:depth, :row, :column] / (missing[:depth, :row, :column].norm(dim=-1, keepdim=True))


class FitsOneGrid(Plain):
    """The usual mistake: a table of positions for the size of training."""

    def __init__(self):
        super().__init__()
        self.position = nn.Parameter(torch.randn(5, 4, 4, 8))

    def cells(self, image_hu, valid_box):
        return super().cells(image_hu, valid_box) + self.position


class DropsTheLastCells(Plain):
    """Whole cells only, as strided convolutions without padding give them."""

    def forward(self, image_hu, valid_box):
        dense = super().forward(image_hu, valid_box)
        depth, row, column = (side // step for side, step in zip(image_hu.shape[1:], (2, 4, 4), strict=True))
        return replace(dense, map=dense.map[:, :, :depth, :row, :column], valid=dense.valid[:, :depth, :row, :column])


class LeavesNothingUseful(Plain):
    """Cells without real voxels are not a number, which no weight of zero takes out of a sum."""

    def forward(self, image_hu, valid_box):
        dense = super().forward(image_hu, valid_box)
        return replace(dense, map=dense.map.masked_fill(~dense.valid[:, None], torch.nan))


class HasBatchNorm(Plain):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm3d(8)


class LeavesAParameterOut(Plain):
    def __init__(self):
        super().__init__()
        self.summary = nn.Parameter(torch.zeros(8))


class RootOfZero(Plain):
    def cells(self, image_hu, valid_box):
        cells = super().cells(image_hu, valid_box)
        return cells + (cells - cells).sqrt()


class KeepsWeightsToItself(Plain):
    def __init__(self):
        super().__init__()
        self.gain = torch.randn(8)

    def cells(self, image_hu, valid_box):
        return super().cells(image_hu, valid_box) * self.gain


class KeepsNumbersOnTheCpu(Plain):
    """No buffer: it does not move with the encoder."""

    def __init__(self):
        super().__init__()
        self.gain = torch.full((8,), 2.0)

    def cells(self, image_hu, valid_box):
        return super().cells(image_hu, valid_box) * self.gain


class PromisesASummary(Plain):
    def __init__(self):
        super().__init__(has_summary=True)


class LearnsNothing(Plain):
    def cells(self, image_hu, valid_box):
        cells = super().cells(image_hu, valid_box)
        return cells.detach() + 0 * cells


class CancelsInBfloat16(Plain):
    def cells(self, image_hu, valid_box):
        channels = self.patch_channels(image_hu, valid_box)
        return self.embed(channels + 1000) - self.embed(torch.full_like(channels, 1000.0))


class ClampsWhatItIsGiven(Plain):
    def cells(self, image_hu, valid_box):
        return super().cells(image_hu.clamp_(-1000, 1000), valid_box)


def test_the_encoder_that_the_wrong_ones_derive_from_is_right():
    check_image_encoder(Plain)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Plain(offset_vox=(0, 0, 0)), r"grid: cell 1 along D is declared at voxel 2 but sees voxel 2.5"),
        (UpsideDown, r"grid: cell 1 along D is declared at voxel 2.5 but sees voxel 6.5 in its middle, 12.000 mm away"),
        (OtherCellInFeatures, r"grid: declared .* but the features say \(\(4.0, 4.0, 4.0\)"),
        (CountsFromTheWrongCorner, r"grid: cell \d along H"),
        (LooksAtPadding, r"padding: padding at the end changes cells"),
        (NormalisesPadding, r"padding: padding at the end changes cells"),
        (SubtractsTheBatchMean, r"batch: scan 0 differs"),
        (EverythingIsValid, r"valid: with the valid box"),
        (KnowsOneSize, r"padding: padding on both sides changes cells|sizes: .* not finite"),
        (FitsOneGrid, r"sizes: the encoder raised RuntimeError: The size of tensor a"),
        (DropsTheLastCells, r"sizes: a volume of \(13, 15, 21\) has a map of \(1, 8, 6, 3, 5\), but grid\(\) says"),
        (LeavesNothingUseful, r"readouts: 'global' rows differ by nan"),
        (HasBatchNorm, r"statistics: norm is a BatchNorm3d"),
        (LeavesAParameterOut, r"gradients: parameter summary gets no gradient"),
        (RootOfZero, r"gradients: the gradient of embed.weight is not finite"),
        (KeepsWeightsToItself, r"state: another encoder that loaded the state dict"),
        (PromisesASummary, r"grid: has_summary is True, unlike the features, whose summary is None"),
        (LearnsNothing, r"gradients: every gradient is zero"),
        (KeepsNumbersOnTheCpu, r"device: the encoder raised RuntimeError: aten.mul.Tensor meets a tensor of \(8,\) on"),
        (ClampsWhatItIsGiven, r"inputs: volumes or boxes are changed in place"),
        (CancelsInBfloat16, r"bf16: bfloat16 autocast changes the map"),
    ],
)
def test_wrong_encoders_are_told_what_is_wrong(make, message):
    with pytest.raises(AssertionError, match=message):
        check_image_encoder(make)
