"""Weights, optimizer groups, texts, meters and recolouring of a step."""

import csv
import math
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from safetensors.torch import save_file
from torch import nn

from ctgrounding.errors import CheckpointError, ConfigError
from ctgrounding.tasks.balance import Balanced, LinearRamp, balance, term_names
from ctgrounding.tasks.checks import check_numbers
from ctgrounding.tasks.initial_weights import load_initial
from ctgrounding.tasks.meters import PackedMeter, send
from ctgrounding.tasks.optimizers import AdamWCosine
from ctgrounding.tasks.pretrain import Pretrain
from ctgrounding.tasks.recolour import Recolour, box_mask
from ctgrounding.tasks.texts import FixedTexts
from ctgrounding.types import Term


def term(total: float, weight: float) -> Term:
    return Term(torch.tensor(total, requires_grad=True), torch.tensor(weight))


class TestBalance:
    def test_balance__divides_by_weight_and_adds_by_role(self) -> None:
        terms = {
            "global": {"siglip": term(6.0, 3.0)},
            "organ": {"anatomy": term(1.0, 2.0), "diagnosis": term(8.0, 4.0)},
        }
        balanced = balance(terms, {"global": 1.0, "organ": 0.5})
        assert balanced.loss.item() == pytest.approx(6 / 3 + 0.5 * (1 / 2 + 8 / 4))
        assert term_names(terms) == ["global/siglip", "organ/anatomy", "organ/diagnosis"]

    def test_balance__a_term_without_elements_is_zero_and_attached(self) -> None:
        empty = term(0.0, 0.0)
        balanced = balance({"snippet": {"depth": empty}}, {"snippet": 1.0})
        balanced.loss.backward()
        assert balanced.loss.item() == 0.0
        assert empty.total.grad.item() == 0.0

    def test_balance__no_objective(self) -> None:
        with pytest.raises(ConfigError, match="No objective is active"):
            balance({}, {})

    def test_linear_ramp__refuses_to_run_backwards(self) -> None:
        assert [LinearRamp(1.0, 3.0, 2, 4).at(step) for step in range(6)] == [1, 1, 1, 2, 3, 3]
        with pytest.raises(ConfigError, match="later to_step"):
            LinearRamp(0.0, 1.0, 5, 5)

    @pytest.mark.parametrize("value", [-1.0, math.nan, math.inf])
    def test_linear_ramp__weights_that_are_none(self, value) -> None:
        with pytest.raises(ConfigError, match=f"end of LinearRamp is {value}"):
            LinearRamp(1.0, value)
        with pytest.raises(ConfigError, match=f"start of LinearRamp is {value}"):
            LinearRamp(value, 1.0)


