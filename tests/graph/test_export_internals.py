"""Private names of traces: operators that are decomposed fast, or traced as others, and sizes that depend on data."""

from __future__ import annotations

import concurrent.futures
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.export import ExportedProgram, exported_program
from torch.nn import functional
from torch.nn.utils import rnn

from torchtrt_bridge.capture.decompositions import DECOMPOSITIONS
from torchtrt_bridge.graph.export_internals import (
    SPLIT,
    decompose,
    flat_weights,
    is_refused,
    padding_functions_replaced,
    reads_size_from_data,
    refusal,
    squeezes_read_sizes,
    traced_as,
)
from torchtrt_bridge.graph.packed import own
from torchtrt_bridge.graph.recurrent import WHOLE as WHOLE_LAYERS
from torchtrt_bridge.graph.torch_internals import (
    is_data_dependent,
    new_export_mode,
    statically_known_true,
    tracing_lock,
)

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


# Packed sequences ---------------------------------------------------------------------------------------------------


def packed_in_trace() -> tuple[torch.Tensor, torch.Tensor]:
    """Return the packed elements of sequences of 7 steps, and their batch sizes, as a trace has them."""
    data, sizes = own.pack_padded_sequence(torch.ones(7, 3, 4), torch.tensor([2, 2, 1]), False)
    return data, sizes


def test_a_size_from_data_has_bounds() -> None:
    with new_export_mode():
        data, sizes = packed_in_trace()
    assert statically_known_true(sizes.shape[0] >= 1)
    assert statically_known_true(sizes.shape[0] <= 7)
    assert statically_known_true(data.shape[0] >= 1)
    assert not statically_known_true(data.shape[0] <= 7)


def test_a_condition_on_a_size_from_data_is_known_for_its_trace_only() -> None:
    with new_export_mode():
        _, sizes = packed_in_trace()
    (size,) = sizes.shape
    condition = (size == 3).node.expr
    assert reads_size_from_data(size.node.shape_env, condition)
    assert not reads_size_from_data(new_export_mode().shape_env, condition)


SQUEEZES: list[Callable[[torch.Tensor], torch.Tensor]] = [
    lambda data: data.squeeze(),
    lambda data: data.squeeze(0),
    lambda data: data.squeeze((0, 1)),
]


@pytest.mark.parametrize("squeeze", SQUEEZES)
def test_no_size_from_data_decides_whether_a_dimension_is_dropped(
    squeeze: Callable[[torch.Tensor], torch.Tensor],
) -> None:
    with new_export_mode():
        data, _ = packed_in_trace()
        assert squeeze(data).dim() == 2  # as PyTorch takes it
        with squeezes_read_sizes(), pytest.raises(Exception, match="data-dependent") as raised:
            squeeze(data)
    assert is_data_dependent(raised.value)


def test_dimensions_of_known_sizes_are_dropped() -> None:
    with new_export_mode(), squeezes_read_sizes():
        data, _ = packed_in_trace()
        assert data[:, :1].squeeze(1).dim() == 1
        assert data[None].squeeze(0).dim() == 2


def test_functions_that_pack_and_pad_are_replaced_in_this_thread_only() -> None:
    x, lengths = torch.randn(3, 2, 4), torch.tensor([3, 2])
    expected = rnn.pack_padded_sequence(x, lengths)

    def pack(*args: Any) -> tuple[torch.Tensor, torch.Tensor]:
        return expected.data * 2, expected.batch_sizes

    def pad(*args: Any) -> tuple[torch.Tensor, torch.Tensor]:
        return x * 3, lengths

    with padding_functions_replaced(pack, pad), concurrent.futures.ThreadPoolExecutor() as other:
        packed = rnn.pack_padded_sequence(x, lengths)
        padded = rnn.pad_packed_sequence(packed)[0]
        elsewhere = other.submit(rnn.pack_padded_sequence, x, lengths).result()
    assert torch.equal(packed.data, expected.data * 2)
    assert torch.equal(padded, x * 3)
    assert torch.equal(elsewhere.data, expected.data)
    assert torch.equal(rnn.pack_padded_sequence(x, lengths).data, expected.data)


def test_the_weights_of_a_layer_in_order() -> None:
    layer = nn.LSTM(2, 3, proj_size=1, bidirectional=True)
    assert all(a is b for a, b in zip(flat_weights(layer), layer.parameters(), strict=True))


def test_a_refusal_is_known() -> None:
    with pytest.raises(RuntimeError) as raised:
        refusal(aten.lstm.data)(None)
    assert is_refused(raised.value)
    assert not is_refused(RuntimeError("another"))
