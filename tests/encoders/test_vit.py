"""What the contract suite does not ask of the ViT: dropout, checkpoints, positions, attention patterns."""

import pytest
import torch

from ctgrounding.encoders.image.attention import AxialRotary, Rotation, rotate
from ctgrounding.encoders.image.patches import patches
from ctgrounding.encoders.image.vit import ViT
from ctgrounding.encoders.image.windows import HuWindows
from ctgrounding.errors import BatchError, ConfigError

VOLUME = torch.randint(-1000, 400, (2, 12, 16, 20), generator=torch.Generator().manual_seed(0)).float()
BOX = torch.tensor([[[0, 12], [0, 16], [0, 20]], [[0, 7], [0, 16], [4, 20]]])


def make_vit(**changes) -> ViT:
    torch.manual_seed(0)
    return ViT(**({"patch": (2, 4, 4), "width": 24, "depth": 3, "heads": 2} | changes))


def test_patches_and_linear_equal_a_strided_convolution():
    conv = torch.nn.Conv3d(3, 7, (2, 4, 5), stride=(2, 4, 5))
    channels = torch.randn(2, 3, 6, 8, 10)
    cells = torch.stack([patches(channels[:, c], (2, 4, 5)) for c in range(3)], dim=4).flatten(4)
    found = torch.nn.functional.linear(cells, conv.weight.flatten(1), conv.bias)
    torch.testing.assert_close(found.permute(0, 4, 1, 2, 3), conv(channels), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("attention", ["full", "slice_scan"])
def test_patch_dropout_keeps_equal_counts_and_zeroes_the_rest(attention):
    vit = make_vit(patch_keep=0.5, attention=attention).train()
    dense = vit(VOLUME, BOX)
    assert dense.valid[0].flatten(1).sum(1).tolist() == [10] * 6
    assert dense.valid[1].flatten(1).sum(1).tolist() == [10] * 4 + [0] * 2  # 16 of 20 cells are real
    assert dense.map.transpose(0, 1)[:, 0][:, ~dense.valid[0]].eq(0).all()
    torch.manual_seed(5)
    first = vit(VOLUME, BOX).valid
    torch.manual_seed(5)
    assert torch.equal(vit(VOLUME, BOX).valid, first)
    assert not torch.equal(vit(VOLUME, BOX).valid, first)
    assert vit.eval()(VOLUME, BOX).valid[0].all()


def test_keeping_everything_is_no_dropout():
    torch.testing.assert_close(
        make_vit(patch_keep=0.999).train()(VOLUME, BOX).map, make_vit().train()(VOLUME, BOX).map, rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("keep", [1.0, 0.5])
def test_checkpointing_changes_no_gradient(keep):
    gradients = []
    for every in (0, 1, 2):
        vit = make_vit(checkpoint_every=every, patch_keep=keep, attention="slice_scan").train()
        torch.manual_seed(1)
        vit(VOLUME, BOX).map.sin().sum().backward()
        gradients.append(torch.cat([parameter.grad.flatten() for parameter in vit.parameters()]))
    torch.testing.assert_close(gradients[1], gradients[0])
    torch.testing.assert_close(gradients[2], gradients[0])


def test_slice_blocks_keep_to_their_slice_until_the_scan_block():
    assert make_vit(depth=7, attention="slice_scan").meets == [False, False, True, False, False, True, True]
    assert all(make_vit(depth=3).meets)
    vit = make_vit(depth=2, attention="slice_scan")
    vit.meets = [False, False]
    other = VOLUME.clone()
    other[0, 0] += 300
    change = (vit(other, BOX).map - vit(VOLUME, BOX).map)[0].norm(dim=0).amax((1, 2))
    assert change[0] > 1e-2
    assert change[1:].max() < 0.1 * change[0]  # through the shared summary alone


def test_rotary_attention_depends_on_distances_in_mm():
    rotary = AxialRotary(24, (30.0, 500.0))
    position = torch.randn(1, 5, 3, dtype=torch.float64) * 100
    query, key = torch.randn(1, 2, 5, 24).double(), torch.randn(1, 2, 5, 24).double()

    def scores(shift_mm):
        cos, sin = rotary(position + shift_mm)
        rotation = Rotation(cos.double(), sin.double())
        return rotate(query, rotation) @ rotate(key, rotation).transpose(2, 3)

    torch.testing.assert_close(scores(0.0), scores(torch.tensor([13.0, -70.0, 200.0])), rtol=1e-4, atol=1e-4)
    assert (scores(0.0) - query @ key.transpose(2, 3)).abs().max() > 0.1


def test_windows_are_linear_and_clamped():
    values = torch.tensor([[-2000.0, -1000.0, 0.0, 50.0, 250.0, 3071.0]])
    found = HuWindows([(-1000, 1000), (-150, 250)])(values)
    expected = torch.tensor([[[-1, -1, 0, 0.05, 0.25, 1], [-1, -1, -0.25, 0, 1, 1]]])
    torch.testing.assert_close(found, expected)


def test_refusals():
    with pytest.raises(ConfigError, match=r"low < high, but are \[\(3, 3\)\]"):
        HuWindows([(3, 3)])
    with pytest.raises(ConfigError, match=r"patch_keep is a share in \(0, 1\], but is 0"):
        make_vit(patch_keep=0)
    with pytest.raises(ConfigError, match="24 cannot be split into 5 heads"):
        make_vit(heads=5)
    for name, least in (("scan_every", 1), ("checkpoint_every", 0), ("depth", 0)):
        with pytest.raises(ConfigError, match=f"{name} of ViT must be at least {least}, but is {least - 1}"):
            make_vit(**{name: least - 1})
    with pytest.raises(ConfigError, match="at least 6 channels"):
        make_vit(heads=6)
    with pytest.raises(ConfigError, match=r"wavelengths_mm of ViT is \[30\.0, 300\.0\], but with a table no position"):
        make_vit(table=(4, 3, 3), wavelengths_mm=(30.0, 300.0))
    with pytest.raises(ConfigError, match="three positive numbers"):
        make_vit(spacing_mm=(3, 0, 1))
    with pytest.raises(BatchError, match=r"must be parts of volumes|parts of volumes of shape \(12, 16, 20\)"):
        make_vit()(VOLUME, BOX + 1)
    with pytest.raises(BatchError, match=r"2 volumes need valid boxes of shape \(2, 3, 2\)"):
        make_vit()(VOLUME, BOX[:1])
