"""What inductor is given to compile."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import _inductor, fx, nn

from tests.quantize.nets import Apply
from torchtrt_bridge.capture.export import graph_from_program
from torchtrt_bridge.runtime import inductor as home
from torchtrt_bridge.runtime.inductor import Inductor, compiled_by_inductor


class Sine(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.sin()


@pytest.mark.full
def test_weights_of_convolutions_are_laid_out_for_inductor(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a user's are who compares it in channels-last; the module that PyTorch runs keeps its own."""
    taken: list[Any] = []
    monkeypatch.setattr(_inductor, "compile", lambda module, inputs, options: taken.append(module) or module)
    program = torch.export.export(
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 1)).eval(), (torch.randn(1, 3, 8, 8),)
    )
    module = graph_from_program(program.run_decompositions()).module
    x = torch.randn(1, 3, 8, 8)
    compiled_by_inductor(module, [x])
    torch.testing.assert_close(taken[0](x)[0], module(x)[0])
    weights = [v for v in taken[0].buffers() if v.dim() == 4]
    assert len(weights) == 2
    assert all(value.is_contiguous(memory_format=torch.channels_last) for value in weights)
    assert not any(
        v.is_contiguous(memory_format=torch.channels_last) for v in module.buffers() if v.shape[1:] == (3, 3, 3)
    )


@pytest.mark.full
def test_what_is_discarded_is_freed_and_may_be_compiled_again(monkeypatch: pytest.MonkeyPatch) -> None:
    copies, cat = [], torch.cat

    def noted(values: list[torch.Tensor]) -> torch.Tensor:
        result = cat(values)
        copies.append(weakref.ref(result.untyped_storage()))
        return result

    module, x = pair("values")
    expected = module(x)
    run = Inductor("part", module)
    with monkeypatch.context() as patch:
        patch.setattr(torch, "cat", noted)
        assert run.prepare([x])
    assert [copy() is None for copy in copies] == [False, False]
    run.discard()
    assert [copy() is None for copy in copies] == [True, True]
    torch.testing.assert_close(list(run([x])), list(expected))
    assert run.failure is None


LINEAR = torch.ops.aten.linear.default

PAIRS: dict[str, Callable[..., Any]] = {
    "values": lambda a, b: (a.relu() * b,),
    "results": lambda a, b: (a, b),
    "views": lambda a, b: (a.relu(), b.view(2, 5, 4, 4).transpose(1, 2)),
    "halves": lambda a, b: (*a.chunk(2, -1), b + 1),
    "a view across the end of a row": lambda a, b: (a.view(2, -1) * b.flatten(1),),
}


def pair(name: str, size: int = 5) -> tuple[fx.GraphModule, torch.Tensor]:
    """Return a function of two linear layers of one input as a graph, and the input."""
    model = Apply(lambda m, x: PAIRS[name](m.a(x), m.b(x)), a=nn.Linear(16, 16), b=nn.Linear(16, 16)).eval()
    x = torch.randn(2, size, 16)
    return graph_from_program(torch.export.export(model, (x,)).run_decompositions({})).module, x


@pytest.mark.parametrize("name", PAIRS)
def test_linear_layers_of_one_input_are_one_for_inductor(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The module that PyTorch runs keeps its own; what the caller gets has the same memory from both."""
    taken: list[Any] = []
    monkeypatch.setattr(_inductor, "compile", lambda module, inputs, options: taken.append(module) or module)
    module, x = pair(name)
    before = module.code
    compiled_by_inductor(module, [x])
    assert len(taken[0].graph.find_nodes(op="call_function", target=LINEAR)) == 1
    assert sorted(tuple(value.shape) for value in taken[0].buffers()) == [(32,), (32, 16)]
    assert module.code == before
    assert len(module.graph.find_nodes(op="call_function", target=LINEAR)) == 2
    expected, results = module(x), taken[0](x)
    torch.testing.assert_close(results, expected)
    assert [value.stride() for value in results] == [value.stride() for value in expected]
    assert [v.untyped_storage().nbytes() for v in results] == [v.untyped_storage().nbytes() for v in expected]


def test_layers_stay_apart_in_a_graph_that_reads_by_strides(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[Any] = []
    monkeypatch.setattr(_inductor, "compile", lambda module, inputs, options: taken.append(module) or module)
    monkeypatch.setitem(PAIRS, "strides", lambda a, b: (a[:, 1:].as_strided((2, 5), (80, 16), 0) + b[..., 0],))
    module, x = pair("strides")
    compiled_by_inductor(module, [x])
    assert len(taken[0].graph.find_nodes(op="call_function", target=LINEAR)) == 2
    torch.testing.assert_close(taken[0](x), module(x))


@pytest.mark.full
@pytest.mark.parametrize("name", PAIRS)
def test_what_inductor_makes_of_merged_layers(name: str) -> None:
    module, x = pair(name)
    with torch.no_grad():
        expected, results = module(x), compiled_by_inductor(module, [x])(x)
    torch.testing.assert_close(list(results), list(expected))
    assert [value.stride() for value in results] == [value.stride() for value in expected]


@pytest.mark.parametrize(
    ("dtype", "factor", "is_used"),
    [
        (torch.float32, 1.0, True),
        (torch.float32, 1.001, False),
        (torch.float16, 1.001, True),
        (torch.float16, 1.1, False),
    ],
)
def test_what_is_prepared_is_right_and_has_run(
    dtype: torch.dtype, factor: float, is_used: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its first call loads kernels, for seconds, which are not to be taken for the time of a call."""
    calls: list[int] = []

    def compiled(x: torch.Tensor) -> tuple[torch.Tensor]:
        calls.append(1)
        return (x.sin() * factor,)

    monkeypatch.setattr(home, "compiled_by_inductor", lambda *_: compiled)
    x = torch.randn(3, 4).to(dtype)
    program = torch.export.export(Sine(), (x,))
    inductor = Inductor("trt_0", graph_from_program(program).module, is_checked=True)
    assert inductor.prepare([x]) is is_used
    assert calls == [1]
    torch.testing.assert_close(inductor([x])[0], x.sin(), rtol=1e-2, atol=1e-2)
    assert len(calls) == 1 + is_used


@pytest.mark.full
@pytest.mark.parametrize("first_is_negated", [False, True])
def test_what_is_negated_when_it_is_read(first_is_negated: bool) -> None:
    """Inductor's code would read the memory, which has the other signs."""
    x = torch.randn(3, 4)
    run = Inductor("part", graph_from_program(torch.export.export(Sine(), (x,))).module)
    inputs = [x, torch._neg_view(x)]
    for value in reversed(inputs) if first_is_negated else inputs:
        torch.testing.assert_close(run([value])[0], value.sin())
