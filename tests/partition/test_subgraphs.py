"""Partition: what goes to TensorRT, in acyclic subgraphs, and why the rest does not."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import fx, nn
from torch.export import Dim

import torchtrt_bridge as trtb
from tests.passes.case import Called
from torchtrt_bridge.capture.export import export_program, graph_from_program
from torchtrt_bridge.options import Options
from torchtrt_bridge.partition import Proposal, extract_subgraphs, propose
from torchtrt_bridge.passes import normalize

aten = torch.ops.aten


def det(x: torch.Tensor) -> torch.Tensor:
    """Compute with an operator that TensorRT does not have; the shape stays."""
    return x + torch.linalg.det(x).unsqueeze(-1).unsqueeze(-1)


def x_of(batch: int = 3) -> torch.Tensor:
    return torch.randn(batch, 4, 4)


def cut(call: Any, x: torch.Tensor, dynamic: bool = False, **options: Any) -> tuple[fx.GraphModule, Proposal]:
    """Return the graph of `call` after it was cut into subgraphs."""
    model = call if isinstance(call, nn.Module) else Called(call)
    shapes = ({0: Dim("batch", min=2, max=8)},) if dynamic else None
    checked = Options(**options)
    module = normalize(graph_from_program(export_program(model.eval(), (x,), dynamic_shapes=shapes)).module, checked)
    proposal = propose(module, checked)
    extract_subgraphs(module, proposal.subgraphs)
    module.graph.lint()
    return module, proposal


def operators(module: fx.GraphModule) -> list[Any]:
    return [node.target for node in module.graph.nodes if node.op == "call_function"]


def assert_computes(module: fx.GraphModule, call: Any, x: torch.Tensor) -> None:
    with torch.no_grad():
        expected, actual = call(x), module(x)
    expected = expected if isinstance(expected, (tuple, list)) else (expected,)
    torch.testing.assert_close(list(actual), list(expected), rtol=1e-4, atol=1e-5)


def borders(module: fx.GraphModule) -> list[Any]:
    """Return all values that go into a subgraph or come out of one."""
    values: list[Any] = []
    for name, child in module.named_children():
        if name.startswith("trt_"):
            values += [n.meta["val"] for n in child.graph.nodes if n.op == "placeholder"]
            output = next(n for n in child.graph.nodes if n.op == "output")
            values += [n.meta["val"] for n in output.args[0]]
    return values


# Reasons ---------------------------------------------------------------------------------------------------------


def unsupported(x: torch.Tensor) -> torch.Tensor:
    return torch.linalg.det(x.relu()).exp()


class Unsupported(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.linalg.det(x.relu()).exp()


@pytest.mark.parametrize(
    ("model", "source"),
    [(Unsupported().eval(), Unsupported.forward), (unsupported, unsupported)],
    ids=["module", "function"],
)
def test_a_reason_reaches_the_report_with_its_source_line(model: Any, source: Any) -> None:
    program = trtb.export(model, x_of(), engine="reference")
    (entry,) = program.report.in_torch[:1]
    lines, first = inspect.getsourcelines(source)
    assert "linalg" in entry.op
    assert entry.reason == "no converter for this operator"
    assert entry.source == f"{__file__}:{first + 1}: {lines[1].strip()}"


def test_a_converters_own_reason_reaches_the_report() -> None:
    program = trtb.export(lambda x: x.double().exp().float() + x.relu(), x_of(), engine="reference")
    reasons = {entry.op: entry.reason for entry in program.report.in_torch}
    assert reasons["aten.exp.default"] == "dtype float64"


def test_every_node_is_in_a_subgraph_or_has_a_reason() -> None:
    module, proposal = cut(lambda x: det(x.relu()).exp().sum(0), x_of())
    rejected = {rejection.node.name for rejection in proposal.rejections}
    left = {node.name for node in module.graph.nodes if node.op == "call_function" and "getitem" not in node.name}
    moves = {"unsqueeze", "unsqueeze_1"}
    assert left - moves == rejected - moves
    assert "relu" not in left


@pytest.mark.parametrize("name", ["aten.exp.default", "aten.relu.default"])
def test_torch_ops(name: str) -> None:
    module, proposal = cut(lambda x: x.relu().exp().sin(), x_of(), torch_ops=(name,))
    assert [(str(r.node.target), r.reason) for r in proposal.rejections] == [(name, "the option torch_ops names it")]
    assert [str(target) for target in operators(module) if "getitem" not in str(target)] == [name]
    x = x_of()
    assert_computes(module, lambda x: x.relu().exp().sin(), x)


@pytest.mark.parametrize(("least", "engines"), [(1, 2), (2, 1), (3, 1), (4, 0)])
def test_min_subgraph_nodes(least: int, engines: int) -> None:
    def call(x: torch.Tensor) -> torch.Tensor:
        return torch.linalg.matrix_exp(x.sin()).relu().exp().tanh()

    module, proposal = cut(call, x_of(), min_subgraph_nodes=least)
    assert len(proposal.subgraphs) == engines
    small = [r.reason for r in proposal.rejections if "min_subgraph_nodes" in r.reason]
    assert len(small) == {1: 0, 2: 1, 3: 1, 4: 4}[least]
    assert all(f"min_subgraph_nodes={least}" in reason for reason in small)
    assert_computes(module, call, x_of())


# Shape of the cut --------------------------------------------------------------------------------------------------


def diamond(x: torch.Tensor) -> torch.Tensor:
    """Add a branch through the unsupported operator to one around it: a subgraph of both would need itself."""
    x = x.relu()
    return torch.linalg.matrix_exp(x.sin()).exp() + x.tanh()


def two_diamonds(x: torch.Tensor) -> torch.Tensor:
    return diamond(diamond(x) * 0.1)


def side_branch(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute two branches that never meet."""
    return torch.linalg.matrix_exp(x.sin()).exp(), x.tanh() * 2


