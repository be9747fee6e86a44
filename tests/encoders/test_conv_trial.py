"""The trial of 3D convolutions finds devices that are wrong or slow, without such a device."""

from itertools import count

import pytest
import torch
from torch import nn
from torch.nn import functional

from ctgrounding.commands import doctor
from ctgrounding.encoders.image import conv_trial
from ctgrounding.encoders.image.conv import PatchConv
from ctgrounding.encoders.image.conv_trial import ConvTrial, check_convolutions, has_convolutions, try_convolutions
from ctgrounding.encoders.image.vit import ViT
from ctgrounding.errors import ConfigError

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def test_this_device_is_right():
    trial = try_convolutions(CPU)
    assert trial.is_right
    assert 1e-4 < trial.error < 0.01
    assert f"torch {torch.__version__}" in trial.versions


class WrongGradient(torch.autograd.Function):
    """A convolution whose output is right and whose weights get no gradient from the last channel."""

    @staticmethod
    def forward(ctx, cells, weight, stride, padding):
        ctx.save_for_backward(cells, weight)
        ctx.settings = {"stride": stride, "padding": padding}
        return functional.conv3d(cells, weight, **ctx.settings)

    @staticmethod
    def backward(ctx, gradient):
        cells, weight = (item.detach().requires_grad_() for item in ctx.saved_tensors)
        with torch.enable_grad():
            output = functional.conv3d(cells, weight, **ctx.settings)
        to_cells, to_weight = torch.autograd.grad(output, (cells, weight), gradient)
        to_weight[-1] = 0
        return to_cells, to_weight, None, None


def only_bfloat16(change):
    """A convolution that is changed in bfloat16 alone, as a broken kernel is."""

    def convolve(cells, weight, **settings):
        output = functional.conv3d(cells, weight, **settings)
        return change(output) if cells.dtype == torch.bfloat16 else output

    return convolve


@pytest.mark.parametrize(
    "convolve",
    [
        only_bfloat16(lambda output: output * 1.05),
        only_bfloat16(lambda output: output.roll(1, dims=-1)),
        only_bfloat16(lambda output: output * torch.nan),
        only_bfloat16(lambda output: torch.cat([output[..., :-1], 0 * output[..., -1:]], dim=-1)),
        lambda cells, weight, stride, padding: WrongGradient.apply(cells, weight, stride, padding),
    ],
    ids=["scaled", "shifted", "nan", "border lost", "gradient lost"],
)
def test_a_wrong_device_is_found(convolve):
    trial = try_convolutions(CPU, convolve)
    assert not trial.is_right
    assert "wrong on this device" in trial.advice()
    assert "set trainer.precision to 32-true" in trial.advice()


def test_a_slow_device_is_found():
    ticks = iter([0.0, 1.0, 10.0, 13.5])
    trial = try_convolutions(CPU, clock=lambda: next(ticks))
    assert (trial.is_right, trial.is_quick, trial.slowdown) == (True, False, 3.5)
    assert "3.5 times slower than in float32" in trial.advice()
    steady = count()
    assert try_convolutions(CPU, clock=lambda: float(next(steady))).advice() == ""


def test_only_networks_with_convolutions_are_tried(monkeypatch):
    monkeypatch.setattr(conv_trial, "try_convolutions", lambda device: ConvTrial(0.9, 1.0, "torch 0"))
    network = PatchConv(width=24, patch_hidden=8, bottleneck=8, convolutions=1, context_depth=1, heads=2)
    assert (has_convolutions(network), has_convolutions(ViT(width=24, depth=1, heads=2))) == (True, False)
    for image, precision, device in (
        (ViT(width=24, depth=1, heads=2), "bf16-mixed", CUDA),
        (network, "32-true", CUDA),
        (network, "bf16-mixed", CPU),
    ):
        assert check_convolutions(image, precision, device) == ""
    with pytest.raises(ConfigError, match=r"wrong on this device by 90 % \(torch 0\)"):
        check_convolutions(network, "bf16-mixed", CUDA)
    slow = ConvTrial(0.002, 4.0, "torch 0")
    assert "4.0 times slower" in check_convolutions(network, "bf16-true", CUDA, slow)
    assert check_convolutions(nn.ConvTranspose3d(1, 1, 1), "bf16-mixed", CUDA, ConvTrial(0.002, 0.5, "")) == ""


def test_doctor_shows_the_trial(monkeypatch):
    assert doctor._convolutions() == (True, "not tried: no CUDA device", "") or torch.cuda.is_available()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(conv_trial, "try_convolutions", lambda device: ConvTrial(0.5, 1.5, "torch 0"))
    fine, result, remedy = doctor._convolutions()
    assert (fine, result) == (False, "error 50.0 %, 1.5 x the time of float32")
    assert "set trainer.precision to 32-true" in remedy


@pytest.mark.cuda
def test_on_cuda():
    assert try_convolutions(CUDA).advice() == ""
