"""Recurrent layers through both entry points: whole models in one engine, however long the sequences are."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn
from torch.export import Dim
from torch.nn.utils import rnn
from torch.utils._pytree import tree_leaves

import torchtrt_bridge as trtb
from tests.entry.reference import REFERENCE, assert_same
from tests.recurrent import Crnn, Encoder
from torchtrt_bridge.report.model import CompileReport

FRAMES = 400


MODELS = [
    pytest.param(Crnn, lambda frames: torch.randn(2, 1, 8, frames), 3, id="crnn"),
    pytest.param(Encoder, lambda frames: torch.randn(2, 8, 2 * frames), 2, id="encoder"),
]
BY_MODEL = pytest.mark.parametrize(("model", "inputs", "dim"), MODELS)


@pytest.fixture(autouse=True)
def _no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


def assert_whole(report: CompileReport, graphs: int = 1) -> None:
    assert report.is_whole
    assert report.breaks == report.in_torch == []
    assert len(report.engines) == graphs


@BY_MODEL
def test_a_compiled_model_is_whole(model: type[nn.Module], inputs: Callable[[int], torch.Tensor], dim: int) -> None:
    original, x = model().eval(), inputs(FRAMES)
    fast = trtb.compile(original, fallback="error", **REFERENCE)
    assert_same(fast(x), original(x))
    assert_whole(trtb.report(fast))


@BY_MODEL
def test_one_engine_takes_all_batches(model: type[nn.Module], inputs: Callable[[int], torch.Tensor], dim: int) -> None:
    original, x = model().eval(), inputs(30)
    program = trtb.export(original, (x,), dynamic_shapes=({0: Dim("batch", min=1, max=8)},), **REFERENCE)
    for batch in (2, 1, 7):
        x = inputs(30)[:1].repeat(batch, *[1] * (x.dim() - 1)) * torch.randn(batch, *[1] * (x.dim() - 1))
        assert_same(program(x), original(x))
    assert_whole(program.report)


@BY_MODEL
@pytest.mark.parametrize("entry", ["compile", "export"])
def test_pytorch_runs_layers_whose_length_changes(
    model: type[nn.Module], inputs: Callable[[int], torch.Tensor], dim: int, entry: str
) -> None:
    original, shapes = model().eval(), ({dim: Dim("frames", min=4, max=2048)},)
    if entry == "compile":
        fast: Any = trtb.compile(original, dynamic=True, **REFERENCE)
    else:
        fast = trtb.export(original, (inputs(30),), dynamic_shapes=shapes, **REFERENCE)
    for frames in (20, 31, 50):
        x = inputs(frames)
        assert_same(fast(x), original(x))
    report = trtb.report(fast)
    assert [entry.op for entry in report.in_torch] == ["torchtrt_bridge.lstm.default"]
    assert "known only at run time" in report.in_torch[0].reason
    assert report.engines
    assert all(entry.is_ready for entry in report.engines)


@pytest.mark.parametrize(
    ("layer", "options"),
    [(nn.LSTM, {"proj_size": 3}), (nn.GRU, {"bidirectional": True}), (nn.RNN, {"nonlinearity": "relu"})],
    ids=["projection", "gru", "relu"],
)
def test_a_layer_alone_has_eagers_results_and_strides(layer: type[nn.RNNBase], options: dict[str, Any]) -> None:
    original, x = layer(5, 6, batch_first=True, **options).eval(), torch.randn(3, 7, 5)
    results = trtb.compile(original, fallback="error", **REFERENCE)(x)
    expected = original(x)
    assert_same(results, expected)
    assert results[0].stride() == expected[0].stride()


def test_half_precision() -> None:
    original, x = Encoder(bidirectional=False).eval(), torch.randn(2, 8, 100)
    fast = trtb.compile(original, precision="fp16", fallback="error", **REFERENCE)
    torch.testing.assert_close(fast(x), original(x), rtol=0, atol=5e-3)
    assert trtb.report(fast).engines[0].dtypes["float16"] >= 3  # the convolution, the layers, what is between


class Autocast(nn.Module):
    """A layer in a region of autocast, which casts its weights."""

    def __init__(self, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        self.before, self.layer = nn.Linear(8, 8), kind(8, 6, batch_first=True)

    def forward(self, x: torch.Tensor) -> Any:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return self.layer(self.before(x))


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
@pytest.mark.parametrize("entry", ["compile", "export"])
def test_autocast_within_a_model(kind: type[nn.RNNBase], entry: str) -> None:
    original, x = Autocast(kind).eval(), torch.randn(2, 20, 8)
    expected = tree_leaves(original(x))
    if entry == "compile":
        fast = trtb.compile(original, fallback="error", **REFERENCE)
    else:
        fast = trtb.export(original, (x,), fallback="error", **REFERENCE)
    results = tree_leaves(fast(x))
    assert [value.dtype for value in expected] == [torch.bfloat16] * len(expected)
    torch.testing.assert_close(results, expected, rtol=0.02, atol=0.02)  # eager rounds each step to bf16
    assert trtb.report(fast).is_whole


def test_autocast_around_a_model() -> None:
    original, x = Encoder().eval(), torch.randn(2, 8, 40)
    fast = trtb.compile(original, fallback="error", **REFERENCE)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected, results = tree_leaves(original(x)), tree_leaves(fast(x))
    torch.testing.assert_close(results, expected, rtol=0.05, atol=0.05)  # as above, then normalized
    assert_same(fast(x), original(x))


def test_pytorch_runs_a_layer_whole_where_it_is_left_to_it() -> None:
    original, x = Encoder(nn.GRU).eval(), torch.randn(2, 8, 40)
    fast = trtb.compile(original, torch_ops=("torchtrt_bridge.gru.default",), **REFERENCE)
    assert_same(fast(x), original(x))
    assert [entry.op for entry in trtb.report(fast).in_torch] == ["torchtrt_bridge.gru.default"]
    assert len(trtb.report(fast).engines) == 2


def test_the_model_is_as_before(recwarn: pytest.WarningsRecorder) -> None:
    original, x = Encoder().eval(), torch.randn(2, 8, 40)
    trtb.export(original, (x,), **REFERENCE)
    trtb.compile(original, **REFERENCE)(x)
    weights = dict(original.layers.named_parameters())
    assert all(weight is weights[name] for weight, name in zip(*_flat(original.layers), strict=True))
    assert [str(warning.message) for warning in recwarn if "_flat_weights" in str(warning.message)] == []


def _flat(layer: nn.RNNBase) -> tuple[list[Any], list[str]]:
    return layer._flat_weights, layer._flat_weights_names


class Flattened(Encoder):
    """An encoder that joins the weights of its layers before each call, as models on several GPUs do."""

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, Any]:
        self.layers.flatten_parameters()
        return super().forward(x)


def test_an_export_looks_at_no_addresses_of_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU `flatten_parameters` does, and tensors of an export have none."""
    original, x = Flattened().eval(), torch.randn(2, 8, 40)
    expected = original(x)

    def flatten(layer: nn.RNNBase) -> None:
        raise RuntimeError("Cannot access data pointer of Tensor")

    monkeypatch.setattr(nn.RNNBase, "flatten_parameters", flatten)
    program = trtb.export(original, (x,), fallback="error", **REFERENCE)
    assert nn.RNNBase.flatten_parameters is flatten
    assert_same(program(x), expected)