class TestAdamWCosine:
    def model(self) -> nn.Module:
        return nn.ModuleDict({"image": nn.Linear(3, 3), "norm": nn.LayerNorm(3), "position": nn.Embedding(2, 3)})

    def test_build__vectors_and_named_parameters_do_not_decay(self) -> None:
        model = self.model()
        optimizer, _ = AdamWCosine(lr=1.0, weight_decay=0.1).build(model.named_parameters(), 10)
        decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
        found = {name: decay[id(parameter)] for name, parameter in model.named_parameters()}
        assert found == {
            "image.weight": 0.1, "image.bias": 0.0, "norm.weight": 0.0, "norm.bias": 0.0, "position.weight": 0.0,
        }  # fmt: skip

    def test_build__first_matching_pattern_scales_the_rate(self) -> None:
        model = self.model()
        recipe = AdamWCosine(lr=2.0, lr_scale={"image.*bias": 0.5, "image": 0.1}, warmup_fraction=0.0)
        optimizer, _ = recipe.build(model.named_parameters(), 10)
        rate = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
        assert rate[id(model["image"].bias)] == pytest.approx(1.0)
        assert rate[id(model["image"].weight)] == pytest.approx(0.2)
        assert rate[id(model["norm"].weight)] == pytest.approx(2.0)

    def test_build__unknown_pattern_and_frozen_model(self) -> None:
        model = self.model()
        with pytest.raises(ConfigError, match="match no parameter"):
            AdamWCosine(lr_scale={"imgae": 0.1}).build(model.named_parameters(), 10)
        with pytest.raises(ConfigError, match="Every parameter is frozen"):
            AdamWCosine().build(model.requires_grad_(False).named_parameters(), 10)

    @pytest.mark.parametrize(
        ("changes", "says"), [({"lr": math.nan}, "Learning rate is nan"), ({"weight_decay": math.nan}, "has nan and")]
    )
    def test_init__refuses_rates_that_are_none(self, changes, says) -> None:
        with pytest.raises(ConfigError, match=says):
            AdamWCosine(**changes)

    def test_factor__rises_then_falls_to_the_final_share(self) -> None:
        recipe = AdamWCosine(warmup_fraction=0.2, final_fraction=0.1)
        factors = [recipe.factor(step, 100) for step in range(101)]
        assert factors[:20] == sorted(factors[:20])
        assert factors[20:] == sorted(factors[20:], reverse=True)
        assert max(factors) == 1.0
        assert factors[100] == pytest.approx(0.1)


class TestFixedTexts:
    def tokenize(self, text: str) -> torch.Tensor:
        return torch.tensor([ord(letter) for letter in text])

    def batch(self, *texts: str) -> dict[str, object]:
        length = max(map(len, texts), default=0)
        tokens = torch.zeros(len(texts), length, dtype=torch.int64)
        for row, text in enumerate(texts):
            tokens[row, : len(text)] = self.tokenize(text)
        return {"texts": list(texts), "tokens": tokens, "token_mask": tokens > 0}

    def test_step__each_text_once_and_found_again(self) -> None:
        fixed = FixedTexts({"organ": ["liver", "spleen"], "disease": ["cyst", "liver"]}, self.tokenize)
        batch = self.batch("spleen", "ab")
        texts = fixed.step(batch, {"organ": torch.tensor([0, 1]), "disease": torch.tensor([1])}, pad_id=0)
        words = ["".join(map(chr, row[mask].tolist())) for row, mask in zip(texts.tokens, texts.mask, strict=True)]
        assert words == ["spleen", "ab", "liver"]
        assert texts.planned_rows["organ"].tolist() == [2, 0]
        assert texts.planned_rows["disease"].tolist() == [2]

    def test_step__nothing_planned_leaves_the_batch_alone(self) -> None:
        batch = self.batch("ab")
        texts = FixedTexts({"organ": ["liver"]}, self.tokenize).step(batch, {"organ": torch.arange(0)}, pad_id=0)
        assert texts.tokens is batch["tokens"]
        assert texts.planned_rows["organ"].shape == (0,)


def test_packed_meter__weighted_means_and_a_fresh_start() -> None:
    meter = PackedMeter()
    meter.add(["a", "b"], torch.tensor([2.0, 0.0]), torch.tensor([1.0, 0.0]))
    meter.add(["a", "b"], torch.tensor([4.0, 3.0]), torch.tensor([2.0, 3.0]))
    assert meter.reduce() == {"a": 2.0, "b": 1.0}
    assert meter.reduce() == {}


def test_packed_meter__a_loss_that_is_no_number_is_told_from_none() -> None:
    meter = PackedMeter()
    meter.add(["a", "b", "c"], torch.tensor([math.nan, 0.0, 2.0]), torch.tensor([1.0, 0.0, 1.0]))
    assert [math.isnan(value) for value in meter.reduce().values()] == [True, True, False]
    assert meter.empty == {"b"}


