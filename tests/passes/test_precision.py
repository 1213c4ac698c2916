"""Precision: which operators compute in half precision and which in fp32; results keep their dtypes and values."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.models import ConvNet, image, trained
from tests.passes.case import assert_computes, aten, call, calls, passed
from torchtrt_bridge.lower.bounds import bounds_of
from torchtrt_bridge.passes import normalize
from torchtrt_bridge.passes.precision import set_precision

HALVES = {"fp16": torch.float16, "bf16": torch.bfloat16}
# Rounding of one or two layers in half precision, against results of about 1.
CLOSE = {"fp16": {"rtol": 5e-3, "atol": 5e-3}, "bf16": {"rtol": 4e-2, "atol": 4e-2}}


def x_of(*shape: int) -> torch.Tensor:
    return torch.rand(*(shape or (4, 4))) + 0.5


class Weighted(nn.Module):
    """A function of the input and of one weight."""

    def __init__(self, function: Callable[..., Any], *shape: int) -> None:
        super().__init__()
        self.function = function
        self.weight = nn.Parameter(torch.randn(*shape) / 2)

    def forward(self, x: torch.Tensor) -> Any:
        return self.function(x, self.weight)


def after_linear(function: Callable[..., Any]) -> nn.Module:
    """Return a model that applies `function` to a linear layer, which computes in half precision."""
    return Weighted(lambda x, w: function(F.linear(x, w)), 4, 4)


def dtype_of(module: Any, op: Any) -> torch.dtype:
    value = call(module, op).meta["val"]
    return (value[0] if isinstance(value, (tuple, list)) else value).dtype


def input_dtypes(module: Any, op: Any) -> list[torch.dtype]:
    return [node.meta["val"].dtype for node in call(module, op).all_input_nodes]


HALF_OPS: dict[str, tuple[Any, Any, tuple[int, ...]]] = {
    "linear": (lambda: Weighted(F.linear, 4, 4), aten.linear.default, (4, 4)),
    "convolution": (lambda: Weighted(F.conv2d, 4, 4, 3, 3), aten.convolution.default, (1, 4, 8, 8)),
    "matmul": (lambda: Weighted(torch.matmul, 4, 4), aten.matmul.default, (2, 3, 4)),
    "bmm": (lambda: Weighted(torch.bmm, 2, 4, 4), aten.bmm.default, (2, 3, 4)),
    "attention": (
        lambda: Weighted(lambda x, w: F.scaled_dot_product_attention(x @ w, x, x), 4, 4),
        aten.scaled_dot_product_attention.default,
        (1, 2, 3, 4),
    ),
}


@pytest.mark.parametrize("precision", HALVES)
@pytest.mark.parametrize("name", HALF_OPS)
def test_products_compute_in_half_precision(name: str, precision: str) -> None:
    make, op, shape = HALF_OPS[name]
    model, x = make(), x_of(*shape)
    module = passed(model, x, set_precision, precision=precision)
    found = [n for n in module.graph.nodes if n.target is op]
    assert found, calls(module)
    assert {n.meta["val"].dtype for n in found} == {HALVES[precision]}
    assert_computes(module, model, x, **CLOSE[precision])


# Functions that lose their meaning in half precision, and the operator that must stay fp32.
DELICATE: dict[str, tuple[Callable[..., Any], Any]] = {
    "softmax": (lambda x: x.softmax(1), aten._softmax.default),
    "log_softmax": (lambda x: x.log_softmax(1), aten._log_softmax.default),
    "exp": (torch.exp, aten.exp.default),
    "log": (lambda x: (x.abs() + 1).log(), aten.log.default),
    "sum": (lambda x: x.sum(1), aten.sum.dim_IntList),
    "mean": (lambda x: x.mean(1), aten.mean.dim),
    "pow": (lambda x: (x.abs() + 0.1) ** 1.7, aten.pow.Tensor_Scalar),
    "rsqrt": (lambda x: torch.rsqrt(x.abs() + 1), aten.rsqrt.default),
    "cumsum": (lambda x: x.cumsum(1), aten.cumsum.default),
    "layer_norm": (lambda x: F.layer_norm(x, (4,)), aten.layer_norm.default),
    "group_norm": (lambda x: F.group_norm(x, 2), aten.group_norm.default),
}


@pytest.mark.first(8)
@pytest.mark.parametrize("precision", HALVES)
@pytest.mark.parametrize("name", DELICATE)
def test_delicate_functions_stay_fp32(name: str, precision: str) -> None:
    function, op = DELICATE[name]
    model, x = after_linear(function), x_of()
    module = passed(model, x, set_precision, precision=precision)
    assert dtype_of(module, op) == torch.float32
    assert set(input_dtypes(module, op)) == {torch.float32}
    assert dtype_of(module, aten.linear.default) == HALVES[precision]
    assert_computes(module, model, x, rtol=5e-2, atol=5e-2 if precision == "fp16" else 2e-1)


@pytest.mark.parametrize("precision", HALVES)
def test_what_follows_a_product_stays_in_half_precision(precision: str) -> None:
    model, x = after_linear(lambda x: torch.relu(x + 1) * 2), x_of()
    module = passed(model, x, set_precision, precision=precision)
    assert dtype_of(module, aten.relu.default) == HALVES[precision]
    assert dtype_of(module, aten.mul.Tensor) == HALVES[precision]
    assert_computes(module, model, x, **CLOSE[precision])


def test_without_a_product_nothing_is_cast() -> None:
    def model(x: torch.Tensor) -> torch.Tensor:
        return torch.relu(x + 1) * 2

    x = x_of()
    module = passed(model, x, set_precision, precision="fp16")
    assert calls(module) == [aten.add.Tensor, aten.relu.default, aten.mul.Tensor]
    assert_computes(module, model, x)


def test_fp32_changes_nothing() -> None:
    model, x = trained(ConvNet()), image()
    assert calls(passed(model, x, set_precision)) == calls(passed(model, x))


def test_one_cast_serves_all_users() -> None:
    model, x = Weighted(lambda x, w: F.linear(x, w) + F.linear(x, w.t()), 4, 4), x_of()
    module = passed(model, x, set_precision, precision="fp16")
    casts = [n for n in module.graph.nodes if n.target is aten._to_copy.default and n.args[0].op == "placeholder"]
    assert len(casts) == 1
    assert_computes(module, model, x, **CLOSE["fp16"])


@pytest.mark.parametrize("precision", HALVES)
def test_outputs_keep_their_dtypes(precision: str) -> None:
    model = after_linear(lambda x: (x, x > 0, x.argmax(1), torch.relu(x)))
    x = x_of()
    module = passed(model, x, set_precision, precision=precision)
    results = module(x)
    assert [value.dtype for value in results] == [torch.float32, torch.bool, torch.int64, torch.float32]
    with torch.no_grad():
        torch.testing.assert_close(results[3], model(x)[3], **CLOSE[precision])


# Numbers that fp16 does not hold --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x.masked_fill(x > 0.5, -1e9).softmax(1),
        lambda x: (x + torch.where(x > 0.5, -1e9, 0.0)).softmax(1),
        lambda x: torch.where(x > 0.5, x, -1e9).softmax(1),
        lambda x: (x * 1e9).tanh() + x,
        lambda x: x.clamp(max=1e9),
        lambda x: x.masked_fill(x > 0.5, torch.finfo(torch.float32).min).softmax(1),
    ],
    ids=["masked_fill", "added mask", "where", "factor", "clamp", "least float"],
)
def test_numbers_beyond_fp16_do_not_become_infinite(function: Callable[..., Any]) -> None:
    model, x = after_linear(function), x_of()
    module = passed(model, x, normalize, precision="fp16")
    assert bool(module(x)[0].isfinite().all())
    assert_computes(module, model, x, rtol=2e-2, atol=2e-2)


def test_a_mask_of_a_large_number_stays_fp32() -> None:
    model, x = after_linear(lambda x: x.masked_fill(x > 0.5, -1e9)), x_of()
    module = passed(model, x, set_precision, precision="fp16")
    assert dtype_of(module, aten.masked_fill.Scalar) == torch.float32
    assert_computes(module, model, x, rtol=2e-2, atol=2e-2)


def test_bf16_holds_such_numbers() -> None:
    model, x = after_linear(lambda x: x.masked_fill(x > 0.5, -1e9)), x_of()
    module = passed(model, x, set_precision, precision="bf16")
    assert dtype_of(module, aten.masked_fill.Scalar) == torch.bfloat16


def test_infinity_is_a_number_of_fp16() -> None:
    model, x = after_linear(lambda x: x.masked_fill(x > 0.5, float("-inf"))), x_of()
    module = passed(model, x, set_precision, precision="fp16")
    assert dtype_of(module, aten.masked_fill.Scalar) == torch.float16


BEYOND: dict[str, Callable[..., Any]] = {
    "factor": lambda x: x * 100000,
    "added": lambda x: x + (1 << 20),
    "taken from": lambda x: 100000 - x,
    "divisor": lambda x: x / 100000,
    "clamp": lambda x: x.clamp(max=100000),
    "hardtanh": lambda x: F.hardtanh(x, -100000, 100000),
    "filled": lambda x: x.masked_fill(x > 0.5, -100000),
    "chosen": lambda x: torch.where(x > 0.5, x, -100000),
    "named": lambda x: torch.add(x, x, alpha=100000),
    "named float": lambda x: torch.add(x, x, alpha=1e6),
    "integers": lambda x: x * torch.tensor([100000, 1, 2, 3]),
    "floats of integers": lambda x: x * (torch.arange(4) * 50000).float(),
    "integers of run time": lambda x: x * (x.detach() * 100000).long(),
    "floats of these": lambda x: x * (x.detach() * 100000).long().float(),
    "joined": lambda x: torch.cat([x, torch.full((4, 4), 1e6)]),
    "joined integers": lambda x: torch.cat([x, (x.detach() * 100000).long()]),
    "reshaped": lambda x: x + torch.full((2, 2), 100000.0).expand(4, 2, 2).reshape(4, 4).abs(),
    "what follows": lambda x: (x * 100000).abs() + x,
}


@pytest.mark.parametrize("name", BEYOND)
def test_numbers_beyond_fp16_are_computed_with_in_fp32(name: str) -> None:
    model, x = after_linear(BEYOND[name]), x_of()
    module = passed(model, x, normalize, precision="fp16")
    assert dtype_of(module, aten.linear.default) == torch.float16
    assert_computes(module, model, x, rtol=1e-2, atol=1e-2 * float(model(x).detach().abs().max()))


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x * torch.arange(4),
        lambda x: x / 4096 * 65504,
        lambda x: x[torch.arange(4)],
        lambda x: x.gather(1, (x.detach() * 2).long().clamp(0, 3)),
        lambda x: x[:, 1:],
        lambda x: x * (x > 0.5),
    ],
    ids=["small integers", "the largest", "constant index", "index of run time", "slice", "booleans"],
)
def test_integers_that_fp16_holds_and_positions_are_no_reason_for_fp32(function: Callable[..., Any]) -> None:
    model, x = after_linear(lambda x: function(x) * 2), x_of()
    module = passed(model, x, normalize, precision="fp16")
    assert [n.meta["val"].dtype for n in module.graph.nodes if n.target is aten.mul.Tensor][-1] == torch.float16
    assert_computes(module, model, x, rtol=1e-2, atol=1e-2 * float(model(x).detach().abs().max()))


def test_integers_are_in_the_range_of_bf16() -> None:
    model, x = after_linear(lambda x: x * 100000), x_of()
    module = passed(model, x, set_precision, precision="bf16")
    assert dtype_of(module, aten.mul.Tensor) == torch.bfloat16


class ConstantMask(nn.Module):
    """A constant mask of a number that fp16 does not hold, added to scores."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.register_buffer("mask", torch.triu(torch.full((4, 4), -1e9), 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (self.linear(x) + self.mask).softmax(1)


