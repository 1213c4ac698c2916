"""Private names of traces: how operators are decomposed there, and what a trace knows of its symbolic sizes.

All that differs there between versions of PyTorch is here. The other private names are in `torch_internals`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import Any
from unittest import mock

import sympy
import torch
from torch._export import config as export_config
from torch.export import ExportedProgram, exported_program
from torch.fx.experimental import _config as size_config
from torch.fx.experimental import symbolic_shapes
from torch.utils._sympy import functions, numbers
from torch.utils._sympy.value_ranges import ValueRanges

from torchtrt_bridge.graph.torch_internals import for_this_thread

Table = dict[Any, Callable[..., Any]]

SPLIT = "_split_decomp_table_to_cia_and_python_decomp"


def compiled_functions_kept() -> contextlib.AbstractContextManager[Any]:
    """Return a context in which `torch.export` in strict mode leaves to Dynamo what it has compiled in this process.

    It lets Dynamo forget all first: other models would be compiled again, and a compilation that waits for this export
    would read a list of graphs that is no more, which is a crash.
    """
    return mock.patch.object(torch._dynamo, "reset", for_this_thread(lambda: None, torch._dynamo.reset))


def decompose(
    program: ExportedProgram, whole: frozenset[Any], own: tuple[tuple[Any, Callable[..., Any]], ...]
) -> ExportedProgram:
    """Return a program in PyTorch's core operators and those in `whole`; own: decompositions of further operators.

    For each program PyTorch looks for all its composite operators, some 500, and overrides how each is decomposed: a
    fifth of a second. Here it does so for those in `whole` and `own`; the others are decomposed as they always are.
    The caller holds the tracing lock.
    """
    table, composite, others = _tables(whole, own)
    original = getattr(exported_program, SPLIT, None)
    with contextlib.ExitStack() as stack:
        if original is not None:
            split = for_this_thread(lambda given: (dict(composite), dict(others)), original)
            stack.enter_context(mock.patch.object(exported_program, SPLIT, split))
        decomposed: ExportedProgram = program.run_decompositions(table)
    return decomposed


@functools.lru_cache(maxsize=2)
def _tables(whole: frozenset[Any], own: tuple[tuple[Any, Callable[..., Any]], ...]) -> tuple[Table, Table, Table]:
    """Return all decompositions, those of them that change composite operators, and those of other operators."""
    table = {**dict(torch.export.default_decompositions().items()), **dict(own)}
    table = {op: function for op, function in table.items() if op not in whole}
    split = getattr(exported_program, SPLIT, None)
    if split is None:
        return table, {}, {}
    composite, others = split(dict(table))
    changed = {op: function for op, function in composite.items() if op in whole or op in dict(own)}
    return table, changed, others


# Where decompositions in Python are registered: PyTorch's own of recurrent layers are under both.
_COMPOSITE = torch._C.DispatchKey.CompositeImplicitAutograd
_KEYS = (_COMPOSITE, torch._C.DispatchKey.Autograd)


@contextlib.contextmanager
def traced_as(others: Mapping[Any, Callable[..., Any]]) -> Iterator[None]:
    """Let this thread trace each of these composite operators as another one, and not by its decomposition.

    What is no trace computes as ever: calls with tensors that have values, and other threads.
    The caller holds the tracing lock.
    """
    before = {op: dict(op.py_kernels) for op in others}
    try:
        for op, other in others.items():
            for key in _KEYS:
                kernel = op.py_kernels.get(key) or functools.partial(op._op_dk, _COMPOSITE)
                op.py_kernels[key] = for_this_thread(_where_traced(other, kernel), kernel)
            op._dispatch_cache.clear()
        yield
    finally:
        for op, kernels in before.items():
            op.py_kernels.clear()
            op.py_kernels.update(kernels)
            op._dispatch_cache.clear()


def _where_traced(other: Callable[..., Any], kernel: Callable[..., Any]) -> Callable[..., Any]:
    """Return a kernel that calls `other` with tensors of a trace, and `kernel` with those that have values."""

    def choose(first: Any, *args: Any, **kwargs: Any) -> Any:
        has_values = type(first) in (torch.Tensor, torch.nn.Parameter)
        return (kernel if has_values else other)(first, *args, **kwargs)

    return choose


def refusal(op: Any) -> Callable[..., Any]:
    """Return a kernel that ends a trace, as the sizes of what `op` gives depend on data: Dynamo breaks the graph."""
    from torch._subclasses.fake_tensor import DataDependentOutputException

    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise DataDependentOutputException(op)

    return refuse


def is_refused(error: BaseException) -> bool:
    """Return whether a trace ended at an operator whose results it cannot know, as a `refusal` ends it."""
    from torch._subclasses.fake_tensor import DataDependentOutputException

    return isinstance(error, DataDependentOutputException)


# Packed sequences --------------------------------------------------------------------------------------------------

_sizes_from_data: weakref.WeakKeyDictionary[Any, set[Any]] = weakref.WeakKeyDictionary()


def size_from_data(largest: Any = None) -> Any:
    """Return a new symbolic size of 1 or more that depends on data, as the fake kernel of an operator gives it.

    largest: the size, symbolic or not, that it is never above; None if there is none.
    """
    from torch._library.fake_impl import allocate_size

    environment = torch.library.get_ctx()._shape_env
    if environment is None:
        raise torch._subclasses.fake_tensor.DynamicOutputShapeException(torch.ops.aten.sym_size.int)
    size = allocate_size(environment, 1, largest if isinstance(largest, int) else None)
    if isinstance(largest, torch.SymInt):
        torch._check(size <= largest)
    _sizes_from_data.setdefault(environment, set()).update(size.node.expr.free_symbols)
    return size


def reads_size_from_data(environment: Any, condition: Any) -> bool:
    """Return whether a condition on the sizes of a trace is about one that `size_from_data` gave."""
    return not _sizes_from_data.get(environment, set()).isdisjoint(condition.free_symbols)


@contextlib.contextmanager
def squeezes_read_sizes() -> Iterator[None]:
    """End traces of this thread where a size of `size_from_data` decides whether a dimension is dropped.

    PyTorch takes such a size for one above 1.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode

    aten, dispatch = torch.ops.aten, FakeTensorMode.dispatch
    squeezes = (aten.squeeze.default, aten.squeeze.dim, aten.squeeze.dims)

    def read_and_dispatch(mode: Any, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for size in _squeezed_sizes(*args) if func in squeezes else ():
            if isinstance(size, torch.SymInt) and reads_size_from_data(size.node.shape_env, size.node.expr):
                bool(size == 1)  # raises what PyTorch does where the size is not known
        return dispatch(mode, func, types, args, kwargs)

    with mock.patch.object(FakeTensorMode, "dispatch", for_this_thread(read_and_dispatch, dispatch)):
        yield


def _squeezed_sizes(value: torch.Tensor, dims: Any = None) -> list[Any]:
    if dims is None or value.dim() == 0:
        return list(value.shape)
    return [value.shape[dim] for dim in ([dims] if isinstance(dims, int) else dims)]


@contextlib.contextmanager
def padding_functions_replaced(pack: Callable[..., Any], pad: Callable[..., Any]) -> Iterator[None]:
    """Let `torch.nn.utils.rnn` call other functions than PyTorch's operators in this thread."""
    functions: Any = torch._VF
    others = {"_pack_padded_sequence": pack, "_pad_packed_sequence": pad}
    with contextlib.ExitStack() as stack:
        for name, other in others.items():
            replaced = for_this_thread(other, getattr(functions, name))
            stack.enter_context(mock.patch.object(functions, name, replaced, create=True))
        yield


def flat_weights(layer: torch.nn.RNNBase) -> list[Any]:
    """Return the weights of a recurrent layer in the order of its operator's argument, as its `forward` reads them."""
    layer._update_flat_weights()
    return layer._flat_weights


# Symbolic sizes ----------------------------------------------------------------------------------------------------

# What a ShapeEnv holds of the trace that filled it: where symbols and facts came from, and answers given before.
_OF_THE_TRACE = frozenset(
    {
        "_equality_graph",
        "_expr_sym_node_id",
        "_prev_cache_key",
        "_replacements_version_counter",
        "_symop_cache",
        "_unbacked_replacements",
        "_version_counter",
        "co_fields",
        "counter",
        "dim_constraints",
        "fake_tensor_cache",
        "fx_node_cache",
        "log",
        "name_to_symbol",
        "replacements_slocs",
        "source_name_to_debug_name",
        "source_to_var",
        "specialization_stacks",
        "symbol_guard_counter",
        "tracked_fakes",
        "unique_ids",
        "val_to_var",
        "var_to_range_sloc",
        "var_to_sources",
        "var_to_stack",
    }
)
_FACTS = frozenset(
    {
        "_resimplify_floor_div_axioms",
        "axioms",
        "backed_var_to_val",
        "divisible",
        "frozen",
        "guards",
        "replacements",
        "settings",
        "var_to_range",
    }
)


@dataclasses.dataclass(frozen=True)
class SizeFacts:
    """What a trace has found out about its symbolic sizes; the expressions are sympy's.

    settings: how it reasons about sizes.
    is_frozen: whether it is done.
    is_simplified: whether the axioms are in the form that follows from the replacements and the divisible sizes.
    symbols: each symbol, with its size in the example, the smallest and the largest.
    replacements: the expression that a symbol is known to be equal to.
    divisible: the remainders that are known to be 0.
    guards: each condition that it assumes, and whether that leaves the sizes 0 and 1 aside.
    axioms: each condition that follows from these, and whether it holds.
    """

    settings: dict[str, bool]
    is_frozen: bool
    is_simplified: bool
    symbols: list[tuple[Any, Any, Any, Any]]
    replacements: list[tuple[Any, Any]]
    divisible: list[Any]
    guards: list[tuple[Any, bool]]
    axioms: list[tuple[Any, Any]]


def _new_environment(settings: Mapping[str, Any]) -> Any:
    return symbolic_shapes.ShapeEnv(**settings)


def facts_of_sizes(environment: Any) -> SizeFacts:
    """Return what a ShapeEnv knows; ValueError if that is more than facts hold, as of sizes that depend on data."""
    settings = dataclasses.asdict(environment.settings)
    new = vars(_new_environment(settings))
    for name, value in vars(environment).items():
        if name not in _FACTS | _OF_THE_TRACE and (name not in new or value != new[name]):
            raise ValueError(f"the trace has {name} of its sizes")
    values, ranges = environment.backed_var_to_val, environment.var_to_range
    if values.keys() != ranges.keys():
        raise ValueError("a size depends on data")
    return SizeFacts(
        settings,
        environment.frozen,
        not environment._resimplify_floor_div_axioms,
        [(symbol, values[symbol], known.lower, known.upper) for symbol, known in ranges.items()],
        list(environment.replacements.items()),
        sorted(environment.divisible, key=str),
        [(guard.expr, guard.size_oblivious) for guard in environment.guards],
        list(environment.axioms.items()),
    )


def environment_from_facts(facts: SizeFacts) -> Any:
    """Return a new ShapeEnv that knows these facts; AssertionError if a symbol's size is not in its range."""
    environment = _new_environment(facts.settings)
    for symbol, value, lowest, highest in facts.symbols:
        environment.add_backed_var_to_val(symbol, int(value))
        environment._update_var_to_range(symbol, ValueRanges(lowest, highest))
    environment.replacements.update(facts.replacements)
    environment.divisible.update(facts.divisible)
    guard: Any = symbolic_shapes.ShapeGuard  # type: ignore[attr-defined]
    place = environment._get_sloc()
    environment.guards += [guard(condition, place, size_oblivious=flag) for condition, flag in facts.guards]
    environment.frozen = facts.is_frozen
    learn_axioms(environment, facts)
    return environment


def learn_axioms(environment: Any, facts: SizeFacts) -> None:
    """Let a ShapeEnv have the axioms of these facts and no others, and forget the answers that it gave before."""
    environment.axioms = dict(facts.axioms)
    environment._update_version_counter()
    environment._version_counter += 1
    environment._resimplify_floor_div_axioms = not facts.is_simplified


def expression_class(name: str) -> type[sympy.Basic]:
    """Return the class of expressions of sizes of this name, PyTorch's before sympy's; ValueError if there is none."""
    found = next((getattr(module, name) for module in (functions, numbers, sympy) if hasattr(module, name)), None)
    if not isinstance(found, type) or not issubclass(found, sympy.Basic):
        raise ValueError(f"{name} is no class of expressions")
    return found


def value_in_example(expression: Any, environment: Any) -> Any:
    """Return what an expression is for the sizes of the example that was traced."""
    return expression.xreplace(environment.backed_var_to_val)


def symbolic_number(expression: Any, kind: str, environment: Any) -> Any:
    """Return a number that a ShapeEnv knows as an expression: an "int", a "float" or a "bool"."""
    if kind == "bool":
        return environment.create_symboolnode(expression)
    example = value_in_example(expression, environment)
    if kind == "float":
        return environment.create_symfloatnode(expression, hint=float(example))
    return environment.create_symintnode(expression, hint=int(example))


def has_hints(value: torch.Tensor) -> bool:
    """Return whether `mark_dynamic` gave a tensor sizes for a trace that it does not have, as hints."""
    return bool(getattr(value, "_dynamo_hint_overrides", None))


def size_settings() -> list[str]:
    """Return digests of the settings by which PyTorch reasons about symbolic sizes, and by which it exports."""
    modules: tuple[Any, ...] = (size_config, export_config)
    return [str(module.get_hash().hex()) for module in modules]
