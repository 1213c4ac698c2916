"""Edits of weights that PyTorch makes in place without counting them: by fused optimizers, and by batch norm.

The version of a tensor rises with each edit in place, and tells that engines hold older values. These edits leave it.
"""

from __future__ import annotations

import functools
import gc
from collections.abc import Sequence
from typing import Any

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

# The statistics of a batch norm, which its kernels write in training, and what the layer counts beside them.
STATISTICS = ("running_mean", "running_var")
COUNTER = "num_batches_tracked"


@functools.cache
def watch_fused_steps() -> None:
    """Let the weights that a fused optimizer has edited count as edited, from now on."""
    register_optimizer_step_post_hook(_after_step)


def _after_step(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
    fused = (group["params"] for group in optimizer.param_groups if group.get("fused"))
    edited = [weight for weights in fused for weight in weights if weight.grad is not None]
    if edited:  # else nothing that would break a graph where a step is compiled
        torch.autograd.graph.increment_version([weight for weight in edited if not weight.is_inference()])


def counters_of(statistics: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Return what the batch norms that hold these statistics count: a tensor that is edited with them.

    Nothing leads from a statistic to its layer, so all objects that refer to one are looked at, in some 0.1 s.
    """
    if not statistics:
        return []
    holders = [holder for holder in gc.get_referrers(*statistics) if isinstance(holder, dict) and COUNTER in holder]
    counters = {id(holder[COUNTER]): holder[COUNTER] for holder in holders if _holds(holder, statistics)}
    return [counter for counter in counters.values() if isinstance(counter, torch.Tensor)]


def _holds(holder: dict[Any, Any], statistics: Sequence[torch.Tensor]) -> bool:
    return any(holder.get(name) is value for name in STATISTICS for value in statistics)
