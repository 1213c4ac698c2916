"""Projections: linear layers of one input are one in the network, and PyTorch keeps the model's own weights."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import torchtrt_bridge as trtb
from tests.huggingface.models import tiny
from tests.lower.networks import assert_computes, lowered, network_of, widths
from tests.passes.case import aten, calls, passed
from tests.quantize.nets import Apply
from torchtrt_bridge.capture.export import export_program, graph_from_program
from torchtrt_bridge.graph.memory import memory_of
from torchtrt_bridge.lower.network import network_from_graph
from torchtrt_bridge.lower.projections import merge_projections
from torchtrt_bridge.options import Options
from torchtrt_bridge.passes import normalize
from torchtrt_bridge.trt import library as libraries

LINEAR, SPLIT = aten.linear.default, aten.split_with_sizes.default
WIDTH = 16


class Projections(nn.Module):
    """A function of the input and of linear layers, given as (width, has a bias)."""

    def __init__(self, function: Callable[..., Any], *layers: tuple[int, bool]) -> None:
        super().__init__()
        self.function = function
        self.layers = nn.ModuleList([nn.Linear(WIDTH, width, bias=bias) for width, bias in layers])

    def forward(self, x: torch.Tensor) -> Any:
        return self.function(x, *self.layers)


def three(function: Callable[..., Any], widths: tuple[int, int, int] = (16, 16, 16)) -> Projections:
    return Projections(function, *((width, True) for width in widths))


def attention(x: torch.Tensor, q: nn.Module, k: nn.Module, v: nn.Module) -> torch.Tensor:
    """Compute attention of four heads, which share as many keys as `k` is wide."""
    query, key, value = (y.view(*y.shape[:2], -1, 4).transpose(1, 2) for y in (q(x), k(x), v(x)))
    return F.scaled_dot_product_attention(query, key, value, enable_gqa=True).transpose(1, 2).flatten(2)


def joined(x: torch.Tensor, *layers: nn.Module) -> torch.Tensor:
    return torch.cat([layer(x).relu() for layer in layers], -1)


def tokens() -> torch.Tensor:
    return torch.randn(2, 5, WIDTH)


MERGED: dict[str, Callable[[], nn.Module]] = {
    "attention": lambda: three(attention),
    "shared keys": lambda: three(attention, (16, 8, 8)),
    "gate and up": lambda: Projections(lambda x, g, u: F.silu(g(x)) * u(x), (24, False), (24, False)),
    "one without bias": lambda: Projections(attention, (16, True), (16, False), (16, True)),
    "none with bias": lambda: Projections(joined, (8, False), (16, False)),
    "the input has other users": lambda: three(lambda x, q, k, v: x + attention(x, q, k, v)),
    "results": lambda: Projections(lambda x, a, b: (a(x), b(x)), (16, True), (16, True)),
    "views as results": lambda: Projections(
        lambda x, a, b: (a(x).relu(), b(x).view(2, 5, 4, 4).transpose(1, 2)), (16, True), (16, True)
    ),
    "a result and another": lambda: Projections(lambda x, a, b: (a(x) + 1, b(x)), (16, True), (16, True)),
    "a view across the end of a row": lambda: Projections(
        lambda x, a, b: a(x).view(2, -1) * b(x).flatten(1), (16, True), (16, True)
    ),
    "strides": lambda: Projections(
        lambda x, a, b: a(x).as_strided((2, 5), (80, 16)) + b(x).as_strided((2, 5), (80, 16)), (16, True), (16, True)
    ),
    "copies by strides": lambda: Projections(
        lambda x, a, b: torch.as_strided_copy(a(x), (2, 5), (80, 16)) + b(x)[:, :, 0], (16, True), (16, True)
    ),
}


@pytest.mark.parametrize("name", MERGED)
def test_linear_layers_of_one_input_become_one(name: str) -> None:
    model, x = MERGED[name](), tokens()
    module = passed(model, x, normalize)
    before = calls(module)
    network = lowered(module)
    assert widths(network) == [sum(layer.out_features for layer in model.layers)]  # type: ignore[union-attr,misc]
    assert_computes(network, model, x)
    assert calls(module) == before
    assert SPLIT not in before


def test_the_weights_stand_side_by_side() -> None:
    model = Projections(attention, (16, True), (8, False), (8, True))
    network = network_of(model, tokens())
    q, k, v = model.layers
    found = [value for value in network.constants.values() if value.is_floating_point() and value.numel() > 1]
    weight, bias = sorted(found, key=torch.Tensor.numel, reverse=True)
    torch.testing.assert_close(weight.reshape(32, WIDTH), torch.cat([q.weight, k.weight, v.weight]))
    torch.testing.assert_close(bias.flatten(), torch.cat([q.bias, torch.zeros(8), v.bias]))


def test_a_layer_whose_width_would_misalign_the_others_stays_alone() -> None:
    model = Projections(lambda x, a, b, c: (a(x).relu(), b(x).relu(), c(x).relu()), (16, True), (5, True), (8, True))
    network = network_of(model, x := tokens())
    assert sorted(widths(network)) == [5, 24]
    assert_computes(network, model, x)


def test_parts_keep_source_line_module_and_fake_value() -> None:
    module = passed(three(joined), tokens(), normalize)
    values = [node.meta["val"] for node in module.graph.find_nodes(op="call_function", target=LINEAR)]
    parts = merge_projections(module)
    (merged,) = module.graph.find_nodes(op="call_function", target=LINEAR)
    assert [part.meta["val"] is value for part, value in zip(parts, values, strict=True)] == [True] * 3
    assert all("test_projections.py" in node.meta["stack_trace"] for node in (merged, *parts))
    stacks = [list(part.meta["nn_module_stack"].values())[-1][0] for part in parts]
    assert stacks == ["layers.0", "layers.1", "layers.2"]


def test_layers_of_several_inputs_are_merged_apart() -> None:
    def model(x: torch.Tensor, a: nn.Module, b: nn.Module, c: nn.Module, d: nn.Module) -> torch.Tensor:
        y = a(x) * b(x)
        return c(y) + d(y)

    module, x = Projections(model, *[(WIDTH, True)] * 4), tokens()
    network = network_of(module, x)
    assert widths(network) == [32, 32]
    assert_computes(network, module, x)


def test_a_layer_behind_another_one_is_not_pulled_in_front_of_it() -> None:
    """In a decoder, all layers compute keys and values from the encoder's states: each does so where it needs them."""

    def model(x: torch.Tensor, k: nn.Module, v: nn.Module, o: nn.Module, k2: nn.Module, v2: nn.Module) -> torch.Tensor:
        y = o((k(x) * v(x)).relu())
        return y * k2(x) * v2(x)

    module, x = Projections(model, *[(WIDTH, True)] * 5), tokens()
    network = network_of(module, x)
    assert widths(network) == [32, 16, 32]
    assert_computes(network, module, x)


