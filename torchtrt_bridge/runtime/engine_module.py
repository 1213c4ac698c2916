"""The engine as a module: it runs what its engine serves, and PyTorch whatever it does not."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any, Protocol

import torch
from torch import fx, nn

from torchtrt_bridge.errors import BridgeError, EngineLoadError, ShapeRangeError
from torchtrt_bridge.graph.fork_safety import renewed_in_children
from torchtrt_bridge.graph.shapes import TensorSpec
from torchtrt_bridge.options import Options
from torchtrt_bridge.report.log import warn_once
from torchtrt_bridge.report.model import EngineEntry
from torchtrt_bridge.runtime.call_context import is_capturing
from torchtrt_bridge.runtime.inductor import Inductor
from torchtrt_bridge.runtime.out_of_memory import MOST_SHORTAGES, is_shortage
from torchtrt_bridge.runtime.tolerance import Reference, error_bound, holds_nan
from torchtrt_bridge.runtime.trial import ENGINE, INDUCTOR, PLAIN_RUNS, PYTORCH, Outcome, Run, Trial
from torchtrt_bridge.runtime.weights import SpareWeights


class Runner(Protocol):
    """Something that computes an engine: TensorRT on a GPU, or the reference interpreter."""

    device: torch.device

    def __call__(self, inputs: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]: ...


class Changes:
    """A count that engines of one graph share with who must know of it."""

    count = 0


class EngineModule(nn.Module):
    """One subgraph: `runner` computes it once the trial on the first real inputs has found it right and fast.

    pytorch: the same subgraph in PyTorch; it serves inputs outside the engine's ranges, and everything once
        the engine has failed, differed, or lost.
    runner: one that is still being built is waited for in the first call, or with ``build="background"`` until it is
        there; None leaves all to PyTorch.
    entry: its line in the report, kept up to date.
    weights: with ``release_weights=True``, what brings back those of `pytorch`.
    rivals: others that may take its place in the trial; in a list, as they are no parts of the graph.
    changes: how often an engine of the graph was let go, so that recordings of it are no longer good; shared by all.
    """

    def __init__(
        self,
        pytorch: fx.GraphModule,
        specs: Sequence[TensorSpec],
        runner: Future[Runner | None] | Runner | None,
        entry: EngineEntry,
        options: Options,
    ) -> None:
        super().__init__()
        self.pytorch = pytorch
        self.specs = tuple(specs)
        self.entry = entry
        self.options = options
        self.runner: Runner | None = None
        self._serve: Run | None = None
        self._pending: Future[Runner | None] | None = None
        self.weights: SpareWeights | None = None
        self.changes = Changes()
        self.rivals: list[EngineModule] = []
        self._inductor = self._new_inductor()
        self._accepted: set[Any] = set()
        self._told_unserved = False
        self._shortages = 0
        self._lock = threading.RLock()
        renewed_in_children(self)
        if isinstance(runner, Future):
            self.device = _computing_device(options)
            self._pending = runner
        else:
            self.device = torch.device("cpu") if runner is None else runner.device
            self._take(runner)

    @property
    def is_settled(self) -> bool:
        """Whether it is decided what serves this subgraph."""
        return self._serve is not None

    @property
    def has_won(self) -> bool:
        """Whether it is the engine that serves."""
        return self.runner is not None and self._serve is self.runner

    def forward(self, *inputs: torch.Tensor) -> Sequence[torch.Tensor]:
        if self._pending is not None:
            return self._while_building(inputs)
        runner = self.runner
        if runner is None:
            assert self._serve is not None
            return self._serve(inputs)
        key = tuple((value.shape, value.dtype, value.device) for value in inputs)
        if key not in self._accepted:
            problem = self._problem(inputs, runner)
            if problem is not None:
                return self._unserved(problem, inputs)
            self._accepted.add(key)
        if self._serve is None:
            return self._first_call(runner, inputs)
        try:
            return self._serve(inputs)
        except (BridgeError, RuntimeError, MemoryError) as error:
            failure = self._noted(error)
        return self._after(failure, inputs)  # not above, where the error still holds what the engine had allocated

    def in_pytorch(self, inputs: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
        """The subgraph computed by PyTorch, whoever serves it."""
        with self._weights_at_hand(inputs):
            return self._in_pytorch(inputs)

    def after_fork(self) -> None:
        """In a forked process: no thread builds there."""
        self._lock = threading.RLock()
        if self._pending is not None:
            self._pending = None
            self.entry.state = "it was being built when this process was forked, which threads do not survive"
            self._serve = self._orphaned

    def _orphaned(self, inputs: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
        warn_once(f"{self.entry.name} runs in PyTorch in this process: {self.entry.state}.")
        self._serve = self._without_engine
        return self._serve(inputs)

    def wait(self) -> None:
        """Wait for the engine. Raises, with ``fallback="error"``, why there is none."""
        with self._lock:
            if self._pending is not None:
                self._take(self._pending.result())
                self._pending = None

    def _take(self, runner: Runner | None) -> None:
        self.runner = runner
        if runner is None:
            self._serve = self._without_engine
        elif self.options.trial == "off":
            self._serve = runner

    def is_built(self) -> bool:
        """Whether nobody is building its engine any more."""
        return self._pending is None or self._pending.done()

    def _while_building(self, inputs: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
        if is_capturing(inputs) or (not self.is_built() and self.options.build == "background"):
            return self.in_pytorch(inputs)  # no engine is loaded while the caller records a CUDA graph
        if not self.is_built() and self.options.trial != "off":
            self._in_pytorch(inputs)  # the trial will: so what PyTorch loads for its first call is loaded meanwhile
        self.wait()
        return self.forward(*inputs)

    def _in_pytorch(self, inputs: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
        """The same for calls that come before the weights may be released."""
        results: Sequence[torch.Tensor] = self.pytorch(*inputs)
        return results

    def _problem(self, inputs: Sequence[torch.Tensor], runner: Runner) -> str | None:
        """Why the engine does not serve these inputs; None if it does."""
        for value, spec in zip(inputs, self.specs, strict=True):
            if not spec.accepts(value):
                return f"input {spec.name} is {_kind(value)}, the engine serves {spec}"
            if value.device != runner.device:
                return f"input {spec.name} is on {value.device}, the engine runs on {runner.device}"
        return None

    def _unserved(self, problem: str, inputs: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
        widen = "Widen the range (dynamic_shapes, torch._dynamo.mark_dynamic, max_dynamic_size)"
        if self.options.fallback == "error":
            raise ShapeRangeError(
                f"{self.entry.name}: {problem}. {widen}, or let PyTorch serve such calls with fallback='pytorch'."
            )
        if not self._told_unserved:
            self._told_unserved = True
            warn_once(f"{self.entry.name}: {problem}; PyTorch runs such calls. {widen} to have them in TensorRT.")
        return self.in_pytorch(inputs)

    def _first_call(self, runner: Runner, inputs: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
        """Try the engine on these inputs, beside PyTorch; the results are right in any case."""
        with self._lock:
            if self._serve is not None or self.runner is None:
                return self.forward(*inputs)
            expected = self.in_pytorch(inputs)
            if is_capturing(inputs):
                return expected  # nothing can be looked at while the caller records a CUDA graph
            if holds_nan((*inputs, *expected)):
                warn_once(f"{self.entry.name}: its inputs or results hold NaN; PyTorch runs it until they do not.")
                return expected
            try:
                runs = PLAIN_RUNS if runner.device.type == "cuda" else 1
                trial = Trial(inputs, self._reference(inputs, expected), self._is_recorded, runs)
                outcome = trial.run(runner, self._others(inputs))
            except (BridgeError, RuntimeError, MemoryError) as error:
                failure = self._noted(error)
                return self._after(failure, inputs, expected)
            self.entry.error = outcome.error
            if outcome.problem is not None:
                return self._give_up(outcome.problem, inputs, expected)
            self._settle(outcome)
            return outcome.results

    def _others(self, inputs: Sequence[torch.Tensor]) -> dict[str, Run]:
        """What the engine is timed against."""
        if self.options.trial == "check" or self.options.engine == "reference":
            return {}
        others: dict[str, Run] = {PYTORCH: self._in_pytorch}
        if self.options.inductor_competes and self._is_static and self._inductor.prepare(inputs):
            others[INDUCTOR] = self._inductor
        return others

    def _settle(self, outcome: Outcome) -> None:
        """Let the winner serve from now on."""
        self.entry.milliseconds = {name: seconds * 1e3 for name, seconds in outcome.seconds.items()}
        self.entry.choice = outcome.winner
        self._let_serve(outcome.winner)

    def _let_serve(self, name: str) -> None:
        serving: dict[str, Run | None] = {
            ENGINE: self.runner, PYTORCH: self._in_pytorch, INDUCTOR: self._inductor
        }  # fmt: skip
        self._serve = serving[name]
        if name != ENGINE:
            self.runner = None
        if name != INDUCTOR:
            self._inductor = self._new_inductor()  # lets go of what was compiled

    def _new_inductor(self) -> Inductor:
        options = self.options
        return Inductor(self.entry.name, self.pytorch, options.tunes_inductor, is_checked=options.trial != "off")

    @property
    def _is_recorded(self) -> bool:
        """Whether calls of this subgraph will be replayed from CUDA graphs."""
        return self.options.cuda_graphs == "auto" and self.device.type == "cuda" and self._is_static

    @property
    def _is_static(self) -> bool:
        return all(low == high for spec in self.specs for low, high in spec.ranges)

    def _reference(self, inputs: Sequence[torch.Tensor], expected: Sequence[torch.Tensor]) -> Reference:
        """What the engine's results for `inputs` are held against; expected: PyTorch's."""
        at_work = [getattr(torch, name) for name in self.entry.dtypes]
        return Reference(expected, error_bound(at_work, self.options.tf32))

    def _noted(self, error: Exception) -> str | None:
        """Why the engine is not to be used again; None if a later call may have more memory.

        A shortage of memory is raised with ``fallback="error"``.
        """
        if not is_shortage(error):
            return f"it failed at run time: {error}"
        self._shortages += 1
        if self.options.fallback == "error":
            raise error
        if self._shortages == 1:
            warn_once(f"{self.entry.name}: too little memory ({error}); PyTorch runs this call, later ones try again.")
        if self._shortages < MOST_SHORTAGES:
            return None
        return f"{self._shortages} calls had too little memory: {error}"

    def _after(
        self, failure: str | None, inputs: Sequence[torch.Tensor], expected: Sequence[torch.Tensor] | None = None
    ) -> Sequence[torch.Tensor]:
        """The results of a call that the engine did not compute."""
        if failure is not None:
            return self._give_up(failure, inputs, expected)
        return self.in_pytorch(inputs) if expected is None else expected

    def _give_up(
        self, why: str, inputs: Sequence[torch.Tensor], expected: Sequence[torch.Tensor] | None = None
    ) -> Sequence[torch.Tensor]:
        self.runner = None
        self._serve = self._without_engine
        self.changes.count += 1
        self.entry.state = why
        warn_once(f"{self.entry.name}: {why}; PyTorch runs this subgraph from now on.")
        return self._without_engine(inputs) if expected is None or self.options.fallback == "error" else expected

    def _without_engine(self, inputs: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
        if self.options.fallback == "error" and not self.entry.is_ready:
            raise EngineLoadError(
                f"{self.entry.name} is not trusted: {self.entry.state}. fallback='pytorch' lets PyTorch run it; "
                "torch_ops=(...) keeps chosen operators in PyTorch."
            )
        if self.options.inductor == "off" or not self._is_static:
            return self.in_pytorch(inputs)
        with self._weights_at_hand(inputs):
            return self._inductor(inputs)

    def _weights_at_hand(self, inputs: Sequence[torch.Tensor]) -> contextlib.AbstractContextManager[None]:
        weights = self.weights
        return contextlib.nullcontext() if weights is None else weights.at_hand(is_capturing(inputs))


def _computing_device(options: Options) -> torch.device:
    """Where an engine that is built here will run."""
    on_gpu = options.engine != "reference" and torch.cuda.is_available()
    return torch.device("cuda", torch.cuda.current_device()) if on_gpu else torch.device("cpu")


def _kind(value: torch.Tensor) -> str:
    return f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)}"
