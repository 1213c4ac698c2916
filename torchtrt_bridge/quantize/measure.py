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


class Judge:
    """Knows the float graph's outputs for the batches that were held back."""

    def __init__(self, calibrated: Calibrated, settings: Settings) -> None:
        self.calibrated, self.settings = calibrated, settings
        self.known: dict[Choice, float] = {}
        self._expected = [_outputs(calibrated.graph.module, inputs) for inputs in calibrated.held]

    def error(self, choice: Choice) -> float:
        """The relative error ||quantized - float|| / ||float|| of a choice, the mean over outputs."""
        if choice not in self.known:
            self.known[choice] = self._error_of(choice, len(self._expected))
        return self.known[choice]

    def _error_of(self, choice: Choice, batches: int) -> float:
        module = place(self.calibrated, choice, self.settings, rehearse=True).module
        differences: dict[int, float] = {}
        sizes: dict[int, float] = {}
        for inputs, expected in zip(self.calibrated.held[:batches], self._expected, strict=False):
            for index, (found, wanted) in enumerate(zip(_outputs(module, inputs), expected, strict=True)):
                differences[index] = differences.get(index, 0.0) + float((found - wanted).square().sum())
                sizes[index] = sizes.get(index, 0.0) + float(wanted.square().sum())
        _let_go(module)
        errors = [math.sqrt(differences[i] / sizes[i]) if sizes[i] else float(differences[i] > 0) for i in sizes]
        mean = sum(errors) / len(errors) if errors else 0.0
        return mean if math.isfinite(mean) else math.inf

    def sensitivity(self, choice: Choice, name: str) -> float:
        """The error where one layer alone is quantized as in `choice`."""
        others = frozenset(layer.name for layer in self.calibrated.layers if layer.name != name)
        return self._error_of(dataclasses.replace(choice, kept=others), ALONE_BATCHES)


def _outputs(module: fx.GraphModule, inputs: Sequence[Any]) -> list[Tensor]:
    """The floating point outputs, thinned out."""
    with torch.no_grad():
        outputs = module(*inputs)
    return [_thinned(v) for v in outputs if isinstance(v, torch.Tensor) and v.is_floating_point()]


def _let_go(module: fx.GraphModule) -> None:
    """Free the weights of a graph at once: its nodes refer to each other, and would wait for the garbage collector."""
    for name, _ in list(module.named_buffers(recurse=False)):
        delattr(module, name)


def _thinned(value: Tensor) -> Tensor:
    step = -(-value.numel() // MOST_VALUES) or 1
    return value.flatten()[::step].double()
