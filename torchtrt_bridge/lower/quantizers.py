"""Readers of quantizing nodes, of this package and of other libraries, and the reasons for which TensorRT takes none.

Operators are recognized by name, as the library that defines them may not be installed. PyTorch's own
``quantized_decomposed`` (torchao's PT2E) quantizes and dequantizes in two nodes, and so does this package;
``tensorrt::quantize_op`` (modelopt) does both in one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from torchtrt_bridge.graph.nodes import arguments_of, constant_of
from torchtrt_bridge.graph.ops import LARGEST, NAMESPACE
from torchtrt_bridge.graph.torch_internals import schema_of

# The int8 ranges of PT2E that lower; TensorRT clamps to the second.
_INT8_RANGES = ((-127, 127), (-128, 127))


@dataclasses.dataclass(frozen=True)
class Quantizer:
    """A node that quantizes, dequantizes, or does both.

    scale: float32, above zero; of shape (1,), or one for each index along `axis`.
    quantized, real: the dtypes on both sides.
    """

    quantizes: bool
    dequantizes: bool
    scale: torch.Tensor
    axis: int | None
    quantized: torch.dtype
    real: torch.dtype


class _UnfitError(Exception):
    """A node for which TensorRT has no layer; the text is the reason."""


def is_quantizer(node: fx.Node) -> bool:
    """Return whether a node quantizes or dequantizes, even if TensorRT cannot do so."""
    schema = schema_of(node.target)
    return schema is not None and schema.name in _READERS


def quantizer_of(node: fx.Node) -> Quantizer | None:
    """Return how a node quantizes; None if it does not, or if TensorRT cannot do it."""
    try:
        return _read(node)
    except _UnfitError:
        return None


def is_4_bit_weight(node: fx.Node) -> bool:
    """Return whether a node dequantizes a weight of 4 bits."""
    schema = schema_of(node.target)
    return schema is not None and schema.name == _INT4


def why_not_quantizer(node: fx.Node) -> str | None:
    """Return the reason for which TensorRT cannot take a quantizing node; None for every other node."""
    try:
        _read(node)
    except _UnfitError as reason:
        return str(reason)
    return None


def _read(node: fx.Node) -> Quantizer | None:
    if not is_quantizer(node):
        return None
    return _READERS[schema_of(node.target).name](node, **arguments_of(node))


def _own(node: fx.Node, **arguments: Any) -> Quantizer:
    """quantize(Tensor x, Tensor scale, int? axis, ScalarType dtype), dequantize(Tensor q, ...)"""
    axis, scale = arguments["axis"], _scale(arguments["scale"])
    if "x" in arguments:
        return Quantizer(True, False, scale, axis, arguments["dtype"], _dtype(arguments["x"]))
    return Quantizer(False, True, scale, axis, _dtype(arguments["q"]), arguments["dtype"])


def _own_int4(node: fx.Node, packed: Any, scale: Any, block_size: int, dtype: torch.dtype) -> None:
    """dequantize_int4(Tensor packed, Tensor scale, int block_size, ScalarType dtype)"""
    _scale(scale)
    if constant_of(packed) is None:
        raise _UnfitError("4-bit values known only at run time")


def _per_tensor(node: fx.Node, input: Any, scale: Any, zero_point: Any, **rest: Any) -> Quantizer:
    """Read quantize_per_tensor or dequantize_per_tensor."""
    return _decomposed(node, input, _scale(scale), zero_point, None, **rest)


def _per_channel(node: fx.Node, input: Any, scales: Any, zero_points: Any, axis: int, **rest: Any) -> Quantizer:
    """Read quantize_per_channel or dequantize_per_channel."""
    return _decomposed(node, input, _scale(scales), zero_points, axis, **rest)


def _decomposed(
    node: fx.Node,
    input: Any,
    scale: torch.Tensor,
    zero_point: Any,
    axis: int | None,
    quant_min: Any,
    quant_max: Any,
    dtype: torch.dtype,
    **out_dtype: torch.dtype | None,
) -> Quantizer:
    quantizes = not out_dtype  # only the other half has this argument
    if dtype not in LARGEST:
        raise _UnfitError(f"it quantizes to {_short(dtype)}: TensorRT has int8 and float8_e4m3fn")
    if zero_point is not None and bool(_known(zero_point, "zero points").any()):
        raise _UnfitError("its zero point is not 0: TensorRT quantizes symmetrically")
    bounds = tuple(int(_known(bound, "bounds")) for bound in (quant_min, quant_max))
    if quantizes and dtype == torch.int8 and bounds not in _INT8_RANGES:
        raise _UnfitError(f"it clamps to {bounds[0]} to {bounds[1]}: TensorRT clamps int8 to -128 to 127")
    real = _dtype(input) if quantizes else out_dtype["out_dtype"] or torch.float32
    return Quantizer(quantizes, not quantizes, scale, axis, dtype, real)


def _fused(
    node: fx.Node, input: Any, amax: Any, num_bits: int, exponent_bits: int, unsigned: bool, **narrow_range: bool
) -> Quantizer:
    """quantize_op(Tensor input, Tensor amax, int num_bits, int exponent_bits, bool unsigned, bool narrow_range)"""
    dtype = {(8, 0): torch.int8, (8, 4): torch.float8_e4m3fn}.get((num_bits, exponent_bits))
    if dtype is None:
        raise _UnfitError(f"it quantizes to {num_bits} bits, {exponent_bits} of them the exponent's")
    if unsigned:
        raise _UnfitError("it quantizes to unsigned integers: TensorRT has signed ones")
    largest = _known(amax, "scales").float()
    wide = [dim for dim, size in enumerate(largest.shape) if size > 1]
    if len(wide) > 1:
        raise _UnfitError(f"it has scales along the dimensions {wide}: TensorRT takes one of them")
    axis = wide[0] - largest.dim() if wide else None
    scale = (largest / LARGEST[dtype]).clamp(min=torch.finfo(torch.float32).tiny)  # channels of zeros have none
    return Quantizer(True, True, _scale(scale), axis, dtype, _dtype(input))


_INT4 = f"{NAMESPACE}::dequantize_int4"
_READERS: dict[str, Callable[..., Quantizer | None]] = {
    f"{NAMESPACE}::quantize": _own,
    f"{NAMESPACE}::dequantize": _own,
    _INT4: _own_int4,
    "quantized_decomposed::quantize_per_tensor": _per_tensor,
    "quantized_decomposed::dequantize_per_tensor": _per_tensor,
    "quantized_decomposed::quantize_per_channel": _per_channel,
    "quantized_decomposed::dequantize_per_channel": _per_channel,
    "tensorrt::quantize_op": _fused,
}


def _scale(value: Any) -> torch.Tensor:
    """Return scales as float32 of one dimension: TensorRT-RTX 1.5 fails to build a convolution with a 0-d one."""
    scale = _known(value, "scales").float()
    if not bool((scale > 0).all() & scale.isfinite().all()):
        raise _UnfitError("a scale that is not above zero and finite")
    return scale.reshape(-1)


def _known(value: Any, what: str) -> torch.Tensor:
    """Return a number or a constant as a tensor; raise _UnfitError for what is computed."""
    constant = constant_of(value) if isinstance(value, fx.Node) else torch.as_tensor(value)
    if constant is None:
        raise _UnfitError(f"{what} known only at run time")
    return constant.detach()


def _dtype(node: fx.Node) -> torch.dtype:
    dtype: torch.dtype = node.meta["val"].dtype
    return dtype


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
