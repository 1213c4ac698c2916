"""Private names by which Dynamo's traces and graph breaks are seen, its graphs forgotten, and export is kept quiet.

All that differs there between versions of PyTorch is here. The rest of PyTorch's private names are in
`torch_internals`.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import inspect
import logging
import threading
import types
import warnings
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any
from unittest import mock

import torch

from torchtrt_bridge.graph.export_internals import reads_size_from_data, refusal
from torchtrt_bridge.graph.torch_internals import for_this_thread

Function = Callable[..., Any]
GraphBreakListener = Callable[[Any, types.CodeType, str, str], None]


def watch_graph_breaks(listener: GraphBreakListener) -> None:
    """Call `listener` at each graph break from now on, with the backend, the code object, the message and the trace.

    Dynamo counts some breaks, and others not: torch 2.11 and 2.14 log every one by this method. What `listener` raises
    ends the compilation as an error of the backend does.
    """
    from torch import _guards
    from torch._dynamo.exc import BackendCompilerFailed
    from torch._dynamo.symbolic_convert import InstructionTranslatorBase

    log = InstructionTranslatorBase.log_graph_break
    listeners: list[GraphBreakListener] | None = getattr(log, "listeners", None)
    if listeners is not None:
        if listener not in listeners:
            listeners.append(listener)
        return
    listeners = [listener]

    @functools.wraps(log)
    def log_and_call(translator: Any, code_options: Any, reason: str, exc: Any) -> None:
        is_new = not exc.logged
        log(translator, code_options, reason, exc)
        if is_new:
            stack = getattr(exc, "real_stack", None) or _guards.TracingContext.extract_stack()
            backend = innermost_backend(translator.output.compiler_fn)
            try:
                for listen in listeners:
                    listen(backend, translator.f_code, reason, "".join(stack.format()))
            except Exception as error:
                raise BackendCompilerFailed(backend, error, None) from error

    log_and_call.listeners = listeners  # type: ignore[attr-defined]
    InstructionTranslatorBase.log_graph_break = log_and_call  # type: ignore[method-assign, assignment]


def enter_in_traces(context_for: Callable[[Any], contextlib.AbstractContextManager[Any]]) -> None:
    """Let Dynamo trace within `context_for(backend)` from now on, where it holds its lock.

    A second call with the same function changes nothing.
    """
    from torch._dynamo.convert_frame import ConvertFrameAssert

    trace = ConvertFrameAssert.__call__
    if context_for in getattr(trace, "contexts", ()):
        return

    @functools.wraps(trace)
    def trace_within(tracer: Any, *args: Any, **kwargs: Any) -> Any:
        with context_for(innermost_backend(tracer)):
            return trace(tracer, *args, **kwargs)

    trace_within.contexts = (*getattr(trace, "contexts", ()), context_for)  # type: ignore[attr-defined]
    ConvertFrameAssert.__call__ = trace_within  # type: ignore[method-assign, assignment]


class _RecurrentLayersAllowed:
    """Dynamo's settings, of which one thread reads that recurrent layers are allowed."""

    def __init__(self, settings: Any) -> None:
        self._settings = settings
        self._thread = threading.get_ident()

    def __getattr__(self, name: str) -> Any:
        is_allowed = name == "allow_rnn" and threading.get_ident() == self._thread
        return is_allowed or getattr(self._settings, name)


def recurrent_layers_traced() -> contextlib.AbstractContextManager[Any]:
    """Return a context in which Dynamo of this thread traces nn.LSTM, nn.GRU and nn.RNN, where it breaks graphs else.

    Before torch 2.14, a setting that is changed is so for all threads. The caller holds Dynamo's lock.
    """
    from torch._dynamo import config
    from torch._dynamo.variables import builder

    return mock.patch.object(builder, "config", _RecurrentLayersAllowed(config))


