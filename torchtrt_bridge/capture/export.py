"""Capture by `torch.export`: from a module to one functional ATen graph with large operators whole."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import sympy
import torch
from torch import fx
from torch.export import ExportedProgram
from torch.export.graph_signature import ConstantArgument, InputKind, OutputKind
from torch.utils import _pytree as pytree

from torchtrt_bridge.capture.arguments import in_order
from torchtrt_bridge.capture.capture_errors import COMPILE, AssumptionError, capture_failure, is_failed_assertion
from torchtrt_bridge.capture.decompositions import DECOMPOSITIONS
from torchtrt_bridge.capture.indexing import indices_as_numbers
from torchtrt_bridge.capture.recurrent_layers import recurrent_layers_exported
from torchtrt_bridge.capture.shared_memory import apart
from torchtrt_bridge.capture.transformers_classes import without_cache
from torchtrt_bridge.errors import CaptureError
from torchtrt_bridge.graph.dynamo_internals import export_is_quiet
from torchtrt_bridge.graph.edit import copy_graph, set_constant
from torchtrt_bridge.graph.export_internals import compiled_functions_kept, decompose
from torchtrt_bridge.graph.nodes import operator_name
from torchtrt_bridge.graph.recurrent import use_own
from torchtrt_bridge.graph.shapes import UNBOUNDED
from torchtrt_bridge.graph.torch_internals import (
    expression_bounds,
    is_constraint_violation,
    is_data_dependent,
    is_unbacked_symbol,
    sizes_from_zero,
    tracing_lock,
    with_sympy_extrema,
    without_base,
)
from torchtrt_bridge.lower import CONVERTERS
from torchtrt_bridge.report.log import warn_once

aten = torch.ops.aten
ASSERT = aten._assert_scalar.default


@dataclasses.dataclass
class CapturedGraph:
    """Functional ATen graph; weights are its attributes, read by `get_attr` nodes.

    module: its placeholders are the tensors and sizes of a call, then the `state`; its outputs are those of the
        model, then the new values of the tensors that the model mutates.
    outputs: number of its outputs that the caller gets back.
    mutations: for each further output, the index of the placeholder that it is copied into.
    state: names of the buffers that the model mutates, which the graph takes as its last inputs.
    ranges: smallest and largest value of each symbolic size.
    origins: for each constant, the name of its tensor in the program that it was captured from.
    """

    module: fx.GraphModule
    outputs: int
    mutations: tuple[int, ...]
    state: tuple[str, ...]
    ranges: dict[Any, tuple[int, int | None]]
    origins: dict[str, str] = dataclasses.field(default_factory=dict)


def tensor_of(program: ExportedProgram, name: str) -> torch.Tensor:
    """Return the parameter or buffer of a program; buffers that are not persistent are among its constants."""
    tensor: torch.Tensor = program.state_dict[name] if name in program.state_dict else program.constants[name]
    return tensor


def export_program(
    model: torch.nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any] | None = None,
    dynamic_shapes: Any = None,
) -> ExportedProgram:
    """Export `model` by `torch.export`, with the operators that have converters left whole.

    One thread captures at a time, as `torch.export` changes the state of the whole process.
    Raises CaptureError, with the reason and what to do, for a model that `torch.export` cannot turn into one graph.
    """
    try:
        call = functools.partial(_exported, model, args, in_order(model, args, kwargs or {}), dynamic_shapes)
        nnpack = torch.backends.nnpack.flags(enabled=False)  # its guard: batch < 16
        with (
            tracing_lock(),
            torch.no_grad(),
            nnpack,
            sizes_from_zero(),
            export_is_quiet(),
            recurrent_layers_exported(),
        ):
            return _without_cache(model, call)
    except Exception as error:
        raise CaptureError(capture_failure(model, error)) from error


def _without_cache(model: torch.nn.Module, call: Callable[[], ExportedProgram]) -> ExportedProgram:
    """Return the program of `call`; without the cache of keys and values if `torch.export` cannot return that."""
    try:
        return call()
    except RuntimeError as error:
        if "Cache" not in str(error):
            raise
        with without_cache(model) as is_off:
            if not is_off:
                raise
            program = call()
    warn_once(f"{type(model).__name__} is captured with use_cache=False: its cache of keys and values is left out.")
    return program


def _exported(
    model: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], dynamic_shapes: Any
) -> ExportedProgram:
    call = functools.partial(_in_aten, model, args, kwargs, dynamic_shapes)
    try:
        return _holding(call(), args, kwargs)
    except Exception as error:
        if is_constraint_violation(error):
            program = call(prefer_deferred_runtime_asserts_over_guards=True)
            if _drop_proved_assertions(program):
                return program
            with contextlib.suppress(Exception):
                return _of_contiguous(model, args, kwargs, dynamic_shapes)
        elif is_data_dependent(error) or isinstance(error, AssumptionError):
            with contextlib.suppress(Exception), indices_as_numbers(model):
                return _holding(call(), args, kwargs)
            if not isinstance(model, fx.GraphModule):  # which Dynamo, or another trace, has made
                with contextlib.suppress(Exception), compiled_functions_kept():
                    return _holding(call(strict=True), args, kwargs)  # Dynamo takes int(x.item()) for a number
        raise


def _in_aten(
    model: torch.nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    dynamic_shapes: Any,
    strict: bool = False,
    **options: Any,
) -> ExportedProgram:
    args, kwargs = apart(pytree.tree_map_only(torch.Tensor, without_base, (args, kwargs)))
    program = torch.export.export(model, args, kwargs, dynamic_shapes=dynamic_shapes, strict=strict, **options)
    return decompose(program, whole=frozenset(CONVERTERS), own=tuple(DECOMPOSITIONS.items()))


def _of_contiguous(
    model: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], dynamic_shapes: Any
) -> ExportedProgram:
    """Export for contiguous copies of the example inputs, which a program makes of the inputs of its calls too.

    `torch.export` takes strides, as the 16 of `x[:, :7]` of 16 columns, for sizes that a dynamic one must differ from.
    Raises ValueError for a program that reads memory by offsets, which are those of the strides.
    """
    args, kwargs = pytree.tree_map_only(torch.Tensor, torch.Tensor.contiguous, (args, kwargs))
    program = _in_aten(model, args, kwargs, dynamic_shapes)
    if any(operator_name(node.target).startswith("as_strided") for node in program.graph.nodes):
        raise ValueError("it reads the memory of a tensor by offsets")
    return program


def _holding(program: ExportedProgram, args: tuple[Any, ...], kwargs: dict[str, Any]) -> ExportedProgram:
    """Return a program whose assertions hold for its example inputs; raise AssumptionError for another.

    `torch.export` takes a size that depends on data for that of a tensor beside it, where PyTorch may broadcast.
    """
    if not program.graph.find_nodes(op="call_function", target=ASSERT):
        return program
    captured = graph_from_program(program)
    _output(captured.module).args = ((),)
    captured.module.graph.eliminate_dead_code()  # keeps assertions, and what they read
    captured.module.recompile()
    state = [_tensor_of(program, name) for name in captured.state]
    try:
        captured.module(*pytree.tree_leaves((args, kwargs), is_leaf=lambda value: value is None), *state)
    except RuntimeError as error:
        if is_failed_assertion(error):
            raise AssumptionError(str(error)) from error
        raise
    return program


def _drop_proved_assertions(program: ExportedProgram) -> bool:
    """Erase the assertions on sizes that hold for all sizes; return whether no other assertion is left.

    torch 2.11 takes min(8 * s, 16 * s) == 8 * s, of a size s, for a restriction of s. For attention with a mask on
    CUDA it pads s to a multiple of 8, and takes s * (8 + s - s % 8) > 1 for one.
    """
    assertions = program.graph.find_nodes(op="call_function", target=ASSERT)
    ranges = {symbol: _bounds(symbol, value) for symbol, value in program.range_constraints.items()}
    proved = [node for node in assertions if _is_proved(node.args[0], ranges)]
    for node in proved:
        program.graph.erase_node(node)
    program.graph.eliminate_dead_code()
    return len(proved) == len(assertions)


def _is_proved(condition: Any, ranges: Mapping[Any, tuple[int, int | None]]) -> bool:
    """Return whether a condition on sizes in a graph holds for all sizes in these ranges."""
    value = condition.meta["val"] if isinstance(condition, fx.Node) else condition
    if not isinstance(value, torch.SymBool):
        return value is True
    relation = value.node.expr
    return bool(with_sympy_extrema(relation) == sympy.true) or _holds_within(relation, ranges)


def _holds_within(relation: Any, ranges: Mapping[Any, tuple[int, int | None]]) -> bool:
    """Return whether an inequality follows from the ranges of its symbols by interval arithmetic."""
    strict = (sympy.StrictGreaterThan, sympy.StrictLessThan)
    if not isinstance(relation, (*strict, sympy.GreaterThan, sympy.LessThan)) or relation.free_symbols - ranges.keys():
        return False
    known = {symbol: (low, UNBOUNDED if high is None else high) for symbol, (low, high) in ranges.items()}
    low, _ = expression_bounds(relation.gts - relation.lts, known)
    return bool(low > 0 if isinstance(relation, strict) else low >= 0)


def graph_from_program(program: ExportedProgram) -> CapturedGraph:
    """Return the graph of an exported program, with weights as attributes and mutated buffers as trailing inputs."""
    module = fx.GraphModule(program.graph_module, copy_graph(program.graph))
    _replace_views(module.graph)
    use_own(module.graph)
    signature = program.graph_signature
    mutated = set(signature.buffers_to_mutate.values())
    placeholders = {node.name: node for node in module.graph.nodes if node.op == "placeholder"}
    state = []
    origins = {}
    for spec in signature.input_specs:
        if isinstance(spec.arg, ConstantArgument) and spec.kind is InputKind.USER_INPUT:
            continue
        if spec.kind in (InputKind.PARAMETER, InputKind.BUFFER, InputKind.CONSTANT_TENSOR):
            node = placeholders[spec.arg.name]
            assert spec.target is not None
            if spec.target in mutated:
                _move_to_end(node)
                state.append(spec.target)
            else:
                _bind(module, node, _tensor_of(program, spec.target))
                origins[node.name] = spec.target
        elif spec.kind is not InputKind.USER_INPUT:
            raise CaptureError(
                f"The model reads {spec.target}, a {spec.kind.name.lower()} and no tensor, which no engine can take. "
                f"Pass its tensors as arguments; else {COMPILE}."
            )
    mutations = _order_outputs(module, signature, tuple(state))
    module.graph.lint()
    module.recompile()
    outputs = len(_output(module).args[0]) - len(mutations)  # type: ignore[arg-type]
    ranges = {symbol: _bounds(symbol, value) for symbol, value in program.range_constraints.items()}
    return CapturedGraph(module, outputs, mutations, tuple(state), ranges, origins)


def _replace_views(graph: fx.Graph) -> None:
    """Replace views by reshapes, which copy where they must.

    A view is right for the strides that its input had when it was traced. In another precision, on another GPU or for
    another batch PyTorch may give it other strides: attention does so on CUDA, in half precision.
    """
    for node in graph.nodes:
        if node.target in (aten.view.default, aten._unsafe_view.default):
            node.target = aten.reshape.default


def _tensor_of(program: ExportedProgram, target: str) -> torch.Tensor:
    value = program.state_dict.get(target)
    if value is None:
        value = program.constants[target]
    assert isinstance(value, torch.Tensor)
    return value.detach()


def _bind(module: fx.GraphModule, node: fx.Node, value: torch.Tensor) -> None:
    """Replace a placeholder by an attribute that holds `value`."""
    set_constant(module, node.name, value)
    with module.graph.inserting_before(node):
        read = module.graph.get_attr(node.name)
    read.meta = dict(node.meta)
    node.replace_all_uses_with(read)
    module.graph.erase_node(node)


def _move_to_end(node: fx.Node) -> None:
    last = [n for n in node.graph.nodes if n.op == "placeholder"][-1]
    if last is not node:
        last.append(node)


def _output(module: fx.GraphModule) -> fx.Node:
    output: fx.Node = next(node for node in reversed(module.graph.nodes) if node.op == "output")
    return output


def _order_outputs(module: fx.GraphModule, signature: Any, state: tuple[str, ...]) -> tuple[int, ...]:
    """Put the mutated values after the caller's outputs; return the index of the placeholder of each mutated value."""
    output = _output(module)
    returned, mutated, targets = [], [], []
    names = [node.name for node in module.graph.nodes if node.op == "placeholder"]
    inputs_of_state = dict(zip(state, names[len(names) - len(state) :], strict=True))
    for spec, value in zip(signature.output_specs, output.args[0], strict=True):  # type: ignore[arg-type]
        if spec.kind is OutputKind.USER_OUTPUT:
            returned.append(value)
        elif spec.kind is OutputKind.BUFFER_MUTATION:
            mutated.append(value)
            targets.append(names.index(inputs_of_state[spec.target]))
        elif spec.kind is OutputKind.USER_INPUT_MUTATION:
            mutated.append(value)
            targets.append(names.index(spec.target))
        else:
            raise CaptureError(
                f"The exported graph returns a {spec.kind.name.lower()}, which no engine can give. Return tensors and "
                f"numbers only; else {COMPILE}."
            )
    output.args = ((*returned, *mutated),)
    return tuple(targets)


def _bounds(symbol: Any, value: Any) -> tuple[int, int | None]:
    """Return the range of a symbol as integers; a size that depends on data may be 0, which no engine takes."""
    low, high = (int(end) if getattr(end, "is_Integer", False) else None for end in (value.lower, value.upper))
    low = -UNBOUNDED if low is None else low
    return (max(low, 1) if low == 0 and is_unbacked_symbol(symbol) else low), high
