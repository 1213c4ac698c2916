"""Accuracy tools: what they keep equal, what they improve, and what is chosen by measuring."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Collection
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import torchtrt_bridge as trtb
from tests.quantize.nets import Apply, aten, calls, is_dequantized, loader, quantized, relative_error
from torchtrt_bridge.quantize.calibrate import Calibrated, Calibration
from torchtrt_bridge.quantize.draft import Draft
from torchtrt_bridge.quantize.equalize import equalize
from torchtrt_bridge.quantize.measure import Judge
from torchtrt_bridge.quantize.place import Choice, place
from torchtrt_bridge.quantize.progress import Progress
from torchtrt_bridge.quantize.settings import Settings
from torchtrt_bridge.quantize.smooth import smooth

SPREAD = torch.logspace(-1.5, 1.5, 8)


def calibrated(model: nn.Module, data: list[torch.Tensor], **settings: Any) -> Calibrated:
    model.eval()
    with torch.no_grad():
        return Calibration(model, Settings(**settings)).take(data, None, None, Progress(False))


def draft_of(found: Calibrated, kept: Collection[str] = ()) -> Draft:
    return Draft(found.graph.module, found.layers, kept, found.observed)


def uneven(conv: nn.Module) -> nn.Module:
    """A layer whose output channels have ranges that differ a thousandfold."""
    with torch.no_grad():
        conv.weight.mul_(SPREAD.view(-1, *[1] * (conv.weight.dim() - 1)))
        conv.bias.mul_(SPREAD)
    return conv


def apart(between: Callable[[torch.Tensor], torch.Tensor], two: nn.Module) -> nn.Module:
    """A layer with uneven channels, and another one that reads them."""
    return Apply(lambda m, x: m.two(between(m.one(x))), one=uneven(nn.Conv2d(3, 8, 3)), two=two)


CHAINS: dict[str, Callable[[], nn.Module]] = {
    "pointwise": lambda: apart(F.relu, nn.Conv2d(8, 4, 1)),
    "depthwise": lambda: apart(F.relu, nn.Conv2d(8, 8, 3, groups=8)),
    "grouped": lambda: apart(F.leaky_relu, nn.Conv2d(8, 4, 1, groups=2)),
    "relu6": lambda: apart(F.relu6, nn.Conv2d(8, 4, 1)),
    "pooled": lambda: apart(lambda x: F.max_pool2d(F.relu(x), 2), nn.Conv2d(8, 4, 1)),
    "linear": lambda: Apply(
        lambda m, x: m.two(F.relu(m.one(x.flatten(1)))), one=uneven(nn.Linear(192, 8)), two=nn.Linear(8, 4)
    ),
}


@pytest.mark.parametrize("chain", CHAINS)
def test_equalized_channels_compute_the_same(chain: str) -> None:
    data = loader(4, 3, 8, 8)
    model = CHAINS[chain]()
    draft = draft_of(calibrated(model, data))
    equalize(draft)
    (factors,) = draft.factors.values()
    assert factors.max() / factors.min() > 4
    expected = model(data[0])
    torch.testing.assert_close(draft.finished()(data[0])[0], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("chain", ["pointwise", "depthwise", "grouped", "pooled"])  # a ReLU6 bounds its channels
def test_equalized_channels_are_quantized_better(chain: str) -> None:
    ratios = []
    for _ in range(8):  # in a single network the channels that matter may happen to be those with the largest range
        judge = Judge(calibrated(CHAINS[chain](), loader(4, 3, 8, 8)), Settings())
        ratios.append(judge.error(Choice("absmax", equalize=True)) / judge.error(Choice("absmax")))
    assert statistics.median(ratios) < 0.9


BLOCKED = {
    "another reader": Apply(
        lambda m, x: m.two(F.relu(m.one(x))) + F.relu(m.one(x)).sum(), one=nn.Conv2d(3, 8, 1), two=nn.Conv2d(8, 4, 1)
    ),
    "a function between": Apply(
        lambda m, x: m.two(torch.sigmoid(m.one(x))), one=nn.Conv2d(3, 8, 1), two=nn.Conv2d(8, 4, 1)
    ),
    "a residual": Apply(
        lambda m, x: (lambda y: m.two(y) + y)(F.relu(m.one(x))), one=nn.Conv2d(3, 8, 1), two=nn.Conv2d(8, 8, 1)
    ),
    "a shared weight": Apply(
        lambda m, x: m.one(F.relu(m.one(x))), one=nn.Conv2d(3, 3, 1)
    ),
}  # fmt: skip


@pytest.mark.parametrize("reason", BLOCKED)
def test_channels_are_left_alone_where_scaling_would_show(reason: str) -> None:
    draft = draft_of(calibrated(BLOCKED[reason], loader(2, 3, 4, 4)))
    equalize(draft)
    assert draft.factors == {}


def outlying(shape: tuple[int, ...] = (8, 6, 16)) -> list[torch.Tensor]:
    """Inputs with two channels that are fifty times as large as the others."""
    return [x * torch.tensor([50.0, 50.0, *[1.0] * (shape[-1] - 2)]) for x in loader(*shape)]


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_smoothing_computes_the_same(alpha: float) -> None:
    linears = {"q": nn.Linear(16, 8), "k": nn.Linear(16, 8)}
    model, data = Apply(lambda m, x: m.q(x) * m.k(x), **linears).eval(), outlying()
    draft = draft_of(calibrated(model, data))
    smooth(draft, alpha)
    assert len(draft.factors) == 1
    torch.testing.assert_close(draft.finished()(data[0])[0], model(data[0]), rtol=1e-3, atol=1e-3)


def test_smoothing_goes_into_a_layer_norm_that_only_linears_read() -> None:
    model = Apply(lambda m, x: m.one(m.norm(x)), norm=nn.LayerNorm(16), one=nn.Linear(16, 8)).eval()
    with torch.no_grad():
        model.norm.weight[:2] = 40.0
    data = loader(4, 16)
    draft = draft_of(calibrated(model, data))
    smooth(draft, 0.8)
    found = draft.finished()
    assert not calls(found, aten.mul.Tensor)
    torch.testing.assert_close(found(data[0])[0], model(data[0]), rtol=1e-3, atol=1e-3)


def test_smoothing_is_a_product_where_the_layer_norm_has_other_readers() -> None:
    model = Apply(lambda m, x: (lambda y: m.one(y) + y)(m.norm(x)), norm=nn.LayerNorm(16), one=nn.Linear(16, 16))
    draft = draft_of(calibrated(model, loader(4, 16)))
    smooth(draft, 0.8)
    assert len(calls(draft.finished(), aten.mul.Tensor)) == 1


def test_shared_weights_are_not_smoothed() -> None:
    model = Apply(lambda m, x: m.one(torch.tanh(m.one(x))), one=nn.Linear(16, 16))
    draft = draft_of(calibrated(model, outlying()))
    smooth(draft, 0.8)
    assert draft.factors == {}


def test_smoothing_helps_against_outlying_channels() -> None:
    model, data = nn.Sequential(nn.Linear(16, 16), nn.Tanh()), outlying()
    plain = quantized(model, data)
    smoothed = quantized(model, data, smooth=0.5)
    assert relative_error(smoothed(data[0]), model(data[0])) < 0.7 * relative_error(plain(data[0]), model(data[0]))


@pytest.mark.parametrize(
    ("model", "shape"),
    [
        (nn.Linear(32, 8), (64, 32)),
        (nn.Linear(32, 8, bias=False), (64, 32)),
        (nn.Conv2d(8, 8, 1), (16, 8, 4, 4)),
        (nn.Conv2d(8, 8, 1, groups=4), (16, 8, 4, 4)),
    ],
    ids=["linear", "no bias", "convolution", "grouped"],
)
@pytest.mark.parametrize("dtype", ["int8", "int4"])
def test_corrected_biases_take_out_the_mean_error(model: nn.Module, shape: tuple[int, ...], dtype: str) -> None:
    if dtype == "int4" and not isinstance(model, nn.Linear):
        dtype = "fp8"
    data = [x + 3 for x in loader(*shape)]
    options: dict[str, Any] = {"dtype": dtype, "block_size": 16}
    plain, corrected = (quantized(model, data, correct_bias=c, **options) for c in (False, True))
    dims = [dim for dim in range(len(shape)) if dim != 1]

    def mean_error(found: nn.Module) -> float:
        with torch.no_grad():
            return float(torch.cat([found(x) - model(x) for x in data]).mean(dims).abs().max())

    assert mean_error(corrected) < 0.3 * mean_error(plain)


def fragile() -> nn.Module:
    """A network of which one layer alone suffers from eight bits: its input has a few huge values."""
    layers = {"easy": nn.Linear(16, 16), "hard": nn.Linear(16, 16), "last": nn.Linear(16, 4)}
    model = Apply(lambda m, x: m.last(torch.tanh(m.hard(m.easy(x) ** 5))), **layers)
    return model.eval()


def test_the_sensitivity_of_each_layer_is_reported() -> None:
    found = trtb.quantize(fragile(), loader(64, 16), max_error=None, sensitivity=True, table=False)
    alone = {layer.name: layer.alone for layer in found.quantization.layers}
    assert max(alone, key=lambda name: alone[name]) == "hard"
    assert all(error > 0 for error in alone.values())
    assert "error alone" in str(found.quantization)


def test_layers_stay_float_until_the_error_is_small() -> None:
    loose, tight = (
        trtb.quantize(fragile(), loader(64, 16), max_error=limit, table=False).quantization for limit in (None, 0.025)
    )
    assert loose.quantized == 3
    assert loose.error > 0.025
    assert tight.error <= 0.025
    assert {layer.name: layer.reason for layer in tight.layers if layer.dtype == "float"} == {
        "hard": "kept for accuracy"
    }


def test_the_error_told_is_that_of_the_model_delivered() -> None:
    data = loader(64, 16, batches=1) * 2  # the one that is held back changes no range
    model = fragile()
    found = trtb.quantize(model, data, max_error=None, table=False)
    assert found.quantization.error == pytest.approx(relative_error(found(data[1]), model(data[1])), rel=1e-3)


def test_what_was_held_back_sets_the_ranges_in_the_end() -> None:
    batch = torch.randn(8, 4)
    data = [batch, batch * 10]  # the second is held back
    options = {"method": "absmax", "smooth": None, "equalize": False, "correct_bias": False, "table": False}
    measured = trtb.quantize(nn.Sequential(nn.Linear(4, 4)), data, max_error=10.0, **options)
    (layer,) = measured.quantization.layers
    assert layer.scale == pytest.approx(float(data[1].abs().max()) / 127)


def test_a_score_is_that_of_the_model_delivered() -> None:
    data = loader(64, 16, batches=2)
    model = fragile()
    found = trtb.quantize(
        model, data, evaluate=lambda m: -relative_error(m(data[1]), model(data[1])), max_error=None, table=False
    )
    assert found.quantization.score == pytest.approx(-relative_error(found(data[1]), model(data[1])), rel=1e-3)


def test_the_fewest_layers_stay_float_within_the_budget() -> None:
    model, data = fragile(), loader(64, 16)
    with torch.no_grad():
        expected = model(data[1])

    def evaluate(candidate: nn.Module) -> float:
        return 1 - relative_error(candidate(data[1]), expected)

    found = trtb.quantize(model, data, evaluate=evaluate, max_drop=0.025, max_error=None, table=False).quantization
    assert [layer.name for layer in found.layers if layer.dtype == "float"] == ["hard"]
    assert found.float_score == pytest.approx(1.0)
    assert found.score >= 0.975
    assert "in floating point 1" in found.headline()


def test_a_budget_that_nothing_breaks_keeps_no_layer() -> None:
    found = trtb.quantize(fragile(), loader(8, 16), evaluate=lambda m: 1.0, max_drop=0.0, table=False)
    assert found.quantization.quantized == 3


def test_a_budget_that_every_layer_breaks_keeps_all() -> None:
    model = fragile()
    score = lambda candidate: float(candidate is model) if isinstance(candidate, Apply) else _share(candidate)  # noqa: E731
    found = trtb.quantize(model, loader(8, 16), evaluate=score, max_drop=0.0, table=False)
    assert found.quantization.quantized == 0


def _share(candidate: Any) -> float:
    """1.0 for a model without any quantized layer."""
    return float(not any(is_dequantized(node) for node in candidate.graph.nodes))


def test_a_score_must_be_a_number() -> None:
    with pytest.raises(trtb.CalibrationError, match="must give a number"):
        trtb.quantize(fragile(), loader(8, 16), evaluate=lambda m: "good", max_drop=0.1, table=False)


@pytest.mark.parametrize("dtype", ["int8", "fp8", "int4"])
def test_auto_is_never_worse_than_the_plainest_choice(dtype: str) -> None:
    data = outlying((32, 16))
    model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 16), nn.Tanh(), nn.Linear(16, 4)).eval()
    found = calibrated(model, data, dtype=dtype, block_size=16)
    plain = Judge(found, Settings(dtype=dtype, block_size=16)).error(Choice("absmax"))
    report = trtb.quantize(model, data, dtype=dtype, block_size=16, max_error=None, table=False).quantization
    assert report.error <= plain


@pytest.mark.parametrize("dtype", ["int8", "fp8"])
def test_what_is_rehearsed_is_what_is_delivered(dtype: str) -> None:
    data = loader(4, 3, 8, 8)
    settings = Settings(dtype=dtype)
    found = calibrated(CHAINS["pointwise"](), data, dtype=dtype)
    choice = Choice("mse", equalize=True, correct_bias=True)
    rehearsed, delivered = (place(found, choice, settings, rehearse=r).module(data[0])[0] for r in (True, False))
    torch.testing.assert_close(rehearsed, delivered, rtol=1e-3, atol=2e-2 * float(delivered.detach().abs().max()))
