"""The operator that writes new keys or values into a cache of fixed length, as a decoder does in each layer.

Importing this module registers it as ``torch.ops.torchtrt_bridge.kv_cache_update``.
"""

from __future__ import annotations

import torch
from torch import Tensor, fx

from torchtrt_bridge.graph.ops import NAMESPACE
from torchtrt_bridge.graph.ops import own as own

# The dimension along which a cache grows, of (batch, heads, length, head size).
LENGTH = 2


@torch.library.custom_op(
    f"{NAMESPACE}::kv_cache_update", mutates_args=(), schema="(Tensor cache, Tensor update, Tensor start) -> Tensor"
)
def kv_cache_update(cache: Tensor, update: Tensor, start: Tensor) -> Tensor:
    """Return a copy of `cache` with `update` written at the positions start, start + 1, ...

    cache: of shape (batch, heads, capacity, head size).
    update: of shape (batch, heads, length, head size) and of the same dtype.
    start: an integer of shape (). A negative one counts from the end.
    """
    return update_in_place(cache.clone(), update, start)


@kv_cache_update.register_fake
def _(cache: Tensor, update: Tensor, start: Tensor) -> Tensor:
    return torch.empty_like(cache)


def update_in_place(cache: Tensor, update: Tensor, start: Tensor) -> Tensor:
    """Compute `kv_cache_update` in the memory of `cache`, and return `cache`."""
    positions = start + torch.arange(update.shape[LENGTH], device=cache.device)
    cache[:, :, positions] = update
    return cache


def write_in_place(module: fx.GraphModule) -> None:
    """Let PyTorch write the caches among the inputs of `module` in place, as an engine does."""
    for node in _updates(module):
        node.target = update_in_place
    module.recompile()


def written_inputs(module: fx.GraphModule) -> tuple[int, ...]:
    """Return the indices of the inputs of `module` that are caches, which whoever computes it may write in place."""
    caches = {node.args[0] for node in _updates(module)}
    placeholders = module.graph.find_nodes(op="placeholder")
    return tuple(index for index, node in enumerate(placeholders) if node in caches)


def _updates(module: fx.GraphModule) -> list[fx.Node]:
    """Return the calls that update an input."""
    calls = (own.kv_cache_update.default, update_in_place)
    return [
        node
        for node in module.graph.nodes
        if node.target in calls and isinstance(node.args[0], fx.Node) and node.args[0].op == "placeholder"
    ]
