"""Projections: linear layers of one input become one, unless another call needs their weights or their memory."""

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
from tests.huggingface.models import MODELS
from tests.passes.case import assert_computes, aten, call, calls, constants, passed
from torchtrt_bridge.capture.export import export_program, graph_from_program
from torchtrt_bridge.options import Options
from torchtrt_bridge.passes import PASSES, normalize
from torchtrt_bridge.passes.projections import merge_projections

LINEAR, SPLIT = aten.linear.default, aten.split_with_sizes.default
BEFORE = PASSES[: PASSES.index(merge_projections)]
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
}


@pytest.mark.parametrize("name", MERGED)
def test_linear_layers_of_one_input_become_one(name: str) -> None:
    model, x = MERGED[name](), tokens()
    module = passed(model, x, merge_projections)
    assert calls(module).count(LINEAR) == calls(module).count(SPLIT) == 1
    assert_computes(module, model, x)


def test_the_weights_stand_side_by_side_and_the_old_ones_are_gone() -> None:
    model = Projections(attention, (16, True), (8, False), (8, True))
    module = passed(model, tokens(), merge_projections)
    weight, bias = constants(module)
    q, k, v = model.layers
    torch.testing.assert_close(weight, torch.cat([q.weight, k.weight, v.weight]))
    torch.testing.assert_close(bias, torch.cat([q.bias, torch.zeros(8), v.bias]))
    assert len(list(module.buffers())) == 2


def test_a_layer_whose_width_would_misalign_the_others_stays_alone() -> None:
    model = Projections(lambda x, a, b, c: (a(x).relu(), b(x).relu(), c(x).relu()), (16, True), (5, True), (8, True))
    module = passed(model, tokens(), merge_projections)
    widths = [node.meta["val"].shape[-1] for node in module.graph.find_nodes(op="call_function", target=LINEAR)]
    assert sorted(widths) == [5, 24]
    assert_computes(module, model, tokens())


def test_parts_keep_source_line_and_module() -> None:
    module = passed(three(joined), tokens(), merge_projections)
    merged, *parts = (n for n in module.graph.nodes if n.target is LINEAR or n.name.startswith("getitem"))
    assert len(parts) == 3
    assert all("test_projections.py" in node.meta["stack_trace"] for node in (merged, *parts))
    stacks = [list(part.meta["nn_module_stack"].values())[-1][0] for part in parts]
    assert stacks == ["layers.0", "layers.1", "layers.2"]


def test_layers_of_several_inputs_are_merged_apart() -> None:
    def model(x: torch.Tensor, a: nn.Module, b: nn.Module, c: nn.Module, d: nn.Module) -> torch.Tensor:
        y = a(x) * b(x)
        return c(y) + d(y)

    module = Projections(model, *[(WIDTH, True)] * 4)
    merged, x = passed(module, tokens(), merge_projections), tokens()
    assert calls(merged).count(LINEAR) == 2
    assert_computes(merged, module, x)


def test_a_layer_behind_another_one_is_not_pulled_in_front_of_it() -> None:
    """In a decoder, all layers compute keys and values from the encoder's states: each does so where it needs them."""

    def model(x: torch.Tensor, k: nn.Module, v: nn.Module, o: nn.Module, k2: nn.Module, v2: nn.Module) -> torch.Tensor:
        y = o((k(x) * v(x)).relu())
        return y * k2(x) * v2(x)

    module, x = Projections(model, *[(WIDTH, True)] * 5), tokens()
    merged = passed(module, x, merge_projections)
    widths = [node.meta["val"].shape[-1] for node in merged.graph.find_nodes(op="call_function", target=LINEAR)]
    assert widths == [32, 16, 32]
    assert_computes(merged, module, x)


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


SHARED: dict[str, Callable[[], nn.Module]] = {
    "tied to an embedding": Tied,
    "used by a third layer": lambda: Projections(
        lambda x, a, b: a(x) + b(x).relu() + a(x.relu()), (WIDTH, True), (WIDTH, True)
    ),
    "used twice of one input": lambda: Projections(lambda x, a: a(x) + a(x).relu(), (WIDTH, True)),
    "part of a weight": SlicedWeight,
}


@pytest.mark.parametrize("name", SHARED)
def test_weights_that_something_else_reads_are_not_copied(name: str) -> None:
    model, x = SHARED[name](), tokens()
    module = passed(model, x, *BEFORE)
    before = calls(module)
    assert calls(merge_projections(module, Options())) == before
    assert_computes(module, model, x)


def test_layers_that_run_twice_share_one_copy() -> None:
    model, x = Twice(), tokens()
    module = passed(model, x, merge_projections)
    assert calls(module).count(LINEAR) == 2
    assert sorted(tuple(value.shape) for value in module.buffers()) == [(32,), (32, WIDTH)]
    assert_computes(module, model, x)


