"""Batch normalization in evaluation mode is a scale and a shift, which the layer before it takes into its weights."""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING, cast

import torch
from torch import fx

from torchtrt_bridge.graph.edit import constant_of, fake_mode_of, finish, insert_call, insert_constant, is_call
from torchtrt_bridge.graph.nodes import arguments_of
from torchtrt_bridge.graph.ops import own
from torchtrt_bridge.options import Options

if TYPE_CHECKING:
    from torchtrt_bridge.graph.torch_internals import FakeTensorMode

aten = torch.ops.aten
BATCH_NORM = aten._native_batch_norm_legit_no_training.default


def fold_batch_norm(module: fx.GraphModule, options: Options) -> fx.GraphModule:
    """Replace each batch norm by new weights of the convolution before it, or by a product and a sum."""
    mode = fake_mode_of(module)
    folded = 0
    for node in module.graph.find_nodes(op="call_function", target=BATCH_NORM):
        if any(_index(user) != 0 for user in node.users):
            continue
        affine = _scale_and_shift(node)
        if affine is None:
            continue
        source = node.args[0]
        replaced = _fold_into(source, *affine, mode) if len(source.users) == 1 else None
        replaced = replaced or _as_product_and_sum(node, *affine, mode)
        for user in list(node.users):
            user.replace_all_uses_with(replaced)
        folded += 1
    return finish(module, changed=folded > 0)


def _index(user: fx.Node) -> int:
    return cast(int, user.args[1]) if user.target is operator.getitem else -1


def _scale_and_shift(node: fx.Node) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Return the float64 factor and summand per channel; None if the statistics are not constants."""
    _, weight, bias, mean, var, _, eps = node.args
    constants = [None if arg is None else constant_of(arg) for arg in (weight, bias, mean, var)]
    if constants[2] is None or constants[3] is None:
        return None
    if any(arg is not None and value is None for arg, value in zip((weight, bias), constants, strict=False)):
        return None
    gamma, beta, mu, variance = (None if value is None else value.double() for value in constants)
    assert mu is not None
    assert variance is not None
    assert isinstance(eps, float)
    scale = torch.rsqrt(variance + eps)
    scale = scale if gamma is None else scale * gamma
    shift = -mu * scale
    return scale, shift if beta is None else shift + beta


def _fold_into(source: fx.Node, scale: torch.Tensor, shift: torch.Tensor, mode: FakeTensorMode) -> fx.Node | None:
    """Put the affine map into the weights of `source`, if it is a convolution or a linear layer; None if it is not."""
    if not (is_call(source, aten.convolution.default) or is_call(source, aten.linear.default)):
        return None
    if is_call(source, aten.linear.default) and source.meta["val"].dim() != 2:
        return None
    bias_node = source.args[2] if len(source.args) > 2 else None
    bias = constant_of(bias_node)
    if bias_node is not None and bias is None:
        return None
    weight = _scaled(source, scale, mode) or _quantized_and_scaled(source, scale, mode)
    if weight is None:
        return None
    new_bias = (shift if bias is None else bias.double() * scale + shift).to(weight.meta["val"].dtype)
    args = list(source.args) + [None] * (3 - len(source.args))
    args[1:3] = weight, insert_constant(source, new_bias, f"{source.name}_bias", mode)
    source.args = tuple(args)
    return source


def _scaled(source: fx.Node, scale: torch.Tensor, mode: FakeTensorMode) -> fx.Node | None:
    """Insert the weight of a layer with its outputs multiplied by `scale`."""
    weight = constant_of(source.args[1])
    if weight is None:
        return None
    scaled = (weight.float() * _along_outputs(source, weight, scale).float()).to(weight.dtype)
    return insert_constant(source, scaled, f"{source.name}_weight", mode)


def _quantized_and_scaled(source: fx.Node, scale: torch.Tensor, mode: FakeTensorMode) -> fx.Node | None:
    """Insert a quantized weight with the factor in its scales, and the factor's sign in its integers."""
    if not is_call(source.args[1], own.dequantize.default):
        return None
    integers, scales, axis, dtype = arguments_of(source.args[1]).values()  # type: ignore[arg-type]
    weight, old = constant_of(integers), constant_of(scales)
    is_by_output = axis in (None, 0) and not (is_call(source, aten.convolution.default) and source.args[6])
    if weight is None or old is None or weight.dtype != torch.int8 or not is_by_output:
        return None
    signs = _along_outputs(source, weight, torch.where(scale < 0, -1, 1))
    signed = weight.short() * signs
    if bool((signed > 127).any()):  # int8 has no 128
        return None
    new = (old.double() * scale.abs()).float().clamp(min=torch.finfo(torch.float32).tiny)
    signed_weight = insert_constant(source, signed.to(torch.int8), f"{source.name}_weight", mode)
    new_scales = insert_constant(source, new, f"{source.name}_scale", mode)
    return insert_call(source, mode, own.dequantize.default, signed_weight, new_scales, 0, dtype)


def _along_outputs(source: fx.Node, weight: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Return `scale` in a shape that multiplies `weight` along its output channels."""
    if is_call(source, aten.linear.default) or not source.args[6]:
        return scale.reshape(-1, *[1] * (weight.dim() - 1))
    groups = cast(int, source.args[8])
    per_group = scale.reshape(groups, 1, -1).expand(groups, weight.shape[0] // groups, -1)
    return per_group.reshape(weight.shape[0], weight.shape[1], *[1] * (weight.dim() - 2))


def _as_product_and_sum(node: fx.Node, scale: torch.Tensor, shift: torch.Tensor, mode: FakeTensorMode) -> fx.Node:
    source = node.args[0]
    assert isinstance(source, fx.Node)
    value = source.meta["val"]
    shape = (1, -1) + (1,) * (value.dim() - 2)
    factor = insert_constant(node, scale.reshape(shape).to(value.dtype), f"{node.name}_scale", mode)
    summand = insert_constant(node, shift.reshape(shape).to(value.dtype), f"{node.name}_shift", mode)
    product = insert_call(node, mode, aten.mul.Tensor, source, factor)
    return insert_call(node, mode, aten.add.Tensor, product, summand)
