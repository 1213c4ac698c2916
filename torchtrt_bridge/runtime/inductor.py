"""Fast forms of a subgraph in PyTorch: linear layers in two dimensions, and all of it compiled by inductor."""

from __future__ import annotations

import gc
import operator
import threading
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx

from torchtrt_bridge.graph.edit import copy_graph
from torchtrt_bridge.graph.nodes import reads_memory, returns_view
from torchtrt_bridge.graph.torch_internals import compile_with_inductor, is_contiguous_or_false
from torchtrt_bridge.lower.projections import merge_projections
from torchtrt_bridge.report.log import warn_once
from torchtrt_bridge.runtime.call_context import is_capturing
from torchtrt_bridge.runtime.tolerance import compare, error_bound

aten = torch.ops.aten


class Inductor:
    """A module as inductor compiles it at its first call, for inputs laid out as those; PyTorch runs it for others.

    tuned: by PyTorch's mode "max-autotune", which tries many kernels for each product.
    is_checked: whether its first results are compared with those of `module` when it is prepared, which loads its
        kernels too; False where the caller compares them.
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

    def __call__(self, inputs: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
        run = self._compiled if self.prepare(inputs) else self.module
        assert run is not None
        results: Sequence[torch.Tensor] = run(*inputs)
        return results

    def run_for(self, inputs: Sequence[torch.Tensor]) -> Inductor | None:
        """Return this, compiled for such inputs; None where it is not."""
        return self if self.prepare(inputs) else None

    def prepare(self, inputs: Sequence[torch.Tensor]) -> bool:
        """Compile at the first call. Return whether there is code for inputs laid out as these."""
        if self._compiled is None and self.failure is None and not is_capturing(inputs):
            with self._lock:
                if self._compiled is None and self.failure is None:
                    self._compile(inputs)
        return self._compiled is not None and _layouts(inputs) == self._layouts

    def discard(self) -> None:
        """Free what was compiled, with its weights; a later call would compile anew."""
        if self._compiled is not None:
            self._compiled = None
            gc.collect()  # graphs and nodes refer to each other

    def _compile(self, inputs: Sequence[torch.Tensor]) -> None:
        inputs = [value.resolve_neg() for value in inputs]  # inductor's code reads the memory as it is
        self._layouts = _layouts(inputs)
        try:
            compiled = compiled_by_inductor(self.module, inputs, self.tuned)
            self.failure = self._problem(compiled, inputs) if self.is_checked else None
        except Exception as error:  # whatever goes wrong there, PyTorch runs what it was to compile
            self.failure = f"{type(error).__name__}: {str(error).strip()}".splitlines()[0]
        if self.failure is None:
            self._compiled = compiled
        else:
            warn_once(f"{self.name} is not compiled by inductor, which failed: {self.failure}; PyTorch runs it.")

    def _problem(self, compiled: Callable[..., Any], inputs: Sequence[torch.Tensor]) -> str | None:
        """Return why the results are not PyTorch's, beyond rounding; None if they are."""
        values = [node.meta.get("val") for node in self.module.graph.nodes]
        dtypes = {value.dtype for value in values if isinstance(value, torch.Tensor)}
        on_gpu = any(value.is_cuda for value in inputs)  # where PyTorch may use TF32
        return compare(compiled(*inputs), self.module(*inputs), error_bound(dtypes, tf32=on_gpu)).problem


def _layouts(inputs: Sequence[torch.Tensor]) -> list[Any]:
    """Return the properties of inputs that inductor's code takes for granted."""
    return [(value.shape, value.stride(), value.dtype, value.device, value.is_neg()) for value in inputs]


def compiled_by_inductor(
    module: fx.GraphModule, inputs: Sequence[torch.Tensor], tuned: bool = False
) -> Callable[..., Any]:
    """Return `module` compiled for inputs of these sizes; CUDA graphs are left to this package.

    Inductor gets a copy of the graph with weights of its own, where another form of them is faster.
    """
    twin = fx.GraphModule(module, copy_graph(module.graph))
    _merge_projections(twin)
    _lay_out_in_channels_last(twin)
    return compile_with_inductor(twin, inputs, tuned)


def _merge_projections(module: fx.GraphModule) -> None:
    """Let linear layers of one input be one, whose parts are views of its result; copy those that the caller gets.

    A graph that reads memory by strides stays as it is: inductor of PyTorch 2.14 read those of such a copy as if they
    were strides of the whole result.
    """
    graph = module.graph
    if any(map(reads_memory, graph.nodes)):
        return
    for part in filter(_is_returned, merge_projections(module)):
        users = list(part.users)
        with graph.inserting_after(part):
            own = graph.call_function(aten.clone.default, (part,), {"memory_format": torch.contiguous_format})
        for user in users:
            user.replace_input_with(part, own)
    module.recompile()


def _is_returned(node: fx.Node) -> bool:
    """Return whether the caller gets a tensor, or a view of it."""
    return any(user.op == "output" or (_is_view(user) and _is_returned(user)) for user in node.users)


def _is_view(node: fx.Node) -> bool:
    return returns_view(node) or node.target is operator.getitem


def _lay_out_in_channels_last(module: fx.GraphModule) -> None:
    """Lay out the weights of 2-D convolutions in channels-last, else each call on a GPU converts them."""
    convolutions = module.graph.find_nodes(op="call_function", target=aten.convolution.default)
    names = {str(node.args[1].target) for node in convolutions if node.args[1].op == "get_attr"}
    for name in names:
        if getattr(module, name).dim() == 4:
            setattr(module, name, getattr(module, name).to(memory_format=torch.channels_last))


def flatten_linear_inputs(module: fx.GraphModule) -> None:
    """Give linear layers two dimensions where their input is not contiguous; `module` is changed.

    PyTorch itself does so for weights that require gradients, and not for constants: these it would expand into a
    batch of small products. With the sequence first in attention, ViT-B/16's took twice the time on an H100.
    """
    graph = module.graph
    for node in graph.find_nodes(op="call_function", target=aten.linear.default):
        source = node.args[0]
        value = source.meta.get("val") if isinstance(source, fx.Node) else None
        if not isinstance(value, torch.Tensor) or value.dim() < 3 or is_contiguous_or_false(value):
            continue
        with graph.inserting_before(node):
            sizes = [_size(graph, source, dim, size) for dim, size in enumerate(value.shape[:-1])]
            rows = graph.call_function(aten.reshape.default, (source, [-1, value.shape[-1]]))
            product = graph.call_function(aten.linear.default, (rows, *node.args[1:]), dict(node.kwargs))
            result = graph.call_function(aten.reshape.default, (product, [*sizes, node.meta["val"].shape[-1]]))
        result.meta = dict(node.meta)
        node.replace_all_uses_with(result)
        graph.erase_node(node)
    module.recompile()


def _size(graph: fx.Graph, source: fx.Node, dim: int, size: Any) -> Any:
    return size if isinstance(size, int) else graph.call_function(aten.sym_size.int, (source, dim))
