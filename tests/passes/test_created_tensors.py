"""Tensors on the CPU in a graph on a GPU, shown without one: fake tensors of the device "cuda" can be captured."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.export import Dim

from torchtrt_bridge.capture.export import export_program, graph_from_program
from torchtrt_bridge.graph.torch_internals import new_export_mode
from torchtrt_bridge.options import Options
from torchtrt_bridge.partition import Proposal, propose
from torchtrt_bridge.passes import normalize

ON_CPU = "a tensor on the CPU in a graph on cuda"


class Positions(nn.Module):
    """Buckets of relative positions, computed on the CPU and moved, as MPNet of transformers 5.17 does."""

    def forward(self, x: torch.Tensor) -> Any:
        length = x.shape[1]
        n = torch.arange(length)[None, :] - torch.arange(length)[:, None]
        large = (torch.log(n.abs().float() + 1) * 3).to(torch.long)
        bucket = torch.min(large, torch.full_like(large, 5))
        return (x.relu() @ x.transpose(1, 2)).exp() + bucket.to(x.device).float()


class Returned(Positions):
    """The same, with what was computed on the CPU as a second result there."""

    def forward(self, x: torch.Tensor) -> Any:
        places = torch.arange(x.shape[1]).float().exp()
        return (x.relu() * places.to(x.device)[:, None]).exp(), places


class Given(nn.Module):
    """A call with an input on the CPU, which one result is computed from, and whose size another reads."""

    def forward(self, x: torch.Tensor, host: torch.Tensor) -> Any:
        return x.relu().exp(), (host.exp() * 2).sum(0).to(x.device) + x, x.sin() * host.shape[0]


class Beside(nn.Module):
    """A call whose results have the batch of an input on the CPU, which the one on the GPU has too."""

    def forward(self, host: torch.Tensor, x: torch.Tensor) -> Any:
        return (host * 2).to(x.device) + x, x.new_ones(host.shape[0], 3) + x[:, :3].exp()


def captured(model: nn.Module, *inputs: tuple[str, tuple[int, ...]], is_dynamic: bool = True) -> Any:
    """Return the normalized graph of a model whose inputs are fake, of these devices and sizes."""
    with new_export_mode():
        args = tuple(torch.empty(sizes, device=device) for device, sizes in inputs)
    shapes = tuple({len(sizes) - 2: Dim.AUTO} for _, sizes in inputs) if is_dynamic else None
    module = graph_from_program(export_program(model.eval(), args, dynamic_shapes=shapes)).module
    return normalize(module, Options())


def devices(module: torch.fx.GraphModule) -> set[str]:
    return {n.meta["val"].device.type for n in module.graph.nodes if isinstance(n.meta.get("val"), torch.Tensor)}


def reasons(proposal: Proposal) -> dict[str, str]:
    return {rejection.node.name: rejection.reason for rejection in proposal.rejections}


def test_tensors_that_are_created_and_moved_are_created_on_the_gpu() -> None:
    module = captured(Positions(), ("cuda", (2, 6, 4)))
    assert devices(module) == {"cuda"}
    proposal = propose(module, Options())
    assert proposal.rejections == []
    assert len(proposal.subgraphs) == 1


def test_what_is_also_a_result_on_the_cpu_stays_there() -> None:
    module = captured(Returned(), ("cuda", (2, 6, 4)))
    proposal = propose(module, Options())
    found = reasons(proposal)
    assert set(found.values()) == {ON_CPU}
    assert {str(r.node.target) for r in proposal.rejections} >= {"aten.arange.start_step", "aten.exp.default"}
    assert any("relu" in names for names in proposal.subgraphs.values())
    assert not {name for names in proposal.subgraphs.values() for name in names} & set(found)


@pytest.mark.parametrize("is_dynamic", [False, True], ids=["static", "dynamic"])
def test_what_takes_an_input_on_the_cpu_stays_in_pytorch(is_dynamic: bool) -> None:
    module = captured(Given(), ("cuda", (6, 4)), ("cpu", (6, 4)), is_dynamic=is_dynamic)
    proposal = propose(module, Options())
    found = reasons(proposal)
    inside = {name for names in proposal.subgraphs.values() for name in names}
    assert inside >= {"relu", "exp", "sin"}
    assert inside.isdisjoint(found)
    on_cpu = {node.name for node in module.graph.nodes if node.op == "call_function" and _touches_the_cpu(node)}
    assert on_cpu
    assert on_cpu.isdisjoint(inside)
    assert {name for name in on_cpu if not name.startswith("sym_size")} <= found.keys()
    assert ("it reads the size of a tensor on the CPU" in found.values()) is is_dynamic


def test_a_size_that_an_input_on_the_gpu_has_too_is_read_there() -> None:
    module = captured(Beside(), ("cpu", (6, 4)), ("cuda", (6, 4)))
    (size,) = module.graph.find_nodes(op="call_function", target=torch.ops.aten.sym_size.int)
    assert (size.args[0].name, size.args[1]) == ("x", 0)
    assert set(reasons(propose(module, Options())).values()) == {ON_CPU}


def _touches_the_cpu(node: torch.fx.Node) -> bool:
    values = [n.meta.get("val") for n in (node, *node.all_input_nodes)]
    return any(isinstance(value, torch.Tensor) and value.device.type == "cpu" for value in values)


def test_a_graph_on_the_cpu_is_no_reason() -> None:
    module = captured(Positions(), ("cpu", (2, 6, 4)))
    assert devices(module) == {"cpu"}
    assert propose(module, Options()).rejections == []


# Numbers ------------------------------------------------------------------------------------------------------------


class Scaled(nn.Module):
    """A tensor on the GPU, and numbers that are tensors on the CPU."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.dtype = dtype

    def forward(self, x: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor) -> Any:
        return (x.to(self.dtype).relu() * scale + shift.exp()).exp(), scale * 2


def test_numbers_on_the_cpu_are_copied_to_the_gpu() -> None:
    module = captured(Scaled(), ("cuda", (2, 3)), ("cpu", ()), ("cpu", ()), is_dynamic=False)
    proposal = propose(module, Options())
    assert len(proposal.subgraphs) == 1
    assert {name.partition("_")[0] for name in proposal.subgraphs["trt_0"]} == {"relu", "mul", "add", "exp"}
    reasons = [rejection.reason for rejection in proposal.rejections]
    assert sorted(reasons) == [ON_CPU] * 4  # two copies, and what the CPU computes: the other product, the exponential


def test_half_precision_is_computed_with_the_cpus_number() -> None:
    module = captured(Scaled(torch.float16), ("cuda", (2, 3)), ("cpu", ()), ("cpu", ()), is_dynamic=False)
    assert not [n for n in module.graph.nodes if n.kwargs.get("device") is not None]
    assert {r.reason for r in propose(module, Options()).rejections} == {ON_CPU}


def test_a_row_on_the_cpu_is_not_copied() -> None:
    module = captured(Given(), ("cuda", (2, 3)), ("cpu", (2, 3)), is_dynamic=False)
    assert len([n for n in module.graph.nodes if n.kwargs.get("device") is not None]) == 1  # the model's own
