"""The engine of a quantized subgraph, beside one of the same subgraph that is not: 8 bits must be right and pay."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from concurrent.futures import Future

import torch
from torch import fx

from torchtrt_bridge.errors import BridgeError
from torchtrt_bridge.graph.shapes import TensorSpec
from torchtrt_bridge.options import Options
from torchtrt_bridge.report.log import warn_once
from torchtrt_bridge.report.model import EngineEntry
from torchtrt_bridge.runtime.engine_module import EngineModule, Runner
from torchtrt_bridge.runtime.tolerance import Reference, difference
from torchtrt_bridge.runtime.trial import ENGINE, UNQUANTIZED, Outcome, Run

# Two ways to round a quantized network, by a hair here and there, give results that differ as much as each does from
# floats: MobileNetV3's were seen 28 % from floats, and 24 % from each other. So an engine may be this much further from
# floats than PyTorch's own rounding is.
SLACK = 1.5

Pass = Callable[[fx.GraphModule], fx.GraphModule]


class QuantizedEngineModule(EngineModule):
    """A quantized subgraph, which becomes `rival` where its engine is missing, wrong, or slower than that.

    in_floats: gives the subgraph without rounding to 8 bits, against which the engine and PyTorch are both held.
    rival: the subgraph without quantization. It has a trial of its own, against its own form in PyTorch.
    """

    def __init__(
        self,
        pytorch: fx.GraphModule,
        specs: Sequence[TensorSpec],
        runner: Future[Runner | None] | Runner | None,
        entry: EngineEntry,
        options: Options,
        in_floats: Pass,
        rival: EngineModule | None = None,
    ) -> None:
        super().__init__(pytorch, specs, runner, entry, options)
        self._in_floats = in_floats
        if rival is not None:
            self.rivals.append(rival)

    def is_built(self) -> bool:
        return super().is_built() and all(rival.is_built() for rival in self.rivals)

    def _take(self, runner: Runner | None) -> None:
        super()._take(runner)
        if runner is None and self.rivals:
            self._become_rival(self.entry.state)

    def _reference(self, inputs: Sequence[torch.Tensor], expected: Sequence[torch.Tensor]) -> Reference:
        usual = super()._reference(inputs, expected)
        floats = self._in_floats(self.pytorch)(*inputs)
        rounding = difference(expected, floats, math.inf, 1.0)
        if rounding.problem is not None:  # not finite
            return usual
        return Reference(floats, max(usual.bound, SLACK * rounding.error), max(usual.share, SLACK * rounding.share))

    def _others(self, inputs: Sequence[torch.Tensor]) -> dict[str, Run]:
        others = super()._others(inputs)
        for rival in self.rivals if others else ():
            if self._is_tried(rival, inputs):
                assert rival._serve is not None
                others[UNQUANTIZED] = rival._serve
        return others

    def _settle(self, outcome: Outcome) -> None:
        if outcome.winner == UNQUANTIZED:
            mine, theirs = (outcome.seconds[name] * 1e3 for name in (ENGINE, UNQUANTIZED))
            self._become_rival(f"in 8 bits it takes {mine:.3g} ms, without quantization {theirs:.3g} ms")
        else:
            super()._settle(outcome)
            self.rivals.clear()

    def _give_up(
        self, why: str, inputs: Sequence[torch.Tensor], expected: Sequence[torch.Tensor] | None = None
    ) -> Sequence[torch.Tensor]:
        if not self.rivals:
            return super()._give_up(why, inputs, expected)
        self._become_rival(why)
        return self.forward(*inputs)

    def _is_tried(self, rival: EngineModule, inputs: Sequence[torch.Tensor]) -> bool:
        """Whether the rival's own trial, which these inputs begin, has found who serves it."""
        try:
            rival(*inputs)
        except (BridgeError, RuntimeError, MemoryError):  # with fallback="error"
            self.rivals.clear()
            return False
        return rival.is_settled and rival.entry.is_ready

    def _become_rival(self, why: str) -> None:
        """Be the rival from now on; if it has not been tried, the next call does."""
        rival = self.rivals.pop()
        rival.wait()
        self.pytorch, self.specs, self.runner = rival.pytorch, rival.specs, rival.runner
        self._inductor = rival._inductor
        self.entry.become(rival.entry)
        self.entry.unquantized = why
        self.changes.count += 1
        warn_once(f"{self.entry.name} is computed without quantization: {why}.")
        if not self.entry.is_ready:
            self._serve = self._without_engine
        elif rival.is_settled:
            self._let_serve(self.entry.choice)
        else:
            self._serve = None
