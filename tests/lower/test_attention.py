"""Attention: the form in parts, which the op table does not show, and the masks of both forms."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import nn

import torchtrt_bridge as trtb
from tests.lower.batch import Batch, batches_of, parameters
from tests.lower.case import TRACED, Case, Point, points_of
from tests.lower.cases.attention import CASES, attend, grouped, heads, sdpa, shown
from tests.lower.lowering import Lowered, Results, assert_right, flat_tensors, lower, lower_batch
from tests.lower.table import ONE_MORE
from torchtrt_bridge.engine import builder
from torchtrt_bridge.engine.build import engine_from_network
from torchtrt_bridge.lower.converters.attention import not_one_attention
from torchtrt_bridge.lower.network import Network
from torchtrt_bridge.options import Options
from torchtrt_bridge.reference import NetworkInterpreter
from torchtrt_bridge.trt import library as libraries
from torchtrt_bridge.trt.probe import Support

FORMS = {case.name: case for case in CASES if case.op is sdpa and not isinstance(case.call, nn.Module)}


def nothing(capability: str) -> bool:
    return False


def anything(capability: str) -> bool:
    return True


def lowered(point: Point, can: Callable[[str], bool]) -> Lowered:
    return lower(point, libraries.load("tensorrt_rtx"), can)


@functools.cache
def form(name: str, can: Callable[[str], bool]) -> Lowered:
    """Lower a form with known sizes, in fp32."""
    return lowered(points_of(FORMS[name])[0], can)


def computed(found: Lowered, inputs: tuple[Any, ...]) -> list[torch.Tensor]:
    trt = libraries.load("tensorrt_rtx").trt
    interpreter = NetworkInterpreter(trt, found.network.definition, found.network.constants)
    with torch.no_grad():
        return found.outputs(lambda tensors: interpreter(*tensors), inputs)


def layers(network: Network) -> list[Any]:
    return [network.definition.get_layer(index) for index in range(network.definition.num_layers)]


def count(network: Network, kind: str) -> int:
    return sum(layer.type.name == kind for layer in layers(network))


# In parts ----------------------------------------------------------------------------------------------------------


POINTS = [point for case in FORMS.values() for point in points_of(case)]


def in_parts(points: Sequence[Point]) -> list[Results]:
    """Build one network without attention layers for all of `points`, and compute it."""
    library = libraries.load("tensorrt_rtx")
    found = lower_batch(points, library, nothing)
    assert count(found.network, "ATTENTION_INPUT") == 0
    interpreter = NetworkInterpreter(library.trt, found.network.definition, found.network.constants)
    assert engine_from_network(found.network, library, Options(targets=("sm_89",)))
    return found.results(points, lambda tensors: interpreter(*tensors))


# These forms are in each run: scales, causal ones, masks.
FIRST = [point.id for case in list(FORMS.values())[:10] for point in points_of(case)]
OTHERS = {point.id for point in POINTS if point.id in ONE_MORE or point.id not in FIRST}
IN_PARTS = batches_of("in_parts", POINTS, lambda point: (point.dynamic, point.dtype, point.id in OTHERS))


@pytest.mark.parametrize(("batch", "index"), parameters(IN_PARTS, OTHERS))
def test_in_parts(batch: Batch[Point], index: int) -> None:
    assert_right(batch.items[index], batch.compute(index, in_parts))


@pytest.mark.parametrize("size", [9, 15, 16])
@pytest.mark.parametrize("mask", ["bools", "causal"])
def test_sizes_of_heads_that_are_no_multiple_of_eight(size: int, mask: str) -> None:
    """TensorRT-RTX fails to build these with an infinity for hidden keys."""
    call = attend if mask == "bools" else lambda q, k, v, mask: attend(q, k, v, is_causal=True)
    case = Case(sdpa, call, lambda n: (*(torch.randn(n, 2, 6, size) for _ in range(3)), shown(n, 1, 6, 6)))
    network = lowered(Point(case, False, torch.float16), nothing).network
    assert engine_from_network(network, libraries.load("tensorrt_rtx"), Options(targets=("sm_89",)))


# As a layer --------------------------------------------------------------------------------------------------------

# Forms that TensorRT's layer does not take: heads that do not go together, and sizes that are broadcast.
NO_LAYER = {
    "grouped-twice", "grouped-one-batch", "one-query-head", "one-batch-of-keys", "one-batch-of-queries",
    "one-batch-of-values", "fewer-dimensions",
}  # fmt: skip


@pytest.mark.first(10)
@pytest.mark.parametrize("name", FORMS)
def test_which_forms_are_one_layer(name: str) -> None:
    assert (count(form(name, anything).network, "ATTENTION_INPUT") == 0) == (name in NO_LAYER)


@pytest.mark.parametrize(
    ("name", "heads_of_keys"), [("repeated-heads", 2), ("interleaved-heads", 2), ("keys-repeated-as-a-whole", 4)]
)
@pytest.mark.parametrize("is_dynamic", [False, True], ids=["static", "dynamic"])
def test_heads_that_share_keys_are_not_repeated(name: str, heads_of_keys: int, is_dynamic: bool) -> None:
    network = lowered(Point(FORMS[name], is_dynamic, torch.float16), anything).network
    (layer,) = (layer for layer in layers(network) if layer.type.name == "ATTENTION_INPUT")
    assert [layer.get_input(place).shape[1] for place in (0, 1, 2)] == [4, heads_of_keys, heads_of_keys]


def test_a_mask_in_fp32_beside_an_fp16_query_is_kept_as_it_is() -> None:
    """fp16 has no number that outweighs all scores, as a mask of the lowest fp32 number does."""
    network = lowered(Point(FORMS["lowest-in-fp32"], False, torch.float16), anything).network
    assert count(network, "ATTENTION_INPUT") == 0


@pytest.mark.parametrize("can", [anything, nothing], ids=["layer", "parts"])
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_the_probe_decides(can: Callable[[str], bool], precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The public call goes by the answer that the test gives for the probe."""
    asked, networks = [], []

    def supports(capability: str, *_: Any) -> Support:
        asked.append(capability)
        return Support(can(capability))

    def spied(*args: Any) -> Network:
        networks.append(original(*args))
        return networks[-1]

    original = builder.network_from_graph
    monkeypatch.setattr(builder, "supports", supports)
    monkeypatch.setattr(builder, "network_from_graph", spied)
    model = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True).eval()
    x = torch.randn(2, 5, 16)
    with torch.no_grad():
        result = trtb.export(model, x, engine="reference", precision=precision, fallback="error")(x)
        torch.testing.assert_close(result, model(x), rtol=1e-2, atol=1e-2)
    assert asked == ["attention"]
    assert count(networks[0], "ATTENTION_INPUT") == can("attention")


