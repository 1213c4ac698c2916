"""Key of an engine: two subgraphs share one only if they are the same computation, built the same way."""

from __future__ import annotations

import subprocess
import sys
from typing import Any, cast, get_args

import pytest
import torch
from torch import fx, nn
from torch.export import Dim

from tests.engine.keys import TARGETS, batch, key_of, linear, square, subgraph_of
from torchtrt_bridge.engine.build import engine_from_network
from torchtrt_bridge.engine.engine_key import _with_numbered_symbols, engine_key
from torchtrt_bridge.lower.network import network_from_graph
from torchtrt_bridge.options import DECLARATIONS, Options, defaults, type_hints
from torchtrt_bridge.trt import library as library


class TwoWeights(nn.Module):
    """Model of two weights of one shape, which differ only by their place."""

    def __init__(self, swapped: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        one, two = torch.randn(4, 4), torch.randn(4, 4)
        self.register_buffer("one", two if swapped else one)
        self.register_buffer("two", one if swapped else two)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(x @ self.one) @ self.two


# Computations that differ in arguments of the same operators; other caches confuse their engines.
PAIRS: dict[str, tuple[Any, Any, tuple[torch.Tensor, ...]]] = {
    "softmax dim": (lambda x: x.softmax(1), lambda x: x.softmax(2), (square(),)),
    "operand order": (lambda x, y: x.exp() - y.sin(), lambda x, y: torch.rsub(x.exp(), y.sin()), (square(), square())),
    "sum dim": (lambda x: x.sum(1), lambda x: x.sum(2), (square(),)),
    "permute": (lambda x: -x.permute(0, 2, 1), lambda x: -x.permute(2, 1, 0), (square(),)),
    "clamp": (lambda x: x.clamp(0, 1), lambda x: x.clamp(0, 6), (square(),)),
    "keepdim": (lambda x: x.sum(1, keepdim=True) * 2, lambda x: x.sum(1).unsqueeze(1) * 2, (square(),)),
    "scalar type": (lambda x: x.sum(1) * 2, lambda x: x.sum(1) * 2.5, (square(),)),
    "same op twice or once": (lambda x: x.exp().exp(), lambda x: x.exp(), (square(),)),
    "which value is used": (lambda x: x.exp() * x.sin(), lambda x: x.exp() * x.exp(), (square(),)),
    "output order": (lambda x: (x.exp(), x.sin()), lambda x: (x.sin(), x.exp()), (square(),)),
    "relu or sigmoid": (lambda x: x.relu(), lambda x: x.sigmoid(), (square(),)),
    "weight contents": (linear(0), linear(1), (square(2, 4),)),
    "weight order": (TwoWeights(False), TwoWeights(True), (square(2, 4),)),
    "bias or none": (linear(0), linear(0, bias=False), (square(2, 4),)),
    "gelu kind": (nn.GELU(), nn.GELU(approximate="tanh"), (square(),)),
}


@pytest.mark.first(6)
@pytest.mark.parametrize("name", PAIRS)
def test_different_computations_have_different_keys(name: str) -> None:
    one, other, args = PAIRS[name]
    assert key_of(one, *args) != key_of(other, *args)


@pytest.mark.first(6)
@pytest.mark.parametrize("name", PAIRS)
def test_the_same_computation_captured_twice_has_the_same_key(name: str) -> None:
    one, _, args = PAIRS[name]
    assert key_of(one, *args) == key_of(one, *args)


def another_value(name: str) -> Any:
    """Return a value of an option that is not its default."""
    default, kinds = defaults()[name], get_args(type_hints()[name]) or (type_hints()[name],)
    if kinds[0] is bool:
        return not default
    if kinds[0] is int:
        return DECLARATIONS[name].least
    if isinstance(default, tuple):
        return ("aten.exp.default",) if name == "torch_ops" else ("sm_86",)
    return next((word for word in kinds if isinstance(word, str) and word != default), "")


def options_that_are(shapes: str) -> list[str]:
    return [name for name, declared in DECLARATIONS.items() if declared.shapes == shapes]


@pytest.mark.parametrize("name", options_that_are("engine"))
def test_a_setting_of_the_builder_changes_the_key(name: str) -> None:
    assert key_of(linear(), square(2, 4)) != key_of(linear(), square(2, 4), **{name: another_value(name)})


@pytest.mark.first(4)
@pytest.mark.parametrize("name", options_that_are("run"))
def test_an_option_of_the_run_does_not_change_the_key(name: str) -> None:
    assert key_of(linear(), square(2, 4)) == key_of(linear(), square(2, 4), **{name: another_value(name)})


@pytest.mark.parametrize(
    "options",
    [{"precision": "fp16"}, {"precision": "bf16"}, {"targets": ("sm_89", "sm_86")}, {"targets": ()}],
    ids=str,
)
def test_another_graph_or_target_changes_the_key(options: dict[str, Any]) -> None:
    assert key_of(linear(), square(2, 4)) != key_of(linear(), square(2, 4), **options)


@pytest.mark.parametrize("name", sorted({*options_that_are("graph")} - {"precision"}))
def test_an_option_that_changes_no_node_and_no_size_shares_the_engine(name: str) -> None:
    assert key_of(linear(), square(2, 4)) == key_of(linear(), square(2, 4), **{name: another_value(name)})


def test_the_build_reads_only_options_that_are_in_the_key() -> None:
    """An option that reaches TensorRT's builder and is not declared so would let the cache give a wrong engine."""

    class Recorder:
        def __init__(self, options: Options) -> None:
            self._options, self._read = options, set[str]()

        def __getattr__(self, name: str) -> Any:
            self._read.add(name)
            return getattr(self._options, name)

    options = Options(engine="tensorrt_rtx", targets=TARGETS, workspace_bytes=1 << 30)
    subgraph, ranges = subgraph_of(linear(), (square(2, 4),), None, options)
    installed = library.load("tensorrt_rtx")
    recorder = Recorder(options)
    network = network_from_graph(subgraph, installed, ranges, fp16_accumulation=recorder.fp16_accumulation)
    engine_from_network(network, installed, cast(Options, recorder))
    assert recorder._read == set(options_that_are("engine"))


def test_shapes_change_the_key() -> None:
    assert key_of(linear(), square(2, 4)) != key_of(linear(), square(3, 4))


def test_input_dtypes_change_the_key() -> None:
    assert key_of(torch.exp, square(2, 4)) != key_of(torch.exp, square(2, 4).half())


@pytest.mark.parametrize(
    ("args", "shapes"),
    [
        (square(3, 4), None),
        (square(3, 4), batch(16)),
        (square(3, 4), batch(8, low=2)),
        (square(5, 4), batch(8)),
    ],
    ids=["static", "upper end", "lower end", "tuned for"],
)
def test_ranges_change_the_key(args: torch.Tensor, shapes: Any) -> None:
    assert key_of(linear(), square(3, 4), shapes=batch(8)) != key_of(linear(), args, shapes=shapes)


def test_dimension_names_do_not_change_the_key() -> None:
    other = ({0: Dim("rows", min=1, max=8)},)
    assert key_of(linear(), square(3, 4), shapes=batch(8)) == key_of(linear(), square(3, 4), shapes=other)


def renamed(module: fx.GraphModule) -> fx.GraphModule:
    """Give the nodes of `module` other names."""
    for index, node in enumerate(module.graph.nodes):
        node.name = f"other_{index}"
    module.recompile()
    return module


def test_node_names_do_not_change_the_key() -> None:
    options = Options(engine="tensorrt_rtx", targets=TARGETS)
    subgraph, ranges = subgraph_of(linear(), (square(3, 4),), batch(8), options)
    found = library.load("tensorrt_rtx")
    before = engine_key(subgraph, found, options, ranges)
    assert engine_key(renamed(subgraph), found, options, ranges) == before


def test_symbol_names_do_not_change_the_key() -> None:
    """PyTorch numbers symbols as it meets them: a size before the batch moves its number."""
    n, m = Dim("n", min=2, max=8), Dim("m", min=2, max=8)

    def call(x: torch.Tensor) -> torch.Tensor:
        return x.exp().reshape(-1) + 1

    first = key_of(call, square(3, 4), shapes=({0: n, 1: m},))
    assert first == key_of(call, square(3, 4), shapes=({0: m, 1: n},))


def test_equal_sizes_have_another_key_than_sizes_that_differ() -> None:
    """Converters decide by the equality of symbols: (n, 4), (n, 4) is another network than (n, 4), (m, 4)."""
    n, m = Dim("n", min=2, max=8), Dim("m", min=2, max=8)

    def call(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return torch.cat((x.exp(), y.exp()))

    args = square(3, 4), square(3, 4)
    assert key_of(call, *args, shapes=({0: n}, {0: n})) != key_of(call, *args, shapes=({0: n}, {0: m}))


def test_symbols_are_numbered_by_first_appearance() -> None:
    """A symbol keeps its number through the whole graph, whatever PyTorch calls it."""

    def described(*texts: str) -> list[str]:
        symbols: dict[str, str] = {}
        return [_with_numbered_symbols(text, symbols) for text in texts]

    assert described("('s77', 3)", "('s27', '2*s77')") == ["('s0', 3)", "('s1', '2*s0')"]
    assert described("('s5', 3)", "('s5', 3)") == described("('u8', 3)", "('u8', 3)")
    assert described("('s5', 3)", "('s5', 3)") != described("('s5', 3)", "('s6', 3)")
    assert described("op.s5 %s6") == ["op.s5 %s6"]


@pytest.mark.full
def test_another_process_finds_the_same_key() -> None:
    script = """
from tests.engine.keys import batch, key_of, linear, square
square(7), linear(5)
print(key_of(linear(), square(3, 4), shapes=batch(8)))
"""
    result = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    assert result.stdout.split()[-1] == key_of(linear(), square(3, 4), shapes=batch(8))
