"""The float graph of a model: captured from one call, with batch normalization folded, and checked against it."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import fx, nn
from torch.export import Dim
from torch.utils import _pytree as pytree

from torchtrt_bridge.capture.export import CapturedGraph, export_program, graph_from_program
from torchtrt_bridge.capture.transformers_classes import generates, without_cache
from torchtrt_bridge.errors import CalibrationError, CaptureError
from torchtrt_bridge.graph import torch_internals
from torchtrt_bridge.graph.edit import constant_of, fake_mode_of, finish, insert_call, insert_constant
from torchtrt_bridge.graph.nodes import arguments_of, is_random
from torchtrt_bridge.graph.shapes import UNBOUNDED, Range, TensorSpec, spec_of
from torchtrt_bridge.options import Options
from torchtrt_bridge.passes.batch_norm import fold_batch_norm
from torchtrt_bridge.passes.cleanup import drop_metadata_checks
from torchtrt_bridge.passes.constant_folding import fold_constants
from torchtrt_bridge.quantize.calls import ForwardCall, ForwardSignature
from torchtrt_bridge.runtime.tolerance import compare, error_bound

if TYPE_CHECKING:
    from torchtrt_bridge.graph.torch_internals import FakeTensorMode

aten = torch.ops.aten
ATTENTION = aten.scaled_dot_product_attention.default

# The first passes of the compilation; precision is settled when the result is compiled.
PASSES = (drop_metadata_checks, fold_constants, fold_batch_norm, fold_constants)

CONVOLUTIONS = (
    nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d,
)  # fmt: skip


@dataclasses.dataclass
class FloatGraph:
    """A model as a functional graph of ATen operators, in floating point.

    module: takes and returns flat tuples; weights are its attributes.
    names: the model's arguments, in order, as the quantized model will take them.
    specs: the shape and dtype of each flat input; None for an input that is no tensor, whose value `constants` has.
    unreached: paths of the model's layers whose weights no node reads.
    notes: remarks on the capture, for the report.
    is_random: True where an operator draws random numbers.
    traced: the module before attention was decomposed; None where it was not.
    serves_one: True where the graph is right for a batch of one, which `torch.export` sets apart.
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
        """Return a code generator that lets the graph be called as the model was."""
        return torch_internals.pytree_codegen(list(self.names), self.in_spec, self.out_spec)

    def ranges_of(self, spec: TensorSpec) -> tuple[Range, ...]:
        """Return the sizes of an input that the graph is right for; from one, where `torch.export` says two or more."""
        free = [dim for dim, (low, high) in enumerate(spec.ranges) if low == 2 < high and (dim or self.serves_one)]
        return tuple((1 if dim in free else low, high) for dim, (low, high) in enumerate(spec.ranges))

    def digest(self) -> str:
        """Return a text that differs where the graph or its weights do."""
        found = hashlib.sha256()
        module = self.traced or self.module
        for node in module.graph.nodes:
            found.update(f"{node.op} {node.name} {node.target} {node.args} {node.kwargs}\n".encode())
        for name, value in sorted(module.named_buffers(recurse=False)):
            found.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
            found.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
        return found.hexdigest()


