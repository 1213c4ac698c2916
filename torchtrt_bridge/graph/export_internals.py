"""A private name by which exported programs are decomposed in less time. The others are in `torch_internals`.

All that differs there between versions of PyTorch is here.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
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
