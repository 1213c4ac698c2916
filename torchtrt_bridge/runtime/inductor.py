"""PyTorch's own compiler, for what stays in PyTorch and as a contender in trials."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx
from torch._guards import tracing


def compiled_by_inductor(module: fx.GraphModule, inputs: Sequence[torch.Tensor]) -> Callable[..., Any]:
    """`module` compiled for inputs of these sizes.

    `torch.compile` would do nothing here: what Dynamo calls runs with Dynamo switched off.
    """
    from torch import _inductor

    with tracing(None), torch.no_grad():
        compiled: Callable[..., Any] = _inductor.compile(module, list(inputs))
    return compiled
