"""Q/DQ nodes: their places, scales and axes, as the graphs show them."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tests.models import ConvNet, trained
from tests.quantize.nets import (
    CHAINS,
    Apply,
    aten,
    calibrated,
    calls,
    is_dequantized,
    loader,
    quantize_of,
    quantized,
    relative_error,
    scale_read,
)
from torchtrt_bridge.quantize.config import settings_from
from torchtrt_bridge.quantize.qdq import (
    DEQUANTIZE,
    DEQUANTIZE_INT4,
    FARTHEST_SHARED,
    QUANTIZE,
    Choice,
    insert_qdq,
)

CONVOLUTION = aten.convolution.default
LINEAR = aten.linear.default


class Product(nn.Module):
    """x @ weight, with the weight's inputs first, as GPT-2 has it."""

    def __init__(self, with_bias: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(12, 5))
        self.bias = nn.Parameter(torch.randn(5)) if with_bias else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.addmm(self.bias, x, self.weight) if self.bias is not None else torch.mm(x, self.weight)


# The model, its input, the operator, the number of the argument that is its weight, and the axis of its channels.
KINDS: dict[str, tuple[nn.Module, tuple[int, ...], Any, int, int]] = {
    "convolution": (nn.Conv2d(4, 6, 3), (2, 4, 8, 8), CONVOLUTION, 1, 0),
    "grouped": (nn.Conv2d(4, 6, 3, groups=2), (2, 4, 8, 8), CONVOLUTION, 1, 0),
    "depthwise": (nn.Conv2d(4, 4, 3, groups=4), (2, 4, 8, 8), CONVOLUTION, 1, 0),
    "one dimension": (nn.Conv1d(4, 6, 3), (2, 4, 8), CONVOLUTION, 1, 0),
    "three dimensions": (nn.Conv3d(4, 6, 3), (2, 4, 5, 5, 5), CONVOLUTION, 1, 0),
    "transposed": (nn.ConvTranspose2d(4, 6, 3), (2, 4, 8, 8), CONVOLUTION, 1, 1),
    "transposed and grouped": (nn.ConvTranspose2d(4, 6, 3, groups=2), (2, 4, 8, 8), CONVOLUTION, 1, 1),
    "linear": (nn.Linear(12, 5), (2, 3, 12), LINEAR, 1, 0),
    "addmm": (Product(True), (4, 12), aten.addmm.default, 2, 1),
    "mm": (Product(False), (4, 12), aten.mm.default, 1, 1),
}


@pytest.mark.first(8)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", ["int8", "fp8"])
def test_each_kind_of_layer_is_quantized_along_its_channels(kind: str, dtype: str) -> None:
    model, shape, op, weight, axis = KINDS[kind]
    data = loader(*shape)
    found = quantized(model, data, dtype=dtype)
    (node,) = calls(found, op)
    dequantized = node.args[weight]
    assert is_dequantized(dequantized)
    assert dequantized.args[2] == axis
    values = getattr(found, dequantized.args[0].target)
    assert values.dtype == {"int8": torch.int8, "fp8": torch.float8_e4m3fn}[dtype]
    assert scale_read(dequantized, found).shape == (values.shape[axis],)
    (activation,) = [arg for arg in node.args if is_dequantized(arg) and arg is not dequantized]
    assert activation.args[2] is None
    assert scale_read(activation, found).shape == (1,)
    assert 0 < relative_error(found(data[0]), model(data[0])) < (0.02 if dtype == "int8" else 0.06)


def test_nothing_lies_between_convolution_batch_norm_and_activation() -> None:
    found = quantized(trained(ConvNet()), loader(2, 3, 8, 8))
    (convolution,) = calls(found, CONVOLUTION)
    assert [user.target for user in convolution.users] == [aten.relu.default]
    assert not calls(found, aten._native_batch_norm_legit_no_training.default)
    assert len(calls(found, QUANTIZE)) == 2


