"""Decomposing an exported program without looking at all of PyTorch's composite operators."""

from __future__ import annotations

import threading

import pytest
import torch
from torch import nn
from torch.export import ExportedProgram, exported_program
from torch.nn import functional

from torchtrt_bridge.capture.decompositions import DECOMPOSITIONS
from torchtrt_bridge.graph.export_internals import SPLIT, decompose, traced_as
from torchtrt_bridge.graph.recurrent import WHOLE as WHOLE_LAYERS
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
        return pair, normed, functional.cosine_similarity(x, x), x.diff(), x.std()


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


# Operators that are traced as others ------------------------------------------------------------------------------


TANH = "aten.tanh.default"
OF_LAYER = "torchtrt_bridge.rnn_tanh.default"


def steps_of(x: torch.Tensor) -> list[str]:
    """Return the operators of a recurrent layer, as `torch.export` traces it."""
    return operators(torch.export.export(nn.RNN(2, 2), (x,)).run_decompositions())


def test_an_operator_is_traced_as_another_in_this_thread_only() -> None:
    x = torch.ones(2, 1, 2)
    before, kernels = steps_of(x), {op: dict(op.py_kernels) for op in WHOLE_LAYERS}
    with tracing_lock(), traced_as(WHOLE_LAYERS):
        within = steps_of(x)
        weights = [torch.randn(2, 2), torch.randn(2, 2)]
        values = torch.rnn_tanh(x, torch.zeros(1, 1, 2), weights, False, 1, 0.0, False, False, False)
        found: list[list[str]] = []
        thread = threading.Thread(target=lambda: found.append(unrolled(x, weights)))
        thread.start()
        thread.join()
    assert OF_LAYER in within
    assert TANH not in within
    assert values[0].shape == (2, 1, 2)
    assert before.count(TANH) == found[0].count(TANH) == x.shape[0]
    assert {op: dict(op.py_kernels) for op in WHOLE_LAYERS} == kernels
    assert steps_of(x) == before


def unrolled(x: torch.Tensor, weights: list[torch.Tensor]) -> list[str]:
    """Return the operators of a layer as another kind of trace sees them."""
    from torch.fx.experimental.proxy_tensor import make_fx

    def call(x: torch.Tensor, *weights: torch.Tensor) -> torch.Tensor:
        state = torch.zeros(1, 1, 2)
        return torch.rnn_tanh(x, state, weights, False, 1, 0.0, False, False, False)[0]

    graph = make_fx(call, tracing_mode="fake")(x, *weights).graph
    return [str(node.target) for node in graph.nodes if node.op == "call_function"]
