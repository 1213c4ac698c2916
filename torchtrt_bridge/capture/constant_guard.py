"""The values that engines hold as constants, and whether they are the same still: cheap enough for every call."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch

_memory = torch.Tensor.data_ptr
_version = operator.attrgetter("_version")


class ConstantGuard:
    """Weights and numbers among the arguments of a graph.

    A weight is the same while it is the same tensor, in the same memory (`p.data = ...` moves that and leaves the
    version), of the same version. Tensors made under `torch.inference_mode` count no versions: of these only the
    identity and the memory are looked at. A number is the same while it is equal.
    """

    def __init__(self, args: Sequence[Any], weights: Sequence[int], numbers: Sequence[int]) -> None:
        self._numbers = tuple(numbers)
        self._pick = _picker(weights)
        self._tensors = self._pick(args)
        self._versioned = [tensor for tensor in self._tensors if not tensor.is_inference()]
        self._memories = list(map(_memory, self._tensors))
        self._versions = list(map(_version, self._versioned))
        self._values = [number_from(args[i]) for i in numbers]

    def hold(self, args: Sequence[Any]) -> bool:
        """Whether these arguments are what was bound, unchanged since."""
        return (
            all(map(operator.is_, self._pick(args), self._tensors))
            and list(map(_version, self._versioned)) == self._versions
            and list(map(_memory, self._tensors)) == self._memories
            and [number_from(args[i]) for i in self._numbers] == self._values
        )

    def changed_numbers(self, args: Sequence[Any]) -> list[int]:
        """The indices of the numbers that differ from what was bound."""
        pairs = zip(self._numbers, self._values, strict=True)
        return [index for index, value in pairs if number_from(args[index]) != value]


def _picker(indices: Sequence[int]) -> Callable[[Sequence[Any]], tuple[Any, ...]]:
    """What takes the items at `indices` as a tuple; for one or none, `itemgetter` gives none."""
    if len(indices) > 1:
        return operator.itemgetter(*indices)
    return lambda values: tuple(values[index] for index in indices)


def number_from(argument: Any) -> Any:
    """The Python number behind an argument: a tensor of one element, a number, or Dynamo's symbol for one."""
    if isinstance(argument, torch.Tensor):
        return argument.item()
    if isinstance(argument, torch.SymInt):
        return argument.node.hint  # int(argument) would make Dynamo compile anew for each value
    return argument
