"""Guard of the values that engines hold as constants: notices a change, cheaply enough for every call."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import torch

from torchtrt_bridge.capture.weight_guard import WeightGuard

_memory = torch.Tensor.data_ptr
_version = operator.attrgetter("_version")


class ConstantGuard:
    """Weights and numbers among the arguments of a graph, as they were when the engines were built.

    A weight is unchanged while it is the same tensor of the same kind, in the same memory, of the same version;
    `p.data = ...` changes the memory and not the version. Tensors made under `torch.inference_mode` have no version, so
    all else is compared. A number is unchanged while it has the same bits: -0.0 is not 0.0, and a NaN is itself.
    counters: tensors that are no arguments, and are edited with weights whose own version does not tell.
    """

    def __init__(
        self,
        args: Sequence[Any],
        weights: Sequence[int],
        numbers: Sequence[int],
        counters: Sequence[torch.Tensor] = (),
    ) -> None:
        self._numbers = tuple(numbers)
        self._weights = WeightGuard(args, weights)
        self._tensors = self._weights.tensors
        self._versioned = [tensor for tensor in (*self._tensors, *counters) if not tensor.is_inference()]
        self._memories = list(map(_memory, self._tensors))
        self._versions = list(map(_version, self._versioned))
        self._values = [_bits_of(args[i]) for i in numbers]

    def matches(self, args: Sequence[Any]) -> bool:
        """Return whether the weights and numbers among these arguments are the ones of the engines, unchanged."""
        return (
            self._weights.matches(args)
            and list(map(_version, self._versioned)) == self._versions
            and list(map(_memory, self._tensors)) == self._memories
            and [_bits_of(args[i]) for i in self._numbers] == self._values
        )

    def changed_numbers(self, args: Sequence[Any]) -> list[int]:
        """Return the indices of the numbers that differ from those of the engines."""
        pairs = zip(self._numbers, self._values, strict=True)
        return [index for index, value in pairs if _bits_of(args[index]) != value]


def number_from(argument: Any) -> Any:
    """Return the Python number of an argument: a tensor of one element, a number, or Dynamo's symbol for one."""
    if isinstance(argument, torch.Tensor):
        return argument.item()
    if isinstance(argument, torch.SymInt):
        return argument.node.hint  # int(argument) would make Dynamo compile again for each value
    return argument


def _bits_of(argument: Any) -> Any:
    """Return the number of an argument in a form that is equal for the same number alone."""
    number = number_from(argument)
    return number.hex() if isinstance(number, float) else number
