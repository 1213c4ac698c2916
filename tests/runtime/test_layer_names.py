"""Names of an engine's layers: nodes and source lines found in engines that are built here, without a GPU."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import torchtrt_bridge as trtb
from tests.models import ConvNet, image, trained
from torchtrt_bridge.capture.export import export_program, graph_from_program
from torchtrt_bridge.lower.network import network_from_graph
from torchtrt_bridge.runtime.layer_names import LayerName, NodeFacts, Nodes, layer_names, node_facts
from torchtrt_bridge.trt import library as libraries
from torchtrt_bridge.trt.engine_program import program_steps


class Attention(nn.Module):
    """Attention as in BERT or, where it looks back only, as in GPT-2: with one layer for query, key and value."""

    def __init__(self, size: int, is_causal: bool) -> None:
        super().__init__()
        self.is_causal = is_causal
        self.query, self.key, self.value = nn.Linear(size, size), nn.Linear(size, size), nn.Linear(size, size)
        self.both = nn.Linear(size, 3 * size)
        self.out = nn.Linear(size, size)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        parts = self.both(x).chunk(3, -1) if self.is_causal else (self.query(x), self.key(x), self.value(x))
        q, k, v = (part.unflatten(-1, (-1, 16)).transpose(1, 2) for part in parts)
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=self.is_causal)
        return self.out(attended.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


class Layer(nn.Module):
    def __init__(self, size: int, inner: int, is_causal: bool) -> None:
        super().__init__()
        self.attention = Attention(size, is_causal)
        self.first, self.second = nn.LayerNorm(size), nn.LayerNorm(size)
        self.up, self.down = nn.Linear(size, inner), nn.Linear(inner, size)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x + self.attention(x))
        hidden = F.gelu(self.up(x))
        return self.second(x + self.down(hidden))  # type: ignore[no-any-return]


class Encoder(nn.Module):
    """Layers of sizes of their own, so that a product shows of which weights it is."""

    def __init__(self, is_causal: bool = False) -> None:
        super().__init__()
        self.embedding = nn.Embedding(99, 32)
        self.layers = nn.ModuleList([Layer(32, 80, is_causal), Layer(48, 112, is_causal)])
        self.between = nn.Linear(32, 48)
        self.head = nn.Linear(48, 24)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.layers[0](self.embedding(ids))
        x = self.layers[1](F.silu(self.between(x)))
        return torch.tanh(self.head(x[:, 0]))


def ids() -> torch.Tensor:
    return torch.randint(0, 99, (8, 32))


@dataclasses.dataclass
class Named:
    """An engine, its nodes, and the names of its layers as the profiler would have them."""

    plan: bytes
    nodes: Nodes
    weights: dict[str, torch.Size]
    names: list[LayerName]

    def of(self, name: str) -> LayerName:
        (found,) = [each for each in self.names if name in each.nodes]
        return found


def layers_of(plan: bytes) -> list[str]:
    """Return the names of the layers as TensorRT's profiler gives them: those of the steps, with a number."""
    return [f"{step.name}_myl0_{number}" for number, step in enumerate(program_steps(plan))]


def named(model: nn.Module, *inputs: torch.Tensor) -> Named:
    torch.manual_seed(0)
    program = trtb.export(model.eval(), inputs, targets=("sm_89",), trial="off", cache_dir="")
    (plan,) = program.plans.values()
    (engine,) = program._run.engines
    weights = {}
    for node in engine.pytorch.graph.nodes:
        reads = [each for each in node.all_input_nodes if each.op == "get_attr"]
        weights[node.name] = max((each.meta["val"].shape for each in reads), key=len, default=torch.Size())
    return Named(plan, engine.nodes, weights, layer_names(layers_of(plan), plan, engine.nodes))


@functools.cache
def encoder() -> Named:
    return named(Encoder().half(), ids())


@functools.cache
def decoder() -> Named:
    return named(Encoder(is_causal=True).half(), ids())


both = pytest.mark.parametrize("found", [encoder, decoder], ids=["BERT", "GPT-2"])


