"""Every private name of PyTorch that this package uses, each behind one function.

Nothing here is promised by PyTorch from one version to the next: `tests/graph/test_torch_internals.py` calls each
function, so that a new version which moves or renames one of these names is noticed in one place.
"""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping, Sequence
from typing import TYPE_CHECKING, Any, TypeGuard
from unittest import mock

import torch
from torch import fx
from torch.autograd import forward_ad

if TYPE_CHECKING:
    from torch._subclasses.fake_tensor import FakeTensorMode as FakeTensorMode

# The context of a call ---------------------------------------------------------------------------------------------


def is_transformed() -> bool:
    """Return whether `torch.func` or forward-mode differentiation looks at each operator; an engine shows them none."""
    return forward_ad._current_level >= 0 or torch._C._functorch.peek_interpreter_stack() is not None


# Asked in each call of a compiled model, so it is PyTorch's own function: whether autocast is on for any device.
is_any_autocast_enabled: Callable[[], bool] = torch._C._is_any_autocast_enabled


def autocast_disabled() -> contextlib.AbstractContextManager[None]:
    """Return a context in which no operator is cast by autocast, on any device."""
    context: contextlib.AbstractContextManager[None] = torch._C._DisableAutocast()
    return context


def tracing_disabled() -> contextlib.AbstractContextManager[Any]:
    """Return a context in which passes and compilers do not meet the fake mode of Dynamo's own trace."""
    from torch._guards import tracing

    return tracing(None)


# CUDA --------------------------------------------------------------------------------------------------------------


def current_raw_stream(device_index: int) -> int:
    """Return the handle of the current CUDA stream; as an object it takes 7 us."""
    return int(torch._C._cuda_getCurrentRawStream(device_index))


def clear_cublas_workspaces() -> None:
    """Drop the workspaces that cuBLAS uses, one for each stream; its next call takes new memory."""
    torch._C._cuda_clearCublasWorkspaces()


def copy_all(targets: list[torch.Tensor], sources: list[torch.Tensor]) -> None:
    """Copy `sources` into `targets`, in one launch where the dtypes allow it."""
    torch._foreach_copy_(targets, sources)


def storages_of(values: Iterable[torch.Tensor]) -> list[torch.UntypedStorage]:
    """Return the storages of tensors, each once."""
    return list({value.untyped_storage()._cdata: value.untyped_storage() for value in values}.values())


def use_count(storage: torch.UntypedStorage) -> int:
    """Return how many tensors and Python objects hold `storage`."""
    return int(torch._C._storage_Use_Count(storage._cdata))


# Inductor ----------------------------------------------------------------------------------------------------------


def compile_with_inductor(module: fx.GraphModule, inputs: Sequence[torch.Tensor], tuned: bool) -> Callable[..., Any]:
    """Return `module` compiled by inductor for inputs of these sizes, without CUDA graphs.

    tuned: by the mode "max-autotune", which tries many kernels for each product.
    `torch.compile` would do nothing within a compiled graph: what Dynamo calls runs with Dynamo switched off.
    """
    from torch import _inductor

    options = _inductor.list_mode_options("max-autotune-no-cudagraphs") if tuned else None
    with tracing_lock(), tracing_disabled(), torch.no_grad():
        return _inductor.compile(module, list(inputs), options=options)  # type: ignore[no-any-return]


def pytree_codegen(names: list[str], in_spec: Any, out_spec: Any) -> Any:
    """Return the code generator of a graph that is called with nested arguments of these names."""
    from torch.fx.graph import _PyTreeCodeGen, _PyTreeInfo

    return _PyTreeCodeGen(_PyTreeInfo(names, in_spec, out_spec))


def pytree_info(graph: fx.Graph) -> Any:
    """Return the names and the structure of a graph's arguments and results, as `codegen_from_info` takes them."""
    return graph._codegen.pytree_info  # type: ignore[attr-defined]


