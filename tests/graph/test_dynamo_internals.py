"""Private names of Dynamo are there, and do what their functions here say."""

from __future__ import annotations

import concurrent.futures
import contextlib
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
from torch import nn
from torch._dynamo.convert_frame import ConvertFrameAssert
from torch._dynamo.variables import builder

from torchtrt_bridge.graph import dynamo_internals
from torchtrt_bridge.graph.packed import own


class Backend:
    """Backend that runs a graph in PyTorch and counts the graphs."""

    graphs = 0

    def __call__(self, module: torch.fx.GraphModule, inputs: object) -> torch.fx.GraphModule:
        self.graphs += 1
        return module


def broken(x: torch.Tensor) -> torch.Tensor:
    y = x + 1
    torch._dynamo.graph_break()
    return y * 2


def test_graph_breaks_have_their_backend_code_message_and_trace() -> None:
    found: list[tuple[object, ...]] = []
    dynamo_internals.watch_graph_breaks(lambda *values: found.append(values))
    backend = Backend()
    torch.compile(broken, backend=backend)(torch.ones(2))
    ((used, code, message, trace),) = found
    assert dynamo_internals.function_of_backend(used) is backend
    assert code is broken.__code__
    assert "graph_break" in str(message)
    assert "torch._dynamo.graph_break()" in str(trace)


def test_what_raises_at_a_graph_break_ends_the_compilation() -> None:
    def refuse(*values: object) -> None:
        if dynamo_internals.function_of_backend(values[0]) is backend:
            raise ValueError("no breaks")

    dynamo_internals.watch_graph_breaks(refuse)
    backend = Backend()
    with pytest.raises(torch._dynamo.exc.BackendCompilerFailed, match="no breaks"):
        torch.compile(broken, backend=backend)(torch.ones(2))


def test_the_backend_of_a_module_that_torch_compile_returned() -> None:
    backend = Backend()
    used = dynamo_internals.backend_of_optimized(torch.compile(nn.Linear(2, 2), backend=backend))
    assert dynamo_internals.function_of_backend(used) is backend
    assert dynamo_internals.backend_of_optimized(nn.Linear(2, 2)) is None


def test_dynamo_forgets_the_graphs_of_one_backend_and_keeps_those_of_others() -> None:
    kept, forgotten = Backend(), Backend()
    fast = torch.compile(broken, backend=kept)
    fast(torch.ones(2))
    with dynamo_internals.forgetting_graphs(forgotten):
        torch.compile(broken, backend=forgotten)(torch.ones(3))
    assert forgotten.graphs == 2
    fast(torch.ones(2))
    assert kept.graphs == 2
    torch.compile(broken, backend=forgotten)(torch.ones(3))
    assert forgotten.graphs == 4