# Masks -------------------------------------------------------------------------------------------------------------

WITH_MASK = [
    "mask", "mask-of-all-heads", "mask-of-the-batch", "mask-3d", "mask-2d", "mask-of-keys",
    "mask-of-keys-of-the-batch", "mask-of-keys-2d", "mask-of-queries", "mask-of-queries-2d", "bias", "minus-infinity",
    "minus-infinity-in-fp32", "lowest-in-fp32", "large-in-fp32", "constant-mask", "constant-blind-mask",
    "constant-causal-mask", "constant-bias", "grouped-mask", "smaller-values", "3d-mask", "3d-mask-of-keys", "2d-mask",
    "2d-mask-1d", "5d-mask", "5d-mask-of-the-first", "one-batch-of-values",
]  # fmt: skip


@pytest.mark.parametrize("can", [anything, pytest.param(nothing, marks=pytest.mark.full)], ids=["layer", "parts"])
@pytest.mark.parametrize("name", WITH_MASK)
def test_no_form_loses_its_mask(name: str, can: Callable[[str], bool]) -> None:
    """TensorRT drops a mask beside a causal one, and builds without a word."""
    found, inputs = form(name, can), FORMS[name].make_inputs(TRACED, torch.float32)
    (result,) = computed(found, inputs)
    q, k, v = (-tensor for tensor in inputs[:3])  # as `Called` turns them around
    unmasked = (grouped if name.startswith("grouped") else attend)(q, k, v)
    assert float((result - unmasked).norm() / unmasked.norm()) > 0.1
    for layer in layers(found.network):
        if layer.type.name == "ATTENTION_OUTPUT":
            layer.__class__ = libraries.load("tensorrt_rtx").trt.IAttentionOutputLayer
            assert layer.attention.causal != (layer.attention.mask is not None)


