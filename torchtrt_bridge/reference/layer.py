"""One layer of a TensorRT network: its attributes, weights and tensors."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from torchtrt_bridge.errors import LoweringError
from torchtrt_bridge.reference.registry import class_name
from torchtrt_bridge.trt.dtypes import torch_dtype_from_trt


def int_tuple(dims: Any) -> tuple[int, ...] | None:
    """Return TensorRT's `Dims` as a tuple; None if unset (None in new versions, a negative length in old ones)."""
    if dims is None:
        return None
    try:
        return tuple(int(dims[i]) for i in range(len(dims)))  # iterating over a negative length may give ()
    except (ValueError, RuntimeError, TypeError):
        return None


def tensor_dims(tensor: Any) -> tuple[int, ...]:
    """Return the dimensions of an `ITensor`, -1 for dynamic ones. Raises LoweringError in an invalid network."""
    try:
        dims = int_tuple(tensor.shape)
    except (ValueError, RuntimeError):
        dims = None
    if dims is None:
        raise LoweringError(f"TensorRT gives tensor {tensor.name!r} no shape: the network is invalid there.")
    return dims


def axes_of(mask: int) -> list[int]:
    """Return the dimensions of a bit mask."""
    return [axis for axis in range(mask.bit_length()) if mask >> axis & 1]


class Layer:
    """Attributes, weights and tensors of one layer; valid only while its network lives.

    `kind` is the layer type's name, read before the downcast, which hides it (pooling has its own ``type``).
    `inputs` are the `ITensor`s that the computation takes; a reader may replace them.
    """

    def __init__(self, trt: Any, layer: Any, constants: Mapping[str, torch.Tensor]) -> None:
        self.trt = trt
        self.kind: str = layer.type.name
        self.name: str = layer.name
        self.raw = layer
        self._constants = constants
        self.inputs: list[Any] = [layer.get_input(index) for index in range(layer.num_inputs)]
        self.outputs: list[Any] = [layer.get_output(index) for index in range(layer.num_outputs)]

    def __str__(self) -> str:
        return f"layer {self.name!r} ({self.kind})"

    def close(self) -> None:
        """Drop TensorRT's objects, which die with the network; name and kind stay."""
        self.raw, self.inputs, self.outputs = None, [], []

    def downcast(self) -> None:
        """Give `raw` its own class, which has the attributes."""
        self.raw.__class__ = getattr(self.trt, class_name(self.kind))

    def option(self, attribute: str, default: str) -> str:
        """Return the name of an enum attribute; `default` in TensorRT versions without it."""
        value = getattr(self.raw, attribute, None)
        return default if value is None else str(value.name)

    def dims(self, attribute: str) -> tuple[int, ...] | None:
        """Return a `Dims` attribute; None if it is unset, or this TensorRT has none."""
        try:
            return int_tuple(getattr(self.raw, attribute, None))
        except RuntimeError:
            return None

    def set_dims(self, attribute: str) -> tuple[int, ...]:
        """Return a `Dims` attribute; raise LoweringError if it is unset."""
        dims = self.dims(attribute)
        if dims is None:
            raise LoweringError(f"{self} has no {attribute}.")
        return dims

    def has_input(self, index: int) -> bool:
        return index < len(self.inputs) and self.inputs[index] is not None

    def weights(self, attribute: str, key: str | None = None) -> torch.Tensor | None:
        """Return the weights in `attribute`, flat, or the constant under `key` if there is one; None without weights.

        Copies the weights that TensorRT gives back: it only borrows the memory, which may die with the network.
        """
        given = self._constants.get(key or f"{self.name}.{attribute}")
        if given is not None:
            return given
        value = getattr(self.raw, attribute)
        if isinstance(value, np.ndarray):
            return torch.from_numpy(value.copy()) if value.size else None
        if value.size == 0:
            return None
        raise LoweringError(
            f"{self}: TensorRT cannot give back {value.dtype.name} weights. "
            f"Pass them in `constants` under {key or f'{self.name}.{attribute}'!r}."
        )

    def constant(self) -> torch.Tensor:
        """Return the value of a constant layer, in its shape; each int4 value becomes one int8."""
        dims = self.set_dims("shape")
        value = self.weights("weights", key=self.name)
        if value is None:
            return torch.zeros(dims, dtype=torch_dtype_from_trt(self.outputs[0].dtype))
        if value.numel() * 2 == math.prod(dims):
            value = unpack_int4(value)
        return value.reshape(dims)


def unpack_int4(packed: torch.Tensor) -> torch.Tensor:
    """Unpack two signed 4-bit integers from each byte, low half first, to one int8 each."""
    pairs = packed.contiguous().view(torch.uint8).flatten()
    halves = torch.stack([pairs & 15, pairs >> 4], dim=-1).flatten().to(torch.int8)
    return torch.where(halves > 7, halves - 16, halves)
