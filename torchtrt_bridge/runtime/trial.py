"""The trial of a subgraph's candidates on the first real inputs, and modules that are computed by its winner."""

from __future__ import annotations

import contextlib
import dataclasses
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import torch
from torch import fx, nn

from torchtrt_bridge.errors import BridgeError
from torchtrt_bridge.graph.kv_cache import written_inputs
from torchtrt_bridge.options import Options
from torchtrt_bridge.report.log import warn_once
from torchtrt_bridge.runtime.call_context import is_capturing, on_device
from torchtrt_bridge.runtime.cuda_graph import CudaGraphCall
from torchtrt_bridge.runtime.tolerance import Reference, compare, holds_nan

Run = Callable[[Sequence[torch.Tensor]], Sequence[torch.Tensor]]
Call = Callable[[Sequence[torch.Tensor]], object]
State = Literal["building", "untried", "serving", "failed"]
ENGINE, PYTORCH, INDUCTOR, UNQUANTIZED = "engine", "PyTorch", "inductor", "unquantized"
ENGINE_FOR_ALL_SIZES = "engine for all sizes"

# Results of one engine may differ from run to run, as those of kernels that do not wait for each other did
# (launch_order.py): every one of these runs must be right.
PLAIN_RUNS = 2
REPLAYS = 6

# What a timed trial may cost, in calls of PyTorch's own, beside the capture of a CUDA graph for each candidate; in how
# many turns each is timed, as what else works on the GPU may disturb one; and the most calls in one turn.
BUDGET_CALLS = 10
TURNS = 4
LEAST_TURNS = 2
MOST_CALLS = 10

# One whose first call took so many times as long as PyTorch's, operator by operator, gets no more turns.
HOPELESS = 2

# The preferred candidate stays unless another is faster by more than what two measurements of one thing differ by: the
# middle half of the replays of an engine on an H100 lay within 0.6 %.
CLEARLY = 0.99

# The context in which every trial runs. Processes that share a GPU put a lock here, so that each measures alone.
exclusive: Callable[[], contextlib.AbstractContextManager[object]] = contextlib.nullcontext


@dataclasses.dataclass(frozen=True)
class Candidate:
    """One way to compute a subgraph.

    prepare: returns what computes it, ready for calls with these inputs; None where it cannot.
    reference: the results that its own are compared with; None for one that is right by definition, as PyTorch is, or
        that `prepare` has checked.
    """

    name: str
    prepare: Callable[[Sequence[torch.Tensor]], Run | None]
    reference: Reference | None = None


def ready(name: str, run: Run, reference: Reference | None = None) -> Candidate:
    """Return a candidate that needs no preparation."""
    return Candidate(name, lambda inputs: run, reference)


@dataclasses.dataclass
class Outcome:
    """The result of a trial.

    preferred: the name of the candidate on trial, the first one.
    results: its results.
    error: relative L2 distance to its reference, the worst of all runs.
    problem: why it is not to be used; None if it is right.
    seconds: time per call of each candidate; empty if they were not timed.
    """

    preferred: str
    results: Sequence[torch.Tensor] = ()
    error: float = 0.0
    problem: str | None = None
    seconds: dict[str, float] = dataclasses.field(default_factory=dict)

    @property
    def winner(self) -> str:
        """The fastest candidate, where the preferred one stays unless another is clearly faster."""
        if not self.seconds:
            return self.preferred
        best = min(self.seconds, key=self.seconds.__getitem__)
        return best if self.seconds[best] < CLEARLY * self.seconds[self.preferred] else self.preferred

    @property
    def milliseconds(self) -> dict[str, float]:
        """Time per call of each candidate."""
        return {name: seconds * 1e3 for name, seconds in self.seconds.items()}