class LeastMask(ConstantMask):
    """A mask of the least fp32 number, which bf16 does not hold either."""

    def __init__(self) -> None:
        super().__init__()
        self.mask = torch.full((4, 4), torch.finfo(torch.float32).min)


class AttentionMask(ConstantMask):
    """The same mask, passed to attention; a row of it masks everything, as padding does."""

    def __init__(self) -> None:
        super().__init__()
        self.mask[0] = -1e9

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.linear(x).view(1, 1, 4, 4)
        return F.scaled_dot_product_attention(x, x, x, attn_mask=self.mask)


@pytest.mark.parametrize("precision", HALVES)
@pytest.mark.parametrize("make", [ConstantMask, LeastMask, AttentionMask])
def test_a_constant_mask_beyond_half_precision_keeps_the_result_finite(make: type[nn.Module], precision: str) -> None:
    model, x = make(), x_of()
    module = passed(model, x, normalize, precision=precision)
    assert bool(module(x)[0].isfinite().all())
    assert_computes(module, model, x, rtol=2e-2, atol=2e-2)


# What is left alone -----------------------------------------------------------------------------------------------


class ChosenMask(nn.Module):
    """A mask chosen between zeros and a constant that fp16 does not hold; its first row hides everything."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("lowest", torch.tensor(torch.finfo(torch.float32).min))
        self.linear = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        shown = (x > 0) & (torch.arange(4)[:, None] > 0)
        return F.scaled_dot_product_attention(x, x, self.linear(x), torch.where(shown, 0.0, self.lowest))


def test_a_mask_made_of_a_constant_beyond_fp16_stays_finite() -> None:
    model, x = ChosenMask(), x_of()
    module = passed(model, x, set_precision, precision="fp16")
    mask = call(module, aten.scaled_dot_product_attention.default).args[3]
    assert bounds_of(mask) == (-65504, 0)
    with torch.no_grad():
        assert bool((module(x)[0][0] != 0).any())  # of minus infinities alone, attention makes zeros


@pytest.mark.parametrize("precision", HALVES)
@pytest.mark.parametrize("use", [lambda part: part * 2, lambda part: part.exp()], ids=["half", "delicate"])
def test_parts_of_a_product_are_taken_in_its_precision(use: Callable[..., Any], precision: str) -> None:
    """As GPT-2 splits one product into query, key and value."""
    model, x = after_linear(lambda y: [use(part) for part in y.split(2, 1)]), x_of()
    module = passed(model, x, set_precision, precision=precision)
    assert dtype_of(module, aten.split_with_sizes.default) == HALVES[precision]
    assert_computes(module, model, x, **CLOSE[precision])


def test_the_users_own_casts_are_kept() -> None:
    model, x = after_linear(lambda x: x.double().square().float() + x.half().float()), x_of()
    module = passed(model, x, normalize, precision="bf16")
    kept = [n.kwargs.get("dtype") for n in module.graph.nodes if n.target is aten._to_copy.default]
    assert torch.float64 in kept
    assert torch.float16 in kept
    assert_computes(module, model, x, **CLOSE["bf16"])


def test_a_cast_to_fp32_protects_what_follows() -> None:
    """`x.half()` by the user, then fp32 again: the sum after it is the user's fp32."""
    model, x = after_linear(lambda x: x.half().float() + 1), x_of()
    module = passed(model, x, normalize, precision="bf16")
    assert_computes(module, model, x, **CLOSE["bf16"])