@pytest.mark.full
def test_one_group_is_copied_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Folded weights belong to the graph alone: those of a group are dropped before the next group is merged."""
    model = nn.Sequential(*[Projections(lambda x, a, b: a(x) * b(x), (WIDTH, True), (WIDTH, True)) for _ in range(3)])
    half = passed(model, tokens(), *BEFORE, precision="fp16")
    weights = [weakref.ref(value) for value in half.buffers() if value.dim() == 2]
    alive, cat = [], torch.cat

    def counted(values: list[torch.Tensor]) -> torch.Tensor:
        gc.collect()
        alive.append(sum(weight() is not None for weight in weights))
        return cat(values)

    monkeypatch.setattr(torch, "cat", counted)
    merge_projections(half, Options(precision="fp16"))
    assert alive == [6, 6, 4, 4, 2, 2]  # weights and biases of each of three groups


# PyTorch runs the graph too ----------------------------------------------------------------------------------------

APART: dict[str, Callable[..., Any]] = {
    "strides": lambda x, a, b: a(x).as_strided((2, 5), (80, 16)) + b(x).as_strided((2, 5), (80, 16)),
    "copies": lambda x, a, b: (
        torch.as_strided_copy(a(x), (2, 5), (80, 16)) + torch.as_strided_copy(b(x), (2, 5), (80, 16))
    ),
}


@pytest.mark.parametrize("name", APART)
def test_views_that_a_part_cannot_give_keep_the_layers_apart(name: str) -> None:
    model, x = Projections(APART[name], (WIDTH, True), (WIDTH, True)), tokens()
    module = passed(model, x, merge_projections)
    assert calls(module).count(LINEAR) == 2
    assert_computes(module, model, x)


RETURNED: dict[str, Callable[..., Any]] = {
    "results": lambda x, a, b: (a(x), b(x)),
    "views": lambda x, a, b: (a(x).relu(), b(x).view(2, 5, 4, 4).transpose(1, 2)),
    "one of two": lambda x, a, b: (a(x) + 1, b(x)),
}


@pytest.mark.parametrize("name", RETURNED)
def test_what_the_caller_gets_has_memory_of_its_own(name: str) -> None:
    model, x = Projections(RETURNED[name], (WIDTH, True), (WIDTH, True)), tokens()
    module = passed(model, x, merge_projections)
    assert calls(module).count(LINEAR) == 1
    with torch.no_grad():
        expected, results = model(x), module(x)
    assert [value.stride() for value in results] == [value.stride() for value in expected]
    assert [v.untyped_storage().nbytes() for v in results] == [v.untyped_storage().nbytes() for v in expected]
    assert_computes(module, model, x)


@pytest.mark.parametrize(
    ("dtype", "options"),
    [(torch.float32, {"torch_ops": ("aten.linear.default",)}), (torch.float64, {})],
    ids=["torch_ops", "float64"],
)
def test_layers_that_stay_in_pytorch_stay_as_they_are(dtype: torch.dtype, options: dict[str, Any]) -> None:
    module = passed(three(joined).to(dtype), tokens().to(dtype), merge_projections, **options)
    assert calls(module).count(LINEAR) == 3


# All the way -------------------------------------------------------------------------------------------------------


def test_casts_to_half_precision_are_shared() -> None:
    model, x = three(lambda x, q, k, v: attention(x.relu(), q, k, v)), tokens()
    module = passed(model, x, normalize, precision="fp16")
    assert call(module, LINEAR).meta["val"].dtype == torch.float16
    assert calls(module).count(aten._to_copy.default) == 2  # into half precision and out of it
    assert {value.dtype for value in constants(module)} == {torch.float16}
    assert_computes(module, model, x, rtol=1e-2, atol=1e-2)


def test_sizes_may_be_dynamic() -> None:
    model = three(attention, (16, 8, 8)).eval()
    sizes = {0: torch.export.Dim("batch", max=8), 1: torch.export.Dim("length", max=16)}
    captured = graph_from_program(export_program(model, (tokens(),), dynamic_shapes=(sizes,)))
    module = normalize(captured.module, Options())
    call(module, LINEAR)
    longer = torch.randn(3, 9, WIDTH)
    with torch.no_grad():
        torch.testing.assert_close(module(longer)[0], model(longer))


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_saved_program_has_the_merged_weights(precision: str, tmp_path: Path) -> None:
    model, x = three(attention).eval(), tokens()
    sizes = {0: torch.export.Dim("batch", max=8)}
    program = trtb.export(model, x, dynamic_shapes=(sizes,), engine="reference", precision=precision)
    trtb.save(program, tmp_path / "model.pt2")
    loaded = trtb.load(tmp_path / "model.pt2")
    assert (3 * WIDTH, WIDTH) in [tuple(value.shape) for value in loaded.exported.state_dict.values()]
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


@pytest.mark.parametrize(("name", "layers"), [("bert", 9), ("t5-decoder", 14), ("gpt2", 1)])
def test_attention_of_a_transformer_has_one_layer_for_its_projections(name: str, layers: int) -> None:
    """Two layers of: query, key and value (or those of the encoder's states), output, feed-forward; and a head."""
    tiny = next(tiny for tiny in MODELS if tiny.name == name)
    captured = graph_from_program(export_program(tiny.build(), (), tiny.inputs(2, 11)))
    assert calls(normalize(captured.module, Options())).count(LINEAR) == layers


def test_a_view_across_the_end_of_a_row_is_a_copy_of_the_part() -> None:
    model = Projections(lambda x, a, b: a(x).view(2, -1) * b(x).flatten(1), (WIDTH, True), (WIDTH, True))
    module = passed(model, tokens(), merge_projections)
    assert calls(module).count(LINEAR) == 1
    assert_computes(module, model, tokens())
