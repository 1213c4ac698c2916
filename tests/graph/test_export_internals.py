"""Decomposing an exported program without looking at all of PyTorch's composite operators."""

from __future__ import annotations

import threading

import pytest
import torch
from torch import nn
from torch.export import ExportedProgram, exported_program
from torch.nn import functional

from torchtrt_bridge.capture.decompositions import DECOMPOSITIONS
from torchtrt_bridge.graph.export_internals import SPLIT, decompose
from torchtrt_bridge.graph.torch_internals import tracing_lock

aten = torch.ops.aten
WHOLE = frozenset([aten.linear.default, aten.layer_norm.default, aten.scaled_dot_product_attention.default])
OWN = tuple(DECOMPOSITIONS.items())


class Many(nn.Module):
    """Composite operators that stay whole, that PyTorch decomposes, and that this package does."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        attended = functional.scaled_dot_product_attention(x, self.linear(x), functional.layer_norm(x, (8,)))
        pair = torch.einsum("bij,bkj->bik", attended, x)
        normed = functional.instance_norm(functional.pixel_shuffle(x[:, None].expand(-1, 4, -1, -1), 2))
        return pair, normed, torch.quantile(x.flatten(), 0.3), x.diff(), x.std()


def exported() -> ExportedProgram:
    torch.manual_seed(0)
    return torch.export.export(Many().eval(), (torch.randn(2, 6, 8),))


def operators(program: ExportedProgram) -> list[str]:
    return [str(node.target) for node in program.graph.nodes if node.op == "call_function"]


@pytest.fixture(scope="module")
def expected() -> list[str]:
    """The operators of the graph that PyTorch makes when it overrides all."""
    table = {**dict(torch.export.default_decompositions().items()), **DECOMPOSITIONS}
    return operators(exported().run_decompositions({op: each for op, each in table.items() if op not in WHOLE}))


def test_the_graph_is_that_of_all_overridden(expected: list[str]) -> None:
    with tracing_lock():
        found = operators(decompose(exported(), WHOLE, OWN))
    assert found == expected
    assert {str(op) for op in WHOLE} <= set(found)


def test_what_is_left_whole_changes_from_call_to_call() -> None:
    with tracing_lock():
        all_of_them = operators(decompose(exported(), WHOLE, OWN))
        fewer = operators(decompose(exported(), frozenset(), OWN))
        again = operators(decompose(exported(), WHOLE, OWN))
    assert again == all_of_them
    assert not {str(op) for op in WHOLE} & set(fewer)


def test_other_threads_decompose_as_ever(expected: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Another thread looks at all composite operators even while this one does not."""
    found = []
    original = getattr(exported_program, SPLIT)

    def look() -> None:
        composite, _ = getattr(exported_program, SPLIT)({})
        found.append(len(composite))

    def run(program: ExportedProgram, table: object) -> ExportedProgram:
        thread = threading.Thread(target=look)
        thread.start()
        thread.join()
        look()
        return program

    monkeypatch.setattr(ExportedProgram, "run_decompositions", run)
    with tracing_lock():
        decompose(exported(), WHOLE, OWN)
    other, own = found
    assert other == len(original({})[0])
    assert own <= len(WHOLE) + len(OWN)
