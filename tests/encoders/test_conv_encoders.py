"""Networks of other libraries: where their cells lie, organ rows at voxel resolution, fixed norms, refusals."""

import copy

import pytest
import torch
from torch import nn

from ctgrounding.encoders.image.cropped import ChannelAffine, CroppedEncoder, without_statistics
from ctgrounding.encoders.image.dynunet import DynUNetEncoder
from ctgrounding.encoders.image.mit import MiTEncoder
from ctgrounding.encoders.image.resnet import ResNetEncoder
from ctgrounding.encoders.image.segresnet import SegResNetEncoder
from ctgrounding.encoders.image.slices import SlicesEncoder
from ctgrounding.encoders.image.swin import SwinEncoder
from ctgrounding.encoders.readouts import OrganReadout, ReadoutContext
from ctgrounding.errors import BatchError, ConfigError


def evened(encoder):
    """Every kernel positive and even, nothing normalised, maxima turned into means: a cell weighs what it sees."""
    even = copy.deepcopy(encoder).eval()
    for module in list(even.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.MaxPool3d):
                setattr(module, name, nn.AvgPool3d(child.kernel_size, child.stride, child.padding))
            elif "Norm" in type(child).__name__:
                setattr(module, name, nn.Identity())
    with torch.no_grad():
        for module in even.modules():
            if isinstance(module, nn.Conv3d):
                module.weight.fill_(1 / module.weight[0].numel())
    return even


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "cells"),
    [
        (lambda: ResNetEncoder(filters=8, stage=2), 17),
        (lambda: SegResNetEncoder(filters=8, blocks=(1, 1, 1)), 13),
    ],
    ids=["resnet", "segresnet"],
)
def test_cells_lie_where_they_are_declared(make, cells):
    """By the centre of gravity of what the middle cell sees."""
    torch.manual_seed(0)
    encoder = make()
    shape = [round(cells * vox) for vox in encoder.cell_vox]
    volume = torch.full((1, *shape), 300.0, requires_grad=True)
    dense = evened(encoder)(volume, torch.tensor([[[0, side] for side in shape]]))
    middle = [count // 2 for count in dense.map.shape[2:]]
    dense.map[0, :, middle[0], middle[1], middle[2]].sum().backward()
    weight = volume.grad[0].abs()
    for axis, cell in enumerate(middle):
        along = weight.sum([other for other in range(3) if other != axis])
        found = float((along * torch.arange(len(along))).sum() / along.sum())
        assert found == pytest.approx(encoder.offset_vox[axis] + cell * encoder.cell_vox[axis], abs=1e-3)


def test_organ_rows_at_voxel_resolution_are_means_over_the_mask():
    torch.manual_seed(0)
    encoder = MiTEncoder(widths=(8, 8), depths=(1, 1), heads=(1, 1), reductions=(2, 1), width=8).eval()
    volume = torch.randint(-200, 300, (2, 9, 18, 20)).float()
    box = torch.tensor([[[0, 9], [0, 18], [0, 20]], [[0, 7], [2, 18], [0, 16]]])
    organs = torch.randint(0, 120, (2, 9, 18, 20), dtype=torch.uint8)
    with torch.no_grad():
        dense = encoder(volume, box)
        context = ReadoutContext(torch.ones(2, 3, dtype=torch.float64), organs=organs)
        rows = OrganReadout(8, min_voxels=1)(dense, context)
    assert dense.map.shape == (2, 8, 9, 18, 20)
    for place in (0, 50, len(rows.values) - 1):
        scan, organ = int(rows.organ_scan[place]), int(rows.organ_class[place])
        inside = (organs[scan] == organ) & dense.valid[scan]
        expected = dense.map[scan][:, inside].mean(1)
        torch.testing.assert_close(rows.values[place], expected, rtol=1e-4, atol=1e-5)


def test_fixed_norms_do_what_batch_norms_do_in_evaluation():
    norm = nn.Sequential(nn.BatchNorm3d(4))
    with torch.no_grad():
        norm[0].weight.uniform_(0.5, 2)
        norm[0].bias.normal_()
        norm[0].running_mean.normal_()
        norm[0].running_var.uniform_(0.5, 2)
    cells = torch.randn(2, 4, 3, 3, 3)
    expected = norm.eval()(cells)
    fixed = without_statistics(copy.deepcopy(norm)).train()
    assert isinstance(fixed[0], ChannelAffine)
    torch.testing.assert_close(fixed(cells), expected)


@pytest.mark.parametrize(
    ("tower", "behind"), [("efficientnet_b0", "conv_head"), ("xcit_nano_12_p16_224", "cls_attn_blocks")]
)
def test_what_lies_behind_the_map_of_a_tower_is_frozen(tower, behind):
    torch.manual_seed(0)
    encoder = SlicesEncoder(tower, slices=1)
    assert all(part.training for part in encoder.tower.modules() if not list(part.children()))
    volume = torch.randint(-1000, 1000, (1, 1, 64, 96)).float()
    encoder(volume, torch.tensor([[[0, 1], [0, 64], [0, 96]]])).map.square().sum().backward()
    trained = {name: parameter for name, parameter in encoder.named_parameters() if parameter.requires_grad}
    assert all(parameter.grad is not None for parameter in trained.values())
    assert [name for name, _ in encoder.named_parameters() if behind in name]
    assert not [name for name in trained if behind in name]


class OneCell(CroppedEncoder):
    """Says that its cells have 2 voxels, and has one cell in all."""

    def __init__(self):
        super().__init__(width=2, spacing_mm=(1, 1, 1), cell_vox=(2, 2, 2), align_vox=(2, 2, 2))

    def encode(self, volume_hu):
        return torch.zeros(len(volume_hu), 1, 1, 1, 2)


@pytest.mark.parametrize("sides", [(2, 64, 96), (2, 33, 65), (2, 60, 70)])
def test_every_valid_cell_of_a_strided_tower_is_that_of_its_slices(sides):
    torch.manual_seed(0)
    encoder = SlicesEncoder("resnet10t", slices=2, strided=True).eval()
    volume = torch.randint(-1000, 1000, (1, *sides)).float()
    dense = encoder(volume, torch.tensor([[[0, side] for side in sides]]))
    _, rows, columns = encoder.grid(sides)
    height, width = max(32 * rows - 31, sides[1]), max(32 * columns - 31, sides[2])  # to the last cell's centre
    filled = nn.functional.pad(volume, (0, width - sides[2], 0, height - sides[1]), value=-1024.0)
    maps = encoder.tower(encoder.windows(filled[0])).permute(0, 2, 3, 1)
    wanted = encoder.norm(maps).mean(0).permute(2, 0, 1)
    assert dense.valid.all()
    torch.testing.assert_close(dense.map[0, :, 0], wanted)


@pytest.mark.parametrize(
    "tower", ["test_coatnet", "test_maxvit", "test_vit_relpos", "cait_xxs24_224", "hiera_tiny_224"]
)
def test_a_tower_of_one_image_size_sees_slices_in_air(tower):
    """Its map is that of the filled slice, as far as the scan reaches, wherever the batch's padding lies."""
    torch.manual_seed(0)
    encoder = SlicesEncoder(tower, slices=1, slice_shape=(96, 128)).eval()
    step = encoder.cell[1]
    volume = torch.randint(-1000, 1000, (1, 1, 70, 90)).float()
    batch = torch.full((1, 1, 70 + 2 * step, 96), 77.0)
    batch[:, :, step : step + 70, :90] = volume
    filled = torch.full((1, 96, 128), -1024.0)
    filled[:, :70, :90] = volume[0]
    with torch.no_grad():
        whole = encoder.tower(encoder.windows(filled))
        alone = encoder(volume, torch.tensor([[[0, 1], [0, 70], [0, 90]]]))
        padded = encoder(batch, torch.tensor([[[0, 1], [step, step + 70], [0, 90]]]))
    wanted = encoder.norm(whole[0].permute(1, 2, 0)).permute(2, 0, 1)
    rows, columns = alone.map.shape[3:]
    torch.testing.assert_close(alone.map[0, :, 0], wanted[:, :rows, :columns])
    torch.testing.assert_close(padded.map[0, :, 0, 1 : 1 + rows, :columns], alone.map[0, :, 0])
    with pytest.raises(BatchError, match=r"larger than the slice_shape \(96, 128\) of SlicesEncoder\. Set data\.crop"):
        encoder(torch.zeros(1, 1, 97, 128), torch.tensor([[[0, 1], [0, 97], [0, 128]]]))


def test_refusals():
    with pytest.raises(ConfigError, match=r"depths .* and stages 1 to 4, but is asked for 18 and 5"):
        ResNetEncoder(stage=5)
    with pytest.raises(ConfigError, match="stage is 0"):
        SwinEncoder(stage=0)
    with pytest.raises(ConfigError, match="cannot be split into 5 heads"):
        SwinEncoder(heads=(5, 6, 12, 24))
    with pytest.raises(ConfigError, match="timm has no model 'resnet1800'"):
        SlicesEncoder("resnet1800")
    with pytest.raises(ConfigError, match=r"timm's weights are named with the tower: set tower to test_vit\.r160_in1k"):
        SlicesEncoder("test_vit", pretrained="r160_in1k")
    with pytest.raises(ConfigError, match=r"weights of timm's 'test_vit\.r16' cannot be had"):
        SlicesEncoder("test_vit.r16")
    with pytest.raises(ConfigError, match="named by a tag: set pretrained to one of openai"):
        SlicesEncoder("ViT-B-16", "open_clip", pretrained=True)
    with pytest.raises(ConfigError, match=r"weights of open_clip's 'ViT-B-16' cannot be had .* 'ownai' is not a known"):
        SlicesEncoder("ViT-B-16", "open_clip", pretrained="ownai")
    with pytest.raises(ConfigError, match=r"'cait_.*no map of an image of 32 x 48 pixels \(Input .* \[224, 224\], for"):
        SlicesEncoder("cait_xxs24_224")
    with pytest.raises(
        ConfigError, match=r"'convit_tiny' gives no map of an image of 96 x 64 .* but slice_shape is that"
    ):
        SlicesEncoder("convit_tiny", slice_shape=(96, 64))
    with pytest.raises(ConfigError, match=r"no images of slice_shape \(96, 64\): Model only handles square inputs\.$"):
        SlicesEncoder("nest_tiny", slice_shape=(96, 64))
    with pytest.raises(ConfigError, match=r"slice_shape \(100, 96\) is not made of whole cells .* multiples of 16\."):
        SlicesEncoder("test_vit", slice_shape=(100, 96))
    with pytest.raises(ConfigError, match=r"makes \(4, 4\) cells of 192 x 192 pixels .* a ViT or ResNet\.$"):
        SlicesEncoder("inception_v3", slice_shape=(192, 192))
    with pytest.raises(ConfigError, match=r"17 x 33 pixels .*, or set strided to false"):
        SlicesEncoder("test_vit", strided=True)
    with pytest.raises(ConfigError, match=r"OneCell gives \(1, 1, 1\) cells of \(4, 4, 4\) voxels"):
        OneCell()(torch.zeros(1, 4, 4, 4), torch.tensor([[[0, 4]] * 3]))
    for make in (ResNetEncoder, SegResNetEncoder):
        with pytest.raises(ConfigError, match=r"into 8 groups, but \w+ has filters 12"):
            make(filters=12)
        with pytest.raises(ConfigError, match=r"filters of .* must be at least 1, but is 0"):
            make(filters=0, norm="instance")
    for make, wrong in (
        (SwinEncoder, {"window": 0}),
        (DynUNetEncoder, {"strides": [(1, 1, 1), (2, 2, 2), (0, 2, 2)], "filters": (4, 8, 8)}),
        (MiTEncoder, {"reductions": (6, 4, 0, 1)}),
        (SlicesEncoder, {"tower": "test_vit", "slices_per_pass": 0}),
    ):
        with pytest.raises(ConfigError, match=f"of {make.__name__} must be at least 1, but is 0"):
            make(**wrong)
    with pytest.raises(ConfigError, match="asked for depth bins of 12 mm, but its cells of 1 voxels of 3 mm are 3 mm"):
        MiTEncoder(widths=(8,), depths=(1,), heads=(1,), reductions=(1,), axial_mm=12.0)