def test_a_residual_is_quantized_and_the_convolution_added_to_it_is_not() -> None:
    convs = {"one": nn.Conv2d(4, 4, 3, padding=1), "two": nn.Conv2d(4, 4, 3, padding=1)}
    model = Apply(lambda m, x: F.relu(m.two(F.relu(m.one(x))) + x), **convs)
    found = quantized(model, loader(2, 4, 8, 8))
    (add,) = calls(found, aten.add.Tensor)
    assert add.args[0].target is CONVOLUTION
    assert is_dequantized(add.args[1])
    first = calls(found, CONVOLUTION)[0]
    assert quantize_of(add.args[1]) is quantize_of(first.args[0])
    assert add.args[1] is not first.args[0]


def test_of_two_convolutions_that_are_added_the_first_is_the_residual() -> None:
    convs = {"one": nn.Conv2d(4, 4, 3), "two": nn.Conv2d(4, 4, 3)}
    found = quantized(Apply(lambda m, x: m.two(x) + m.one(x), **convs), loader(2, 4, 8, 8))
    (add,) = calls(found, aten.add.Tensor)
    first, second = calls(found, CONVOLUTION)
    assert add.args[1] is second
    assert quantize_of(add.args[0]).args[0] is first


def test_a_residual_stays_float_with_its_convolution() -> None:
    convs = {"one": nn.Conv2d(4, 4, 3, padding=1), "two": nn.Conv2d(4, 4, 3, padding=1)}
    found = quantized(Apply(lambda m, x: m.two(m.one(x)) + x, **convs), loader(2, 4, 8, 8), skip="two")
    (add,) = calls(found, aten.add.Tensor)
    assert not any(is_dequantized(arg) for arg in add.args)


def test_what_is_concatenated_has_one_scale() -> None:
    def dense(m: Any, x: torch.Tensor) -> torch.Tensor:
        y = m.one(x) * 5
        return m.three(torch.cat((m.two(y), y, x), 1))

    convs = {"one": nn.Conv2d(4, 4, 1), "two": nn.Conv2d(4, 4, 1), "three": nn.Conv2d(12, 4, 1)}
    found = quantized(Apply(dense, **convs), loader(2, 4, 8, 8))
    one, two, three = calls(found, CONVOLUTION)
    scales = [float(scale_read(node.args[0], found)) for node in (one, two, three)]
    assert len(set(scales)) == 1


@pytest.mark.parametrize(("factor", "count"), [(2.0, 1), (100.0, 2)])
def test_a_scale_is_shared_only_by_ranges_that_are_near_each_other(factor: float, count: int) -> None:
    def dense(m: Any, x: torch.Tensor) -> torch.Tensor:
        y = x.roll(1, 1) * factor
        return m.three(torch.cat((y, x), 1)) + m.one(x) + m.two(y)

    convs = {"one": nn.Conv2d(4, 4, 1), "two": nn.Conv2d(4, 4, 1), "three": nn.Conv2d(8, 4, 1)}
    model, data = Apply(dense, **convs), loader(2, 4, 8, 8)
    found = quantized(model, data)
    assert len({float(scale_read(node.args[0], found)) for node in calls(found, CONVOLUTION)}) == count
    assert relative_error(found(data[0]), model(data[0])) < 0.03


def test_ranges_that_lie_near_each_other_one_by_one_do_not_share_a_scale_altogether() -> None:
    def dense(m: Any, x: torch.Tensor) -> torch.Tensor:
        parts = [x * 3**power for power in range(5)]
        pairs = [torch.cat(pair, 1) for pair in itertools.pairwise(parts)]
        return sum(getattr(m, f"at{place}")(each) for place, each in enumerate(parts + pairs))

    convs = {f"at{place}": nn.Conv2d(4 if place < 5 else 8, 4, 1) for place in range(9)}
    data = loader(2, 4, 8, 8)
    found = quantized(Apply(dense, **convs), data)
    own = float(torch.stack(data).abs().max()) / 127
    scales = [float(scale_read(node.args[0], found)) for node in calls(found, CONVOLUTION)]
    widened = [scale / (own * 3**power) for power, scale in enumerate(scales[:5])]
    assert 1 < max(widened) <= FARTHEST_SHARED