@pytest.mark.parametrize("own", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("precision", HALVES)
def test_models_in_half_precision_are_untouched(own: torch.dtype, precision: str) -> None:
    model, x = trained(ConvNet()).to(own), image().to(own)
    assert calls(passed(model, x, set_precision, precision=precision)) == calls(passed(model, x))


def test_integers_are_untouched() -> None:
    model, x = nn.Embedding(5, 4), torch.tensor([[0, 4], [2, 1]])
    module = passed(model, x, set_precision, precision="fp16")
    assert input_dtypes(module, aten.embedding.default) == [torch.float32, torch.int64]
    assert_computes(module, model, x)


def test_an_operator_that_stays_in_pytorch_stays_fp32() -> None:
    model, x = after_linear(lambda x: torch.linalg.det(x + torch.eye(4)) * 2), x_of()
    module = passed(model, x, set_precision, precision="fp16")
    det = next(n for n in module.graph.nodes if "linalg" in str(n.target))
    assert {n.meta["val"].dtype for n in det.all_input_nodes} == {torch.float32}
    assert dtype_of(module, aten.linear.default) == torch.float16
    assert_computes(module, model, x, rtol=5e-2, atol=5e-2)


def test_an_operator_named_by_torch_ops_stays_fp32() -> None:
    model, x = after_linear(torch.relu), x_of()
    module = passed(model, x, set_precision, precision="fp16", torch_ops=("aten.relu.default",))
    assert input_dtypes(module, aten.relu.default) == [torch.float32]
    assert_computes(module, model, x, **CLOSE["fp16"])


def test_the_models_own_weights_are_not_touched() -> None:
    model = trained(ConvNet())
    before = {name: value.clone() for name, value in model.state_dict().items()}
    passed(model, image(), normalize, precision="fp16")
    torch.testing.assert_close(dict(model.state_dict()), before, rtol=0, atol=0)


def test_weights_are_cast_ahead_of_time() -> None:
    model, x = trained(ConvNet()), image()
    module = passed(model, x, normalize, precision="fp16")
    weights = [n for n in module.graph.nodes if n.op == "get_attr" and n.meta["val"].dim() > 1]
    assert {n.meta["val"].dtype for n in weights} == {torch.float16}
    assert_computes(module, model, x, **CLOSE["fp16"])


SMALL: dict[str, Callable[..., torch.Tensor]] = {
    "added": lambda x: x / (x.norm(dim=-1, keepdim=True) + 1e-12),
    "clamped": lambda x: x / x.abs().amax(-1, keepdim=True).clamp(min=1e-9),
    "normalize": lambda x: F.normalize(x, dim=-1),
    "constant": lambda x: x / torch.maximum(x.abs().amax(-1, keepdim=True), torch.tensor(1e-9)),
    "chosen": lambda x: x / torch.where(x.abs() > 0, x, torch.tensor(1e-10)),
    "reshaped": lambda x: x.view(2, 2, 4) / (x.abs().amax(-1) + 1e-8).view(2, 2, 1).expand(2, 2, 4),
    "root": lambda x: x / (x.square().sum(-1, keepdim=True) + 1e-14).sqrt(),
    "reciprocal": lambda x: x * (x.abs().amax(-1, keepdim=True) + 1e-6).reciprocal(),
    "scaled": lambda x: x * 1e-9 * 1e9,
}


@pytest.mark.parametrize("name", SMALL)
def test_numbers_that_fp16_rounds_to_zero(name: str) -> None:
    """A row of zeros stays one, whatever the example was."""
    model = after_linear(SMALL[name])
    module = passed(model, x_of(), set_precision, precision="fp16")
    assert dtype_of(module, aten.linear.default) == torch.float16
    x = x_of()
    x[1] = 0
    with torch.no_grad():
        (found,) = module(x)
        torch.testing.assert_close(found, model(x), **CLOSE["fp16"])


def test_a_product_of_small_numbers_is_one_of_half_precision() -> None:
    model = Weighted(lambda x, w: F.linear(x + 1e-9, w), 4, 4)
    assert dtype_of(passed(model, x_of(), set_precision, precision="fp16"), aten.linear.default) == torch.float16
