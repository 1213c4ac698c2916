"""Capture: the float graph that is calibrated, with batch normalization folded, and how the model was called."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import fx, nn
from torch.export import Dim
from torch.fx.graph import _PyTreeCodeGen, _PyTreeInfo
from torch.utils import _pytree as pytree

from torchtrt_bridge.capture.export import CapturedGraph, export_program, graph_from_program
from torchtrt_bridge.capture.transformers_classes import without_cache
from torchtrt_bridge.errors import CalibrationError, CaptureError
from torchtrt_bridge.graph.edit import constant_of
from torchtrt_bridge.graph.nodes import is_random
from torchtrt_bridge.graph.shapes import UNBOUNDED, Range, TensorSpec, spec_of
from torchtrt_bridge.options import Options
from torchtrt_bridge.passes.batch_norm import fold_batch_norm
from torchtrt_bridge.passes.cleanup import drop_metadata_checks
from torchtrt_bridge.passes.constant_folding import fold_constants
from torchtrt_bridge.quantize.batches import Call, Signature
from torchtrt_bridge.runtime.tolerance import difference, error_bound

# As `normalize.PASSES` begins; precision is settled when the result is compiled.
PASSES = (drop_metadata_checks, fold_constants, fold_batch_norm, fold_constants)


@dataclasses.dataclass
class FloatGraph:
    """A model as a functional graph of ATen operators, in floating point.

    module: takes and gives flat tuples; weights are its attributes.
    names: the model's arguments, in order, as the quantized model will take them.
    specs: what each flat input must be; None for what is no tensor, which `constants` then has.
    unreached: paths of the model's layers whose weights nothing in the graph reads.
    notes: what the user should know of the capture.
    is_random: whether it draws random numbers.
    traced: the module as it was traced, where `module` is not that any more.
    serves_one: whether it is right for a batch of one, which `torch.export` sets apart.
    """

    module: fx.GraphModule
    names: tuple[str, ...]
    in_spec: Any
    out_spec: Any
    specs: tuple[TensorSpec | None, ...]
    constants: tuple[Any, ...]
    unreached: list[str]
    notes: list[str]
    is_random: bool = False
    traced: fx.GraphModule | None = None
    serves_one: bool = True

    def code_generator(self) -> Any:
        """Lets a graph be called as the model was."""
        return _PyTreeCodeGen(_PyTreeInfo(list(self.names), self.in_spec, self.out_spec))

    def ranges_of(self, spec: TensorSpec) -> tuple[Range, ...]:
        """The sizes that it serves; one, where `torch.export` says two or more."""
        free = [dim for dim, (low, high) in enumerate(spec.ranges) if low == 2 < high and (dim or self.serves_one)]
        return tuple((1 if dim in free else low, high) for dim, (low, high) in enumerate(spec.ranges))

    def digest(self) -> str:
        """Differs where the graph or its weights do."""
        found = hashlib.sha256()
        module = self.traced or self.module
        for node in module.graph.nodes:
            found.update(f"{node.op} {node.name} {node.target} {node.args} {node.kwargs}\n".encode())
        for name, value in sorted(module.named_buffers(recurse=False)):
            found.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
            found.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
        return found.hexdigest()


def capture(model: nn.Module, signature: Signature, call: Call, dynamic_shapes: Any = None) -> FloatGraph:
    """The float graph of `model`, traced with one call; CalibrationError for a model that it cannot stand for.

    dynamic_shapes: as in `torch.export.export`. Without it the batch dimension is dynamic, and of token ids the length
        too, wherever the model allows it.
    """
    names = signature.named_values(call)
    captured, out_spec, notes = _captured(model, signature, call, dynamic_shapes)
    if captured.state or captured.mutations:
        raise CalibrationError(
            f"{type(model).__name__} changes its own buffers or inputs ({', '.join(captured.state) or 'inputs'}) in a "
            "call, so its batches depend on each other. Quantize a model without such state."
        )
    module = captured.module
    unreached = _unreached(model, module)
    for run_pass in PASSES:
        module = run_pass(module, Options())
    _let_views_copy(module)
    random = [node for node in module.graph.nodes if is_random(node)]
    notes += _told_random(random)
    leaves, in_spec = pytree.tree_flatten((tuple(names.values()), {}))
    constants = tuple(None if isinstance(value, torch.Tensor) else value for value in leaves)
    ranges = {symbol: (low, UNBOUNDED if high is None else high) for symbol, (low, high) in captured.ranges.items()}
    inputs = [node for node in module.graph.nodes if node.op == "placeholder"]
    specs = [
        spec_of(node.name, node.meta["val"], ranges) if isinstance(node.meta.get("val"), torch.Tensor) else None
        for node in inputs
    ]
    return FloatGraph(
        module, tuple(names), in_spec, out_spec, tuple(specs), constants, unreached, notes, is_random=bool(random)
    )


def _let_views_copy(module: fx.GraphModule) -> None:
    """Views in place of which a copy may be made: batches may lie otherwise in memory than the one that was traced."""
    for view in module.graph.find_nodes(op="call_function", target=torch.ops.aten.view.default):
        view.target = torch.ops.aten.reshape.default
    module.recompile()


def check_graph(graph: FloatGraph, model: nn.Module, call: Call, outputs: Iterable[Any]) -> None:
    """CalibrationError where `outputs`, the graph's for a call, are not what the model gives for it."""
    problem = None if graph.is_random else _differs(model, call, outputs)
    if problem is not None:
        raise CalibrationError(
            f"torch.export's graph of {type(model).__name__} computes something else than the model does on the first "
            f"batch: {problem}. Does its forward look at values, at sizes such as a batch of one, or at something that "
            "changes between calls?"
        )