def test_scales_differ_where_nothing_is_concatenated() -> None:
    convs = {"one": nn.Conv2d(4, 4, 1), "two": nn.Conv2d(4, 4, 1)}
    found = quantized(Apply(lambda m, x: m.two(m.one(x) * 5), **convs), loader(2, 4, 8, 8))
    assert len({float(scale_read(node.args[0], found)) for node in calls(found, CONVOLUTION)}) == 2


def test_an_activation_with_several_readers_is_quantized_once() -> None:
    linears = {name: nn.Linear(8, 8) for name in ("q", "k", "v")}
    found = quantized(Apply(lambda m, x: m.q(x) + m.k(x) + m.v(x), **linears), loader(2, 8))
    assert len(calls(found, QUANTIZE)) == 1
    reads = [node.args[0] for node in calls(found, LINEAR)]
    assert len(set(reads)) == 3
    assert {quantize_of(read) for read in reads} == set(calls(found, QUANTIZE))


def test_a_weight_with_several_readers_is_quantized_once() -> None:
    found = quantized(Apply(lambda m, x: m.one(torch.tanh(m.one(x))), one=nn.Linear(8, 8)), loader(2, 8))
    first, second = calls(found, LINEAR)
    assert first.args[1].args[0].target == second.args[1].args[0].target
    assert len([value for value in found.buffers() if value.dtype == torch.int8]) == 1


def test_a_tied_embedding_keeps_its_floats() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(11, 8)
            self.head = nn.Linear(8, 11, bias=False)
            self.head.weight = self.embed.weight

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            return self.head(self.embed(ids))

    model = Tied().eval()
    ids = [torch.arange(6).view(2, 3) + number for number in range(4)]
    found = quantized(model, ids)
    (embedding,) = calls(found, aten.embedding.default)
    assert getattr(found, embedding.args[0].target).dtype == torch.float32
    assert is_dequantized(calls(found, LINEAR)[0].args[1])
    assert relative_error(found(ids[1]), model(ids[1])) < 0.02


class Attention(nn.Module):
    """One attention, of which the mask and causality may be chosen."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.project, self.options = nn.Linear(16, 48), options

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.project(x).unflatten(-1, (3, 2, 8)).permute(2, 0, 3, 1, 4).unbind(0)
        return F.scaled_dot_product_attention(q * 3, k * 3, v, **self.options)


MASKS: dict[str, dict[str, Any]] = {
    "none": {},
    "causal": {"is_causal": True},
    "bool": {"attn_mask": torch.tensor([[True, False, True, True]] * 4)},
    "float": {"attn_mask": torch.tensor([[0.0, -1e4, 1.0, 0.0]] * 4)},
    "scale": {"scale": 0.7},
}


@pytest.mark.parametrize("mask", MASKS)
def test_attention_is_quantized_where_that_is_asked_for(mask: str) -> None:
    model, data = Attention(**MASKS[mask]).eval(), loader(2, 4, 16)
    found = quantized(model, data, attention=True)
    products = calls(found, aten.matmul.default)
    assert len(products) == 2
    assert all(is_dequantized(arg) for node in products for arg in node.args)
    assert relative_error(found(data[0]), model(data[0])) < 0.03


def test_attention_of_a_transformer_layer_is_quantized() -> None:
    """PyTorch's own layer views the result of attention as it lies in memory."""
    model, data = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True).eval(), loader(2, 5, 16)
    found = quantized(model, data, attention=True)
    assert [layer.op for layer in found.quantization.layers].count("matmul") == 2
    assert relative_error(found(data[0]), model(data[0])) < 0.03


