"""The call of a model that a command makes: its arguments, and the sizes of them that may vary."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch.export import Dim
from torch.utils import _pytree as pytree

from torchtrt_bridge.cli.arguments import IMAGE, InputText, Request
from torchtrt_bridge.cli.models import model_from_name
from torchtrt_bridge.cli.user_code import reason_of
from torchtrt_bridge.errors import CaptureError, OptionsError
from torchtrt_bridge.quantize.calls import device_of

if TYPE_CHECKING:
    from torch import nn

TOKENS = "1x128:int64"


@dataclasses.dataclass(frozen=True)
class ModelCall:
    """A model with arguments for it.

    dynamic_shapes: as `trtb.export` takes them; None where all sizes are fixed.
    said: how the arguments came about, for messages.
    """

    module: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    dynamic_shapes: Any
    said: str

    @property
    def inputs(self) -> list[torch.Tensor]:
        """The tensors among the arguments."""
        return [leaf for leaf in pytree.tree_leaves((self.args, self.kwargs)) if isinstance(leaf, torch.Tensor)]


def call_from(request: Request) -> ModelCall:
    """Return the model of a request and random inputs; CaptureError if it fails on them in PyTorch."""
    module = model_from_name(request.model)
    found = _call(module, request)
    run(found, request.model)
    return found


def run(call: ModelCall, name: str) -> Any:
    """Return the results in PyTorch; CaptureError if there are none."""
    try:
        with torch.inference_mode(), contextlib.redirect_stdout(sys.stderr):
            return call.module(*call.args, **call.kwargs)
    except (Exception, SystemExit) as error:
        raise CaptureError(f"{name} fails in PyTorch on {call.said}: {reason_of(error)}") from error


def _call(module: nn.Module, request: Request) -> ModelCall:
    program = getattr(module, "exported_program", None)
    if program is not None and not request.inputs:
        return _call_of_program(module, program, request.batch)
    inputs = request.inputs or _usual_inputs(module, request.model)
    if not inputs:
        raise OptionsError(f"Say what {request.model} takes: --input {IMAGE} (--input {TOKENS} for integers).")
    device = device_of(module)
    args = tuple(tensor_from(each, request.batch).to(device) for each in inputs)
    said = " ".join(f"--input {each.text}" for each in inputs)
    return ModelCall(module, args, {}, dynamic_shapes(module, args, {}, request.batch), said)


def _usual_inputs(module: nn.Module, name: str) -> tuple[InputText, ...]:
    """Return the inputs that a model of a library takes; none where it does not say."""
    home = name.partition(":")[0]
    if home == "torchvision":
        return (_input(1, 3, 224, 224),)
    if home == "timm":
        sizes = getattr(module, "pretrained_cfg", {}).get("input_size", (3, 224, 224))
        return (_input(1, *sizes),)
    if home == "hf":
        config: Any = getattr(module, "config", None)
        main = getattr(module, "main_input_name", "")
        if main == "input_ids":
            return (_input(1, 128, dtype="int64"),)
        size = getattr(config, "image_size", None)
        if main == "pixel_values" and isinstance(size, int):
            return (_input(1, getattr(config, "num_channels", 3), size, size),)
    return ()


def _input(*sizes: int, dtype: str = "float32") -> InputText:
    text = "x".join(map(str, sizes)) + ("" if dtype == "float32" else f":{dtype}")
    return InputText(text, sizes, dtype)


def tensor_from(given: InputText, batch: tuple[int, int] | None = None) -> torch.Tensor:
    """Return a random tensor of these sizes and this dtype; zeros if the dtype is not a float.

    batch: the range of the first size, if it varies.
    """
    shape = list(given.sizes)
    if batch is not None:
        shape[0] = _example_size(*batch)
    return _tensor(shape, getattr(torch, given.dtype))


def _example_size(low: int, high: int | None) -> int:
    """Return the smallest size of a range from 2 on: `torch.export` would take a size of 1 for fixed."""
    return max(2, low) if high is None else min(max(2, low), high)


def _tensor(shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
    torch.manual_seed(0)
    return torch.randn(shape).to(dtype) if dtype.is_floating_point else torch.zeros(shape, dtype=dtype)


def dynamic_shapes(
    module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], batch: tuple[int, int] | None
) -> Any:
    """Return the dynamic shapes of arguments whose first sizes are one batch; None without a batch."""
    if batch is None:
        return None
    size = Dim("batch", min=batch[0], max=batch[1])
    shapes = pytree.tree_map(lambda leaf: {0: size} if isinstance(leaf, torch.Tensor) else None, (args, kwargs))
    return _as_taken(module, *shapes)


def _as_taken(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Return the shapes of arguments as `torch.export` takes them: a tuple, or by name where some are given by name."""
    if not kwargs:
        return args
    names = list(inspect.signature(module.forward).parameters)
    return dict(zip(names, args, strict=False)) | kwargs


# Exported programs -------------------------------------------------------------------------------------------------


def _call_of_program(module: nn.Module, program: Any, batch: tuple[int, int] | None) -> ModelCall:
    """Return a call with the sizes and dtypes that the program has, and with its ranges.

    A size that varies gets the smallest value of its range from 2 on.
    """
    fakes = {node.name: node.meta.get("val") for node in program.graph.nodes if node.op == "placeholder"}
    ranges = {str(symbol): bounds for symbol, bounds in program.range_constraints.items()}
    values, shapes = [], []
    dims: dict[str, Any] = {}
    for name in program.graph_signature.user_inputs:
        fake = fakes.get(name) if isinstance(name, str) else None
        if not isinstance(fake, torch.Tensor):
            raise OptionsError("the program takes more than tensors. Say what it takes: --input for each tensor.")
        sizes, dynamic = _sizes(fake, ranges, dims)
        if batch is not None:
            sizes[0] = _example_size(*batch)
        values.append(_tensor(sizes, fake.dtype))
        shapes.append(dynamic)
    args, kwargs = pytree.tree_unflatten(values, program.call_spec.in_spec)
    kept = None
    if batch is not None:
        kept = dynamic_shapes(module, args, kwargs, batch)
    elif any(shapes):
        kept = _as_taken(module, *pytree.tree_unflatten(shapes, program.call_spec.in_spec))
    return ModelCall(module, args, kwargs, kept, "inputs of its own sizes")


def _sizes(fake: torch.Tensor, ranges: dict[str, Any], dims: dict[str, Any]) -> tuple[list[int], dict[int, Any]]:
    """Return sizes that a tensor of the program may have, and its dimensions that vary.

    dims: the dimensions so far, by symbol.
    """
    sizes: list[int] = []
    dynamic: dict[int, Any] = {}
    for index, size in enumerate(fake.shape):
        if isinstance(size, int):
            sizes.append(size)
            continue
        bounds = ranges.get(str(size))
        if bounds is None:
            raise OptionsError(f"the program has a size that is computed, {size}. Say what it takes: --input SIZES.")
        low, high = int(bounds.lower), _finite(bounds.upper)
        if str(size) not in dims:
            dims[str(size)] = Dim(f"size_{len(dims)}", min=low, max=high)
        dynamic[index] = dims[str(size)]
        sizes.append(_example_size(low, high))
    return sizes, dynamic


def _finite(bound: Any) -> int | None:
    """Return a bound as a number; None for infinity."""
    try:
        return int(bound)
    except (TypeError, ValueError, OverflowError):
        return None
