import math

import pytest
import torch
from torch import nn

from ctgrounding.encoders.heads import HeadConfig, Heads, HeadsConfig, ImageHeadConfig
from ctgrounding.encoders.logit import LogitConfig
from ctgrounding.encoders.projections import BatchStandardize
from ctgrounding.errors import ConfigError

WIDTHS = {"global": 12, "depth": 6}


def make_heads(**image: ImageHeadConfig) -> Heads:
    torch.manual_seed(0)
    return Heads(HeadsConfig(image=image, text={"main": HeadConfig(width=8)}), WIDTHS, text=5)


@pytest.mark.parametrize("kind", ["linear", "mlp", "radfinder"])
@pytest.mark.parametrize("layer_norm", [False, True])
@pytest.mark.parametrize("standardize", [False, True])
def test_rows_become_unit_vectors_and_no_rows_stay_none(kind, layer_norm, standardize):
    heads = make_heads(
        main=ImageHeadConfig(kind=kind, width=8, hidden=16, layer_norm=layer_norm, standardize=standardize)
    )
    embedded = heads.image("main", torch.randn(4, 12))
    torch.testing.assert_close(embedded.norm(dim=1), torch.ones(4))
    empty = heads.image("main", torch.zeros(0, 12, requires_grad=True))
    assert empty.shape == (0, 8)
    empty.sum().backward()
    assert all(parameter.grad is not None for parameter in heads.image_heads.parameters())


def test_half_precision_rows_give_float32_embeddings():
    heads = make_heads(main=ImageHeadConfig(width=8)).bfloat16()
    assert heads.image("main", torch.randn(4, 12).bfloat16()).dtype == torch.float32


def test_depth_head_reads_the_width_of_its_readout():
    heads = make_heads(main=ImageHeadConfig(width=8), depth=ImageHeadConfig(width=4, readout="depth"))
    assert heads.image("depth", torch.randn(3, 6)).shape == (3, 4)
    assert heads.image_widths == {"main": 8, "depth": 4}
    assert heads.text_widths == {"main": 8}


def test_radfinder_head_ends_in_weights_of_unit_length():
    heads = make_heads(main=ImageHeadConfig(kind="radfinder", width=8, hidden=16))
    last = heads.image_heads["main"].layers[-1]
    effective = last(torch.eye(256)).T
    torch.testing.assert_close(effective.norm(dim=1), torch.ones(8))
    with torch.no_grad():
        last.direction.mul_(7)
    torch.testing.assert_close(last(torch.eye(256)).T, effective)


def test_copy_starts_equal_and_is_trained_on_its_own():
    heads = make_heads(main=ImageHeadConfig(kind="mlp", width=8, hidden=16), disease=ImageHeadConfig(copy="main"))
    rows = torch.randn(4, 12)
    with torch.no_grad():
        for parameter in heads.image_heads["main"].parameters():
            parameter.add_(1.0)  # as if pretrained weights had been loaded
    assert heads.copy_declared() == ["image.disease"]
    torch.testing.assert_close(heads.image("disease", rows), heads.image("main", rows))
    heads.image("disease", rows).sum().backward()
    assert all(parameter.grad is None for parameter in heads.image_heads["main"].parameters())


def test_copies_are_not_made_again_after_resuming():
    images = {"main": ImageHeadConfig(width=8), "disease": ImageHeadConfig(copy="main")}
    trained = make_heads(**images)
    trained.copy_declared()
    with torch.no_grad():
        trained.image_heads["disease"].layers[0].weight.mul_(3)
    resumed = make_heads(**images)
    resumed.load_state_dict(trained.state_dict())
    assert resumed.copy_declared() == []
    torch.testing.assert_close(
        resumed.image_heads["disease"].layers[0].weight, trained.image_heads["disease"].layers[0].weight
    )


@pytest.mark.parametrize(
    ("image", "message"),
    [
        ({"a": ImageHeadConfig(copy="b")}, r"copies 'b', which is not a head of its own. Copy one of none"),
        (
            {"a": ImageHeadConfig(), "b": ImageHeadConfig(copy="a"), "c": ImageHeadConfig(copy="b")},
            r"Copy one of \['a'\]",
        ),
        ({"a": ImageHeadConfig(), "b": ImageHeadConfig(copy="a", width=3)}, r"takes its settings; remove width"),
        (
            {"a": ImageHeadConfig(readout="lung")},
            r"reads the readout 'lung', but the model makes \['depth', 'global'\]",
        ),
    ],
)
def test_configurations_that_cannot_be(image, message):
    with pytest.raises(ConfigError, match=message):
        make_heads(**image)


def test_unknown_names_list_the_known_ones():
    heads = make_heads(main=ImageHeadConfig(width=8))
    with pytest.raises(ConfigError, match=r"no image head 'mian'.*\['main'\]"):
        heads.image("mian", torch.zeros(1, 12))
    with pytest.raises(ConfigError, match=r"no text head 'prompts'"):
        heads.text("prompts", torch.zeros(1, 5))
    with pytest.raises(ConfigError, match=r"no logit head 'organ'"):
        heads.logit("organ")
    with pytest.raises(ConfigError, match=r"reads rows of width 12, but got 6"):
        heads.image("main", torch.zeros(1, 6))


