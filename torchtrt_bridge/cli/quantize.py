"""Quantize: a model and a loader of the user's to a saved program, with the table of what was quantized."""

from __future__ import annotations

import argparse
import dataclasses
import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch.utils import _pytree as pytree

import torchtrt_bridge as trtb
from torchtrt_bridge.cli.arguments import Request, names_of
from torchtrt_bridge.cli.calls import ModelCall, call_from, dynamic_shapes
from torchtrt_bridge.cli.console import show, step, write_program
from torchtrt_bridge.cli.models import model_from_name
from torchtrt_bridge.cli.user_code import call, object_from
from torchtrt_bridge.errors import OptionsError
from torchtrt_bridge.quantize.calls import ForwardSignature
from torchtrt_bridge.quantize.config import settings_from

if TYPE_CHECKING:
    from torch import nn

DATA_HELP = "package.module:loader, where the loader gives batches, or is a callable that returns one that does"
EVALUATE_HELP = "package.module:function, where function(model) returns a score, the higher the better"


def quantize(arguments: argparse.Namespace, request: Request) -> int:
    """Quantize, print the table, export, save; return the exit status."""
    settings = quantize_settings(arguments)
    with step(f"loading {request.model}"):
        given = call_from(request) if request.inputs or arguments.data is None else None
        module = model_from_name(request.model) if given is None else given.module
    with step(f"loading {arguments.data}"):
        loader = None if arguments.data is None else FirstBatch(loader_from(arguments.data))
    if arguments.evaluate is not None:
        settings["evaluate"] = evaluate_from(arguments.evaluate)
    with step("quantizing"):
        quantized = trtb.quantize(module, loader, table=False, **settings)
    print(f"{quantized.quantization}\n")
    with step("capturing the quantized model and building engines"):
        found = given or _call_from_data(module, loader, request)
        shapes = dynamic_shapes(module, found.args, found.kwargs, request.batch)
        program = trtb.export(quantized, found.args, kwargs=found.kwargs, dynamic_shapes=shapes, **request.options)
    show(program.report, arguments.html)
    return write_program(program, arguments.output, "quantize")


def quantize_settings(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the keywords of `trtb.quantize` that are given; OptionsError for a wrong value."""
    names = ("method", "dtype", "max_drop", "num_batches")
    settings = {name: getattr(arguments, name) for name in names if getattr(arguments, name) is not None}
    if arguments.skip is not None:
        settings["skip"] = names_of(arguments.skip)
    if arguments.sensitivity:
        settings["sensitivity"] = True
    settings_from(**settings)
    if arguments.calibration is not None:
        settings["calibration"] = arguments.calibration
    return settings


def loader_from(name: str) -> Any:
    """Return the loader of a name, or what a callable of that name returns."""
    found = object_from(name, DATA_HELP)
    if callable(found) and (isinstance(found, type) or not hasattr(found, "__iter__")):
        found = call(found, name)
    if not hasattr(found, "__iter__") and not hasattr(found, "__getitem__"):
        raise OptionsError(f"--data {name} is a {type(found).__name__}, which gives no batches. Write {DATA_HELP}.")
    return found


def evaluate_from(name: str) -> Any:
    """Return the user's function, whose errors are messages."""
    function = object_from(name, EVALUATE_HELP)
    if not callable(function):
        raise OptionsError(f"--evaluate {name} is a {type(function).__name__}. Write {EVALUATE_HELP}.")
    return lambda model: call(function, name, model)


class FirstBatch:
    """A loader that keeps the first batch that was taken from it, as a sample of what the model takes."""

    def __init__(self, loader: Any) -> None:
        self.loader = loader
        self.first: Any = None

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Any]:
        for batch in self.loader:
            self.first = batch if self.first is None else self.first
            yield batch


def _call_from_data(module: nn.Module, loader: FirstBatch | None, request: Request) -> ModelCall:
    """Return the call of the first batch, or, where a calibration file made it needless to read one, the usual call."""
    first = None if loader is None else loader.first
    if first is None and loader is not None:
        first = next(iter(loader), None)
    if first is None:
        return call_from(request)
    args, kwargs = ForwardSignature(module).call_from(first, 1)
    found = ModelCall(module, args, kwargs, None, "the first batch")
    if request.batch is None:
        return found
    low, high = request.batch
    args, kwargs = pytree.tree_map(lambda leaf: _of_batch(leaf, max(2, low), high), (args, kwargs))
    return dataclasses.replace(found, args=args, kwargs=kwargs)


def _of_batch(value: Any, low: int, high: int) -> Any:
    """Return a tensor with a first size from `low` to `high`: cut, or repeated."""
    if not isinstance(value, torch.Tensor) or low <= value.shape[0] <= high:
        return value
    wanted = min(max(value.shape[0], low), high)
    return torch.cat([value] * math.ceil(wanted / value.shape[0]))[:wanted]
