"""Batches: from what a loader yields to the arguments of the model."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from torchtrt_bridge.errors import CalibrationError

# Keys under which data sets keep their labels, also where the model's forward would take them to compute a loss.
LABELS = ("label", "labels", "label_ids", "target", "targets")

Call = tuple[tuple[Any, ...], dict[str, Any]]


class Signature:
    """The parameters of a model's forward, and what of a batch goes to which.

    dropped: what was left out of the batches, in words, for the notes.
    """

    def __init__(self, model: nn.Module) -> None:
        self.signature = inspect.signature(model.forward)
        kinds = [(p.kind, p) for p in self.signature.parameters.values()]
        self.positional = [p for kind, p in kinds if kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
        self.takes_more = any(kind is p.VAR_POSITIONAL for kind, p in kinds)
        self.by_name = {p.name for kind, p in kinds if kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
        self.takes_any_name = any(kind is p.VAR_KEYWORD for kind, p in kinds)
        self.dropped: dict[str, None] = {}

    def call_from(self, batch: Any, number: int) -> Call:
        """The arguments of the model for a batch: a tensor, a mapping, or a sequence that begins with one of these."""
        if isinstance(batch, torch.Tensor):
            return (batch,), {}
        if isinstance(batch, Mapping):
            return (), self._named(batch)
        if isinstance(batch, (tuple, list)) and batch:
            if isinstance(batch[0], Mapping):
                self._drop("what follows the first item of each batch", len(batch) > 1)
                return (), self._named(batch[0])
            if isinstance(batch[0], torch.Tensor):
                return self._placed(list(batch)), {}
        raise CalibrationError(
            f"Batch {number} of the loader is a {type(batch).__name__}, and a model takes tensors. Pass "
            "forward=lambda model, batch: model(...) to say how it is called with this batch."
        )

    def named_values(self, call: Call) -> dict[str, Any]:
        """The arguments of a call by name, in the order of the signature."""
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

    def _named(self, batch: Mapping[Any, Any]) -> dict[str, Any]:
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

    def _placed(self, batch: list[Any]) -> tuple[Any, ...]:
        """The items that the forward takes by position, without a label behind them."""
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
        """Whether the last item, for a parameter that need not be given, is a class for each sample."""
        if parameter.name in LABELS:
            return True
        value = taken[-1]
        if parameter.default is inspect.Parameter.empty or not isinstance(value, torch.Tensor):
            return False
        return value.dim() <= 1 and not value.is_floating_point() and taken[0].dim() > 1

    def _drop(self, what: str, is_dropped: bool) -> None:
        if is_dropped:
            self.dropped[what] = None


def moved(call: Call, device: torch.device) -> Call:
    """The call with its tensors on `device`."""
    args, kwargs = pytree.tree_map(lambda v: v.to(device) if isinstance(v, torch.Tensor) else v, call)
    return args, kwargs


def device_of(model: nn.Module) -> torch.device:
    """Where the model computes."""
    tensors = [*model.parameters(), *model.buffers()]
    return tensors[0].device if tensors else torch.device("cpu")
