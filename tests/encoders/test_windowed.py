"""What neither the contract suite nor the numbers of the public code ask of the windowed ViT."""

import pytest
import torch

from ctgrounding.encoders.image.grid_tower import GridRotary
from ctgrounding.encoders.image.windowed import WindowedViT
from ctgrounding.errors import ConfigError
from ctgrounding.testing.encoders import check_image_encoder

SMALL = {"window": (4, 8, 8), "patch": (2, 4, 4), "width": 24, "depth": 1, "heads": 2, "combiner_depth": 1}
VOLUME = torch.randint(-1000, 400, (2, 12, 16, 16), generator=torch.Generator().manual_seed(0)).float()
WHOLE = torch.tensor([[[0, 12], [0, 16], [0, 16]]] * 2)


def make(**changes):
    torch.manual_seed(0)
    return WindowedViT(**(SMALL | changes))


def test_windows_that_hold_nothing_are_left_out():
    vit, passed = make().eval(), []
    vit.local.register_forward_pre_hook(lambda _, inputs: passed.append(inputs[0].shape))
    box = torch.tensor([[[0, 12], [0, 16], [0, 16]], [[4, 8], [0, 3], [8, 16]]])
    vit(VOLUME, box)
    assert passed == [(12 + 1, 2 * 2 * 2, 24)]


def test_a_scan_of_one_window_in_front_of_padding_sits_at_the_middle_of_its_own_grid():
    rotary = GridRotary(12, 100.0)
    index, cells = torch.tensor([[[0, 0, 0]]]), torch.tensor([[1, 1, 1]])
    assert rotary(index, cells, 1).sin.abs().max() == 0
    below, above = rotary(torch.tensor([[[0, 0, 0], [1, 1, 1]]]), torch.tensor([[2, 2, 2]]), 1).sin[0]
    torch.testing.assert_close(below, -above)


def test_coordinates_are_rescaled_in_training_only_and_by_one_factor_a_row():
    rotary = GridRotary(12, 100.0, rescale=2.0)
    index, cells = torch.tensor([[[0, 0, 0], [3, 3, 3]]]), torch.tensor([[4, 4, 4]])
    torch.manual_seed(0)
    plain = GridRotary(12, 100.0)(index, cells, 1)
    turned = rotary.train()(index, cells, 500)
    angle = torch.atan2(turned.sin, turned.cos)[..., 3]  # the slow plane of the second axis never wraps here
    factor = angle[:, 1] / torch.atan2(plain.sin, plain.cos)[0, 1, 3]
    torch.testing.assert_close(-angle[:, 0], angle[:, 1])
    assert factor.min() >= 0.5 - 1e-5
    assert factor.max() <= 2 + 1e-5
    assert 0.4 < (factor < 1).float().mean() < 0.6  # log-uniform: as often smaller as larger
    assert torch.equal(rotary.eval()(index, cells, 500).sin, plain.sin)


def test_freezing_the_local_part_leaves_the_combiner_to_learn():
    vit = make(freeze_local=True).train()
    assert not vit.local.training
    dense = vit(VOLUME, WHOLE)
    (dense.summary.sum() + dense.view("depth").map.sum()).backward()
    still = {name.split(".")[0] for name, item in vit.named_parameters() if item.grad is None}
    assert still == {"embed", "local"}


def test_depth_branch_starts_from_the_means_half_of_the_input_map():
    vit = make()
    assert torch.equal(vit.depth_in.weight, vit.window_in.weight[:, 24:])


def test_refusals():
    with pytest.raises(ConfigError, match=r"window \[4, 8, 8\] is no multiple of \[3, 4, 4\]"):
        make(patch=(3, 4, 4))
    with pytest.raises(ConfigError, match=r"asked for depth bins of 12 mm, but its cells of 2 voxels of 3 mm are 6 mm"):
        make(axial_mm=12.0)
    with pytest.raises(ConfigError, match="a rescale of at least 1"):
        make(rescale=0.5)


class DepthViewOfAnotherGrid(WindowedViT):
    """Its depth view has one bin a window, not one a patch."""

    def _depth_view(self, cut, summaries, cells, valid):
        return self._global_view(cut, summaries, cells)


def test_contract_suite_looks_at_views():
    with pytest.raises(AssertionError, match=r"the view 'depth' has \d bins of 4 voxels, unlike the map"):
        check_image_encoder(lambda: DepthViewOfAnotherGrid(**(SMALL | {"width": 36})), (2, 2, 2))