# What does not become engines ---------------------------------------------------------------------------------------


def test_gradients_and_training_are_pytorchs() -> None:
    original, x = Encoder(dropout=0.5).train(), torch.randn(2, 8, 40)
    fast = trtb.compile(original, **REFERENCE)
    first, again = fast(x)[0], fast(x)[0]
    assert not torch.equal(first, again)
    report = trtb.report(fast)
    (entry,) = report.in_torch
    assert "in training mode, where it drops values between its layers (dropout=0.5)" in entry.reason
    assert any("call model.eval() first" in note for note in report.notes)
    with torch.enable_grad():
        trained = trtb.compile(Encoder().train(), **REFERENCE)
        trained(x)[0].sum().backward()
    assert all(parameter.grad is not None for parameter in trained.parameters())


class Packed(nn.Module):
    """Sequences of several lengths, packed."""

    def __init__(self) -> None:
        super().__init__()
        self.before, self.layer = nn.Linear(4, 4), nn.LSTM(4, 6, batch_first=True)

    def forward(self, x: torch.Tensor, lengths: Any) -> torch.Tensor:
        packed = rnn.pack_padded_sequence(self.before(x).relu(), lengths, batch_first=True, enforce_sorted=False)
        output: torch.Tensor = rnn.pad_packed_sequence(self.layer(packed)[0], batch_first=True)[0]
        return output * 2