def codegen_from_info(info: Any) -> Any:
    """Return the code generator of a graph whose arguments and results have the structure of `pytree_info`."""
    from torch.fx.graph import _PyTreeCodeGen

    return _PyTreeCodeGen(info)


def set_tracer(module: fx.GraphModule, tracer: type[fx.Tracer]) -> None:
    """Let `module` be traced by `tracer` when it is unpickled."""
    module._tracer_cls = tracer


# Operators, fake values and symbolic sizes -------------------------------------------------------------------------


def is_operator(target: Any) -> TypeGuard[Any]:
    """Return whether what a node calls is an overload of a PyTorch operator."""
    return isinstance(target, torch._ops.OpOverload)


def schema_of(target: Any) -> Any:
    """Return the schema of an operator; None for what has none, as Python's own functions."""
    return getattr(target, "_schema", None)


def fake_mode_of_values(values: Sequence[torch.Tensor]) -> FakeTensorMode:
    """Return the mode in which fake tensors live; a new one if none of `values` is fake."""
    from torch._guards import detect_fake_mode
    from torch._subclasses.fake_tensor import FakeTensorMode

    return detect_fake_mode(values) or FakeTensorMode(allow_non_fake_inputs=True)


@contextlib.contextmanager
def symbolic_dispatch(mode: FakeTensorMode) -> Iterator[None]:
    """Let operators compute fake tensors in PyTorch's Python kernels; torch 2.11's own `aten.linear` takes no
    symbolic sizes."""
    from torch._dispatch.python import enable_python_dispatcher

    with mode, enable_python_dispatcher():
        yield


def statically_known_true(condition: Any) -> bool:
    """Return whether a condition on symbolic sizes holds whatever these are, without a guard on them."""
    from torch.fx.experimental import symbolic_shapes

    return symbolic_shapes.statically_known_true(condition)


class SizeGuardError(Exception):
    """Code asked for the number of a size that is known only at run time."""


@contextlib.contextmanager
def sizes_unread(values: Iterable[Any]) -> Iterator[None]:
    """Raise SizeGuardError where code reads a symbolic size of these fake values as a number, which it has once only.

    PyTorch would answer with the size of the example, and hold the symbol to be that number from then on.
    """
    sizes = (size for value in values for size in (value.shape if isinstance(value, torch.Tensor) else [value]))
    symbolic = (size for size in sizes if isinstance(size, (torch.SymInt, torch.SymFloat)))
    environment: Any = next((size.node.shape_env for size in symbolic), None)
    if environment is None or "_check_frozen" in vars(environment):
        yield
        return

    def refuse(expression: Any, value: Any) -> None:
        raise SizeGuardError(str(expression))

    environment._check_frozen = refuse  # PyTorch calls it before each guard
    try:
        yield
    finally:
        del environment._check_frozen


def has_unbacked_symbols(value: Any) -> bool:
    """Return whether the size of a fake value depends on data."""
    from torch.fx.experimental import symbolic_shapes

    return bool(symbolic_shapes.free_unbacked_symbols(value))


def is_unbacked_symbol(symbol: Any) -> bool:
    """Return whether a sympy symbol stands for an integer that is computed from the values of tensors."""
    from torch.utils._sympy.symbol import SymT, symbol_is_type

    return symbol_is_type(symbol, SymT.UNBACKED_INT)


def rebind_unbacked(mode: FakeTensorMode, node: fx.Node, value: Any) -> None:
    """Let the sizes of a value that is inferred anew be those of the old one where they depend on data."""
    from torch.fx.experimental import symbolic_shapes

    symbolic_shapes.rebind_unbacked(mode.shape_env, node, value)


def is_contiguous_or_false(value: torch.Tensor) -> bool:
    """Return whether a fake tensor is contiguous; False if that depends on its symbolic sizes."""
    from torch import _prims_common

    return bool(_prims_common.is_contiguous_or_false(value))


