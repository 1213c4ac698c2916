"""Measure: how far a quantized graph's outputs are from those of the float graph, on batches held back."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx

from torchtrt_bridge.quantize.calibrate import Calibrated
from torchtrt_bridge.quantize.place import Choice, place
from torchtrt_bridge.quantize.settings import Settings

# Of each output at most so many values are kept to compare with, evenly spaced.
MOST_VALUES = 2**18

# How many of the batches held back the error of a single layer is measured on.
ALONE_BATCHES = 2


@dataclasses.dataclass(frozen=True)
class Errors:
    """Relative errors ||quantized - float|| / ||float||: the mean over outputs, and that of the worst sample."""

    mean: float
    worst: float


class Judge:
    """Knows the float graph's outputs for the batches that were held back."""

    def __init__(self, calibrated: Calibrated, settings: Settings) -> None:
        self.calibrated, self.settings = calibrated, settings
        self.known: dict[Choice, Errors] = {}
        self._expected = [_outputs(calibrated.graph.module, inputs) for inputs in calibrated.held]

    def error(self, choice: Choice) -> float:
        """The relative error of a choice, the mean over outputs."""
        return self._errors(choice).mean

    def worst(self, choice: Choice) -> float:
        """The relative error of the sample that a choice treats worst."""
        return self._errors(choice).worst

    def _errors(self, choice: Choice) -> Errors:
        if choice not in self.known:
            self.known[choice] = self._errors_of(choice, len(self._expected))
        return self.known[choice]

    def _errors_of(self, choice: Choice, batches: int) -> Errors:
        module = place(self.calibrated, choice, self.settings, rehearse=True).module
        differences: dict[int, list[Tensor]] = {}
        sizes: dict[int, list[Tensor]] = {}
        for inputs, expected in zip(self.calibrated.held[:batches], self._expected, strict=False):
            for index, (found, wanted) in enumerate(zip(_outputs(module, inputs), expected, strict=True)):
                differences.setdefault(index, []).append((found - wanted).square().sum(1))
                sizes.setdefault(index, []).append(wanted.square().sum(1))
        _let_go(module)
        found_errors = [_errors(torch.cat(differences[i]), torch.cat(sizes[i])) for i in sizes]
        if not found_errors:
            return Errors(0.0, 0.0)
        mean = sum(each.mean for each in found_errors) / len(found_errors)
        worst = max(each.worst for each in found_errors)
        return Errors(mean if math.isfinite(mean) else math.inf, worst if math.isfinite(worst) else math.inf)

    def sensitivity(self, choice: Choice, name: str) -> float:
        """The error where one layer alone is quantized as in `choice`."""
        others = frozenset(layer.name for layer in self.calibrated.layers if layer.name != name)
        return self._errors_of(dataclasses.replace(choice, kept=others), ALONE_BATCHES).mean


def _errors(differences: Tensor, sizes: Tensor) -> Errors:
    """Those of one output, from the squared differences and sizes of its samples.

    A sample smaller than the others is compared with their mean size.
    """
    if not float(sizes.sum()):
        error = float(float(differences.sum()) > 0)
        return Errors(error, error)
    samples = differences / sizes.clamp(min=float(sizes.mean()))
    return Errors(math.sqrt(float(differences.sum() / sizes.sum())), math.sqrt(float(samples.max())))


def _outputs(module: fx.GraphModule, inputs: Sequence[Any]) -> list[Tensor]:
    """The floating point outputs, thinned out, with a row for each sample."""
    with torch.no_grad():
        outputs = module(*inputs)
    samples = next((v.shape[0] for v in inputs if isinstance(v, torch.Tensor) and v.dim() > 1), None)
    return [_thinned(v, samples) for v in outputs if isinstance(v, torch.Tensor) and v.is_floating_point()]


def _let_go(module: fx.GraphModule) -> None:
    """Free the weights of a graph at once: its nodes refer to each other, and would wait for the garbage collector."""
    for name, _ in list(module.named_buffers(recurse=False)):
        delattr(module, name)


def _thinned(value: Tensor, samples: int | None) -> Tensor:
    """One row where the first dimension is not that of the samples, or a sample has one value only."""
    rows = value.flatten(1) if value.dim() > 1 and value.shape[0] == samples else value.reshape(1, -1)
    step = -(-value.numel() // MOST_VALUES) or 1
    return rows[:, ::step].double()