def test_logit_starts_as_declared():
    heads = Heads(
        HeadsConfig(logit={"main": LogitConfig(), "organ": LogitConfig(scale=14.3, bias=0, learn=False)}), WIDTHS, 5
    )
    scale, bias = heads.logit("main")
    assert (scale.item(), bias.item()) == pytest.approx((10, -10))
    assert heads.logits["main"].log_scale.item() == pytest.approx(math.log(10))
    assert not any(parameter.requires_grad for parameter in heads.logits["organ"].parameters())
    with pytest.raises(ConfigError, match=r"must lie in \(0, 100\]"):
        LogitConfig(scale=101) and Heads(HeadsConfig(logit={"main": LogitConfig(scale=101)}), WIDTHS, 5)


def test_logit_scale_stops_at_100_and_can_come_back():
    logit = Heads(HeadsConfig(), WIDTHS, 5).logits["main"]
    with torch.no_grad():
        logit.log_scale.fill_(10.0)
    scale, _ = logit()
    assert scale.item() == pytest.approx(100)
    (up,) = torch.autograd.grad(-logit()[0], logit.log_scale)
    (down,) = torch.autograd.grad(logit()[0], logit.log_scale)
    assert up == 0
    assert down > 0


@pytest.mark.parametrize("kind", ["linear", "mlp", "radfinder"])
def test_no_parameter_of_a_standardised_head_has_a_gradient_of_rounding_alone(kind):
    """Adam would make full steps of it, which running means follow late."""
    head = make_heads(main=ImageHeadConfig(kind=kind, width=8, hidden=16, standardize=True)).double()
    embedded = head.image("main", torch.randn(6, 12, dtype=torch.float64))
    (embedded * torch.randn(6, 8, dtype=torch.float64)).sum().backward()
    norms = {name: float(parameter.grad.norm()) for name, parameter in head.image_heads.named_parameters()}
    assert min(norms.values()) > 1e-9, norms


def test_standardize_matches_batch_norm_without_affine():
    ours, theirs = BatchStandardize(5).double(), nn.BatchNorm1d(5, affine=False).double()
    rows = (torch.randn(7, 5, dtype=torch.float64) * 3 + 100).requires_grad_()
    weight = torch.randn(7, 5, dtype=torch.float64)
    (expected,) = torch.autograd.grad((theirs(rows) * weight).sum(), rows)
    (found,) = torch.autograd.grad((ours(rows) * weight).sum(), rows)
    torch.testing.assert_close(ours(rows), theirs(rows), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-10)


def test_running_statistics_are_plain_means_of_the_first_calls():
    standard = BatchStandardize(3)
    calls = [torch.randn(6, 3) + shift for shift in (1.0, 5.0, 9.0)]
    for rows in calls:
        standard(rows)
    torch.testing.assert_close(standard.mean, torch.stack([rows.mean(0) for rows in calls]).mean(0))
    torch.testing.assert_close(standard.variance, torch.stack([rows.var(0, unbiased=False) for rows in calls]).mean(0))
    standard.eval()
    before = standard.mean.clone()
    standard(torch.zeros(4, 3))
    torch.testing.assert_close(standard.mean, before)


@pytest.mark.parametrize("count", [0, 1])
def test_too_few_rows_use_running_statistics_and_leave_them(count):
    standard = BatchStandardize(3)
    standard(torch.randn(6, 3) + 2)
    before = {name: value.clone() for name, value in standard.state_dict().items()}
    rows = torch.randn(count, 3, requires_grad=True)
    found = standard(rows)
    expected = (rows - before["mean"]) / (before["variance"] + 1e-5).sqrt()
    torch.testing.assert_close(found, expected)
    found.sum().backward()
    assert rows.grad.isfinite().all()
    for name, value in standard.state_dict().items():
        torch.testing.assert_close(value, before[name])


def test_two_calls_before_one_backward():
    standard = BatchStandardize(3)
    rows = torch.randn(6, 3, requires_grad=True)
    (standard(rows).square().sum() + standard(rows * 2).pow(3).sum()).backward()
    assert rows.grad.isfinite().all()


@pytest.mark.parametrize("standardize", [False, True])
def test_a_text_that_is_wanted_often_is_projected_once_and_counts_often(standardize):
    torch.manual_seed(0)
    config = HeadConfig(kind="mlp", width=8, hidden=16, layer_norm=True, standardize=standardize)
    heads = Heads(HeadsConfig(text={"main": config}), WIDTHS, text=5).double()
    rows, which = torch.randn(4, 5, dtype=torch.float64, requires_grad=True), torch.tensor([2, 0, 2, 2, 3])
    weight = torch.randn(5, 8, dtype=torch.float64)
    seen = []
    heads.text_heads["main"].layers.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    made = [heads.text("main", rows, which), heads.text("main", rows[which])]
    wanted = [rows, *heads.text_heads.parameters()]
    gradients = [torch.autograd.grad((embedded * weight).sum(), wanted) for embedded in made]
    assert seen == [4, 5]
    for once, often in zip(*gradients, strict=True):
        torch.testing.assert_close(once, often)