def expression_bounds(expression: Any, ranges: Mapping[Any, tuple[int, int]]) -> tuple[Any, Any]:
    """Return the least and the largest value, as sympy numbers, of a sympy expression.

    ranges: smallest and largest value of each of its symbols.
    """
    from torch.utils._sympy import functions, value_ranges

    floored = expression.replace(functions.Mod, lambda a, n: a - n * functions.FloorDiv(a, n))  # tighter in 2.11
    known = {symbol: value_ranges.ValueRanges(*ranges[symbol]) for symbol in expression.free_symbols}
    bounds = [value_ranges.bound_sympy(form, known) for form in (expression, floored)]
    return max(form.lower for form in bounds), min(form.upper for form in bounds)


# Capture -----------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def tracing_lock() -> Iterator[None]:
    """Hold the lock under which Dynamo compiles, and keep the calls of other threads out of what is traced.

    A trace keeps its state in global variables, and replaces `nn.Module.__call__` for the whole process: a module that
    another thread calls meanwhile would be traced too. `torch.export` has functions behind `torch.compiler.disable`, as
    compiled graphs are, annotate each call; two threads that do so at once raise KeyError.
    """
    from torch._dynamo.convert_frame import compile_lock
    from torch.fx import traceback
    from torch.fx._symbolic_trace import _Patcher

    with (
        compile_lock,
        mock.patch.object(_Patcher, "patch_method", _patch_method_for_thread(_Patcher.patch_method)),
        mock.patch.object(traceback, "annotate", for_this_thread(traceback.annotate, contextlib.nullcontext)),
    ):
        yield


def _patch_method_for_thread(patch_method: Callable[..., None]) -> Callable[..., None]:
    """Return fx's function that patches a method, changed so that other threads call what was there."""

    def patch(patcher: Any, cls: type, name: str, new: Callable[..., Any], deduplicate: bool = True) -> None:
        patch_method(patcher, cls, name, for_this_thread(new, getattr(cls, name)), deduplicate)

    return patch


def for_this_thread(function: Callable[..., Any], elsewhere: Callable[..., Any]) -> Callable[..., Any]:
    """Return `function` for calls of the current thread, and `elsewhere` for those of others, as one function."""
    thread = threading.get_ident()

    @functools.wraps(function)
    def choose(*args: Any, **kwargs: Any) -> Any:
        return (function if threading.get_ident() == thread else elsewhere)(*args, **kwargs)

    return choose


def operator_namespace(target: Any) -> str | None:
    """Return the namespace of an operator, of all its overloads or of a higher-order one; None for other functions."""
    if isinstance(target, torch._ops.OpOverloadPacket):
        return target._qualified_op_name.split("::")[0]
    return str(getattr(target, "namespace", "")) if isinstance(target, torch._ops.OperatorBase) else None


def higher_order_name(target: Any) -> str:
    """Return the name of an operator on graphs, as ``"cond"``; "" for others."""
    return str(target.name()) if isinstance(target, torch._ops.HigherOrderOperator) else ""


def autocast_calls() -> tuple[Any, Any]:
    """Return the functions by which a graph of Dynamo enters and leaves a region of autocast."""
    from torch.amp import autocast_mode

    return autocast_mode._enter_autocast, autocast_mode._exit_autocast


def is_module_state(placeholder: fx.Node) -> bool:
    """Return whether a placeholder of Dynamo's graph is a parameter, or a buffer of a module.

    Dynamo marks them like other tensors of a fixed address, as the caches of transformers.
    """
    source = getattr(getattr(placeholder, "_dynamo_source", None), "guard_source", None)
    of_module = source is None or source.is_unspecialized_nn_module() or source.is_specialized_nn_module()
    is_parameter = isinstance(placeholder.meta.get("example_value"), torch.nn.Parameter)
    return "_dynamo_static_input_type" in (placeholder.meta.get("tensor_dict") or {}) and (of_module or is_parameter)


def source_name(placeholder: fx.Node) -> str:
    """Return the expression of a placeholder of Dynamo's graph in the user's code, as ``L['logits_to_keep']``."""
    return str(getattr(getattr(placeholder, "_dynamo_source", None), "name", placeholder.name))