def test_a_mask_beside_is_causal_stays_in_pytorch() -> None:
    """Some versions of PyTorch apply both, others refuse."""
    q, k, v = heads(2)
    reason = not_one_attention(q, k, v, torch.ones(5, 8, dtype=torch.bool), is_causal=True)
    assert reason == "attention with both a mask and is_causal"


def in_layers(module: Any, *tensors: torch.Tensor) -> Network:
    """Return the network of a function of these tensors, with a layer for each attention."""
    return lowered(Point(Case(sdpa, module, lambda n: tensors), False, torch.float32), anything).network


def twice(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return attend(attend(q, k, v, mask), k, v, mask)


@pytest.mark.parametrize("kind", ["bool", "float"])
def test_who_sees_a_key_is_asked_once_for_each_mask(kind: str) -> None:
    mask = torch.rand(3, 1, 5, 7) > 0.5 if kind == "bool" else torch.randn(3, 1, 5, 7)
    network = in_layers(twice, *[torch.randn(3, 2, size, 8) for size in (5, 7, 7)], mask)
    assert count(network, "ATTENTION_INPUT") == 2
    assert count(network, "REDUCE") == 1
    assert count(network, "SELECT") == 2


@pytest.mark.parametrize("can", [anything, nothing], ids=["layer", "parts"])
def test_two_masks_are_kept_apart(can: Callable[[str], bool]) -> None:
    """Layers that are shared by the users of one mask are not shared by two masks."""

    def call(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, one: torch.Tensor, two: torch.Tensor) -> torch.Tensor:
        return attend(attend(q, k, v, one), k, v, two)

    tensors = (*[torch.randn(3, 2, size, 8) for size in (5, 7, 7)], shown(3, 1, 5, 7), shown(3, 1, 5, 7).flip(2))
    found = lowered(Point(Case(sdpa, call, lambda n: tensors), False, torch.float32), can)
    with torch.no_grad():
        torch.testing.assert_close(computed(found, tensors), flat_tensors(found.model(*tensors)))


def hidden_by(value: float) -> Callable[..., torch.Tensor]:
    def call(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return attend(q, k, v, torch.where(mask, 0.0, value))

    return call


@pytest.mark.parametrize(
    ("call", "zeroed"),
    [
        (attend, True),
        (hidden_by(-torch.inf), True),
        (hidden_by(-1e4), False),
        (hidden_by(torch.finfo(torch.float32).min), False),
        (lambda q, k, v, mask: attend(q, k, v, (1.0 - mask.float()) * -1e9), False),
        (lambda q, k, v, mask: attend(q, k, v, mask | torch.ones(5, 7, dtype=torch.bool)), False),
        (lambda q, k, v, mask: attend(q, k, v, mask & torch.ones(5, 7, dtype=torch.bool).tril()), True),
    ],
    ids=["bools", "minus infinity", "a large number", "the lowest", "a product", "all shown", "causal and more"],
)
def test_no_zeros_are_written_where_each_query_sees_a_key(call: Callable[..., torch.Tensor], zeroed: bool) -> None:
    tensors = [torch.randn(3, 2, size, 8) for size in (5, 7, 7)]
    network = in_layers(call, *tensors, torch.rand(3, 1, 5, 7) > 0.5)
    assert (count(network, "REDUCE") == 1) == zeroed