def serves_one(graph: FloatGraph, model: nn.Module, call: Call, inputs: Sequence[Any]) -> bool:
    """Whether a graph that was traced with batches of two or more is right for a batch of one too.

    inputs: those of the graph for `call`, of which the first samples are taken.
    """
    if graph.is_random or not any(spec is not None and spec.ranges[:1] == ((2, UNBOUNDED),) for spec in graph.specs):
        return True
    (args, kwargs), leaves = pytree.tree_map(
        lambda v: v[:1] if isinstance(v, torch.Tensor) and v.dim() else v, (call, list(inputs))
    )
    try:
        return _differs(model, (args, kwargs), graph.module(*leaves)) is None
    except (RuntimeError, ValueError, TypeError, IndexError):  # the model, or the graph, takes no such batch
        return False


def _differs(model: nn.Module, call: Call, outputs: Iterable[Any]) -> str | None:
    """How `outputs` differ from the model's; None where they do not.

    PyTorch's fast path of attention gives zeros for padding, where `torch.export` and training give other values.
    """
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with without_cache(model):
            expected = pytree.tree_leaves(model(*call[0], **call[1]))
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    pairs = [(mine, its) for mine, its in zip(outputs, expected, strict=True) if isinstance(its, torch.Tensor)]
    dtypes = {its.dtype for _, its in pairs} | {value.dtype for value in model.parameters()}
    on_gpu = any(its.is_cuda for _, its in pairs)
    return difference([mine for mine, _ in pairs], [its for _, its in pairs], error_bound(dtypes, tf32=on_gpu)).problem


def _captured(
    model: nn.Module, signature: Signature, call: Call, dynamic_shapes: Any
) -> tuple[CapturedGraph, Any, list[str]]:
    """The graph, the structure of its outputs, and notes; with static sizes where dynamic ones do not trace."""
    notes: list[str] = []
    traced = _doubled(call)
    try:
        shapes = dynamic_shapes if dynamic_shapes is not None else _free_sizes(signature, traced)
        program = export_program(model, *traced, dynamic_shapes=shapes)
    except CaptureError as error:
        hint = dtype_hint(model, call)
        if hint:
            raise CalibrationError(f"{type(model).__name__} does not take batch 0 of the loader. {hint}") from error
        if dynamic_shapes is not None:
            raise
        program = export_program(model, *call)
        notes.append("The model traces with fixed sizes only: the quantized model serves the loader's batch size.")
    captured = graph_from_program(program)
    return captured, program.call_spec.out_spec, notes


def _doubled(call: Call) -> Call:
    """A call whose batch of one is repeated: `torch.export` takes a size of one for a constant."""
    leaves = [value for value in pytree.tree_leaves(call) if isinstance(value, torch.Tensor) and value.dim()]
    if not leaves or any(value.shape[0] != 1 for value in leaves):
        return call
    twice = pytree.tree_map(lambda v: torch.cat((v, v)) if isinstance(v, torch.Tensor) and v.dim() else v, call)
    return twice[0], twice[1]


def _free_sizes(signature: Signature, call: Call) -> dict[str, Any]:
    """`Dim.AUTO` for the batch, and for the length where one input is of token ids, by parameter."""
    tensors = [value for value in pytree.tree_leaves(call) if isinstance(value, torch.Tensor)]
    is_text = any(value.dim() == 2 and not value.is_floating_point() for value in tensors)

    def free(value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return None
        return dict.fromkeys(range(min(value.dim(), 2 if is_text else 1)), Dim.AUTO)

    bound = signature.signature.bind(*call[0], **call[1])
    return {name: pytree.tree_map(free, value) for name, value in bound.arguments.items()}


def dtype_hint(model: nn.Module, inputs: Any) -> str:
    """What to do about inputs of another dtype than the model's weights, a likely cause of failure; "" for none."""
    own = next((p.dtype for p in model.parameters() if p.is_floating_point()), None)
    for value in pytree.tree_leaves(inputs):
        wrong = isinstance(value, torch.Tensor) and value.dtype != own
        if wrong and own is not None and (value.is_floating_point() or value.dtype == torch.uint8):
            return f"A batch holds a tensor of {value.dtype}, and the weights are {own}: convert it by batch.to({own})."
    return ""


def _unreached(model: nn.Module, module: fx.GraphModule) -> list[str]:
    """The linear layers and convolutions of `model` whose weights no call of its graph reads."""
    reads = [constant_of(node) for node in module.graph.find_nodes(op="get_attr") if node.users]
    read = {value.data_ptr() for value in reads if value is not None}
    kinds = (nn.Linear, nn.modules.conv._ConvNd)
    layers = [(name, part) for name, part in model.named_modules() if isinstance(part, kinds)]
    return [name for name, part in layers if not read & {value.data_ptr() for value in _weights_of(part)}]


def _weights_of(layer: nn.Module) -> list[torch.Tensor]:
    """What its weight is made of: several parameters where it is parametrized, as by `weight_norm`."""
    return [value for name, value in layer.named_parameters() if not name.endswith("bias")]


def _told_random(random: list[fx.Node]) -> list[str]:
    """A note for operators whose results change from call to call."""
    if not random:
        return []
    return [
        f"{len(random)} operators draw random numbers in each call, as {random[0].target} (node {random[0].name}), "
        "also in evaluation mode: errors measured here contain their noise."
    ]
