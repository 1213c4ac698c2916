"""Pipelines and models of diffusers on TensorRT, in place: each module that a pipeline calls has its own engines."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from torchtrt_bridge.capture.diffusers_classes import (
    arguments_of_one_graph,
    called_modules,
    models_with_adapters,
    owner_of,
    why_in_torch,
    why_left_out,
)
from torchtrt_bridge.entry.instance_method import InstanceMethod
from torchtrt_bridge.entry.torch_compile import (
    Backend,
    backend_of_calls,
    compiled_anew,
    set_call,
    uncompile_calls,
)
from torchtrt_bridge.errors import OptionsError, UnsupportedOpError
from torchtrt_bridge.graph.dynamo_internals import enter_in_traces, function_of_backend, graphs_of_all_sizes
from torchtrt_bridge.graph.torch_internals import compiled_call, uncompiled_call
from torchtrt_bridge.options import Options

# Rotary embeddings are computed in float64 for the accuracy of small numbers. On devices that have no float64 diffusers
# computes them in fp32.
DEFAULTS = {"float64": "fp32"}

# The graphs that one module may have: one for each set of adapters, and for a batch of one beside others.
MOST_GRAPHS = 64


class ModuleBackend(Backend):
    """Backend of one module that a pipeline calls, whose graphs take sizes that are equal by chance for different."""


def accelerate_modules(target: Any, dynamic: bool | None, fullgraph: bool, options: Mapping[str, Any]) -> None:
    """Compile the modules that a pipeline calls, or those of one model, each by itself.

    Modules that it shares with an accelerated pipeline stay as they are. Raises OptionsError if there is no other one,
    or if one is compiled by its own compile() or with other options.
    """
    given = Options.from_mapping(options)
    checked = Options.from_mapping({**DEFAULTS, **options})
    modules = called_modules(target)
    kind = type(target).__name__
    if not modules:
        raise OptionsError(f"This {kind} has no model that accelerate() compiles. compile() takes any module.")
    for name, module in modules.items():
        _check_known(f"{name} of this {kind}" if name else f"This {kind}", module, (checked, given))
    wanted = {name: module for name, module in modules.items() if why_left_out(target, name) is None}
    new = {name: module for name, module in wanted.items() if compiled_call(module) is None}
    if not new:
        raise OptionsError(f"This {kind} is compiled already by torchtrt_bridge; restore() undoes that.")
    enter_in_traces(_context_for)
    for name, module in new.items():
        backend = ModuleBackend(checked, module)
        compiled = compiled_anew(module, backend, True if dynamic is None else dynamic, fullgraph)
        set_call(module, _where_possible(module, owner_of(target, name), compiled, backend), backend)
    for model in models_with_adapters(target):
        for name in EDITS:
            WeightEdit(model, name).install()


def restore_modules(target: Any) -> bool:
    """Undo `accelerate_modules`; return False if there was nothing to undo."""
    undone = [uncompile_calls(module) for module in called_modules(target).values()]
    for model in models_with_adapters(target):
        for name in EDITS:
            WeightEdit.uninstall(model, name)
    return any(undone)


def _check_known(what: str, module: nn.Module, options: tuple[Options, ...]) -> None:
    """Raise OptionsError for a module that is compiled otherwise than with one of these options."""
    backend = backend_of_calls(module)
    if backend is not None and backend.options not in options:
        raise OptionsError(f"{what} is accelerated with other options; restore() undoes that.")
    if backend is None and compiled_call(module) is not None:
        raise OptionsError(f"{what} is compiled already by its own compile().")


def _context_for(backend: Any) -> contextlib.AbstractContextManager[None]:
    is_ours = isinstance(function_of_backend(backend), ModuleBackend)
    return graphs_of_all_sizes(MOST_GRAPHS) if is_ours else contextlib.nullcontext()


def _where_possible(
    module: nn.Module, owner: nn.Module, compiled: Callable[..., Any], backend: Backend
) -> Callable[..., Any]:
    """Return the call of a module of the model `owner`: `compiled`, or PyTorch's with a line in the report."""
    plain = uncompiled_call(module)

    @functools.wraps(compiled)
    def call(*args: Any, **kwargs: Any) -> Any:
        reason = why_in_torch(owner)
        if reason is None:
            given, named = arguments_of_one_graph(module, args, kwargs)
            return compiled(*given, **named)
        if backend.options.fallback == "error":
            raise UnsupportedOpError(f"PyTorch would run a call of {type(module).__name__}: {reason}.")
        backend.note(f"PyTorch runs calls: {reason}")
        return plain(*args, **kwargs)

    return call


# Methods of a model by which peft edits weights in place without autograd's knowledge. It swaps LoRAs so, too.
EDITS = ("fuse_lora", "unfuse_lora", "load_lora_adapter")


class WeightEdit(InstanceMethod):
    """One of `EDITS` of one model, after which its weights count as changed."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        result = self.of_class(*args, **kwargs)
        weights = (weight for weight in self.model.parameters() if not weight.is_inference())
        torch.autograd.graph.increment_version(weights)
        return result
