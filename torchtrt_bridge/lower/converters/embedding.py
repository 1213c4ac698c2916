"""Rows of a table by their numbers."""

from __future__ import annotations

import torch

from torchtrt_bridge.lower.registry import converter

aten = torch.ops.aten


@converter(aten.embedding.default, movement="gather")
def embedding(ctx, weight, indices, padding_idx=-1, scale_grad_by_freq=False, sparse=False):
    """embedding(Tensor weight, Tensor indices, SymInt padding_idx=-1, bool scale_grad_by_freq=False,
    bool sparse=False) -> Tensor

    The other arguments are about gradients."""
    return ctx.network.add_gather(ctx.tensor(weight), ctx.tensor(indices), 0).get_output(0)