def test_record__a_fit_that_diverges_does_not_log_a_loss_of_nought() -> None:
    def logged(total: float) -> float:
        sums = torch.tensor([total, 0.0], dtype=torch.float64), torch.tensor([2.0, 0.0], dtype=torch.float64)
        balanced = Balanced(torch.tensor(0.0), *sums)
        task = SimpleNamespace(
            _meter=PackedMeter(), _logs_now=True, loggers=[], global_step=0, current_epoch=0, log=lambda *_, **__: None
        )
        names, weights = ["global/contrast", "snippet/depth"], {"global": 1.5, "snippet": 1.0}
        Pretrain._record(task, names, balanced, weights, {"scan_id": []}, 0, {})
        return task.numbers["train/loss"]

    assert logged(4.0) == 3.0
    assert math.isnan(logged(math.nan))


class TestRecolour:
    box = torch.tensor([[[0, 2], [1, 3], [0, 4]], [[0, 1], [0, 3], [0, 4]]])

    def test_box_mask__against_slices(self) -> None:
        mask = box_mask(self.box, torch.Size((2, 3, 4)))
        expected = torch.zeros(2, 2, 3, 4, dtype=torch.bool)
        expected[0, 0:2, 1:3, 0:4] = True
        expected[1, 0:1, 0:3, 0:4] = True
        assert torch.equal(mask, expected)

    def test_call__padding_stays_air_and_the_draw_is_keyed(self) -> None:
        image = torch.full((2, 2, 3, 4), 40.0)
        recolour = Recolour(contrast=0.1, shift_hu=10.0, noise_hu=5.0)
        first, again, other = (recolour(image, self.box, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1))
        assert torch.equal(first, again)
        assert not torch.equal(first, other)
        padding = ~box_mask(self.box, image.shape[1:])
        assert (first[padding] == -1024).all()
        assert (first[~padding] - 40).abs().max() < 40 * 0.1 + 10 + 5 * 6

    @pytest.mark.parametrize("changes", [{"noise_hu": -1.0}, {"noise_hu": math.nan}, {"shift_hu": math.inf}])
    def test_init__refuses_noise_that_is_none(self, changes) -> None:
        with pytest.raises(ConfigError, match="noise_hu >= 0"):
            Recolour(**changes)


@pytest.mark.parametrize(
    ("number", "says"),
    [((0, 0), "texts_per_pass is 0"), ((-1, 0), "texts_per_pass is -1"), ((None, 2**63), "more than 64 bits")],
)
def test_check_numbers__what_no_step_can_be_made_with(number, says) -> None:
    check_numbers(1, -(2**63))
    with pytest.raises(ConfigError, match=says):
        check_numbers(*number)


def test_logs_now__nought_is_never() -> None:
    def says(step: int, every: int) -> bool:
        return Pretrain._logs_now.fget(
            SimpleNamespace(trainer=SimpleNamespace(global_step=step, log_every_n_steps=every))
        )

    assert [says(step, 2) for step in range(4)] == [False, True, False, True]
    assert not says(0, 0)


def test_initial_weights__files_of_another_kind_and_empty_ones_are_refused(tmp_path) -> None:
    path = tmp_path / "weights.safetensors"
    path.write_bytes(b"PK no tensors")
    with pytest.raises(CheckpointError, match=r"initial_weights .* cannot be read as \.safetensors"):
        load_initial(nn.Linear(2, 2), path)
    save_file({}, path)
    with pytest.raises(CheckpointError, match="holds no tensors"):
        load_initial(nn.Linear(2, 2), path)


def test_send__a_row_is_on_disk_at_once(tmp_path) -> None:
    logger = CSVLogger(str(tmp_path), name="", version="")
    module = SimpleNamespace(loggers=[logger], global_step=4, current_epoch=1)
    send(module, {"train/loss": 2.0})
    with (tmp_path / "metrics.csv").open(newline="", encoding="utf-8") as stream:
        (row,) = csv.DictReader(stream)
    assert (row["train/loss"], row["epoch"], row["step"]) == ("2.0", "1.0", "4")