# Weights that something else reads ---------------------------------------------------------------------------------


class Tied(Projections):
    """A layer's weight is that of an embedding too."""

    def __init__(self) -> None:
        super().__init__(lambda x, a, b: a(x) + b(x).relu(), (WIDTH, True), (WIDTH, True))
        self.table = nn.Embedding(WIDTH, WIDTH)
        self.table.weight = self.layers[0].weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(self.table(x.argmax(-1)))


class SlicedWeight(nn.Module):
    """Two layers whose weights are parts of one, which is read as a whole too."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(32, WIDTH))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, self.weight[:16]) * F.linear(x, self.weight[16:]) + F.linear(x.relu(), self.weight).sum()


class Twice(Projections):
    """Layers that run twice, as those of a model that shares them."""

    def __init__(self) -> None:
        super().__init__(lambda x, a, b: a(x) * b(x).relu(), (WIDTH, True), (WIDTH, True))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(super().forward(x))


SHARED: dict[str, tuple[Callable[[], nn.Module], list[int]]] = {
    "tied to an embedding": (Tied, [16, 16]),
    "used by a third layer": (
        lambda: Projections(lambda x, a, b: a(x) + b(x).relu() + a(x.relu()), (WIDTH, True), (WIDTH, True)),
        [16, 16, 16],
    ),
    "used twice of one input": (lambda: Projections(lambda x, a: a(x) + a(x).relu(), (WIDTH, True)), [16, 16]),
    "part of a weight": (SlicedWeight, [16, 16, 32]),
}


@pytest.mark.parametrize("name", SHARED)
def test_weights_that_something_else_reads_are_not_copied(name: str) -> None:
    build, expected = SHARED[name]
    model, x = build(), tokens()
    network = network_of(model, x)
    assert widths(network) == expected
    assert_computes(network, model, x, tolerance=1e-4)


def test_layers_that_run_twice_share_one_copy() -> None:
    model, x = Twice(), tokens()
    network = network_of(model, x)
    assert widths(network) == [32, 32]
    weights = [value for value in network.constants.values() if value.numel() == 2 * WIDTH * WIDTH]
    assert len(weights) == 2
    assert len({memory_of(value) for value in weights}) == 1
    assert_computes(network, model, x)


@pytest.mark.parametrize(
    ("dtype", "options"),
    [(torch.float32, {"torch_ops": ("aten.linear.default",)}), (torch.float64, {})],
    ids=["torch_ops", "float64"],
)
def test_layers_that_stay_in_pytorch_stay_as_they_are(dtype: torch.dtype, options: dict[str, Any]) -> None:
    program = trtb.export(three(joined).to(dtype).eval(), tokens().to(dtype), engine="reference", **options)
    assert [entry.op for entry in program.report.in_torch].count("aten.linear.default") == 3


# Memory --------------------------------------------------------------------------------------------------------------


def test_the_graph_that_pytorch_runs_keeps_the_weights_of_the_model() -> None:
    model, x = three(attention).eval(), tokens()
    fast = trtb.compile(model, engine="reference")
    with torch.no_grad():
        torch.testing.assert_close(fast(x), model(x))
    (graph,) = fast._torchtrt_bridge_backend.graphs
    (engine,) = graph.compiled.run.engines
    assert {memory_of(value) for value in engine.pytorch.buffers()} == {memory_of(v) for v in model.parameters()}


@pytest.mark.parametrize("rows", [2, 32])
def test_what_is_copied_goes_with_the_network(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of few rows the network holds the weights in another form, so that the copy goes before it is built."""
    merged, cat = [], torch.cat

    def noted(values: list[torch.Tensor]) -> torch.Tensor:
        result = cat(values)
        merged.append(weakref.ref(result.untyped_storage()))
        return result

    model = Apply(lambda m, x: m.a(x) * m.b(x), a=nn.Linear(512, 512), b=nn.Linear(512, 512))
    module = passed(model.half(), torch.randn(rows, 512).half(), normalize)
    monkeypatch.setattr(torch, "cat", noted)
    gc.disable()
    try:
        network = lowered(module)
        assert [ref() is None for ref in merged] == [rows == 2, False]  # the weight, and the bias
        del network
        assert [ref() is None for ref in merged] == [True, True]
    finally:
        gc.enable()


