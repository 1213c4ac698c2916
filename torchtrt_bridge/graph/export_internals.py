"""Private names by which operators are decomposed in traces: in less time, or not. The others are in `torch_internals`.

All that differs there between versions of PyTorch is here.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any
from unittest import mock

import torch
from torch.export import ExportedProgram, exported_program

from torchtrt_bridge.graph.torch_internals import for_this_thread

Table = dict[Any, Callable[..., Any]]

SPLIT = "_split_decomp_table_to_cia_and_python_decomp"


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