@both
def test_products_attention_and_norms_are_found(found: Callable[[], Named]) -> None:
    result = found()
    wanted = [n for n, facts in result.nodes.items() if facts.short_operator in ("linear", "layer_norm")]
    wanted += [n for n, facts in result.nodes.items() if facts.short_operator == "scaled_dot_product_attention"]
    assert len(wanted) >= 4 + 2 * 4 + 2
    times = {name: sum(name in each.nodes for each in result.names) for name in wanted}
    assert times == dict.fromkeys(wanted, 1)
    assert result.of("scaled_dot_product_attention").kind == "attention (_gemm_mha_v2)"
    assert result.of("scaled_dot_product_attention").text == "scaled_dot_product_attention"


def test_joined_products_have_all_their_nodes() -> None:
    layer = encoder().of("linear")
    assert layer.nodes == ("linear", "linear_1", "linear_2")
    assert layer.text == "linear + linear_1 + linear_2"
    assert layer.kind == "matrix product, 3 joined"
    assert len(layer.sources(encoder().nodes)) == 1  # all in one line


def sizes_of_weights(plan: bytes, name: str) -> list[list[int]]:
    """Return the sizes of the constants that a product reads, from the text beside that of its step."""
    text = plan.decode("latin-1")
    line = next(line for line in text.splitlines() if f'fully_connected={{ name="{name}" ' in line)
    inputs = re.findall(r'"([^"]+)"', line.partition("input={")[2].partition("}")[0])
    found = []
    for each in inputs:
        dims = re.search(rf'const_payload_size=\d+ dims={{ ([\d ]+) }} name="{re.escape(each)}"', text)
        found += [[int(size) for size in dims[1].split() if int(size) != 1]] if dims is not None else []
    return [sizes for sizes in found if len(sizes) == 2]


@both
def test_products_are_of_the_weights_of_their_nodes(found: Callable[[], Named]) -> None:
    """An oracle that knows nothing of names: each product has weights of sizes of its own."""
    result = found()
    checked = 0
    for step, layer in zip(program_steps(result.plan), result.names, strict=True):
        linears = [name for name in layer.nodes if result.nodes[name].short_operator == "linear"]
        if step.kind == "fully_connected" and linears:
            (sizes,) = sizes_of_weights(result.plan, step.name)
            outputs, inputs = sum(result.weights[name][0] for name in linears), result.weights[linears[0]][1]
            assert sorted(sizes) == sorted([inputs, outputs]), layer.text
            checked += 1
    assert checked >= 3


@both
def test_layers_come_in_the_order_of_the_data(found: Callable[[], Named]) -> None:
    result = found()
    places = {name: place for place, name in enumerate(result.nodes)}
    lasts = [max(places[name] for name in layer.nodes) for layer in result.names if layer.nodes]
    assert lasts == sorted(lasts)


@both
def test_source_lines_are_those_of_the_user(found: Callable[[], Named]) -> None:
    result = found()
    layer = next(each for each in result.names if any(name.startswith("gelu") for name in each.nodes))
    lines = layer.sources(result.nodes)
    assert all(line.startswith(__file__) for line in lines)
    assert any("hidden = F.gelu(self.up(x))" in line for line in lines)


def test_what_no_node_is_known_of_is_told_in_words() -> None:
    layer = next(each for each in encoder().names if not each.nodes)
    assert layer.text == layer.kind
    assert re.fullmatch(r"[a-z ]+(, [a-z ]+)*( and \d+ more)?", layer.text)
    assert layer.sources(encoder().nodes) == []


def test_convolutions() -> None:
    result = named(trained(ConvNet(16)), image(2, 16))
    assert result.of("convolution").kind == "convolution"
    (line,) = result.of("convolution").sources(result.nodes)
    assert line.endswith("return self.head(torch.relu(self.norm(self.conv(x))).mean((2, 3)))")
    assert result.of("linear").text.startswith("linear")


