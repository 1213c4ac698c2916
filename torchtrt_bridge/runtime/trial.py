"""The trial of an engine on the first real inputs: is it right, and is it faster than what it replaces?"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence

import torch

from torchtrt_bridge.check import Yardstick, difference
from torchtrt_bridge.errors import BridgeError
from torchtrt_bridge.runtime.recording import Recording

Run = Callable[[Sequence[torch.Tensor]], Sequence[torch.Tensor]]
ENGINE, PYTORCH, INDUCTOR, UNQUANTIZED = "engine", "PyTorch", "inductor", "unquantized"

# TensorRT-RTX 1.6 was seen to give other results from one run to the next on an H100 (fp32 convolutions of ResNet-50
# went from an error of 5e-4 to 1e-1 at the second call, or at the first replay): every one of these runs must be right.
PLAIN_RUNS = 2
REPLAYS = 6

# What a timed trial may cost, in calls of PyTorch's own; and the most calls of one contender.
BUDGET_CALLS = 10
MOST_CALLS = 20

# The engine stays unless another is faster by more than what two measurements of one thing differ by: the middle half
# of the replays of an engine on an H100 lay within 0.6 %.
CLEARLY = 0.99


@dataclasses.dataclass
class Outcome:
    """What a trial found.

    results: the engine's.
    error: relative L2 distance to PyTorch, the worst of all runs.
    problem: why the engine is not to be used; None if it is right.
    seconds: time per call of each contender; empty if they were not timed.
    """

    results: Sequence[torch.Tensor]
    error: float = 0.0
    problem: str | None = None
    seconds: dict[str, float] = dataclasses.field(default_factory=dict)

    @property
    def winner(self) -> str:
        """The fastest, where the engine stays unless another is clearly faster."""
        if not self.seconds:
            return ENGINE
        best = min(self.seconds, key=self.seconds.__getitem__)
        return best if self.seconds[best] < CLEARLY * self.seconds[ENGINE] else ENGINE


class Trial:
    """One engine on one set of inputs.

    yardstick: PyTorch's results, and how far from them rounding explains others.
    recorded: whether later calls will be replayed from a CUDA graph, so that this is what counts.
    plain_runs: how often the engine is checked call by call.
    """

    def __init__(
        self,
        inputs: Sequence[torch.Tensor],
        yardstick: Yardstick,
        recorded: bool,
        plain_runs: int = PLAIN_RUNS,
    ) -> None:
        self.inputs = inputs
        self.yardstick = yardstick
        self.recorded = recorded
        self.plain_runs = plain_runs
        self._on_gpu = any(value.is_cuda for value in inputs)
        self._right: list[torch.Tensor] = []
        self._ends = float("inf")

    def run(self, engine: Run, others: Mapping[str, Run]) -> Outcome:
        """Check the engine in each way that later calls may take, and time it against `others`, if there are any.

        others: PyTorch, and whoever else may serve; timing them all costs about BUDGET_CALLS calls of PyTorch.
        """
        outcome = Outcome(engine(self.inputs))
        if not self._is_right(outcome.results, outcome):
            return outcome
        if others:
            outcome.seconds[PYTORCH] = self._seconds(others[PYTORCH])
            self._ends = time.perf_counter() + BUDGET_CALLS * outcome.seconds[PYTORCH]
            outcome.seconds[ENGINE] = self._seconds(engine)
        recording = self._recording(engine)
        if not self._stays_right(engine, recording, outcome):
            return outcome
        has_time = time.perf_counter() < self._ends
        if others and has_time:
            outcome.seconds[ENGINE] = self._seconds_per_call(engine, recording, share=len(others) + 1)
        for left, (name, run) in zip(range(len(others), 0, -1), others.items(), strict=True):
            if has_time or name not in outcome.seconds:
                outcome.seconds[name] = self._seconds_per_call(run, self._recording(run), share=left)
        return outcome

    def _stays_right(self, engine: Run, recording: Recording | None, outcome: Outcome) -> bool:
        """Run and replay the engine again and again; a wrong result ends it, as does half of the time."""
        half = time.perf_counter() + (self._ends - time.perf_counter()) / 2
        for _ in range(self.plain_runs - 1):
            if not self._is_right(engine(self.inputs), outcome):
                return False
        for _ in range(REPLAYS if recording is not None else 0):
            assert recording is not None
            recording(self.inputs)
            if not self._is_right(recording.outputs, outcome):
                return False
            if time.perf_counter() > half:
                break
        return True

    def _is_right(self, results: Sequence[torch.Tensor], outcome: Outcome) -> bool:
        """Compare with PyTorch's results; to be equal to what was found right is enough."""
        if self._right and _equal(results, self._right):
            return True
        yardstick = self.yardstick
        verdict = difference(results, yardstick.expected, yardstick.bound, yardstick.share)
        outcome.error = max(outcome.error, verdict.error)
        outcome.problem = verdict.problem
        if verdict.problem is None and not self._right:
            self._right = [value.clone() for value in results]
        return verdict.problem is None

    def _recording(self, run: Run) -> Recording | None:
        """The call as a CUDA graph, if that is what later calls use and it can be captured."""
        if not self.recorded:
            return None
        try:
            return Recording(lambda *values: run(values), self.inputs)
        except (RuntimeError, BridgeError):
            return None

    def _seconds_per_call(self, run: Run, recording: Recording | None, share: int) -> float:
        """The time of a call when many are queued; `share`: how many contenders divide the time that is left."""
        call = run if recording is None else recording
        once = self._seconds(call)
        left = (self._ends - time.perf_counter()) / share
        calls = max(1, min(MOST_CALLS, int(left / max(once, 1e-9))))
        return min(once, self._seconds(call, calls) / calls)

    def _seconds(self, call: Callable[[Sequence[torch.Tensor]], object], calls: int = 1) -> float:
        self._wait()
        started = time.perf_counter()
        for _ in range(calls):
            call(self.inputs)
        self._wait()
        return time.perf_counter() - started

    def _wait(self) -> None:
        if self._on_gpu:
            torch.cuda.synchronize()


def _equal(left: Sequence[torch.Tensor], right: Sequence[torch.Tensor]) -> bool:
    return all(a.dtype == b.dtype and torch.equal(a, b) for a, b in zip(left, right, strict=True))
