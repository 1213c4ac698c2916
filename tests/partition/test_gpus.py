"""A graph over two GPUs has engines on each, and no engine on both; no GPU is needed to cut it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from torchtrt_bridge.capture.export import export_program, graph_from_program
from torchtrt_bridge.graph.torch_internals import fake_mode_of_values
from torchtrt_bridge.options import Options
from torchtrt_bridge.partition import extract_subgraphs, propose
from torchtrt_bridge.passes import normalize

SECOND = "cuda:1"


class Over(torch.nn.Module):
    """Calls a function of two tensors, one on each GPU."""

    def __init__(self, call: Callable[..., torch.Tensor]) -> None:
        super().__init__()
        self.call = call

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return self.call(x, y)


CASES: dict[str, tuple[Callable[..., torch.Tensor], list[str]]] = {
    "one behind the other": (lambda x, y: (x.relu().sin().to(SECOND) + y).relu(), ["cuda:0", SECOND]),
    "there and back": (
        lambda x, y: (x.relu().to(SECOND) * y).sin().to("cuda:0").relu() + x.relu().exp(),
        ["cuda:0", SECOND, "cuda:0"],
    ),
    "independent": (lambda x, y: (x.relu().sin(), y.relu().cos()), ["cuda:0", SECOND]),  # type: ignore[dict-item, return-value]
    "one GPU": (lambda x, y: x.relu() + x.sin(), ["cuda:0"]),
}


@pytest.mark.parametrize("name", CASES)
def test_each_engine_is_on_one_gpu(name: str) -> None:
    call, expected = CASES[name]
    with fake_mode_of_values([]):
        inputs = torch.empty(2, 3, device="cuda:0"), torch.empty(2, 3, device=SECOND)
    module = normalize(graph_from_program(export_program(Over(call), inputs)).module, Options())
    proposal = propose(module, Options())
    assert {rejection.reason[:6] for rejection in proposal.rejections} <= {"a move"}
    subgraphs = extract_subgraphs(module, proposal.subgraphs)
    module.graph.lint()
    devices = [
        {str(node.meta["val"].device) for node in part.graph.nodes if node.op == "call_function"}
        for part in subgraphs.values()
    ]
    assert all(len(found) == 1 for found in devices)
    assert sorted(found.pop() for found in devices) == sorted(expected)
