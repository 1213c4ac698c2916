"""The search: sensitivities, limits of the error and of the score, and the errors that it measures."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import torchtrt_bridge as trtb
from tests.quantize.nets import Apply, calibrated, is_dequantized, loader, outlying, relative_error
from torchtrt_bridge.quantize.config import settings_from
from torchtrt_bridge.quantize.qdq import Choice
from torchtrt_bridge.quantize.search import AccuracyMeter, _errors, _thinned


def fragile() -> nn.Module:
    """A network of which a single layer suffers from eight bits: its input has a few huge values."""
    layers = {"easy": nn.Linear(16, 16), "hard": nn.Linear(16, 16), "last": nn.Linear(16, 4)}
    model = Apply(lambda m, x: m.last(torch.tanh(m.hard(m.easy(x) ** 5))), **layers)
    return model.eval()


def test_the_sensitivity_of_each_layer_is_reported() -> None:
    found = trtb.quantize(fragile(), loader(64, 16), max_error=None, sensitivity=True, table=False)
    errors = {layer.name: layer.sensitivity for layer in found.quantization.layers}
    assert max(errors, key=lambda name: errors[name]) == "hard"
    assert all(error > 0 for error in errors.values())
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


def test_the_reported_error_is_that_of_the_model() -> None:
    data = loader(64, 16, batches=1) * 2  # the holdout changes no range
    model = fragile()
    found = trtb.quantize(model, data, max_error=None, table=False)
    assert found.quantization.error == pytest.approx(relative_error(found(data[1]), model(data[1])), rel=1e-3)


def test_the_holdout_counts_for_the_ranges_in_the_end() -> None:
    batch = torch.randn(8, 4)
    data = [batch, batch * 10]  # the second is the holdout
    options = {"method": "absmax", "smooth": None, "equalize": False, "correct_bias": False, "table": False}
    measured = trtb.quantize(nn.Sequential(nn.Linear(4, 4)), data, max_error=10.0, **options)
    (layer,) = measured.quantization.layers
    assert layer.scale == pytest.approx(float(data[1].abs().max()) / 127)


def test_the_reported_score_is_that_of_the_model() -> None:
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
    plain = AccuracyMeter(found, settings_from(dtype=dtype, block_size=16)).error(Choice("absmax"))
    report = trtb.quantize(model, data, dtype=dtype, block_size=16, max_error=None, table=False).quantization
    assert report.error <= plain


# Errors ---------------------------------------------------------------------------------------------------------------


def test_the_worst_sample_is_not_hidden_by_the_mean() -> None:
    found = _errors(torch.tensor([0.0, 0.0, 0.0, 4.0]), torch.full((4,), 16.0))
    assert found.mean == pytest.approx(0.25)
    assert found.worst == pytest.approx(0.5)


def test_a_small_sample_is_compared_with_the_mean_size() -> None:
    found = _errors(torch.tensor([0.0, 1.0]), torch.tensor([8.0, 0.0]))
    assert found.worst == pytest.approx(0.5)


def test_outputs_of_zero() -> None:
    assert _errors(torch.zeros(2), torch.zeros(2)).worst == 0
    assert _errors(torch.ones(2), torch.zeros(2)).worst == 1


@pytest.mark.parametrize(
    ("shape", "samples", "rows"), [((4, 3, 2), 4, 4), ((100, 4), 2, 1), ((4,), 4, 1), ((), 4, 1), ((4, 3), None, 1)]
)
def test_rows_are_samples_where_the_first_dimension_is_that_of_the_samples(
    shape: tuple[int, ...], samples: int | None, rows: int
) -> None:
    assert len(_thinned(torch.ones(shape), samples)) == rows


def with_a_rare_layer() -> nn.Module:
    """A network of which one layer computes rare samples only, and loses what it has of them to a large value."""
    layers = {"first": nn.Linear(8, 16), "second": nn.Linear(16, 8), "rare": nn.Linear(8, 8, bias=False)}

    def forward(m: Any, x: torch.Tensor) -> torch.Tensor:
        is_rare, x = x[:, :1] > 5, x[:, 1:]
        return torch.where(is_rare, m.rare(x * is_rare) * 1000, m.second(torch.tanh(m.first(x))))

    model = Apply(forward, **layers).eval()
    with torch.no_grad():
        model.rare.weight[:, 0] = 0
    return model


def with_rare_samples(batches: int = 14) -> list[torch.Tensor]:
    """Return batches of which the first has a rare sample, and the last two that are held out."""
    generator = torch.Generator().manual_seed(0)
    found = [torch.randn(32, 9, generator=generator) for _ in range(batches)]
    for number in (0, 9, 13):
        found[number][0] = torch.tensor([9.0, 1.0, *[0.003] * 7])
    return found


def test_a_layer_that_spoils_one_sample_only_is_the_one_that_stays_float() -> None:
    options = {"smooth": None, "correct_bias": False, "equalize": False, "table": False}
    found = trtb.quantize(with_a_rare_layer(), with_rare_samples(), method="absmax", max_error=0.04, **options)
    assert [layer.name for layer in found.quantization.layers if layer.dtype == "float"] == ["rare"]
    assert not found.quantization.notes


def test_the_report_says_why_no_layer_is_quantized() -> None:
    found = trtb.quantize(fragile(), loader(64, 16), max_error=1e-6, table=False).quantization
    assert found.quantized == 0
    (note,) = [note for note in found.notes if "No layer is quantized" in note]
    assert "max_error=1e-06" in note
    assert "A larger max_error" in note
