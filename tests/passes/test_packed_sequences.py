"""Layers over packed sequences compute padded ones; others stay as they are, with the reason."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import fx, nn
from torch.export import Dim
from torch.utils._pytree import tree_leaves

from tests.packed import BATCH, IN_ENGINES, IN_PYTORCH, LENGTH, LENGTHS, OfPacked, longest, pack, pad, padded, sequences
from torchtrt_bridge.capture.export import export_program, graph_from_program
from torchtrt_bridge.graph.packed import OF_PACKED, PADDED_OF_PACKED, own, why_packed
from torchtrt_bridge.graph.torch_internals import new_export_mode
from torchtrt_bridge.options import Options
from torchtrt_bridge.partition import propose
from torchtrt_bridge.passes import normalize
from torchtrt_bridge.passes.cleanup import drop_metadata_checks
from torchtrt_bridge.passes.packed_readers import OF_ANY_TOTAL_LENGTH
from torchtrt_bridge.passes.packed_sequences import pad_sequences

aten = torch.ops.aten


def graph_of(model: nn.Module, dynamic_shapes: Any = None, **options: Any) -> fx.GraphModule:
    """Return the graph of a model of sequences and lengths after the pass."""
    program = export_program(model.eval(), (sequences(), LENGTHS[0]), None, dynamic_shapes)
    checked = Options(**options)
    module = pad_sequences(drop_metadata_checks(graph_from_program(program).module, checked), checked)
    module.graph.lint()
    return module


def calls(module: fx.GraphModule, *ops: Any) -> list[fx.Node]:
    return [node for node in module.graph.nodes if node.target in ops]


def assert_computes(module: fx.GraphModule, model: nn.Module) -> None:
    for lengths in LENGTHS:
        x = sequences(lengths)
        with torch.no_grad():
            expected = [value for value in tree_leaves(model(x, lengths)) if isinstance(value, torch.Tensor)]
            torch.testing.assert_close(list(module(x, lengths)), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.first(len(IN_ENGINES))
@pytest.mark.parametrize("function", IN_ENGINES)
def test_layers_compute_padded_sequences(function: Callable[..., Any]) -> None:
    model = OfPacked(function)
    module = graph_of(model)
    assert calls(module, *OF_PACKED) == []
    assert calls(module, *PADDED_OF_PACKED.values())
    assert_computes(module, model)


@pytest.mark.parametrize("function", [padded, longest])
def test_the_order_of_sequences_is_the_callers(function: Callable[..., Any]) -> None:
    module = graph_of(OfPacked(lambda *values: function(*values)[0]))
    assert calls(module, aten.sort.default, aten.index_select.default, aten.scatter.src) == []


def test_the_order_is_kept_where_lengths_may_be_fewer_than_sequences() -> None:
    model = OfPacked(padded)
    shapes = ({0: Dim("batch", min=1, max=8)}, {0: Dim("lengths", min=1, max=8)})
    module = graph_of(model, shapes)
    assert calls(module, own.padded_lstm.default)
    assert_computes(module, model)
    with torch.no_grad():
        x, lengths = sequences(), torch.tensor([3, 5])
        torch.testing.assert_close(module(x, lengths)[0], model(x, lengths)[0])


def test_a_dynamic_batch() -> None:
    model, batch = OfPacked(padded), Dim("batch", min=1, max=8)
    module = graph_of(model, ({0: batch}, {0: batch}))
    assert calls(module, *OF_PACKED, aten.index_select.default) == []
    assert_computes(module, model)


@pytest.mark.first(len(IN_PYTORCH))
@pytest.mark.parametrize(("function", "reader"), IN_PYTORCH)
def test_layers_whose_packed_elements_something_else_reads_stay(function: Callable[..., Any], reader: str) -> None:
    model = OfPacked(function)
    module = graph_of(model)
    assert calls(module, *PADDED_OF_PACKED.values(), own.batch_sizes.default) == []
    reasons = {why_packed(node) for node in calls(module, *PADDED_OF_PACKED)}
    assert f"its packed elements are read by {reader}, and not only padded again" in reasons
    assert_computes(module, model)


def of_the_padded_length(m: OfPacked, x: torch.Tensor, lengths: torch.Tensor) -> Any:
    return pad(m.layer(pack(x, lengths))[0], total_length=x.shape[1])[0]


def trained(m: OfPacked, x: torch.Tensor, lengths: torch.Tensor) -> Any:
    return pad(m.stacked.train()(pack(x, lengths))[0])[0]


def total_of_a_size(m: OfPacked, x: torch.Tensor, lengths: torch.Tensor) -> Any:
    return pad(m.layer(pack(x, lengths))[0], total_length=lengths.shape[0] + LENGTH)[0]


BATCHES = Dim("batch", min=1, max=8)
STAY: list[Any] = [
    pytest.param(of_the_padded_length, ({1: Dim("length", min=2, max=9)}, None), {}, "sequences is known only at run"),
    pytest.param(trained, None, {}, "in training mode, where it drops values between its layers (dropout=0.3)"),
    pytest.param(padded, None, {"torch_ops": ("torchtrt_bridge.padded_lstm.default",)}, "the option torch_ops names"),
    pytest.param(total_of_a_size, ({0: BATCHES}, {0: BATCHES}), {}, OF_ANY_TOTAL_LENGTH),
]


@pytest.mark.first(len(STAY))
@pytest.mark.parametrize(("function", "shapes", "options", "reason"), STAY)
def test_a_layer_that_no_engine_takes_stays_packed(
    function: Callable[..., Any], shapes: Any, options: dict[str, Any], reason: str
) -> None:
    module = graph_of(OfPacked(function), shapes, **options)
    assert calls(module, *PADDED_OF_PACKED.values(), own.batch_sizes.default) == []
    (layer,) = calls(module, *PADDED_OF_PACKED)
    assert reason in str(why_packed(layer))
    with torch.no_grad():
        assert module(sequences(), LENGTHS[0])[0].shape[0] == BATCH


@pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor")
def test_on_a_gpu_the_reason_is_what_reads_the_elements_and_not_that_lengths_are_on_the_cpu() -> None:
    with new_export_mode():
        example = torch.empty(BATCH, LENGTH, 4, device="cuda"), torch.empty(BATCH, dtype=torch.long)
        model = OfPacked(lambda m, x, lengths: m.layer(pack(x, lengths))[0].data).eval()
        for name, parameter in list(model.layer.named_parameters()):
            setattr(model.layer, name, nn.Parameter(torch.empty(parameter.shape, device="cuda")))
    program = export_program(model, example, None, ({0: Dim.AUTO}, {0: Dim.AUTO}))
    module = normalize(graph_from_program(program).module, Options())
    reasons = {str(rejection.node.target): rejection.reason for rejection in propose(module, Options()).rejections}
    why = "its packed elements are read by the caller, and not only padded again"
    assert reasons["torchtrt_bridge.packed_lstm.default"] == why
    assert reasons["torchtrt_bridge.pack_padded_sequence.default"] == why
    assert reasons["aten.sort.default"] == "a tensor on the CPU in a graph on cuda"


def test_packing_without_a_layer_stays() -> None:
    model = OfPacked(lambda m, x, lengths: pad(pack(x, lengths))[0])
    module = graph_of(model)
    assert [node.target for node in calls(module, *OF_PACKED)] == [
        own.pack_padded_sequence.default,
        own.pad_packed_sequence.default,
    ]
    assert_computes(module, model)
