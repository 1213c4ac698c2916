"""PyTorch's own compiler, for what stays in PyTorch and as a contender in trials."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx
from torch._guards import tracing

from torchtrt_bridge.graph.edit import copy_graph
from torchtrt_bridge.graph.fork_safety import renewed_in_children
from torchtrt_bridge.report.log import warn_once
from torchtrt_bridge.runtime.call_context import is_capturing
from torchtrt_bridge.runtime.tolerance import difference, error_bound

aten = torch.ops.aten


class Inductor:
    """A module as inductor compiles it at its first call, for inputs laid out as those; PyTorch runs it for others.

    tuned: by PyTorch's mode "max-autotune", which tries many kernels for each product.
    is_checked: whether its first results are held against those of `module` when it is prepared, which loads its
        kernels too; not where who calls it does so.
    failure: why it is not used, after which PyTorch runs the module always.
    """

    def __init__(self, name: str, module: fx.GraphModule, tuned: bool = False, is_checked: bool = False) -> None:
        self.name = name
        self.module = module
        self.tuned = tuned
        self.is_checked = is_checked
        self.failure: str | None = None
        self._compiled: Callable[..., Any] | None = None
        self._layouts: list[Any] = []
        self._lock = threading.RLock()
        renewed_in_children(self)

    def after_fork(self) -> None:
        self._lock = threading.RLock()

    def __call__(self, inputs: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
        run = self._compiled if self.prepare(inputs) else self.module
        assert run is not None
        results: Sequence[torch.Tensor] = run(*inputs)
        return results

    def prepare(self, inputs: Sequence[torch.Tensor]) -> bool:
        """Whether such inputs are compiled for, once the first of them were."""
        if self._compiled is None and self.failure is None and not is_capturing(inputs):
            with self._lock:
                if self._compiled is None and self.failure is None:
                    self._compile(inputs)
        return self._compiled is not None and _layouts(inputs) == self._layouts

    def _compile(self, inputs: Sequence[torch.Tensor]) -> None:
        self._layouts = _layouts(inputs)
        try:
            compiled = compiled_by_inductor(self.module, inputs, self.tuned)
            self.failure = self._difference(compiled, inputs) if self.is_checked else None
        except Exception as error:  # whatever goes wrong there, PyTorch runs what it was to compile
            self.failure = f"{type(error).__name__}: {str(error).strip()}".splitlines()[0]
        if self.failure is None:
            self._compiled = compiled
        else:
            warn_once(f"{self.name} is not compiled by inductor, which failed: {self.failure}")

    def _difference(self, compiled: Callable[..., Any], inputs: Sequence[torch.Tensor]) -> str | None:
        """How results differ from PyTorch's beyond rounding; None if they do not."""
        values = [node.meta.get("val") for node in self.module.graph.nodes]
        dtypes = {value.dtype for value in values if isinstance(value, torch.Tensor)}
        on_gpu = any(value.is_cuda for value in inputs)  # where PyTorch may use TF32
        return difference(compiled(*inputs), self.module(*inputs), error_bound(dtypes, tf32=on_gpu)).problem


def _layouts(inputs: Sequence[torch.Tensor]) -> list[Any]:
    """What inductor's code takes for granted of its inputs."""
    return [(value.shape, value.stride(), value.dtype, value.device) for value in inputs]


def compiled_by_inductor(
    module: fx.GraphModule, inputs: Sequence[torch.Tensor], tuned: bool = False
) -> Callable[..., Any]:
    """`module` compiled for inputs of these sizes; CUDA graphs are ours to record.

    `torch.compile` would do nothing here: what Dynamo calls runs with Dynamo switched off.
    """
    from torch import _inductor

    options = _inductor.list_mode_options("max-autotune-no-cudagraphs") if tuned else None
    with tracing(None), torch.no_grad():
        compiled: Callable[..., Any] = _inductor.compile(_in_channels_last(module), list(inputs), options=options)
    return compiled


def _in_channels_last(module: fx.GraphModule) -> fx.GraphModule:
    """`module` with the weights of 2-D convolutions as inductor wants them on a GPU; else each call converts them."""
    convolutions = [n for n in module.graph.nodes if n.op == "call_function" and n.target is aten.convolution.default]
    weights = {n.args[1].target for n in convolutions if n.args[1].op == "get_attr"}
    weights = {name for name in weights if getattr(module, name).dim() == 4}
    if not weights:
        return module
    twin = fx.GraphModule(module, copy_graph(module.graph))
    for name in weights:
        setattr(twin, name, getattr(module, name).to(memory_format=torch.channels_last))
    return twin
