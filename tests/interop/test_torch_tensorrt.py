"""Provider: nodes without a converter here, written by converters of a registry like torch_tensorrt's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.export import Dim

import torchtrt_bridge as trtb
from tests.interop import fake
from tests.interop.fake import CUBE, SQUARE_AND_CUBE, TIMES, Support, call, export, x_of
from torchtrt_bridge.engine import build, builder
from torchtrt_bridge.errors import BuildError, LoweringError, UnsupportedOpError
from torchtrt_bridge.lower.registry import NO_CONVERTER

NODES = {"cube": f"{fake.NAMESPACE}.cube.default"}


def assert_runs(program: Any, model: Callable[..., Any], *args: Any) -> None:
    torch.testing.assert_close(program(*args), model(*args))
    assert [engine.state for engine in program.report.engines] == ["ready"] * len(program.report.engines)


# Nodes that it writes --------------------------------------------------------------------------------------------


def test_a_node_without_a_converter_joins_the_engine(offer: Callable[..., None]) -> None:
    offer({CUBE: [Support(fake.write_cube)]})
    program = export()
    assert_runs(program, call, x_of())
    assert program.report.is_whole
    (engine,) = program.report.engines
    assert engine.by_torch_tensorrt == NODES
    assert program.report.to_dict()["engines"][0]["by_torch_tensorrt"] == NODES


def test_without_it_pytorch_runs_the_node() -> None:
    program = export()
    assert_runs(program, call, x_of())
    assert [(entry.node, entry.reason) for entry in program.report.in_torch] == [("cube", NO_CONVERTER)]
    assert [engine.by_torch_tensorrt for engine in program.report.engines] == [{}, {}]


def test_the_option_turns_it_off(offer: Callable[..., None]) -> None:
    offer({CUBE: [Support(fake.write_cube)]})
    program = export(torch_tensorrt="off")
    assert [(entry.node, entry.reason) for entry in program.report.in_torch] == [("cube", NO_CONVERTER)]


@pytest.mark.parametrize("entry_point", ["compile", "explain"])
def test_other_entry_points_use_it_too(offer: Callable[..., None], entry_point: str) -> None:
    offer({CUBE: [Support(fake.write_cube)]})
    if entry_point == "explain":
        report = trtb.explain(call, x_of(), engine="reference")
    else:
        fast = trtb.compile(call, engine="reference")
        with torch.no_grad():
            fast(x_of())
        report = trtb.report(fast)
    assert [engine.by_torch_tensorrt for engine in report.engines] == [NODES]


@pytest.mark.parametrize("kind", ["text", "html"])
def test_reports_name_the_nodes(offer: Callable[..., None], kind: str, tmp_path: Path) -> None:
    offer({CUBE: [Support(fake.write_cube)]})
    report = export().report
    report.save(tmp_path / "report.html")
    written = (tmp_path / "report.html").read_text() if kind == "html" else " ".join(str(report).split())
    assert f"{NODES['cube']} (cube)" in written
    assert "torch_tensorrt" in written


def test_a_saved_program_lists_the_nodes(offer: Callable[..., None], tmp_path: Path) -> None:
    offer({CUBE: [Support(fake.write_cube)]})
    trtb.save(export(engine="tensorrt_rtx", targets=("sm_89",)), tmp_path / "model.pt2")
    assert [engine.by_torch_tensorrt for engine in trtb.load(tmp_path / "model.pt2").report.engines] == [NODES]


def test_several_results(offer: Callable[..., None]) -> None:
    def both(x: torch.Tensor) -> torch.Tensor:
        square, cubed = fake.square_and_cube(x.sin())
        return square - cubed

    offer({SQUARE_AND_CUBE: [Support(fake.write_square_and_cube)]})
    program = export(both)
    assert_runs(program, both, x_of())
    assert program.report.is_whole


def test_dynamic_sizes(offer: Callable[..., None]) -> None:
    offer({CUBE: [Support(fake.write_cube)]})
    program = export(dynamic_shapes=({0: Dim("rows", min=2, max=8)},))
    assert_runs(program, call, x_of(7, 4))
    assert program.report.is_whole


def test_it_computes_in_the_dtype_of_the_users_graph(offer: Callable[..., None]) -> None:
    model = nn.Sequential(nn.Linear(4, 4), Cubed()).eval()
    offer({CUBE: [Support(fake.write_cube)]})
    program = export(model, precision="fp16")
    (engine,) = program.report.engines
    assert engine.by_torch_tensorrt == NODES
    assert engine.dtypes == {"float16": 2, "float32": 2}  # the product and its input; the cast back, and the cube


class Cubed(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return fake.cube(x)


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("weight", torch.randn(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return fake.times(x.sin(), self.weight, x.shape[0])


def test_constants_are_copies(offer: Callable[..., None]) -> None:
    offer({TIMES: [Support(fake.write_times)]})
    model = Scaled()
    before = model.weight.clone()
    program = export(model)
    assert program.report.is_whole
    assert_runs(program, model, x_of())
    torch.testing.assert_close(model.weight, before, rtol=0, atol=0)


def times_a_tensor(ctx: Any, target: Any, args: Any, kwargs: Any, name: str) -> Any:
    """Write a product whose weight must be a tensor of the network, as the converter of cdist; the number must be 1."""
    x, weight, number = args
    assert number == 1
    row = ctx.net.add_shuffle(weight)
    row.reshape_dims = (1, 4)
    return fake.product(ctx, x, row.get_output(0))


def test_a_converter_may_want_constants_as_tensors_of_the_network(offer: Callable[..., None]) -> None:
    offer({TIMES: [Support(times_a_tensor)]})
    model = Scaled()
    program = export(model, x_of(1, 4))
    assert program.report.is_whole, str(program.report)
    assert_runs(program, model, x_of(1, 4))


# Nodes that it does not write ------------------------------------------------------------------------------------


def raises(ctx: Any, target: Any, args: Any, kwargs: Any, name: str) -> Any:
    raise KeyError("no such thing")


def of_another_dtype(ctx: Any, *call: Any) -> Any:
    return ctx.net.add_cast(fake.write_cube(ctx, *call), fake.trt().float16).get_output(0)


def of_another_shape(ctx: Any, *call: Any) -> Any:
    layer = ctx.net.add_shuffle(fake.write_cube(ctx, *call))
    layer.reshape_dims = (4, 3)
    return layer.get_output(0)


def of_another_rank(ctx: Any, *call: Any) -> Any:
    layer = ctx.net.add_shuffle(fake.write_cube(ctx, *call))
    layer.reshape_dims = (1, 3, 4)
    return layer.get_output(0)


def no_tensor(ctx: Any, target: Any, args: Any, kwargs: Any, name: str) -> Any:
    return torch.ones(3, 4).numpy()


def refused_by_tensorrt(ctx: Any, target: Any, args: Any, kwargs: Any, name: str) -> Any:
    return ctx.net.add_concatenation([args[0], ctx.net.add_constant((2,), two()).get_output(0)]).get_output(0)


def two() -> Any:
    return fake.trt().Weights(torch.ones(2).numpy())


def wants_an_allocator(ctx: Any, *call: Any) -> Any:
    ctx.requires_output_allocator = True
    return fake.write_cube(ctx, *call)


@pytest.mark.parametrize(
    ("converter", "reason"),
    [
        (raises, "KeyError: 'no such thing'"),
        (of_another_dtype, "float16 instead of torch.float32"),
        (of_another_shape, "the shape (4, 3) instead of (3, 4)"),
        (of_another_rank, "the shape (1, 3, 4) instead of (3, 4)"),
        (no_tensor, "gave a ndarray instead of a tensor"),
        (refused_by_tensorrt, "torch_tensorrt's converter fails: "),
        (wants_an_allocator, "its own runtime"),
    ],
)
def test_a_converter_that_fails_affects_its_node_only(offer: Callable[..., None], converter: Any, reason: str) -> None:
    offer({CUBE: [Support(converter)]})
    program = export()
    assert_runs(program, call, x_of())
    (entry,) = program.report.in_torch
    assert entry.node == "cube"
    assert reason in entry.reason
    assert [engine.nodes for engine in program.report.engines] == [{"aten.sin.default": 1}, {"aten.exp.default": 1}]


def with_a_number(x: torch.Tensor) -> torch.Tensor:
    return fake.times(x.sin(), x.sin(), x.shape[0])


def cube_alone(x: torch.Tensor) -> torch.Tensor:
    return fake.square_and_cube(x)[1]


@pytest.mark.parametrize(
    ("model", "supports", "reason"),
    [
        (call, {CUBE: [Support(fake.write_cube, lambda node, settings: False)]}, "torch_tensorrt's declines it"),
        (call, {CUBE: [Support(fake.write_cube, supports_dynamic_shapes=False)]}, "torch_tensorrt's declines it"),
        (call, {CUBE: [Support(fake.write_cube, requires_output_allocator=True)]}, "torch_tensorrt's declines it"),
        (with_a_number, {TIMES: [Support(fake.write_times)]}, "known only at run time"),
        (lambda x: call(x.double()).float(), {CUBE: [Support(fake.write_cube)]}, "dtype float64"),
        (cube_alone, {SQUARE_AND_CUBE: [Support(fake.write_square_alone)]}, "gave a NoneType"),
        (lambda x: x + torch.rand_like(x), {torch.ops.aten.rand_like.default: [Support(raises)]}, NO_CONVERTER),
    ],
    ids=["validator", "dynamic", "allocator", "number", "dtype", "missing result", "random"],
)
def test_a_node_that_the_provider_does_not_take(
    offer: Callable[..., None], model: Any, supports: Any, reason: str
) -> None:
    offer(supports)
    program = export(model, dynamic_shapes=({0: Dim("rows", min=2, max=8)},))
    assert any(reason in entry.reason for entry in program.report.in_torch), str(program.report)


def test_the_next_converter_writes_a_node_that_the_first_declines(offer: Callable[..., None]) -> None:
    offer({CUBE: [Support(raises, lambda node, settings: False), Support(fake.write_cube)]})
    assert export().report.is_whole


def late(ctx: Any, *call: Any) -> Any:
    """Write the node alone in a network, and fail behind other layers."""
    if ctx.net.num_layers:
        raise ValueError("too late")
    return fake.write_cube(ctx, *call)


def test_a_failure_after_the_attempt_alone_partitions_the_graph_again(offer: Callable[..., None]) -> None:
    offer({CUBE: [Support(late)]})
    program = export()
    assert_runs(program, call, x_of())
    (entry,) = program.report.in_torch
    assert "too late" in entry.reason
    assert len(program.report.engines) == 2


def test_a_failed_build_partitions_the_graph_again(offer: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    def build_without_cubes(network: Any, *rest: Any) -> bytes:
        definition = network.definition
        if any(definition.get_layer(index).name.startswith("cube/") for index in range(definition.num_layers)):
            raise BuildError("no cubes")
        return build.engine_from_network(network, *rest)

    monkeypatch.setattr(builder, "engine_from_network", build_without_cubes)
    offer({CUBE: [Support(fake.write_cube)]})
    program = export(engine="tensorrt_rtx", targets=("sm_89",))
    assert [entry.reason for entry in program.report.in_torch] == ["torch_tensorrt's converter fails: no cubes"]
    assert [engine.bytes > 0 for engine in program.report.engines] == [True, True]


@pytest.mark.parametrize(("converter", "error"), [(raises, UnsupportedOpError), (late, LoweringError)])
def test_a_failure_raises_with_fallback_error(offer: Callable[..., None], converter: Any, error: Any) -> None:
    offer({CUBE: [Support(converter)]})
    with pytest.raises(error, match=r"no such thing|too late"):
        export(fallback="error")


def test_the_trial_finds_wrong_results(offer: Callable[..., None]) -> None:
    offer({CUBE: [Support(lambda ctx, target, args, kwargs, name: fake.product(ctx, args[0], args[0]))]})
    program, x = export(), x_of()
    torch.testing.assert_close(program(x), call(x))
    assert "relative L2 distance" in program.report.engines[0].state