def capture(model: nn.Module, signature: ForwardSignature, call: ForwardCall, dynamic_shapes: Any = None) -> FloatGraph:
    """Trace `model` with one call; CalibrationError for a model that a graph cannot stand for.

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
    random = [node for node in module.graph.nodes if is_random(node)]
    notes += _random_notes(random)
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


def check_graph(graph: FloatGraph, model: nn.Module, call: ForwardCall, outputs: Iterable[Any]) -> None:
    """Raise CalibrationError where `outputs`, the graph's for a call, differ from the model's."""
    problem = None if graph.is_random else _problem_of(model, call, outputs)
    if problem is not None:
        raise CalibrationError(
            f"torch.export's graph of {type(model).__name__} computes something else than the model does on the first "
            f"batch: {problem}. Does its forward look at values, at sizes such as a batch of one, or at something that "
            "changes between calls?"
        )


def serves_one(graph: FloatGraph, model: nn.Module, call: ForwardCall, inputs: Sequence[Any]) -> bool:
    """Check if a graph that was traced with batches of two or more is right for a batch of one too.

    inputs: the graph's for `call`; the first sample of each is taken.
    """
    if graph.is_random or not any(spec is not None and spec.ranges[:1] == ((2, UNBOUNDED),) for spec in graph.specs):
        return True
    (args, kwargs), leaves = pytree.tree_map(
        lambda v: v[:1] if isinstance(v, torch.Tensor) and v.dim() else v, (call, list(inputs))
    )
    try:
        return _problem_of(model, (args, kwargs), graph.module(*leaves)) is None
    except (RuntimeError, ValueError, TypeError, IndexError):  # the model, or the graph, takes no such batch
        return False


def _problem_of(model: nn.Module, call: ForwardCall, outputs: Iterable[Any]) -> str | None:
    """Compare a graph's outputs with the model's for the same call; return the difference in words, or None.

    PyTorch's fast path of attention gives zeros for padding, where `torch.export` and training give other values.
    """
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with without_cache(model):
            expected = pytree.tree_leaves(model(*call[0], **call[1]))
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    pairs = [pair for pair in zip(outputs, expected, strict=True) if isinstance(pair[1], torch.Tensor)]
    wanted = [value for _, value in pairs]
    dtypes = {value.dtype for value in (*wanted, *model.parameters())}
    on_gpu = any(value.is_cuda for value in wanted)
    return compare([value for value, _ in pairs], wanted, error_bound(dtypes, tf32=on_gpu)).problem


def _captured(
    model: nn.Module, signature: ForwardSignature, call: ForwardCall, dynamic_shapes: Any
) -> tuple[CapturedGraph, Any, list[str]]:
    """Trace the graph, with static sizes where dynamic ones fail; return it, its outputs' structure, and notes."""
    notes: list[str] = []
    traced = _doubled(call)
    try:
        shapes = dynamic_shapes if dynamic_shapes is not None else _free_sizes(signature, traced)
        # The quantized form of a model with `generate` has its cache, so its export is not to say that it is left out.
        with without_cache(model) if generates(model) else contextlib.nullcontext():
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


def _doubled(call: ForwardCall) -> ForwardCall:
    """Repeat a batch of one: `torch.export` takes a size of one for a constant."""
    leaves = [value for value in pytree.tree_leaves(call) if isinstance(value, torch.Tensor) and value.dim()]
    if not leaves or any(value.shape[0] != 1 for value in leaves):
        return call
    twice = pytree.tree_map(lambda v: torch.cat((v, v)) if isinstance(v, torch.Tensor) and v.dim() else v, call)
    return twice[0], twice[1]