def crossing(x: torch.Tensor) -> torch.Tensor:
    """Compute two unsupported operators, each of a value that the result of the other is added to."""
    one, two = x.sin(), x.cos()
    return torch.linalg.matrix_exp(one) * two + torch.linalg.matrix_exp(two) * one


@pytest.mark.parametrize("call", [diamond, two_diamonds, side_branch, crossing])
def test_the_cut_is_acyclic_and_computes_the_same(call: Callable[..., Any]) -> None:
    module, proposal = cut(call, x_of())  # `lint` there fails on a value that is used before it is made
    assert proposal.subgraphs
    left = {str(target) for target in operators(module) if "getitem" not in str(target)}
    assert left == {"aten.linalg_matrix_exp.default"}
    assert_computes(module, call, x_of())


def test_a_diamond_is_two_subgraphs() -> None:
    _, proposal = cut(diamond, x_of())
    assert list(proposal.subgraphs) == ["trt_0", "trt_1"]
    assert "relu" in proposal.subgraphs["trt_0"]
    assert "exp" in proposal.subgraphs["trt_1"]


def test_independent_branches_share_an_engine() -> None:
    _, proposal = cut(lambda x: (x.sin() * 2, x.cos() * 3), x_of())
    assert list(proposal.subgraphs) == ["trt_0"]


def breadth_first(nodes: list[fx.Node]) -> list[fx.Node]:
    """Sort nodes by the number of calls that they are behind."""
    depth: dict[fx.Node, int] = {}
    for node in nodes:
        depth[node] = max((depth.get(source, 0) for source in node.all_input_nodes), default=0) + 1
    return sorted(nodes, key=depth.__getitem__)


def test_the_calls_of_a_subgraph_stand_in_the_order_of_the_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch 2.11 returns them breadth first, its later versions do not."""
    monkeypatch.setattr("torch.fx.passes.utils.fuser_utils.topo_sort", breadth_first)

    def call(x: torch.Tensor) -> torch.Tensor:
        return (x.relu().exp() * 2).tanh() + (x.sigmoid() - 3).abs()

    module, _ = cut(call, x := x_of())
    names = ["relu", "exp", "mul", "tanh", "sigmoid", "sub", "abs", "add"]
    assert [op._opname for op in operators(module.trt_0)] == names
    assert_computes(module, call, x)


def test_subgraphs_are_named_in_the_order_of_the_graph() -> None:
    module, proposal = cut(two_diamonds, x_of())
    assert list(proposal.subgraphs) == [f"trt_{i}" for i in range(len(proposal.subgraphs))]
    calls = [str(n.target) for n in module.graph.nodes if n.op == "call_module"]
    assert calls == list(proposal.subgraphs)


class SharedConstant(nn.Module):
    """A weight that both subgraphs and PyTorch read."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = (x @ self.weight).sin()
        x = torch.linalg.matrix_exp(x * 0.1) + torch.linalg.det(self.weight)
        return (x @ self.weight).tanh()


