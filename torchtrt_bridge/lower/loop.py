"""A loop of TensorRT: the same layers run once for each step of a sequence."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from torchtrt_bridge.lower.context import Context


class Loop:
    """A loop that runs `length` times.

    Layers that are added after `each` and `state`, and read what these return, are in the loop. An engine whose loop
    has a length that is known only at run time cannot be captured in a CUDA graph.
    """

    def __init__(self, ctx: Context, length: int) -> None:
        self.ctx = ctx
        self.loop = ctx.network.add_loop()
        self._length = ctx.constant(length, torch.int32)
        self._add("trip_limit", self.loop.add_trip_limit, self._length, ctx.trt.TripLimit.COUNT)

    def each(self, tensor: Any) -> Any:
        """Return, in each step, the next of the parts of `tensor` along its first dimension."""
        return self._add("iterator", self.loop.add_iterator, tensor, 0).get_output(0)

    def state(self, initial: Any) -> Any:
        """Return the layer of a tensor that a step gives to the next one by `set_input(1, ...)`."""
        return self._add("recurrence", self.loop.add_recurrence, initial)

    def collected(self, tensor: Any) -> Any:
        """Return what `tensor` was in each step, along a new first dimension."""
        layer = self._add("outputs", self.loop.add_loop_output, tensor, self.ctx.trt.LoopOutput.CONCATENATE, 0)
        layer.set_input(1, self._length)
        return layer.get_output(0)

    def last(self, state: Any) -> Any:
        """Return what the last step gave to a state."""
        last_value = self.ctx.trt.LoopOutput.LAST_VALUE
        return self._add("last", self.loop.add_loop_output, state.get_output(0), last_value, 0).get_output(0)

    def _add(self, kind: str, method: Callable[..., Any], *args: Any) -> Any:
        return self.ctx.network.named(f"loop_{kind}", method)(*args)
