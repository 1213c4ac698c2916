"""Models and calibration data that cannot be used: the error says where, why, and the remedy."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import torchtrt_bridge as trtb
from tests.quantize.nets import PLAIN, Apply, loader, quantized
from torchtrt_bridge.errors import CalibrationError
from torchtrt_bridge.quantize.qdq import QUANTIZE

X = loader(4, 8)


def used_up() -> Iterator[torch.Tensor]:
    batches = iter(X)
    list(batches)
    return batches


def net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4)).eval()


def with_value(value: float) -> list[torch.Tensor]:
    batches = [x.clone() for x in X]
    batches[2][1, 3] = value
    return batches


BAD: dict[str, tuple[Any, str]] = {
    "empty": ([], "gave no batch.*empty, or a generator that was used up"),
    "used up": (used_up(), "gave no batch"),
    "a batch of no samples": ([torch.ones(0, 8)], "Batch 0 is empty"),
    "one of the batches of no samples": ([X[0], torch.ones(0, 8)], "Batch 1 is empty"),
    "not iterable": (3, "is a int, which gives no batches"),
    "None": (None, "needs a loader"),
    "text": (["some text"], "Batch 0 .* is a str.*forward="),
    "numbers": ([(1, 2)], "Batch 0 .* is a tuple.*forward="),
    "other names": ([{"pixels": X[0]}], "hold pixels.*takes none of these"),
    "NaN": (
        with_value(float("nan")),
        "Batch 2 gives NaN or infinity in the input of the layer .0. .*the first to see one",
    ),
    "infinity": (with_value(float("inf")), "Batch 2 gives NaN or infinity"),
    "another width": ([X[0], torch.ones(4, 9)], r"Batch 1: .* of shape \(4, 9\).*float32\[.*8\]"),
    "another rank": ([X[0], torch.ones(2, 4, 8)], "Batch 1: .*dynamic_shapes"),
    "another dtype": ([X[0], X[1].double()], r"Batch 1: .*torch\.float64"),
    "a wrong dtype": ([x.double() for x in X], r"torch\.float64.*weights.*torch\.float32.*batch\.to"),
    "a wrong width": ([torch.ones(4, 9)], "could not capture"),
    "on no device": ([X[0], torch.ones(4, 8, device="meta")], "Batch 1|batch 1"),
}


@pytest.mark.first(10)
@pytest.mark.parametrize("kind", BAD)
@pytest.mark.parametrize("method", ["absmax", "auto"])
def test_bad_data_is_refused_with_a_reason(kind: str, method: str) -> None:
    batches, message = BAD[kind]
    error = trtb.BridgeError if kind == "a wrong width" else CalibrationError
    with pytest.raises(error, match=message):
        trtb.quantize(net(), batches, method=method, table=False)


def test_the_first_layer_that_sees_nan_is_named() -> None:
    model = Apply(lambda m, x: m.two(torch.log(m.one(x))), one=nn.Linear(8, 8), two=nn.Linear(8, 4)).eval()
    with pytest.raises(CalibrationError, match=r"input of the layer 'two' \(aten.log.default \(node log"):
        quantized(model, X)


def test_a_loader_that_raises_leaves_no_file(tmp_path: Path) -> None:
    def broken() -> Iterator[torch.Tensor]:
        yield from X[:2]
        raise OSError("disk gone")

    path = tmp_path / "calibration.json"
    with pytest.raises(CalibrationError, match="failed at batch 2: OSError: disk gone"):
        quantized(net(), broken(), calibration=path)
    assert list(tmp_path.iterdir()) == []


def test_a_model_that_raises_is_reported_with_its_batch() -> None:
    model = nn.Sequential(nn.Embedding(5, 8), nn.Linear(8, 4)).eval()
    with pytest.raises(CalibrationError, match=r"fails on batch 1 of the loader: IndexError"):
        quantized(model, [torch.zeros(2, 3).long(), torch.full((2, 3), 9)])


@pytest.mark.parametrize("method", ["absmax", "moving_average", "percentile", "mse", "entropy", "auto"])
@pytest.mark.parametrize("value", [0.0, 2.5])
def test_constant_activations_have_scales_above_zero(value: float, method: str) -> None:
    found = trtb.quantize(net(), [torch.full((4, 8), value)] * 4, method=method, table=False)
    scales = [
        getattr(found, node.args[1].target) for node in found.graph.find_nodes(op="call_function", target=QUANTIZE)
    ]
    assert len(scales) == 2
    assert all(bool((scale > 0).all()) for scale in scales)
    assert torch.isfinite(found(torch.full((4, 8), value))).all()


def test_inputs_of_zeros_are_noted() -> None:
    found = quantized(net(), [torch.zeros(4, 8)] * 2)
    assert any("zero in all batches" in note and ": 0." in note for note in found.quantization.notes)


def test_layers_that_no_data_reaches_are_noted() -> None:
    model = Apply(lambda m, x: m.one(x), one=nn.Linear(8, 8), idle=nn.Linear(8, 8))
    found = quantized(model, X)
    assert any("does not reach: idle" in note for note in found.quantization.notes)


def test_layers_that_only_empty_data_reaches_stay_float() -> None:
    model = Apply(lambda m, x: m.one(x).sum() + m.two(x[:0]).sum(), one=nn.Linear(8, 8), two=nn.Linear(8, 8))
    found = quantized(model, X)
    (entry,) = [layer for layer in found.quantization.layers if layer.name == "two"]
    assert entry.dtype == "float"
    assert "no calibration data" in entry.reason


def test_a_model_in_training_mode_is_quantized_as_in_evaluation() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.5), nn.BatchNorm1d(8))
    model[1].eval()
    found = trtb.quantize(model, X, **PLAIN)
    assert [part.training for part in model.modules()] == [True, True, False, True]
    assert any("training mode" in note for note in found.quantization.notes)
    assert int(model[2].num_batches_tracked) == 0
    torch.testing.assert_close(found(X[0]), found(X[0]), rtol=0, atol=0)


def test_dropout_that_is_always_on_is_noted() -> None:
    model = Apply(lambda m, x: m.one(F.dropout(x, 0.5, training=True)), one=nn.Linear(8, 8))
    found = quantized(model, X)
    assert any("random numbers" in note for note in found.quantization.notes)


def test_a_model_with_state_is_refused() -> None:
    class Counter(nn.Linear):
        def __init__(self) -> None:
            super().__init__(8, 8)
            self.register_buffer("seen", torch.zeros(()))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.seen += 1
            return super().forward(x) + self.seen

    with pytest.raises(CalibrationError, match=r"changes its own buffers .*seen"):
        quantized(Counter(), X)


def test_batches_of_another_size_are_left_out_where_the_size_is_fixed() -> None:
    model = Apply(lambda m, x: m.one(x.reshape(4, 8)), one=nn.Linear(8, 8))
    found = quantized(model, [*X, X[0][:3]])
    assert any("left out: 4" in note for note in found.quantization.notes)


def test_flags_must_stay_as_traced() -> None:
    class Flagged(nn.Linear):
        def forward(self, x: torch.Tensor, double: bool = False) -> torch.Tensor:
            return super().forward(x * 2 if double else x)

    batches = [{"x": X[0], "double": False}, {"x": X[1], "double": True}]
    with pytest.raises(CalibrationError, match="Batch 1 gives the model True where the first gave False"):
        quantized(Flagged(8, 8), batches)


def test_arguments_must_stay_the_same() -> None:
    class Two(nn.Linear):
        def forward(self, x: torch.Tensor, y: torch.Tensor | None = None) -> torch.Tensor:
            return super().forward(x if y is None else x + y)

    with pytest.raises(CalibrationError, match="Batch 1 gives the model x, y"):
        quantized(Two(8, 8), [{"x": X[0]}, {"x": X[1], "y": X[2]}])


def test_a_model_without_layers_is_refused() -> None:
    with pytest.raises(CalibrationError, match="Nothing of ReLU can be quantized"):
        quantized(nn.ReLU(), X)


def test_a_budget_needs_a_score() -> None:
    with pytest.raises(CalibrationError, match="max_drop needs evaluate"):
        trtb.quantize(net(), X, max_drop=0.1)


def test_a_score_that_is_no_number() -> None:
    with pytest.raises(CalibrationError, match="gave NaN"):
        trtb.quantize(net(), X, evaluate=lambda _: float("nan"), max_drop=0.1, table=False)


def test_a_forward_that_does_not_call_the_model() -> None:
    with pytest.raises(CalibrationError, match=r"forward\(\) never called the model"):
        trtb.quantize(net(), X, forward=lambda model, batch: model.forward(batch), table=False)


def test_a_module_of_torch_export_is_quantized() -> None:
    exported = torch.export.export(net(), (X[0],)).module()
    assert trtb.quantize(exported, X, table=False).quantization.quantized > 0


def test_scripted_modules_are_refused() -> None:
    with pytest.raises(CalibrationError, match="written in Python, not TopLevelTracedModule"):
        trtb.quantize(torch.jit.trace(net(), X[0]), X)


@pytest.mark.parametrize(
    "layer",
    [nn.utils.parametrizations.weight_norm, nn.utils.weight_norm, nn.utils.parametrizations.spectral_norm],
    ids=["weight_norm", "weight_norm by hooks", "spectral_norm"],
)
def test_parametrized_layers_are_reached(layer: Any) -> None:
    found = trtb.quantize(nn.Sequential(layer(nn.Linear(8, 8)), nn.Linear(8, 2)).eval(), X, table=False)
    assert not any("does not reach" in note for note in found.quantization.notes)


def test_only_modules_are_quantized() -> None:
    with pytest.raises(CalibrationError, match=r"takes an nn.Module written in Python, not function"):
        trtb.quantize(lambda x: x, X)


def test_the_holdout_is_checked_for_nan_too() -> None:
    with pytest.raises(CalibrationError, match="Batch 1 gives NaN or infinity"):
        trtb.quantize(net(), [X[0], X[1] * float("nan")], method="auto", table=False)