def test_dynamo_forgets_which_sizes_changed() -> None:
    shapes = []

    def backend(module: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> torch.fx.GraphModule:
        shapes.append([type(size) for value in inputs if isinstance(value, torch.Tensor) for size in value.shape])
        return module

    def double(x: torch.Tensor) -> torch.Tensor:
        return x * 2

    other = Backend()
    with dynamo_internals.forgetting_graphs(other):
        torch.compile(double, backend=other)(torch.ones(3))
    torch.compile(double, backend=backend)(torch.ones(4))
    assert shapes == [[int]]


def test_export_is_quiet_of_its_own_work_and_of_nothing_else(capsys: pytest.CaptureFixture[str]) -> None:
    class Branch(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * 2 if x.sum() > 0 else x

    graph = torch.fx.Graph()
    node = graph.placeholder("x")
    graph.erase_node(node)
    with warnings.catch_warnings(record=True) as given:
        warnings.simplefilter("always")
        with dynamo_internals.export_is_quiet():
            graph.erase_node(node)
            warnings.warn("of the user", stacklevel=1)
            with pytest.raises(Exception, match="data-dependent"):
                torch.export.export(Branch(), (torch.ones(2),), strict=False)
    assert [str(warning.message) for warning in given] == ["of the user"]
    assert "def forward" not in capsys.readouterr().err
    with pytest.raises(Exception, match="data-dependent"):
        torch.export.export(Branch(), (torch.ones(2),), strict=False)
    assert "def forward" in capsys.readouterr().err


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.GRU(2, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x + 1)[0] + 1


@pytest.fixture
def _traces_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take the contexts of a test out of later traces."""
    monkeypatch.setattr(ConvertFrameAssert, "__call__", ConvertFrameAssert.__call__)


@pytest.mark.usefixtures("_traces_as_before")
def test_dynamo_traces_recurrent_layers_for_one_backend() -> None:
    ours, others, x = Backend(), Backend(), torch.ones(3, 1, 2)

    def context_for(backend: Any) -> contextlib.AbstractContextManager[Any]:
        found = dynamo_internals.function_of_backend(backend) is ours
        return dynamo_internals.recurrent_layers_traced() if found else contextlib.nullcontext()

    dynamo_internals.enter_in_traces(context_for)
    torch.compile(Recurrent(), backend=ours, fullgraph=True)(x)
    assert ours.graphs == 1
    with pytest.raises(torch._dynamo.exc.Unsupported, match="RNN, GRU, or LSTM"):
        torch.compile(Recurrent(), backend=others, fullgraph=True)(x)


@pytest.mark.usefixtures("_traces_as_before")
def test_a_context_of_traces_is_entered_once() -> None:
    entered = []

    @contextlib.contextmanager
    def context_for(backend: Any) -> Iterator[None]:
        entered.append(backend)
        yield

    dynamo_internals.enter_in_traces(context_for)
    trace = ConvertFrameAssert.__call__
    dynamo_internals.enter_in_traces(context_for)
    assert ConvertFrameAssert.__call__ is trace
    backend = Backend()
    torch.compile(broken, backend=backend)(torch.ones(2))
    assert {dynamo_internals.function_of_backend(each) for each in entered} == {backend}


@pytest.mark.usefixtures("_traces_as_before")
def test_sizes_that_are_equal_at_first_are_different_for_one_backend() -> None:
    ours, others = Backend(), Backend()

    def context_for(backend: Any) -> contextlib.AbstractContextManager[Any]:
        found = dynamo_internals.function_of_backend(backend) is ours
        return dynamo_internals.graphs_of_all_sizes(9) if found else contextlib.nullcontext()

    dynamo_internals.enter_in_traces(context_for)
    for backend in (ours, others):
        compiled = torch.compile(lambda x: x * 2, backend=backend, dynamic=True)
        compiled(torch.ones(3, 3))
        compiled(torch.ones(3, 4))
    assert [ours.graphs, others.graphs] == [1, 2]


@pytest.mark.usefixtures("_traces_as_before")
def test_a_function_may_have_more_graphs_for_one_backend() -> None:
    backend = Backend()
    dynamo_internals.enter_in_traces(lambda _: dynamo_internals.graphs_of_all_sizes(9))
    compiled = torch.compile(lambda x, number: x * number, backend=backend, dynamic=False)
    for number in range(11):
        compiled(torch.ones(3), number)
    assert backend.graphs == 9
    assert torch._dynamo.config.recompile_limit == 8


def test_other_threads_have_dynamos_own_setting() -> None:
    def read() -> bool:
        return bool(builder.config.allow_rnn)

    before = builder.config
    with concurrent.futures.ThreadPoolExecutor() as other, dynamo_internals.recurrent_layers_traced():
        assert read()
        assert not other.submit(read).result()
        assert builder.config.recompile_limit == before.recompile_limit
    assert builder.config is before
    assert not read()


# Functions that are traced as others --------------------------------------------------------------------------------


def halved(x: Any) -> Any:
    return x / 2


def in_graph(x: torch.Tensor) -> torch.Tensor:
    return x * 10


def packed_in_graph(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return tensors whose sizes depend on data: in a trace unknown ones, else 2."""
    if type(x) is torch.Tensor:
        return torch.ones(2, 4), torch.ones(2, dtype=torch.int64)
    data, sizes = own.pack_padded_sequence(x, torch.ones(3, dtype=torch.int64), False)
    return data, sizes


def tens(x: Any) -> torch.Tensor:
    return in_graph(x)


def of_data(x: Any) -> torch.Tensor:
    return packed_in_graph(x)[1].float()


def as_ever(x: torch.Tensor) -> Any:
    return halved(x)


class Graphs(Backend):
    """Backend that keeps the names of the calls in its graphs."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def __call__(self, module: torch.fx.GraphModule, inputs: object) -> torch.fx.GraphModule:
        self.calls += [node.target.__name__ for node in module.graph.nodes if node.op == "call_function"]  # type: ignore[union-attr]
        return super().__call__(module, inputs)


def traced_in_place_of_halved(other: Any) -> contextlib.AbstractContextManager[None]:
    def is_for(types: Sequence[type]) -> bool:
        return types == [torch.Tensor]

    return dynamo_internals.functions_traced_as({halved: (other, is_for)}, (in_graph, packed_in_graph), as_ever)


def test_a_function_is_traced_as_another_for_arguments_of_some_types() -> None:
    backend, x = Graphs(), torch.ones(4)
    with traced_in_place_of_halved(tens):
        results = torch.compile(lambda x: (halved(x), halved(x=x), halved(3), as_ever(x)), backend=backend)(x)
    tens_of_x, named, half, left = results
    assert torch.equal(tens_of_x, x * 10)
    assert torch.equal(named, x * 10)
    assert torch.equal(left, x / 2)
    assert half == 1.5
    assert backend.calls.count("in_graph") == 2
    assert backend.graphs == 1


def test_functions_are_traced_as_ever_afterwards_and_in_other_threads() -> None:
    x = torch.ones(4)
    compiled = torch.compile(lambda x: halved(x), backend=Backend())
    with traced_in_place_of_halved(tens), concurrent.futures.ThreadPoolExecutor() as other:
        assert torch.equal(other.submit(compiled, x).result(), x / 2)
    torch._dynamo.reset()
    assert torch.equal(compiled(x), x / 2)


def test_no_size_from_data_is_taken_for_another_size() -> None:
    backend, x = Graphs(), torch.ones(7, 3, 4)

    def call(x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        sizes = halved(x)
        return sizes * 2, sizes + y

    with traced_in_place_of_halved(of_data):
        doubled, total = torch.compile(call, backend=backend)(x, torch.ones(2))
        assert torch.equal(doubled, torch.full((2,), 2.0))
        assert torch.equal(total, torch.full((2,), 2.0))
        with pytest.raises(RuntimeError, match="must match the size"):
            torch.compile(call, backend=backend)(x, torch.ones(3))
    assert "packed_in_graph" in backend.calls
    assert "add" not in backend.calls
