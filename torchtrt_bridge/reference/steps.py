"""The steps of a computation: what each layer computes, in order, and which tensors each step lets go."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NoReturn

import torch

from torchtrt_bridge.errors import BridgeError, LoweringError
from torchtrt_bridge.reference.registry import Compute


@dataclass(frozen=True)
class NetworkTensor:
    """A tensor of the network, with the dtype and the dimensions that TensorRT gives it; dynamic ones are -1."""

    key: int
    name: str
    dtype: torch.dtype
    dims: tuple[int, ...]

    def mismatch(self, value: torch.Tensor) -> str | None:
        """Return how `value` differs from what TensorRT gives the tensor; None if it does not."""
        if value.dtype != self.dtype:
            return f"{short(value.dtype)} where TensorRT says {short(self.dtype)}"
        same_rank = value.dim() == len(self.dims)
        if same_rank and all(dim in (-1, size) for dim, size in zip(self.dims, value.shape, strict=True)):
            return None
        return f"shape {tuple(value.shape)} where TensorRT says {self.dims}"


@dataclass(frozen=True)
class Step:
    """The computation of one layer, with the tensors to release after it."""

    title: str
    compute: Compute
    inputs: tuple[int | None, ...]
    outputs: tuple[NetworkTensor, ...]
    release: tuple[int, ...] = ()

    def run(self, values: dict[int, torch.Tensor]) -> None:
        arguments = [None if key is None else values[key] for key in self.inputs]
        try:
            results = self.compute(*arguments)
        except Exception as error:
            fail(self.title, error)
        if not isinstance(results, tuple):
            results = (results,)
        for tensor, result in zip(self.outputs, results, strict=True):
            if mismatch := tensor.mismatch(result):
                raise LoweringError(f"{self.title}: the reference computed {mismatch}.")
            values[tensor.key] = result
        for key in self.release:
            del values[key]


def in_order(steps: list[Step], known: set[int]) -> list[Step]:
    """Sort the steps, each after those that it depends on: `set_input` allows another order in the network."""
    ordered: list[Step] = []
    while steps:
        waiting = []
        for step in steps:
            if all(key is None or key in known for key in step.inputs):
                ordered.append(step)
                known.update(tensor.key for tensor in step.outputs)
            else:
                waiting.append(step)
        if len(waiting) == len(steps):
            raise LoweringError(f"{waiting[0].title} depends on a tensor that no layer computes.")
        steps = waiting
    return ordered


def live(steps: Iterable[Step], outputs: set[int]) -> list[Step]:
    """Return the steps, in order, that an output needs, and assertions, which have no output."""
    needed, kept = set(outputs), []
    for step in reversed(list(steps)):
        if not step.outputs or any(tensor.key in needed for tensor in step.outputs):
            needed.update(key for key in step.inputs if key is not None)
            kept.append(step)
    return kept[::-1]


def with_releases(steps: Iterable[Step], kept: set[int]) -> list[Step]:
    """Return the steps, each with the tensors to release after it: those that no later step uses."""
    done: list[Step] = []
    seen = set(kept)
    for step in reversed(list(steps)):
        touched = [key for key in step.inputs if key is not None] + [tensor.key for tensor in step.outputs]
        release = tuple(dict.fromkeys(key for key in touched if key not in seen))
        seen.update(release)
        done.append(Step(step.title, step.compute, step.inputs, step.outputs, release))
    return done[::-1]


def fail(title: str, error: Exception) -> NoReturn:
    if isinstance(error, BridgeError) and title in str(error):
        raise error
    kind = "" if isinstance(error, BridgeError) else f"{type(error).__name__}: "
    raise LoweringError(f"{title}: {kind}{error}") from error


def short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
