"""Guard of the identity and the kind of weights: the same tensors, of the same dtype, device, sizes and strides."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch

from torchtrt_bridge.graph.dynamo_internals import check_of_tensors, compares_weights, guards_are_skipped

Check = Callable[[Sequence[Any]], bool]


class WeightGuard:
    """Weights among the arguments of a graph, as they were when the engines were built.

    `p.data = p.data.t()` and `p.requires_grad_()` change neither the memory nor the version of a weight. Dynamo notices
    them in each call, unless its own guards rest on dictionaries that have not changed, as they do by default in torch
    2.11, or are skipped. Then the kind of each weight is compared here: all that Dynamo's guard of a tensor compares.
    Whether weights need gradients matters where gradients are enabled.
    """

    def __init__(self, args: Sequence[Any], weights: Sequence[int]) -> None:
        self._positions = tuple(weights)
        self._pick = picker(weights)
        self.tensors = self._pick(args)
        self._dynamo_compares = compares_weights()
        self._kinds = list(map(_kind_of, self.tensors))
        self._needing_gradients = list(map(_needs_gradients, self.tensors))
        self._checks: dict[tuple[bool, bool], Check] = {}

    def matches(self, args: Sequence[Any]) -> bool:
        """Return whether these arguments hold the same weights, of the same kind."""
        if self._dynamo_compares and not guards_are_skipped():
            return self._are_same(args)
        modes = (torch.is_grad_enabled(), torch.is_inference_mode_enabled())
        check = self._checks.get(modes)
        return (check is not None and check(args)) or self._are_same_in_kind(args, *modes)

    def _are_same(self, args: Sequence[Any]) -> bool:
        return all(map(operator.is_, self._pick(args), self.tensors))

    def _are_same_in_kind(self, args: Sequence[Any], grad: bool, inference: bool) -> bool:
        """Compare all in Python, which takes ten times as long, and have PyTorch's own check for the next calls.

        That check also fails in calls with other dispatch keys, as under a mode, than those it was made in.
        """
        if not self._are_same(args) or list(map(_kind_of, self.tensors)) != self._kinds:
            return False
        if grad and list(map(_needs_gradients, self.tensors)) != self._needing_gradients:
            return False
        check = check_of_tensors(args, self._positions)
        if check is not None:
            self._checks[grad, inference] = check
        return True


_needs_gradients = operator.attrgetter("requires_grad")


def _kind_of(tensor: torch.Tensor) -> tuple[Any, ...]:
    """Return all that Dynamo compares of a weight, apart from whether it needs gradients."""
    strides = tensor.stride() if tensor.layout is torch.strided else None
    form = (tensor.dtype, tensor.device, tensor.layout, tuple(tensor.shape), strides)
    return type(tensor), *form, tensor.is_conj(), tensor.is_neg()


def picker(indices: Sequence[int]) -> Callable[[Sequence[Any]], tuple[Any, ...]]:
    """Return a function that takes the items at `indices` as a tuple; `itemgetter` gives none for one index."""
    if len(indices) > 1:
        return operator.itemgetter(*indices)
    return lambda values: tuple(values[index] for index in indices)
