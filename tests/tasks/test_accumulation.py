"""A step's gradient does not depend on how the step is cut."""

from functools import partial

import pytest
import torch
from torch import nn

from ctgrounding.tasks.accumulation import step_loss, zero_of
from ctgrounding.tasks.randomness import set_seed


class Pair(nn.Module):
    """An encoder with dropout and a head; the loss couples all rows, as a contrastive loss does."""

    def __init__(self, dropout: float) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.encoder = nn.Sequential(nn.Linear(5, 7), nn.GELU(), nn.Dropout(dropout), nn.Linear(7, 4))
        self.head = nn.Linear(4, 3)
        self.double()

    def encode(self, rows: torch.Tensor, key: int) -> tuple[torch.Tensor, ...]:
        set_seed(3, key)
        return (self.encoder(rows),)

    def loss(self, outputs: list[tuple[torch.Tensor, ...]]) -> torch.Tensor:
        embedded = self.head(torch.cat([group[0] for group in outputs]))
        return torch.logsumexp(embedded @ embedded.T, dim=1).sum()


def gradients(pieces: int, dropout: float, *, replay: bool) -> tuple[float, list[torch.Tensor]]:
    model = Pair(dropout)
    rows = torch.randn(6, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    segments = [partial(model.encode, chunk, key) for key, chunk in enumerate(rows.chunk(pieces))]
    loss = step_loss(segments, model.loss, list(model.parameters()), replay=replay)
    loss.backward()
    return loss.item(), [parameter.grad for parameter in model.parameters()]


@pytest.mark.parametrize("pieces", [1, 2, 3, 6])
def test_step_loss__any_cut_gives_the_gradient_of_the_whole(pieces: int) -> None:
    value, whole = gradients(1, 0.0, replay=False)
    cut_value, cut = gradients(pieces, 0.0, replay=True)
    assert cut_value == pytest.approx(value, rel=1e-12)
    for expected, found in zip(whole, cut, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_step_loss__replays_repeat_their_dropout() -> None:
    _, kept = gradients(3, 0.5, replay=False)
    _, replayed = gradients(3, 0.5, replay=True)
    for expected, found in zip(kept, replayed, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_step_loss__dropout_that_differs_is_noticed() -> None:
    model = Pair(0.5)
    rows = torch.ones(6, 5, dtype=torch.float64)
    torch.manual_seed(0)
    segments = [lambda: (model.encoder(rows),), lambda: (model.encoder(rows),)]  # no seed of their own
    step_loss(segments, model.loss, list(model.parameters()), replay=True).backward()
    drifting = model.encoder[0].weight.grad
    _, kept = gradients(2, 0.5, replay=False)
    assert not torch.allclose(drifting, kept[0])


def test_step_loss__bf16_autocast_keeps_encoder_gradients() -> None:
    model = Pair(0.0).float()
    rows = torch.randn(4, 5, generator=torch.Generator().manual_seed(1))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        segments = [partial(model.encode, chunk, key) for key, chunk in enumerate(rows.chunk(2))]
        loss = step_loss(segments, model.loss, list(model.parameters()), replay=True)
    loss.backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in model.encoder[0].parameters())


def test_zero_of__reaches_every_trainable_parameter() -> None:
    model = Pair(0.0)
    model.head.bias.requires_grad_(False)
    zero_of(model.parameters()).backward()
    reached = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert reached == {name for name, _ in model.named_parameters()} - {"head.bias"}