# All the way -------------------------------------------------------------------------------------------------------


def test_casts_to_half_precision_are_shared() -> None:
    model, x = three(lambda x, q, k, v: attention(x.relu(), q, k, v)), tokens()
    module = passed(model, x, normalize, precision="fp16")
    assert calls(module).count(aten._to_copy.default) == 2  # into half precision and out of it
    network = lowered(module)
    assert widths(network) == [48]
    weights = [value for value in network.constants.values() if value.numel() >= 48]
    assert {value.dtype for value in weights} == {torch.float16}
    assert_computes(network, model, x, tolerance=1e-2)


def test_sizes_may_be_dynamic() -> None:
    model = three(attention, (16, 8, 8)).eval()
    sizes = {0: torch.export.Dim("batch", max=8), 1: torch.export.Dim("length", max=16)}
    captured = graph_from_program(export_program(model, (tokens(),), dynamic_shapes=(sizes,)))
    ranges = {symbol: (low, high) for symbol, (low, high) in captured.ranges.items() if high is not None}
    network = network_from_graph(normalize(captured.module, Options()), libraries.choose("reference"), ranges)
    assert widths(network) == [32]
    assert_computes(network, model, torch.randn(3, 9, WIDTH))


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_saved_program_has_the_weights_once(precision: str, tmp_path: Path) -> None:
    model, x = three(attention).eval(), tokens()
    sizes = {0: torch.export.Dim("batch", max=8)}
    program = trtb.export(model, x, dynamic_shapes=(sizes,), engine="reference", precision=precision)
    trtb.save(program, tmp_path / "model.pt2")
    loaded = trtb.load(tmp_path / "model.pt2")
    shapes = sorted(tuple(value.shape) for value in loaded.exported.state_dict.values())
    assert shapes == sorted(tuple(value.shape) for value in model.parameters())
    other = torch.randn(5, 4 + 1, WIDTH)
    with torch.no_grad():
        torch.testing.assert_close(loaded(other), model(other), rtol=1e-2, atol=1e-2)
        torch.testing.assert_close(loaded(other), program(other), rtol=1e-2, atol=1e-2)


def test_a_changed_weight_reaches_the_merged_ones() -> None:
    model, x = three(attention).eval(), tokens()
    compiled = torch.compile(model, backend="torchtrt_bridge", options={"engine": "reference"})
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), model(x))
        model.layers[1].weight.mul_(-2)
        torch.testing.assert_close(compiled(x), model(x))
        torch.testing.assert_close(compiled(x), model(x))  # from engines built anew
    assert all(engine.is_ready for engine in trtb.report(compiled).engines)


@pytest.mark.parametrize(("name", "layers"), [("bert", 9), ("t5-decoder", 14), ("gpt2", 1), ("llama", 11)])
def test_attention_of_a_transformer_has_one_layer_for_its_projections(name: str, layers: int) -> None:
    """Two layers of: query, key and value (or those of the encoder's states), output, feed-forward; and a head.

    The gate of this Llama is too narrow to be merged.
    """
    captured = graph_from_program(export_program(tiny(name).build(), (), tiny(name).inputs(2, 11)))
    assert len(widths(lowered(normalize(captured.module, Options())))) == layers
