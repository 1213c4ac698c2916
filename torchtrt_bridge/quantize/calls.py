"""Calls of a model: from a batch of the loader to its arguments, and the calls that a quantized model accepts."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from torchtrt_bridge.errors import CalibrationError, ShapeRangeError
from torchtrt_bridge.graph.shapes import UNBOUNDED

# Keys under which data sets keep their labels, also where the model's forward would take them to compute a loss.
LABELS = ("label", "labels", "label_ids", "target", "targets")

# The positional and the keyword arguments of one call of a model.
ForwardCall = tuple[tuple[Any, ...], dict[str, Any]]


class ForwardSignature:
    """The parameters of a model's forward, and the part of a batch that goes to each.

    dropped: parts of the batches that the model does not get, in words, for the notes of the report.
    """

    def __init__(self, model: nn.Module) -> None:
        self.signature = inspect.signature(model.forward)
        kinds = [(p.kind, p) for p in self.signature.parameters.values()]
        self.positional = [p for kind, p in kinds if kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
        self.takes_more = any(kind is p.VAR_POSITIONAL for kind, p in kinds)
        self.by_name = {p.name for kind, p in kinds if kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
        self.takes_any_name = any(kind is p.VAR_KEYWORD for kind, p in kinds)
        self.dropped: dict[str, None] = {}

    def call_from(self, batch: Any, number: int) -> ForwardCall:
        """Return the model's arguments for a tensor, a mapping, or a sequence that begins with one of these."""
        if isinstance(batch, torch.Tensor):
            return (batch,), {}
        if isinstance(batch, Mapping):
            return (), self._keywords_from(batch)
        if isinstance(batch, (tuple, list)) and batch:
            if isinstance(batch[0], Mapping):
                self._drop("what follows the first item of each batch", len(batch) > 1)
                return (), self._keywords_from(batch[0])
            if isinstance(batch[0], torch.Tensor):
                return self._positional_from(list(batch)), {}
        raise CalibrationError(
            f"Batch {number} of the loader is a {type(batch).__name__}, and a model takes tensors. Pass "
            "forward=lambda model, batch: model(...) to say how it is called with this batch."
        )

    def named_values(self, call: ForwardCall) -> dict[str, Any]:
        """Return the arguments of a call by name, in the order of the signature."""
        try:
            bound = self.signature.bind(*call[0], **call[1])
        except TypeError as error:
            raise CalibrationError(
                f"The model's forward{self.signature} does not take a batch of the loader: {error}. Pass "
                "forward=lambda model, batch: model(...) to say how it is called."
            ) from error
        values: dict[str, Any] = {}
        for name, value in bound.arguments.items():
            kind = self.signature.parameters[name].kind
            if kind is inspect.Parameter.VAR_POSITIONAL:
                values |= {f"{name}_{index}": item for index, item in enumerate(value)}
            elif kind is inspect.Parameter.VAR_KEYWORD:
                values |= value
            else:
                values[name] = value
        return values

    def _keywords_from(self, batch: Mapping[Any, Any]) -> dict[str, Any]:
        """Select the items of a mapping that the forward has parameters for, labels excepted."""
        known = {str(name): value for name, value in batch.items() if name in self.by_name and name not in LABELS}
        if self.takes_any_name and not known:
            known = {str(name): value for name, value in batch.items() if name not in LABELS}
        for name in batch:
            self._drop(f"{name!r}", name not in known)
        if not known:
            raise CalibrationError(
                f"The loader's batches hold {', '.join(map(str, batch)) or 'nothing'}, and the model's "
                f"forward{self.signature} takes none of these. Pass forward=lambda model, batch: model(...)."
            )
        return known

    def _positional_from(self, batch: list[Any]) -> tuple[Any, ...]:
        """Select the items that the forward takes by position, without a label at the end."""
        if self.takes_more:
            return tuple(batch)
        taken = batch[: len(self.positional)]
        while len(taken) > 1 and self._is_label(taken, self.positional[len(taken) - 1]):
            taken.pop()
        left = f"the last {len(batch) - len(taken)} of {len(batch)} items of each batch"
        meant = [parameter.name for parameter in self.positional[len(taken) : len(batch)]]
        labels = f", taken for labels where forward has {', '.join(meant)} (forward= gives it)" if meant else ""
        self._drop(left + labels, len(taken) < len(batch))
        return tuple(taken)

    def _is_label(self, taken: list[Any], parameter: inspect.Parameter) -> bool:
        """Check if the last item, for a parameter with a default, is one class for each sample."""
        if parameter.name in LABELS:
            return True
        value = taken[-1]
        if parameter.default is inspect.Parameter.empty or not isinstance(value, torch.Tensor):
            return False
        return value.dim() <= 1 and not value.is_floating_point() and taken[0].dim() > 1

    def _drop(self, part: str, is_dropped: bool) -> None:
        if is_dropped:
            self.dropped[part] = None


def move_to(call: ForwardCall, device: torch.device) -> ForwardCall:
    """Return the call with its tensors on `device`."""
    args, kwargs = pytree.tree_map(lambda v: v.to(device) if isinstance(v, torch.Tensor) else v, call)
    return args, kwargs


def device_of(model: nn.Module) -> torch.device:
    """Return the device of the model's first parameter or buffer; the CPU for a model without any."""
    tensors = [*model.parameters(), *model.buffers()]
    return tensors[0].device if tensors else torch.device("cpu")


# Calls of a quantized model ---------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Limits:
    """The calls that a quantized model accepts. Pickles of quantized models name this class by its module.

    positional: the number of arguments that may be given by position: those before the first that calibration left out.
    sizes: by argument, the dimensions that are not free, with their smallest and largest size.
    values: the arguments that are no tensors, which are part of the graph.
    """

    positional: int
    names: tuple[str, ...]
    sizes: Mapping[str, tuple[tuple[int, int, int], ...]]
    values: Mapping[str, Any]

    def check(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Raise TypeError or ShapeRangeError for a call whose result the graph would get wrong."""
        if len(args) > self.positional:
            raise TypeError(
                f"{len(args)} arguments by position, but {self.names[self.positional]!r} must be given by its name: "
                "an argument before it was left out in calibration."
            )
        for name, value in (*zip(self.names, args, strict=False), *kwargs.items()):
            if name in self.values:
                self._check_value(name, value)
            elif isinstance(value, torch.Tensor):
                for dim, low, high in self.sizes.get(name, ()):
                    if not low <= value.shape[dim] <= high:
                        raise ShapeRangeError(_size_message(name, value.shape[dim], dim, low, high))

    def _check_value(self, name: str, value: Any) -> None:
        known = self.values[name]
        if type(value) is not type(known) or value != known:
            raise ShapeRangeError(
                f"Argument {name} is {value!r}, and calibration gave {known!r}. What is no tensor is part of the "
                "quantized graph: quantize the model for each value."
            )


def _size_message(name: str, size: Any, dim: int, low: int, high: int) -> str:
    sizes = f"{low}" if low == high else f"{low} or more" if high == UNBOUNDED else f"{low} to {high}"
    return (
        f"Argument {name} has size {size} in dimension {dim}, and the quantized graph is for {sizes}. Calibrate with "
        "such inputs, and name sizes that vary with quantize(..., dynamic_shapes=...), as in torch.export.export."
    )


def check_call(module: fx.GraphModule, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Check a call of a quantized model, as its forward pre-hook."""
    module.meta["limits"].check(args, kwargs)
