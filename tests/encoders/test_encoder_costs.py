"""What the benchmark of encoders computes without a device: FLOP, shares of a peak, ratios."""

import importlib
import sys

import pytest
import torch


@pytest.fixture(scope="module")
def benchmark(repository):
    """The script as a module."""
    sys.path.insert(0, str(repository / "benchmarks"))
    yield importlib.import_module("encoders")
    sys.path.remove(str(repository / "benchmarks"))


@pytest.fixture(scope="module")
def rates(benchmark):
    return importlib.import_module("encoder_rates")


@pytest.mark.parametrize("attention", ["full", "slice_scan"])
def test_flop_of_a_vit_by_hand(benchmark, attention):
    """A block multiplies by 12 C^2 weights a token, and by the keys and values that each token meets."""
    width, depth, cells = 48, 3, (4, 3, 5)
    encoder = benchmark.vit(attention, (2, 4, 4), width=width, heads=4, depth=depth, scan_every=3)
    with torch.device("meta"):
        encoder = encoder.to("meta")
    slice_cells, tokens = cells[1] * cells[2], cells[0] * cells[1] * cells[2]
    flop = 2 * tokens * (3 * 2 * 4 * 4) * width
    for meets in encoder.meets:
        parts, met = (1, tokens + 1) if meets else (cells[0], slice_cells + 1)
        flop += parts * met * (2 * 12 * width**2 + 4 * met * width)
    found = benchmark.counted(encoder, (8, 12, 20))
    assert found["cells"] == tokens
    assert found["gflop"] * 1e9 == pytest.approx(flop, rel=1e-6)


def test_activations_are_counted_alike_each_time(benchmark):
    encoder = benchmark.vit(patch=(2, 4, 4), width=48, heads=4, depth=4).to("meta")
    found = {benchmark.counted(encoder, (8, 12, 20))["activation_gb"] for _ in range(3)}
    assert len(found) == 1
    deeper = benchmark.vit(patch=(2, 4, 4), width=48, heads=4, depth=8).to("meta")
    assert benchmark.counted(deeper, (8, 12, 20))["activation_gb"] > 1.9 * found.pop()


def test_share_of_the_peak_by_hand(rates):
    """Two scans of 100 TFLOP forward in 3 s are 200 TFLOP/s of training: a fifth of 1,000."""
    assert rates.mfu(100e12, 2, 3.0, 1000e12) == pytest.approx(0.2)


@pytest.mark.parametrize(
    ("device", "tera"),
    [
        ("NVIDIA H200", 989),
        ("NVIDIA GH200 480GB", 989),
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA A10", 125),
        ("NVIDIA L40S", 362),
        ("NVIDIA L40", 181),
        ("Tesla V100-SXM2-16GB", None),
    ],
)
def test_peaks_by_the_longest_name_that_fits(rates, device, tera):
    assert rates.peak_flops(device) == (None if tera is None else tera * 1e12)


def test_ratio_takes_turns_and_leaves_disturbances_out(rates, monkeypatch):
    order, seconds = [], iter([2.0, 1.0, 1.0, 2.0, 50.0, 1.0, 1.0, 2.0, 2.0, 70.0])
    monkeypatch.setattr(rates, "cpu_seconds", lambda run: (run(), next(seconds))[1])
    assert rates.ratio_of_medians(lambda: order.append("a"), lambda: order.append("b"), 5) == 2.0
    assert "".join(order) == "abbaabbaab"


def test_each_device_has_its_results(rates):
    assert rates.results_file("cpu").name == "encoders.json"
    assert rates.results_file("NVIDIA H100 80GB HBM3").name == "encoders_nvidia_h100_80gb_hbm3.json"
    assert rates.cpu_name()
