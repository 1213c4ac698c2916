"""A compiled graph at work, as far as it shows without a GPU: what it holds, and how it is called."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import torchtrt_bridge as trtb
from tests.models import ConvNet, image, trained
from tests.passes.case import Called
from torchtrt_bridge.capture.export import export_program, graph_from_program
from torchtrt_bridge.graph.torch_internals import new_export_mode
from torchtrt_bridge.runtime import Execution
from torchtrt_bridge.runtime import execution as home


@pytest.fixture
def program() -> trtb.Program:
    program = trtb.export(trained(ConvNet()), image(), engine="reference")
    program(image())
    return program


def drop_an_engine(run: Execution) -> None:
    def fail(inputs: Any) -> Any:
        raise RuntimeError("planted")

    run.engines[0].runner = fail  # type: ignore[assignment]
    run.engines[0](image())


def give_up_graphs(run: Execution) -> None:
    run.give_up_graphs("planted")


@pytest.mark.parametrize("end", [drop_an_engine, give_up_graphs])
@pytest.mark.parametrize("is_capturing", [False, True])
def test_graphs_end_with_the_engines_that_they_hold(
    end: Callable[[Execution], None], is_capturing: bool, program: trtb.Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They hold their memory. While the caller captures a CUDA graph, nothing may be freed."""
    run, x = program._run, image()
    graphs = run.thread_state.graphs
    graphs.pair_for([x])
    program(x)
    assert len(graphs.pairs()) == 1
    end(run)
    monkeypatch.setattr(home, "is_capturing", lambda inputs: is_capturing)
    program(x)
    assert len(graphs.pairs()) == is_capturing


def test_in_pytorch_asks_no_engine(program: trtb.Program, monkeypatch: pytest.MonkeyPatch) -> None:
    run, x = program._run, image()
    expected = program(x)
    monkeypatch.setattr(run.engines[0], "forward", None)
    torch.testing.assert_close(run.in_pytorch([x])[0], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("call", "depends"),
    [
        (lambda x: x.exp() * 2, False),
        (lambda x: x[x > 0].exp(), True),
        (lambda x: x * x.max().item(), True),
        (lambda x: torch.cond(x.sum() > 0, torch.sin, torch.cos, (x,)), True),
        (lambda x: x + torch.arange(x.shape[0]).exp().to(x.device), True),
    ],
    ids=["nothing", "mask", "item", "cond", "cpu"],
)
def test_what_the_host_computes_is_in_no_cuda_graph(call: Callable[..., Any], depends: bool) -> None:
    with new_export_mode():
        x = torch.empty(4, device="cuda")  # fake, so that no GPU is needed
    module = graph_from_program(export_program(Called(call).eval(), (x,))).module
    assert home._depends_on_values(module) is depends


class Placing(nn.Module):
    """A model that puts an attribute where its input is, as Llama's reference code does: Dynamo returns it as it is."""

    def __init__(self) -> None:
        super().__init__()
        self.table = torch.randn(64, 8)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        self.table = self.table.to(x.device)
        return (self.table[: x.shape[0]] * x).relu(), x


@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
def test_results_that_are_inputs_are_the_callers_own(
    dynamic: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A CUDA graph would return its own buffer, so no graph returns them."""
    returned: list[int] = []

    def spied(self: Execution, inputs: Any) -> Any:
        with self.thread_state.lock:
            returned.append(len(self.module(*inputs)))
        return original(self, inputs)

    original = Execution._call
    monkeypatch.setattr(Execution, "_call", spied)
    model = Placing()
    fast = trtb.compile(model, engine="reference", dynamic=dynamic, fallback="error", cache_dir="")
    table, x = model.table, torch.randn(5, 8)
    for _ in range(3):
        result, same = fast(x)
        assert same is x
        assert model.table is table
        torch.testing.assert_close(result, (table[:5] * x).relu())
    assert caplog.messages == []
    assert not dynamic or set(returned) == {1}