class TwoBranches(nn.Module):
    """Attention over two inputs of other lengths, neither of which has to come first."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = Attention(32, False), Attention(32, False)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return self.left(x).mean(1) - self.right(y).mean(1)


def test_what_has_no_order_is_not_guessed() -> None:
    result = named(TwoBranches().half(), torch.randn(2, 32, 32).half(), torch.randn(2, 64, 32).half())
    attention = [layer for layer in result.names if layer.kind.startswith("attention")]
    assert len(attention) == 2
    assert [layer.nodes for layer in attention] == [(), ()]
    assert [layer.text for layer in attention] == ["attention (_gemm_mha_v2)"] * 2
    assert result.of("linear_3").kind == "matrix product"  # which says itself what it is


def test_an_engine_for_other_names_of_nodes_has_none() -> None:
    """An engine of the cache may have been built for an equal graph, whose nodes had other numbers."""
    found = encoder()

    def later(name: str) -> str:
        return re.sub(r"^linear(?:_(\d+))?$", lambda n: f"linear_{int(n[1] or 0) + 30}", name)

    nodes = {
        later(name): dataclasses.replace(facts, inputs=tuple(map(later, facts.inputs)))
        for name, facts in found.nodes.items()
    }
    names = layer_names(layers_of(found.plan), found.plan, nodes)
    assert [layer for layer in names if layer.nodes] == []
    other = {name: dataclasses.replace(facts, is_result=not facts.is_result) for name, facts in found.nodes.items()}
    names = layer_names(layers_of(found.plan), found.plan, other)
    assert [layer for layer in names if layer.nodes] == []


def test_the_second_layer_of_a_name_is_the_second_step_of_it() -> None:
    found = encoder()
    layers = layers_of(found.plan)
    beside = [*layers[:3], "__mye99_myl0_3", *layers[3:], "Reformatting CopyNode for Output Tensor 0"]
    names = layer_names(beside, found.plan, found.nodes)
    assert [*names[:3], *names[4:-1]] == found.names
    assert (names[3].nodes, names[-1].text) == ((), "Reformatting CopyNode for Output Tensor 0")


def test_a_name_that_comes_more_often_than_its_step_is_of_no_node() -> None:
    found = encoder()
    layers = layers_of(found.plan)
    place = next(place for place, layer in enumerate(layers) if "_gemm_mha" in layer)
    names = layer_names([*layers, "_gemm_mha_v2_myl0_99"], found.plan, found.nodes)
    assert names[place] == LayerName((), "attention (_gemm_mha_v2)")
    assert names[place + 1 : -1] == [
        LayerName((), each.kind) if each.kind.startswith("attention") else each for each in found.names[place + 1 :]
    ]


def test_layers_of_an_engine_without_text_are_named_by_their_own_names() -> None:
    """As those of TensorRT, which joins the names of layers."""
    operators = {"conv": "aten.convolution.default", "relu": "aten.relu.default"}
    nodes = {name: NodeFacts(operator, "", ()) for name, operator in operators.items()}
    (layer,) = layer_names(["conv/convolution_nd + relu/activation"], b"", nodes)
    assert layer.nodes == ("conv", "relu")
    (other,) = layer_names(["{ForeignNode[conv/constant...relu/activation]}"], b"", nodes)
    assert other == LayerName((), "{ForeignNode[conv/constant...relu/activation]}")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("__myl_FcAddDivCastErf_myl0_3", "matrix product, add, divide, cast, erf"),
        ("__myl_GathAddCastMeanSubMulMeanAddSqrt", "gather, add, cast, mean, subtract, multiply, mean, add and 1 more"),
        ("_gemm_mha_v2_myl0_12", "attention (_gemm_mha_v2)"),
        ("__mye812_myl0_4", "__mye812"),
    ],
)
def test_words(name: str, words: str) -> None:
    (layer,) = layer_names([name], b"", {})
    assert (layer.kind, layer.text) == (words, words)


def test_many_nodes_are_counted() -> None:
    assert LayerName(("a", "b", "c", "d", "e", "f"), "").text == "a + b + c + d and 2 more"


class Gated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate, self.up = nn.Linear(64, 128, bias=False), nn.Linear(64, 128, bias=False)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        gate, up = self.gate(x), self.up(x)
        return F.silu(gate) * up, up


def test_merged_layers_of_a_network_have_the_names_of_all() -> None:
    """The results keep the names of their nodes, by which an engine is known to be of this subgraph."""
    library = libraries.load("tensorrt_rtx")
    module = graph_from_program(export_program(Gated().eval(), (torch.randn(32, 64),))).module
    network = network_from_graph(module, library)
    layers = [network.definition.get_layer(index).name for index in range(network.layers)]
    assert any(name.startswith("linear+linear_1/matrix_multiply") for name in layers)
    assert [spec.name for spec in network.outputs] == ["out0:mul", "out1:linear_1"]
    assert {name.split("/")[0] for name in layers} <= {"linear+linear_1", "silu", "mul", "output"}
    assert list(node_facts(module))[-1] == "output"