class Trial:
    """A trial of candidates on one set of inputs.

    candidates: the preferred one first, which is ready. It is checked in each way that later calls may take; if it is
        right, it is timed against the others, of which one is PyTorch. A list of one is only checked.
    is_replayed: whether later calls will be replayed from a CUDA graph, so that this is what counts.
    plain_runs: how often the preferred candidate is checked call by call.
    Timing costs about BUDGET_CALLS calls of PyTorch.
    """

    def __init__(
        self,
        inputs: Sequence[torch.Tensor],
        candidates: Sequence[Candidate],
        is_replayed: bool,
        plain_runs: int = PLAIN_RUNS,
    ) -> None:
        self.inputs = inputs
        self.candidates = candidates
        self.is_replayed = is_replayed
        self.plain_runs = plain_runs
        self.outcome = Outcome(candidates[0].name)
        self._device = next((value.device for value in inputs if value.is_cuda), torch.device("cpu"))
        self._right: list[torch.Tensor] = []
        self._once = self._left = float("inf")

    def run(self) -> Outcome:
        """Check the preferred candidate, and time it against the others."""
        with exclusive(), on_device(self._device):
            return self._run()

    def _run(self) -> Outcome:
        preferred, *others = self.candidates
        outcome = self.outcome
        run = preferred.prepare(self.inputs)
        assert run is not None, "the preferred candidate is ready"
        outcome.results = run(self.inputs)
        if not self._is_right(outcome.results):
            return outcome
        alternatives = self._prepared(others)
        if alternatives:
            self._once = self._seconds(alternatives[PYTORCH])
            self._left = (BUDGET_CALLS - 1) * self._once
        graph = self._captured(run)
        if self._stays_right(run, graph) and alternatives:
            rest = {name: self._captured(other) or other for name, other in alternatives.items()}
            outcome.seconds = self._race({preferred.name: graph or run, **rest})
        return outcome

    def _prepared(self, candidates: Sequence[Candidate]) -> dict[str, Run]:
        """Return how those candidates run that take part."""
        runs = {candidate.name: candidate.prepare(self.inputs) for candidate in candidates}
        return {name: run for name, run in runs.items() if run is not None}

    def _stays_right(self, run: Run, graph: CudaGraphCall | None) -> bool:
        """Run and replay the preferred candidate again and again; a wrong result ends it, as does half of the time."""
        started, half = time.perf_counter(), self._left / 2
        for _ in range(self.plain_runs - 1):
            if not self._is_right(run(self.inputs)):
                return False
        for _ in range(REPLAYS if graph is not None else 0):
            assert graph is not None
            graph(self.inputs)
            if not self._is_right(graph.outputs):
                return False
            if time.perf_counter() - started > half:
                break
        self._left -= time.perf_counter() - started
        return True

    def _is_right(self, results: Sequence[torch.Tensor]) -> bool:
        """Compare with the reference; to be equal to what was found right is enough."""
        if self._right and _equal(results, self._right):
            return True
        reference, outcome = self.candidates[0].reference, self.outcome
        assert reference is not None
        comparison = compare(results, reference.expected, reference.bound, reference.share)
        outcome.error = max(outcome.error, comparison.error)
        outcome.problem = comparison.problem
        if comparison.problem is None and not self._right:
            self._right = [value.clone() for value in results]
        return comparison.problem is None

    def _captured(self, run: Run) -> CudaGraphCall | None:
        """Return the call as a CUDA graph, if that is what later calls use and it can be captured."""
        if not self.is_replayed:
            return None
        try:
            return CudaGraphCall(lambda *values: run(values), self.inputs)
        except (RuntimeError, BridgeError):
            return None

    def _race(self, calls: Mapping[str, Call]) -> dict[str, float]:
        """Return the time of a call of each when many are queued: the best of the turns that they take in rotation.

        What disturbs a turn, on a GPU that others use too, so decides nothing.
        """
        best = {name: self._seconds(call) for name, call in calls.items()}
        hopeful = [name for name, seconds in best.items() if seconds < HOPELESS * self._once]
        times = int(self._left / (TURNS * max(sum(best.values()), 1e-9)))
        times = max(1, min(MOST_CALLS, times))
        for turn in range(TURNS):
            if turn >= LEAST_TURNS and self._left <= 0:
                break
            for name in hopeful:
                best[name] = min(best[name], self._seconds(calls[name], times) / times)
        return best

    def _seconds(self, call: Call, times: int = 1) -> float:
        """Return the time of so many calls, which is taken off what is left."""
        self._wait()
        started = time.perf_counter()
        for _ in range(times):
            call(self.inputs)
        self._wait()
        seconds = time.perf_counter() - started
        self._left -= seconds
        return seconds

    def _wait(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)


def _equal(left: Sequence[torch.Tensor], right: Sequence[torch.Tensor]) -> bool:
    return all(a.dtype == b.dtype and torch.equal(a, b) for a, b in zip(left, right, strict=True))


class TriedModule(nn.Module):
    """A subgraph that is computed by the candidate that won the trial of its first call.

    pytorch: the subgraph in PyTorch.
    written: the indices of the inputs that are caches of keys and values, which are written in place.
    state: one of
        building: an engine is being built. The first call waits for it, or PyTorch computes calls meanwhile.
        untried: the next call begins a trial.
        serving: `choice` computes all calls.
        failed: the engine was never built, was wrong, or failed; PyTorch computes all calls.
    choice: the candidate that won, or that is on trial.
    """

    def __init__(self, name: str, pytorch: fx.GraphModule, options: Options, choice: str) -> None:
        super().__init__()
        self.name = name
        self.pytorch = pytorch
        self.options = options
        self.written = written_inputs(pytorch)
        self.state: State = "untried"
        self.choice = choice
        self._lock = threading.RLock()

    @property
    def is_settled(self) -> bool:
        """True once it is decided which candidate computes this subgraph."""
        return self.state in ("serving", "failed")

    def in_pytorch(self, inputs: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
        """Compute the subgraph in PyTorch, operator by operator."""
        results: Sequence[torch.Tensor] = self.pytorch(*inputs)
        return results

    def _first_call(self, inputs: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
        """Try the candidates on these inputs; the results are right in any case."""
        with self._lock:
            if self.state != "untried":
                results: Sequence[torch.Tensor] = self.forward(*inputs)
                return results
            if is_capturing(inputs):
                return self.in_pytorch(inputs)  # nothing can be looked at while the caller captures a CUDA graph
            expected = self.in_pytorch(self._with_own_caches(inputs))
            if holds_nan((*inputs, *expected)):
                warn_once(f"{self.name}: its inputs or results hold NaN; PyTorch runs it until they do not.")
                return expected
            return self._try(self._with_own_caches(inputs), expected)

    def _with_own_caches(self, inputs: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
        """Return the inputs with copies of the caches that are written in place: each candidate finds them as given."""
        if not self.written:
            return inputs
        return [value.clone() if index in self.written else value for index, value in enumerate(inputs)]

    def _try(self, inputs: Sequence[torch.Tensor], expected: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
        """Hold the trial, and return right results; expected: PyTorch's."""
        raise NotImplementedError