def test_weights_are_constants_of_each_subgraph() -> None:
    model = SharedConstant()
    module, proposal = cut(model, x_of())
    assert len(proposal.subgraphs) == 2
    names = [[n.op for n in module.get_submodule(name).graph.nodes] for name in proposal.subgraphs]
    assert [ops.count("placeholder") for ops in names] == [1, 1]
    assert all(ops.count("get_attr") >= 1 for ops in names)
    assert_computes(module, model, x_of())


# Views and moves -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "call",
    [
        lambda x: x.transpose(1, 2),
        lambda x: x.reshape(x.shape[0], -1).unsqueeze(1),
        lambda x: x.permute(2, 0, 1).contiguous(),
        lambda x: torch.linalg.det(x.transpose(1, 2)),
        lambda x: x[:, 1],
        lambda x: x.split(2, 1),
    ],
    ids=["view", "views", "copy", "view for pytorch", "select", "split"],
)
def test_moves_alone_get_no_engine(call: Callable[..., Any]) -> None:
    module, proposal = cut(call, x_of())
    assert proposal.subgraphs == {}
    assert_computes(module, call, x_of())


def test_a_view_of_an_input_stays_a_view() -> None:
    def call(x: torch.Tensor) -> Any:
        return x.transpose(1, 2), x.relu()

    module, proposal = cut(call, x_of())
    assert list(proposal.subgraphs) == ["trt_0"]
    x = x_of()
    view, _ = module(x)
    assert view.data_ptr() == x.data_ptr()
    assert_computes(module, call, x)


def test_a_result_and_its_view_share_memory() -> None:
    def call(x: torch.Tensor) -> Any:
        y = x.relu()
        return y, y.transpose(1, 2)

    module, proposal = cut(call, x_of())
    assert list(proposal.subgraphs) == ["trt_0"]
    result, view = module(x_of())
    assert view.data_ptr() == result.data_ptr()


def test_views_between_computations_are_in_the_engine() -> None:
    _, proposal = cut(lambda x: x.relu().transpose(1, 2).reshape(-1, 4).exp(), x_of())
    (nodes,) = proposal.subgraphs.values()
    assert nodes[0] == "relu"
    assert nodes[-1] == "exp"
    assert proposal.rejections == []


# Sizes ---------------------------------------------------------------------------------------------------------------


def view_after_unsupported(x: torch.Tensor) -> torch.Tensor:
    return det(x.sin()).view(x.shape[0], -1).exp()


def size_as_number(x: torch.Tensor) -> torch.Tensor:
    return det(x.sin()).sum(0) / x.shape[0]


def ones_of_a_size(x: torch.Tensor) -> torch.Tensor:
    return torch.linalg.matrix_exp(x * 0.1).relu() + x.new_ones(x.shape[0], 1, 1) * 2


def result_and_its_view(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    y = x.exp()
    return y, y.flatten(0, 1)


WITH_SIZES = [view_after_unsupported, size_as_number, ones_of_a_size, result_and_its_view]


@pytest.mark.parametrize("call", WITH_SIZES)
def test_no_size_crosses_a_border(call: Callable[..., Any]) -> None:
    module, proposal = cut(call, x_of(), dynamic=True)
    assert proposal.subgraphs
    kinds = {type(value).__name__ for value in borders(module)}
    assert kinds == {"FakeTensor"}
    assert_computes(module, call, x_of(3))
    assert_computes(module, call, x_of(5))


@pytest.mark.parametrize("call", WITH_SIZES)
def test_dynamic_sizes_beside_unsupported_operators(call: Callable[..., Any]) -> None:
    program = trtb.export(call, x_of(), dynamic_shapes=({0: Dim("batch", min=2, max=8)},), engine="reference")
    assert program.report.engines
    x = x_of(5)
    torch.testing.assert_close(program(x), call(x), rtol=1e-4, atol=1e-5)
    assert all(engine.is_ready for engine in program.report.engines), str(program.report)
