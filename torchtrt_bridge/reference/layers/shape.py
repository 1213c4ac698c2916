"""Layers that move whole tensors or create them: shapes, transposes, concatenation, constants."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from torchtrt_bridge.errors import LoweringError
from torchtrt_bridge.reference.layer import Layer, tensor_dims
from torchtrt_bridge.reference.registry import Compute, reads
from torchtrt_bridge.trt.dtypes import torch_dtype_from_trt


@reads("CONSTANT")
def constant(layer: Layer) -> Compute:
    value = layer.constant()
    return lambda: value


@reads("SHAPE")
def shape(layer: Layer) -> Compute:
    return lambda x: torch.tensor(x.shape, dtype=torch.int64)


@reads("CONCATENATION")
def concatenation(layer: Layer) -> Compute:
    axis = int(layer.raw.axis)

    def compute(*tensors: Tensor) -> Tensor:
        dtypes = {tensor.dtype for tensor in tensors}
        if len(dtypes) > 1:
            raise LoweringError(f"{layer} mixes dtypes: {', '.join(sorted(map(str, dtypes)))}.")
        return torch.cat(tensors, axis)

    return compute


@reads("SHUFFLE")
def shuffle(layer: Layer) -> Compute:
    """Transpose, reshape, transpose. The dimensions of the reshape may come from a second input."""
    first, second = list(layer.raw.first_transpose), list(layer.raw.second_transpose)
    dims = None if layer.has_input(1) else layer.dims("reshape_dims")
    zero_copies = bool(layer.raw.zero_is_placeholder)

    def compute(x: Tensor, wanted: Tensor | None = None) -> Tensor:
        x = x.permute(first[: x.dim()])
        target = dims if wanted is None else tuple(wanted.tolist())
        if target is not None:
            x = x.reshape(resolve_reshape(x.shape, target, zero_copies))
        return x.permute(second[: x.dim()])

    return compute


def resolve_reshape(shape: Sequence[int], target: Sequence[int], zero_copies: bool) -> list[int]:
    """Return the dimensions of a reshape: 0 copies the input's if `zero_copies`, one -1 is inferred."""
    dims = [shape[index] if dim == 0 and zero_copies else dim for index, dim in enumerate(target)]
    if -1 in dims:
        rest = math.prod(dim for dim in dims if dim != -1)
        dims[dims.index(-1)] = math.prod(shape) // rest if rest else 0
    if -1 in dims or math.prod(dims) != math.prod(shape):
        raise LoweringError(f"shape {tuple(shape)} cannot become {tuple(target)}.")
    return dims


@reads("SQUEEZE")
def squeeze(layer: Layer) -> Compute:
    """Remove the axes; without axes, the dimensions that are 1 in the network's definition, and no dynamic ones."""
    static = [axis for axis, dim in enumerate(tensor_dims(layer.inputs[0])) if dim == 1]

    def compute(x: Tensor, axes: Tensor | None = None) -> Tensor:
        gone = static if axes is None else [axis % x.dim() for axis in axes.tolist()]
        if any(x.shape[axis] != 1 for axis in gone):
            raise LoweringError(f"{layer} drops dimensions {gone} of shape {tuple(x.shape)}, not all 1.")
        return x.squeeze(gone)

    return compute


@reads("UNSQUEEZE")
def unsqueeze(layer: Layer) -> Compute:
    """Insert dimensions of 1; the axes are those of the output."""

    def compute(x: Tensor, axes: Tensor) -> Tensor:
        new = axes.reshape(-1).tolist()
        rank = x.dim() + len(new)
        for axis in sorted(axis % rank for axis in new):
            x = x.unsqueeze(axis)
        return x

    return compute


@reads("PADDING")
def padding(layer: Layer) -> Compute:
    """Pad the last two dimensions with zeros; negative padding trims."""
    pre, post = layer.set_dims("pre_padding_nd"), layer.set_dims("post_padding_nd")
    widths = [width for pair in zip(reversed(pre), reversed(post), strict=True) for width in pair]
    return lambda x: F.pad(x, widths)


@reads("FILL")
def fill(layer: Layer) -> Compute:
    """Compute alpha plus, for each dimension, its beta times the position: LINSPACE, and no other operation."""
    if layer.raw.operation.name != "LINSPACE":
        raise LoweringError(f"{layer}: the reference has no {layer.raw.operation.name}; it draws no random numbers.")
    dtype = torch_dtype_from_trt(layer.raw.to_type)
    static = layer.dims("shape")
    exact = torch.float64 if dtype.is_floating_point else torch.int64
    start = torch.as_tensor(layer.raw.alpha).to(exact)
    step = torch.as_tensor(layer.raw.beta).to(exact)

    def compute(dims: Tensor | None = None, alpha: Tensor | None = None, beta: Tensor | None = None) -> Tensor:
        sizes = static if dims is None else dims.tolist()
        assert sizes is not None
        steps = (step if beta is None else beta.to(exact)).reshape(-1)
        result = (start if alpha is None else alpha.to(exact)).reshape([1] * len(sizes)).expand(sizes)
        for axis, size in enumerate(sizes):
            line = torch.arange(size, dtype=exact) * steps[min(axis, steps.numel() - 1)]
            result = result + line.reshape([-1] + [1] * (len(sizes) - axis - 1))
        return result.to(dtype)

    return compute


@reads("NON_ZERO")
def non_zero(layer: Layer) -> Compute:
    """Return one column of coordinates for each non-zero element, in row-major order."""
    dtype = torch_dtype_from_trt(layer.outputs[0].dtype)
    return lambda x: torch.nonzero(x).T.to(dtype)


@reads("ASSERTION")
def assertion(layer: Layer) -> Compute:
    message = layer.raw.message

    def compute(condition: Tensor) -> tuple[()]:
        if not bool(condition.all()):
            raise LoweringError(f"{layer} failed: {message}")
        return ()

    return compute


@reads("REVERSE_SEQUENCE")
def reverse_sequence(layer: Layer) -> Compute:
    """Reverse, in each slice along the batch axis, as many first elements of the sequence as its length says."""
    batch_axis, sequence_axis = int(layer.raw.batch_axis), int(layer.raw.sequence_axis)

    def compute(x: Tensor, lengths: Tensor) -> Tensor:
        moved = x.movedim((batch_axis, sequence_axis), (0, 1)).clone()
        for row, length in enumerate(lengths.tolist()):
            moved[row, :length] = moved[row, :length].flip(0)
        return moved.movedim((0, 1), (batch_axis, sequence_axis))

    return compute