@contextlib.contextmanager
def functions_traced_as(
    others: Mapping[Function, tuple[Function, Callable[[Sequence[type]], bool]]],
    in_graph: Sequence[Function],
    left: Function,
) -> Iterator[None]:
    """Let Dynamo of this thread trace other functions in place of some.

    others: for each function, the other one, and whether it is for arguments of these types, in the order of its
        parameters.
    in_graph: functions whose calls become calls in the graph.
    left: a function within which all are traced as ever.
    A size from data, as `size_from_data` gives it, is left to Python where Dynamo would take it for another size.
    The caller holds Dynamo's lock.
    """
    torch.compiler.allow_in_graph(list(in_graph))
    with contextlib.ExitStack() as stack:
        for context in _contexts_of(_TracesOfOthers(others, left)):
            stack.enter_context(context)
        yield


def _contexts_of(traces: _TracesOfOthers) -> list[contextlib.AbstractContextManager[Any]]:
    """Return the contexts in which Dynamo of this thread makes these traces.

    There are none for a PyTorch that has other names: it breaks the graph at these functions, as ever.
    """
    try:
        from torch._dynamo.symbolic_convert import InstructionTranslatorBase
        from torch._dynamo.variables.functions import SkipFunctionVariable
        from torch.fx.experimental.symbolic_shapes import ShapeEnv

        return [
            _in_this_thread(SkipFunctionVariable, "call_function", traces.call),
            _in_this_thread(InstructionTranslatorBase, "inline_user_function_return", traces.inline),
            _in_this_thread(ShapeEnv, "guard_or_defer_runtime_assert", traces.defer),
        ]
    except (ImportError, AttributeError):
        return []


def _in_this_thread(
    owner: type, name: str, replacement: Callable[[Function], Function]
) -> contextlib.AbstractContextManager[Any]:
    """Return a context in which calls of a method by this thread go to what `replacement` makes of it."""
    method = getattr(owner, name)
    return mock.patch.object(owner, name, for_this_thread(replacement(method), method))