@pytest.mark.parametrize("as_list", [False, True])
def test_packed_sequences_run_in_pytorch_for_lengths_in_a_list(as_list: bool) -> None:
    original, x = Packed().eval(), torch.randn(3, 7, 4)
    fast = trtb.compile(original, **REFERENCE)
    for values in ([7, 3, 5], [2, 1, 6]):
        lengths = values if as_list else torch.tensor(values)
        assert_same(fast(x, lengths), original(x, lengths))
    assert any("pack_padded_sequence" in found.reason for found in trtb.report(fast).breaks) == as_list
    assert trtb.report(fast).is_whole != as_list


def test_a_sequence_without_elements_has_pytorchs_error() -> None:
    fast = trtb.compile(Packed().eval(), **REFERENCE)
    with pytest.raises(RuntimeError, match="Length of all samples has to be greater than 0"):
        fast(torch.randn(3, 7, 4), torch.tensor([7, 0, 5]))


class PackedByNumbers(Packed):
    def forward(self, x: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        return super().forward(x, lengths.tolist())


def test_an_export_with_packed_sequences_says_what_to_do() -> None:
    with pytest.raises(trtb.CaptureError, match="it packs sequences") as raised:
        trtb.export(PackedByNumbers().eval(), (torch.randn(3, 7, 4), torch.tensor([7, 3, 5])), **REFERENCE)
    assert "Give pack_padded_sequence the lengths in a tensor on the CPU" in str(raised.value)


def test_features_of_a_wrong_number_have_pytorchs_error() -> None:
    fast = trtb.compile(nn.LSTM(4, 6).eval(), **REFERENCE)
    with pytest.raises(RuntimeError, match="Expected 4, got 5"):
        fast(torch.randn(3, 2, 5))


# Dynamo -------------------------------------------------------------------------------------------------------------


def test_other_backends_have_dynamos_own_setting() -> None:
    graphs: list[torch.fx.GraphModule] = []

    def backend(module: torch.fx.GraphModule, inputs: Any) -> Any:
        graphs.append(module)
        return module

    x = torch.randn(2, 8, 40)
    trtb.compile(Encoder().eval(), **REFERENCE)(x)
    assert not torch._dynamo.config.allow_rnn
    torch.compile(Encoder().eval(), backend=backend)(x)
    assert not any("lstm" in str(node.target) for module in graphs for node in module.graph.nodes)


def test_what_another_backend_left_to_python_is_reported_with_the_setting() -> None:
    x = torch.randn(2, 8, 40)
    trtb.compile(nn.Linear(2, 2), **REFERENCE)  # breaks are noted from the first backend on
    torch.compile(Encoder().eval(), backend="eager")(x)
    fast = trtb.compile(Encoder().eval(), **REFERENCE)
    fast(x)
    (found,) = trtb.report(fast).breaks
    assert "torch._dynamo.reset()" in found.reason
    assert "torch._dynamo.config.allow_rnn = True" in found.reason
    torch._dynamo.reset()
    fast(x)
    assert len(trtb.report(fast).engines) == 1


def test_a_backend_by_its_name() -> None:
    original, x = Crnn().eval(), torch.randn(2, 1, 8, 12)
    fast = torch.compile(original, backend="torchtrt_bridge", options=REFERENCE)
    assert_same(fast(x), original(x))
    assert_whole(trtb.report(fast))


def test_an_explanation_has_the_layer_in_tensorrt() -> None:
    report = trtb.explain(Encoder().eval(), torch.randn(2, 8, 40), **REFERENCE)
    assert report.in_torch == report.breaks == []
    assert len(report.engines) == 1