def _free_sizes(signature: ForwardSignature, call: ForwardCall) -> dict[str, Any]:
    """Set `Dim.AUTO` for the batch, and for the length where one input is of token ids; by parameter."""
    tensors = [value for value in pytree.tree_leaves(call) if isinstance(value, torch.Tensor)]
    is_text = any(value.dim() == 2 and not value.is_floating_point() for value in tensors)

    def free(value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return None
        return dict.fromkeys(range(min(value.dim(), 2 if is_text else 1)), Dim.AUTO)

    bound = signature.signature.bind(*call[0], **call[1])
    return {name: pytree.tree_map(free, value) for name, value in bound.arguments.items()}


def dtype_hint(model: nn.Module, inputs: Any) -> str:
    """Return the remedy for inputs of another dtype than the weights, a likely cause of failure; "" for none."""
    own = next((p.dtype for p in model.parameters() if p.is_floating_point()), None)
    for value in pytree.tree_leaves(inputs):
        wrong = isinstance(value, torch.Tensor) and value.dtype != own
        if wrong and own is not None and (value.is_floating_point() or value.dtype == torch.uint8):
            return f"A batch holds a tensor of {value.dtype}, and the weights are {own}: convert it by batch.to({own})."
    return ""


def _unreached(model: nn.Module, module: fx.GraphModule) -> list[str]:
    """Return the linear layers and convolutions of `model` whose weights its graph does not read."""
    reads = [constant_of(node) for node in module.graph.find_nodes(op="get_attr") if node.users]
    read = {value.data_ptr() for value in reads if value is not None}
    layers = [(name, part) for name, part in model.named_modules() if isinstance(part, (nn.Linear, *CONVOLUTIONS))]
    return [name for name, part in layers if not read & {value.data_ptr() for value in _weights_of(part)}]


def _weights_of(layer: nn.Module) -> list[torch.Tensor]:
    """Return the parameters of its weight: several where it is parametrized, as by `weight_norm`."""
    return [value for name, value in layer.named_parameters() if not name.endswith("bias")]


def _random_notes(random: list[fx.Node]) -> list[str]:
    """Return a note on operators whose results change from call to call."""
    if not random:
        return []
    drawn = "1 operator draws" if len(random) == 1 else f"{len(random)} operators draw"
    return [
        f"{drawn} random numbers in each call, as {random[0].target} (node {random[0].name}), also in evaluation mode: "
        "errors measured here contain their noise."
    ]


# Attention ----------------------------------------------------------------------------------------------------------


def decompose_attention(module: fx.GraphModule) -> fx.GraphModule:
    """Replace each attention by two products with a softmax between them, so that these can be quantized.

    An attention for which `why_whole` has a reason stays as it is.
    """
    mode = fake_mode_of(module)
    changed = False
    for node in module.graph.find_nodes(op="call_function", target=ATTENTION):
        if why_whole(node) is None:
            node.replace_all_uses_with(_decomposed(node, mode))
            module.graph.erase_node(node)
            changed = True
    return finish(module, changed)


def why_whole(node: fx.Node) -> str | None:
    """Return the reason that an attention cannot be decomposed here; None if it can."""
    given = arguments_of(node)
    if given["dropout_p"]:
        return "an attention with dropout"
    if given["enable_gqa"]:
        return "an attention of grouped queries"
    sizes = (given["query"].meta["val"].shape[-2], given["key"].meta["val"].shape[-2])
    if given["is_causal"] and not all(isinstance(size, int) for size in sizes):
        return "a causal attention whose lengths are known at run time only"
    return None


def _decomposed(node: fx.Node, mode: FakeTensorMode) -> fx.Node:
    given = arguments_of(node)
    query, key, value, mask = given["query"], given["key"], given["value"], given["attn_mask"]
    rank, width = query.meta["val"].dim(), query.meta["val"].shape[-1]
    scale = 1 / math.sqrt(width) if given["scale"] is None else given["scale"]
    scaled = insert_call(node, mode, aten.mul.Tensor, query, scale)
    order = [*range(key.meta["val"].dim() - 2), rank - 1, rank - 2]
    scores = insert_call(
        node, mode, aten.matmul.default, scaled, insert_call(node, mode, aten.permute.default, key, order)
    )
    is_seen = None
    if given["is_causal"]:
        scores = _without(node, scores, _causal_mask(node, mode), mode)
    elif mask is not None:
        scores, is_seen = _masked(node, scores, mask, mode)
    weights = insert_call(node, mode, aten._softmax.default, scores, -1, False)
    if is_seen is not None:
        weights = insert_call(node, mode, aten.mul.Tensor, weights, is_seen)
    return insert_call(node, mode, aten.matmul.default, weights, value)


def _causal_mask(node: fx.Node, mode: FakeTensorMode) -> fx.Node:
    """Insert a mask that is True where a query sees a key: at those that do not come after it."""
    queries, keys = (node.args[i].meta["val"].shape[-2] for i in (0, 1))  # type: ignore[union-attr]
    device = node.meta["val"].device
    allowed = torch.ones(queries, keys, dtype=torch.bool, device=device).tril()
    return insert_constant(node, allowed, f"{node.name}_mask", mode)


def _masked(node: fx.Node, scores: fx.Node, mask: fx.Node, mode: FakeTensorMode) -> tuple[fx.Node, fx.Node]:
    """Mask the scores; return them, and for each query True if it sees any key: attention gives zeros otherwise.

    Hidden scores become the least finite number, of which a softmax makes no NaN.
    """
    if mask.meta["val"].dtype == torch.bool:
        shown, masked = mask, _without(node, scores, mask, mode)
    else:
        shown = insert_call(node, mode, aten.ne.Scalar, mask, -math.inf)
        finite = insert_call(node, mode, aten.clamp.default, mask, torch.finfo(mask.meta["val"].dtype).min)
        masked = insert_call(node, mode, aten.add.Tensor, scores, finite)
    return masked, insert_call(node, mode, aten.any.dim, shown, -1, True)


def _without(node: fx.Node, scores: fx.Node, shown: fx.Node, mode: FakeTensorMode) -> fx.Node:
    """Put the least finite number in the scores where `shown` is false."""
    hidden = insert_call(node, mode, aten.logical_not.default, shown)
    least = torch.finfo(scores.meta["val"].dtype).min
    return insert_call(node, mode, aten.masked_fill.Scalar, scores, hidden, least)