class _TracesOfOthers:
    """Methods of Dynamo that trace functions in place of others; arguments as in `functions_traced_as`."""

    def __init__(
        self, others: Mapping[Function, tuple[Function, Callable[[Sequence[type]], bool]]], left: Function
    ) -> None:
        self.others, self.left = others, left
        self.environments: weakref.WeakSet[Any] = weakref.WeakSet()

    def call(self, skip: Function) -> Function:
        """Return a call of a function that Dynamo leaves to Python."""

        def call(variable: Any, translator: Any, args: Any, kwargs: Any) -> Any:
            other = self._other(translator, variable.value, args, kwargs)
            traced = functools.partial(skip, variable) if other is None else other.call_function
            return traced(translator, args, kwargs)

        return call

    def inline(self, inline: Function) -> Function:
        """Return a call of a function that Dynamo traces."""

        def call(translator: Any, variable: Any, args: Any, kwargs: Any, *rest: Any, **options: Any) -> Any:
            other = self._other(translator, getattr(variable, "fn", None), args, kwargs)
            return inline(translator, variable if other is None else other, args, kwargs, *rest, **options)

        return call

    def defer(self, defer: Function) -> Function:
        """Return what takes a condition on sizes for granted, to be asserted in each call."""

        def call(environment: Any, condition: Any, *rest: Any, **options: Any) -> Any:
            before = environment.num_deferred_runtime_asserts
            result = defer(environment, condition, *rest, **options)
            is_new = environment.num_deferred_runtime_asserts > before
            if is_new and environment in self.environments and reads_size_from_data(environment, condition):
                refusal(torch.ops.aten.sym_size.int)()
            return result

        return call

    def _other(self, translator: Any, function: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Return Dynamo's variable of the function to trace in place of one; None to trace that."""
        from torch._dynamo.variables.functions import UserFunctionVariable

        if function not in self.others or translator.f_code is self.left.__code__:
            return None
        other: Any
        other, is_for = self.others[function]
        types_of_arguments = _types_of_arguments(function, args, kwargs)
        if types_of_arguments is None or not is_for(types_of_arguments):
            return None
        self.environments.add(translator.output.shape_env)
        return UserFunctionVariable(other)


def _types_of_arguments(function: Function, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[type] | None:
    """Return the types of the arguments that Dynamo knows by its variables; None if it cannot tell."""
    try:
        bound = inspect.signature(function).bind(*args, **kwargs)
        return [argument.python_type() for argument in bound.arguments.values()]
    except (TypeError, NotImplementedError):
        return None


def sizes_traced_as(dynamic: bool | None) -> contextlib.AbstractContextManager[Any]:
    """Return a context in which Dynamo takes sizes as the argument `dynamic` of `torch.compile` says.

    A setting that is changed is so for all threads, before torch 2.14; the caller holds Dynamo's lock.
    """
    from torch._dynamo import config

    if dynamic is None:
        return contextlib.nullcontext()
    changes = {"assume_static_by_default": not dynamic} | ({} if dynamic else {"automatic_dynamic_shapes": False})
    return config.patch(changes)  # type: ignore[no-any-return]


@contextlib.contextmanager
def graphs_of_all_sizes(most: int) -> Iterator[None]:
    """Let Dynamo take each dynamic size of an input for one of its own, and make up to `most` graphs of a function.

    Otherwise sizes that are equal in the first call are one size, and a call in which they differ makes another graph.
    A setting that is changed is so for all threads; the caller holds Dynamo's lock.
    """
    from torch._dynamo import config
    from torch.fx.experimental import _config

    with _config.patch(use_duck_shape=False), config.patch(recompile_limit=most):  # type: ignore[attr-defined]
        yield


def innermost_backend(function: Any) -> Any:
    """Return the backend within what Dynamo wraps around it, as `torch.compile` was given it."""
    while hasattr(function, "_torchdynamo_orig_backend"):
        function = function._torchdynamo_orig_backend
    return function


def function_of_backend(backend: Any) -> Any:
    """Return the function or object that the user passed to `torch.compile`, or that a name stands for."""
    innermost = innermost_backend(backend)
    return getattr(innermost, "compiler_fn", innermost)


def compares_weights() -> bool:
    """Return whether Dynamo compares dtype, sizes, strides and `requires_grad` of each weight in each call.

    It does not while no dictionary of a module has changed, where "recursive dict tags" are in use: by default in torch
    2.11, and not in 2.14.
    """
    from torch._dynamo import config

    return not getattr(config, "use_recursive_dict_tags_for_guards", True)


def guards_are_skipped() -> bool:
    """Return whether `torch.compiler.set_stance` lets Dynamo check no more than what tells its graphs apart."""
    from torch._dynamo import eval_frame

    return bool(getattr(getattr(eval_frame, "_stance", None), "skip_guard_eval_unsafe", True))


def check_of_tensors(args: Sequence[Any], positions: Sequence[int]) -> Callable[[Any], bool] | None:
    """Return Dynamo's guards of tensors among `args`, for other arguments: the same ones, of the same kind as now.

    They run in C++: 200 tensors in 12 us. None for tensors that they are not for, as sparse ones, and for a PyTorch
    that has other names. The caller keeps the tensors alive.
    """
    try:
        from torch._C._dynamo.guards import RootGuardManager
        from torch._dynamo.guards import GuardManagerType

        root = RootGuardManager()
        for position in positions:
            tensor, kind = args[position], GuardManagerType.GUARD_MANAGER
            manager = root.tuple_getitem_manager(position, "", tensor, kind)
            manager.add_id_match_guard(id(tensor), [""], None)
            sizes, strides, keys = list(tensor.size()), list(tensor.stride()), torch._C._dispatch_keys(tensor)
            manager.add_tensor_match_guard(tensor, sizes, strides, "", [""], None, type(tensor), keys)
    except (ImportError, AttributeError, TypeError, RuntimeError):
        return None
    return lambda values: bool(root.check(tuple(values)))


def ends_in_break(module: torch.fx.GraphModule) -> bool:
    """Return whether Dynamo ended a graph at a line that it left to Python."""
    return bool(getattr(getattr(module, "compile_subgraph_reason", None), "graph_break", False))


def error_of_backend(error: Exception) -> Exception | None:
    """Return what a backend raised, of the exception that Dynamo makes of it; None for another exception."""
    from torch._dynamo.exc import BackendCompilerFailed

    return error.inner_exception if isinstance(error, BackendCompilerFailed) else None


def is_at_the_limit(code: types.CodeType) -> bool:
    """Return whether Dynamo has compiled a function as often as it does, for whichever backend, before it gives up."""
    from torch._C._dynamo.eval_frame import _debug_get_cache_entry_list
    from torch._dynamo import config

    return len(_debug_get_cache_entry_list(code)) >= config.recompile_limit


def backend_of_optimized(compiled: torch.nn.Module) -> Any:
    """Return the backend, as Dynamo holds it, of a module that `torch.compile` returned; None for another module."""
    return innermost_backend(getattr(getattr(compiled, "dynamo_ctx", None), "callback", None))


@contextlib.contextmanager
def forgetting_graphs(backend: Any) -> Iterator[None]:
    """Let Dynamo forget afterwards the graphs that it compiled for `backend` within, and which sizes it saw change.

    Graphs of other backends stay. Dynamo limits the number of graphs of a function, whatever their backend.
    """
    from torch._dynamo.convert_frame import register_bytecode_hook
    from torch._dynamo.pgo import get_code_state

    codes: list[types.CodeType] = []
    sizes = get_code_state()
    known = copy.deepcopy(dict(sizes))
    hook = register_bytecode_hook(lambda code, new: codes.append(code))
    try:
        yield
    finally:
        hook.remove()
        for code in set(codes):
            _forget(code, backend)
        sizes.clear()
        sizes.update(known)


def _forget(code: types.CodeType, backend: Any) -> None:
    """Let Dynamo forget what it compiled of one function for `backend`.

    Where other backends have graphs of the function, those of this one stay as entries that never match, and do not
    count for `recompile_limit`, as they seem to be of an object that is no argument.
    """
    from torch._C._dynamo.eval_frame import _debug_get_cache_entry_list, reset_code
    from torch._dynamo.guards import DeletedGuardManagerWrapper

    entries = _debug_get_cache_entry_list(code)
    own = [entry for entry in entries if function_of_backend(entry.backend) is backend]
    if len(own) == len(entries):
        reset_code(code)
        return
    for entry in own:
        never = DeletedGuardManagerWrapper("its graph was for one call")
        never.id_matched_objs = {"": weakref.ref(_forget)}
        state = entry.guard_manager.extra_state
        if state is not None:
            state.invalidate(entry, never)


@contextlib.contextmanager
def export_is_quiet() -> Iterator[None]:
    """Keep from the user the graph that `torch.export` prints for each failure, and warnings of its own work.

    Only of this thread: a program may call `torch.export` in another.
    """
    from torch.export import _trace

    thread = threading.get_ident()

    def print_elsewhere(*values: Any, **settings: Any) -> None:
        if threading.get_ident() != thread:
            print(*values, **settings)

    def is_of_users(record: logging.LogRecord) -> bool:
        return threading.get_ident() != thread or "Unable to find user code" not in record.getMessage()

    logger = logging.getLogger("torch.fx.experimental.symbolic_shapes")
    logger.addFilter(is_of_users)
    try:
        with mock.patch.object(_trace, "print", print_elsewhere, create=True), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=r"erase_node\(.*\) on an already erased node")
            # Recurrent layers list their weights anew in each call; PyTorch puts the list back after the trace.
            warnings.filterwarnings("ignore", message=r"The tensor attributes? self\..*_flat_weights\[")
            yield
    finally:
        logger.removeFilter(is_of_users)