def without_base(value: torch.Tensor) -> torch.Tensor:
    """Return a view as a tensor of its own in the same memory: `torch.export` guards sizes of what it is a view of."""
    return value.data if value._is_view() and type(value) is torch.Tensor else value


def storage_id(value: torch.Tensor) -> int:
    """Return a number that is equal for tensors, fake ones too, that share storage."""
    return int(value.untyped_storage()._cdata)


def mode_counts() -> list[int]:
    """Return how many modes look at each function and each operator."""
    return [torch._C._len_torch_function_stack(), torch._C._len_torch_dispatch_stack()]


def functorch_settings() -> str:
    """Return a digest of the settings of functionalization and decomposition."""
    from torch._functorch import config

    return str(config.get_hash().hex())


def is_constraint_violation(error: Exception) -> bool:
    """Return whether `torch.export` refuses a dynamic size, since the model restricts it."""
    from torch._dynamo.exc import UserError, UserErrorType

    return isinstance(error, UserError) and error.error_type is UserErrorType.CONSTRAINT_VIOLATION


def is_data_dependent(error: Exception) -> bool:
    """Return whether a trace ended at a number that is known only at run time."""
    from torch._dynamo.exc import UserError
    from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode

    causes = (error, error.__cause__, error.__context__)
    return any(isinstance(each, GuardOnDataDependentSymNode) for each in causes) or (
        isinstance(error, UserError) and "data-dependent" in str(error)
    )


def sizes_from_zero() -> contextlib.AbstractContextManager[Any]:
    """Return a context in which a result of an operator may have any size that depends on data.

    torchvision's `nms` asks for such a size by an old name, by which PyTorch takes it for at least 2, and the exported
    program raises where one box is left.
    """
    from torch._library.fake_impl import FakeImplCtx

    return mock.patch.object(FakeImplCtx, "create_unbacked_symint", FakeImplCtx.new_dynamic_size)


def with_sympy_extrema(expression: Any) -> Any:
    """Return a sympy expression with sympy's own Min and Max, which simplify more than PyTorch's."""
    import sympy
    from torch.utils._sympy.functions import Max, Min

    return expression.replace(Min, sympy.Min).replace(Max, sympy.Max)


def new_export_mode(sizes: Any = None) -> FakeTensorMode:
    """Return a new fake mode for a graph as `torch.export` gives it; sizes: the ShapeEnv of those in it."""
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.fx.experimental.symbolic_shapes import ShapeEnv

    return FakeTensorMode(shape_env=sizes or ShapeEnv(), allow_non_fake_inputs=True, export=True)


def set_state_dict(program: torch.export.ExportedProgram, state: dict[str, Any]) -> None:
    """Replace the state of an exported program, of which the graph need not read each tensor."""
    program._state_dict = state


# Calls of modules --------------------------------------------------------------------------------------------------


def uncompiled_call(module: torch.nn.Module) -> Callable[..., Any]:
    """Return the call of a module with its hooks, as PyTorch runs it where nothing is compiled."""
    return module._call_impl


def forward_hooks(module: torch.nn.Module) -> MutableMapping[int, Callable[..., Any]]:
    """Return the hooks that run after a module's forward, by number; to delete one is to remove it."""
    return module._forward_hooks


def compiled_call(module: Any) -> Any:
    """Return what `nn.Module.compile` or `set_compiled_call` made of a module's call; None if there is nothing."""
    return getattr(module, "_compiled_call_impl", None)


def set_compiled_call(module: torch.nn.Module, call: Callable[..., Any] | None) -> None:
    """Let PyTorch run `call` where the module is called; None undoes it. Copies and pickles leave it out."""
    module._compiled_call_impl = call


# Processes ---------------------------------------------------------------------------------------------------------


def is_fork_of_cuda_process() -> bool:
    """Return whether this process was forked from one that uses CUDA, so that it cannot use CUDA itself."""
    return bool(torch.cuda._is_in_bad_fork())
