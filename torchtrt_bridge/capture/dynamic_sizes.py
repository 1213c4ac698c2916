"""Which sizes Dynamo traces as dynamic, as the argument `dynamic` of `torch.compile` says, for the threads that call.

`torch.compile` itself changes a setting of Dynamo around each call. In torch 2.11 that is one for all threads: two
calls of a model at a time could leave it changed, and every model that was compiled later had dynamic sizes, and slower
engines. Here it is changed while Dynamo traces, under its lock.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

import torch

from torchtrt_bridge.graph.dynamo_internals import enter_in_traces, sizes_traced_as

_DYNAMIC: ContextVar[bool | None] = ContextVar("dynamic", default=None)


def with_sizes(compiled: Callable[..., Any], dynamic: bool | None) -> Callable[..., Any]:
    """Return a result of `torch.compile` whose calls are traced with the sizes that its argument `dynamic` means.

    As with that argument, what such a call calls is traced in the same way; with None, as the caller's is.
    """
    if dynamic is None:
        return compiled
    enter_in_traces(_context_for)

    @functools.wraps(compiled)
    def call(*args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_dynamo_compiling():  # another model's trace, which this is a part of
            return compiled(*args, **kwargs)
        token = _DYNAMIC.set(dynamic)
        try:
            return compiled(*args, **kwargs)
        finally:
            _DYNAMIC.reset(token)

    return call


def _context_for(_: Any) -> contextlib.AbstractContextManager[Any]:
    return sizes_traced_as(_DYNAMIC.get())
