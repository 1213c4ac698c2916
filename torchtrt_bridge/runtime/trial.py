"""The trial of an engine on the first real inputs: is it right, and is it faster than what it replaces?"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence

import torch

from torchtrt_bridge.errors import BridgeError
from torchtrt_bridge.runtime.cuda_graph import CudaGraphCall
from torchtrt_bridge.runtime.tolerance import Reference, difference

Run = Callable[[Sequence[torch.Tensor]], Sequence[torch.Tensor]]
Call = Callable[[Sequence[torch.Tensor]], object]
ENGINE, PYTORCH, INDUCTOR, UNQUANTIZED = "engine", "PyTorch", "inductor", "unquantized"

# TensorRT-RTX 1.6 was seen to give other results from one run to the next on an H100 (fp32 convolutions of ResNet-50
# went from an error of 5e-4 to 1e-1 at the second call, or at the first replay): every one of these runs must be right.
PLAIN_RUNS = 2
REPLAYS = 6

# What a timed trial may cost, in calls of PyTorch's own, beside the capture of a CUDA graph for each contender; in how
# many turns each is timed, as what else works on the GPU may disturb one; and the most calls in one turn.
BUDGET_CALLS = 10
TURNS = 4
LEAST_TURNS = 2
MOST_CALLS = 10

# One whose first call took so many times as long as PyTorch's, operator by operator, gets no more turns.
HOPELESS = 2

# The engine stays unless another is faster by more than what two measurements of one thing differ by: the middle half
# of the replays of an engine on an H100 lay within 0.6 %.
CLEARLY = 0.99

# The context in which every trial runs. Processes that share a GPU put a lock here, so that each measures alone.
exclusive: Callable[[], contextlib.AbstractContextManager[object]] = contextlib.nullcontext


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

    reference: PyTorch's results, and how far from them rounding explains others.
    recorded: whether later calls will be replayed from a CUDA graph, so that this is what counts.
    plain_runs: how often the engine is checked call by call.
    """

    def __init__(
        self,
        inputs: Sequence[torch.Tensor],
        reference: Reference,
        recorded: bool,
        plain_runs: int = PLAIN_RUNS,
    ) -> None:
        self.inputs = inputs
        self.reference = reference
        self.recorded = recorded
        self.plain_runs = plain_runs
        self._on_gpu = any(value.is_cuda for value in inputs)
        self._right: list[torch.Tensor] = []
        self._once = self._left = float("inf")

    def run(self, engine: Run, others: Mapping[str, Run]) -> Outcome:
        """Check the engine in each way that later calls may take, and time it against `others`, if there are any.

        others: PyTorch, and whoever else may serve, all known to be right and called before; timing them costs about
            BUDGET_CALLS calls of PyTorch.
        """
        with exclusive():
            return self._run(engine, others)

    def _run(self, engine: Run, others: Mapping[str, Run]) -> Outcome:
        outcome = Outcome(engine(self.inputs))
        if not self._is_right(outcome.results, outcome):
            return outcome
        if others:
            self._once = self._seconds(others[PYTORCH])
            self._left = (BUDGET_CALLS - 1) * self._once
        recording = self._recording(engine)
        if self._stays_right(engine, recording, outcome) and others:
            rest = {name: self._recording(run) or run for name, run in others.items()}
            outcome.seconds = self._race({ENGINE: recording or engine, **rest})
        return outcome

    def _stays_right(self, engine: Run, recording: CudaGraphCall | None, outcome: Outcome) -> bool:
        """Run and replay the engine again and again; a wrong result ends it, as does half of the time."""
        started, half = time.perf_counter(), self._left / 2
        for _ in range(self.plain_runs - 1):
            if not self._is_right(engine(self.inputs), outcome):
                return False
        for _ in range(REPLAYS if recording is not None else 0):
            assert recording is not None
            recording(self.inputs)
            if not self._is_right(recording.outputs, outcome):
                return False
            if time.perf_counter() - started > half:
                break
        self._left -= time.perf_counter() - started
        return True

    def _is_right(self, results: Sequence[torch.Tensor], outcome: Outcome) -> bool:
        """Compare with PyTorch's results; to be equal to what was found right is enough."""
        if self._right and _equal(results, self._right):
            return True
        reference = self.reference
        comparison = difference(results, reference.expected, reference.bound, reference.share)
        outcome.error = max(outcome.error, comparison.error)
        outcome.problem = comparison.problem
        if comparison.problem is None and not self._right:
            self._right = [value.clone() for value in results]
        return comparison.problem is None

    def _recording(self, run: Run) -> CudaGraphCall | None:
        """The call as a CUDA graph, if that is what later calls use and it can be captured."""
        if not self.recorded:
            return None
        try:
            return CudaGraphCall(lambda *values: run(values), self.inputs)
        except (RuntimeError, BridgeError):
            return None

    def _race(self, contenders: Mapping[str, Call]) -> dict[str, float]:
        """The time of a call of each when many are queued: the best of its turns, which they take one after the other.

        What disturbs a turn, on a GPU that others use too, so decides nothing.
        """
        best = {name: self._seconds(call) for name, call in contenders.items()}
        hopeful = [name for name, seconds in best.items() if seconds < HOPELESS * self._once]
        calls = int(self._left / (TURNS * max(sum(best.values()), 1e-9)))
        calls = max(1, min(MOST_CALLS, calls))
        for turn in range(TURNS):
            if turn >= LEAST_TURNS and self._left <= 0:
                break
            for name in hopeful:
                best[name] = min(best[name], self._seconds(contenders[name], calls) / calls)
        return best

    def _seconds(self, call: Call, calls: int = 1) -> float:
        """The time of so many calls, which is taken off what is left."""
        self._wait()
        started = time.perf_counter()
        for _ in range(calls):
            call(self.inputs)
        self._wait()
        seconds = time.perf_counter() - started
        self._left -= seconds
        return seconds

    def _wait(self) -> None:
        if self._on_gpu:
            torch.cuda.synchronize()


def _equal(left: Sequence[torch.Tensor], right: Sequence[torch.Tensor]) -> bool:
    return all(a.dtype == b.dtype and torch.equal(a, b) for a, b in zip(left, right, strict=True))