def test_attention_stays_whole_by_default() -> None:
    found = quantized(Attention(), loader(2, 4, 16))
    (attention,) = calls(found, aten.scaled_dot_product_attention.default)
    assert not any(is_dequantized(arg) for arg in attention.args)
    (entry,) = [layer for layer in found.quantization.layers if layer.op == "attention"]
    assert "attention=True" in entry.reason


@pytest.mark.parametrize(("shape", "model"), [((2, 3, 64), nn.Linear(64, 5)), ((4, 64), nn.Linear(64, 5, bias=False))])
def test_int4_is_for_the_weights_of_linear_layers(shape: tuple[int, ...], model: nn.Module) -> None:
    data = loader(*shape)
    found = quantized(model, data, dtype="int4", block_size=32)
    (dequantized,) = calls(found, DEQUANTIZE_INT4)
    assert calls(found, LINEAR)[0].args[1] is dequantized
    assert not calls(found, QUANTIZE) + calls(found, DEQUANTIZE)
    assert relative_error(found(data[0]), model(data[0])) < 0.15


def test_int4_takes_weights_with_their_inputs_first() -> None:
    model, data = Apply(lambda m, x: torch.addmm(m.b.bias, x, m.b.weight), b=nn.Linear(32, 32)), loader(4, 32)
    found = quantized(model, data, dtype="int4", block_size=16)
    assert len(calls(found, DEQUANTIZE_INT4)) == 1
    assert relative_error(found(data[0]), model(data[0])) < 0.15


def test_int4_leaves_the_rest_with_a_reason() -> None:
    layers = {"conv": nn.Conv2d(4, 4, 1), "odd": nn.Linear(20, 32), "head": nn.Linear(32, 5)}
    model = Apply(lambda m, x: m.head(m.odd(m.conv(x).flatten(1)[:, :20])), **layers)
    found = quantized(model, loader(2, 4, 4, 4), dtype="int4", block_size=16)
    reasons = {layer.name: layer.reason for layer in found.quantization.layers}
    assert reasons["head"] == ""
    assert "linear layers" in reasons["conv"]
    assert "20 inputs do not divide" in reasons["odd"]


@pytest.mark.parametrize("skip", ["one", ("on*",), ["part"]])
def test_skipped_layers_stay_float(skip: Any) -> None:
    part = nn.Sequential(nn.Linear(8, 8))
    model = Apply(lambda m, x: m.one(m.two(m.part(x))), one=nn.Linear(8, 8), two=nn.Linear(8, 8), part=part)
    found = quantized(model, loader(2, 8), skip=skip)
    floats = {layer.name for layer in found.quantization.layers if layer.dtype == "float"}
    assert floats == ({"part.0"} if skip == ["part"] else {"one"})
    assert len(calls(found, QUANTIZE)) == 2


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
def test_a_half_precision_model_stays_in_half_precision(half: torch.dtype) -> None:
    model, data = nn.Linear(16, 8).to(half), [x.to(half) for x in loader(4, 16)]
    found = quantized(model, data)
    assert found(data[0]).dtype == half
    assert {node.args[3] for node in calls(found, DEQUANTIZE)} == {half}
    assert relative_error(found(data[0]).float(), model(data[0]).float()) < 0.03


@pytest.mark.parametrize("dtype", ["int8", "fp8"])
def test_the_simulation_computes_as_the_quantized_model(dtype: str) -> None:
    data = loader(4, 3, 8, 8)
    settings = settings_from(dtype=dtype)
    found = calibrated(CHAINS["pointwise"](), data, dtype=dtype)
    choice = Choice("mse", equalize=True, correct_bias=True)
    simulated, delivered = (
        insert_qdq(found, choice, settings, simulate=simulate).module(data[0])[0] for simulate in (True, False)
    )
    torch.testing.assert_close(simulated, delivered, rtol=1e-3, atol=2e-2 * float(delivered.detach().abs().max()))
