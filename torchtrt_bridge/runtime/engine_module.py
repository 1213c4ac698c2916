"""The engine as a module: it computes the calls that its engine is for, and PyTorch computes the others."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from typing import Any

import torch
from torch import fx

from torchtrt_bridge.errors import BridgeError, EngineLoadError, ShapeRangeError
from torchtrt_bridge.graph.nodes import gpu_of
from torchtrt_bridge.graph.shapes import TensorSpec
from torchtrt_bridge.options import Options
from torchtrt_bridge.report.layers import EngineLink, LayerTimes
from torchtrt_bridge.report.log import info, warn_once
from torchtrt_bridge.report.model import EngineEntry
from torchtrt_bridge.runtime.call_context import is_capturing
from torchtrt_bridge.runtime.inductor import Inductor
from torchtrt_bridge.runtime.layer_names import Nodes
from torchtrt_bridge.runtime.layer_profile import time_layers
from torchtrt_bridge.runtime.runners import Built, NoEngine, Runner, is_out_of_memory
from torchtrt_bridge.runtime.static_engines import StaticEngines
from torchtrt_bridge.runtime.tolerance import Reference, error_bound, quantized_reference
from torchtrt_bridge.runtime.trial import (
    ENGINE,
    INDUCTOR,
    PLAIN_RUNS,
    PYTORCH,
    UNQUANTIZED,
    Candidate,
    Outcome,
    Run,
    Trial,
    TriedModule,
    ready,
)
from torchtrt_bridge.runtime.weights import SpareWeights

# An engine that runs out of memory this often is dropped, which gives its own memory back. Before that a later call may
# have more room: other tensors are gone, or its sizes are smaller.
MOST_OUT_OF_MEMORY = 3

# Combinations of input shapes that are known to be in range; beyond so many, all are forgotten and checked anew.
MOST_ACCEPTED = 64

Pass = Callable[[fx.GraphModule], fx.GraphModule]


class EngineInputs:
    """The inputs that an engine is for: those of its dtypes, within its ranges, on its device.

    accepted: the keys of inputs that were checked.
    """

    def __init__(self, specs: Sequence[TensorSpec]) -> None:
        self.specs = tuple(specs)
        self.accepted: set[Any] = set()

    @property
    def is_static(self) -> bool:
        """True if each dimension has one size."""
        return all(spec.has_one_size for spec in self.specs)

    def check(self, key: Any, inputs: Sequence[torch.Tensor], device: torch.device) -> str | None:
        """Return why these inputs are not for the engine; None if they are, after which `key` is accepted."""
        for value, spec in zip(inputs, self.specs, strict=True):
            if not spec.accepts(value):
                return f"input {spec.name} is {_kind(value)}, the engine serves {spec}"
            if value.device != device:
                return f"input {spec.name} is on {value.device}, the engine runs on {device}"
        if len(self.accepted) >= MOST_ACCEPTED:
            self.accepted.clear()
        self.accepted.add(key)
        return None


class Generation:
    """Counts how often an engine of a graph was dropped; CUDA graphs of an older generation are invalid."""

    count = 0


class EngineModule(TriedModule):
    """One subgraph: its engine computes it once the trial on the first real inputs has found it right and fast.

    pytorch: also computes calls outside the engine's ranges, and all of them once the engine has failed or lost.
    build: the engine, or the future of one that is being built.
    dtypes: those that the engine computes in, which say how far from PyTorch rounding explains its results.
    entry: its line in the report, which is written from the state and never read.
    is_quantized: whether the model has this subgraph in 8 bits, whatever computes it.
    in_floats: of a quantized subgraph, the pass that leaves out rounding to 8 bits; engine and PyTorch are both
        compared with the result.
    alternative: of a quantized subgraph, the one without quantization, with a trial of its own. It takes over where
        the quantized engine is missing, wrong, or slower.
    weights: with ``release_weights=True``, those of `pytorch`, which may be in host memory.
    generation: shared by the engines of a graph.
    static_engines: engines for single sizes, where this one is for many.
    nodes: those of the subgraph, for the names of the engine's layers.
    further: candidates of the trial beside the usual ones.
    successor: what runs the subgraph, in words, once the engine has failed.
    """

    successor = "PyTorch runs this subgraph"

    def __init__(
        self,
        pytorch: fx.GraphModule,
        specs: Sequence[TensorSpec],
        build: Future[Built] | Built,
        dtypes: Iterable[torch.dtype],
        entry: EngineEntry,
        options: Options,
        in_floats: Pass | None = None,
        alternative: EngineModule | None = None,
    ) -> None:
        super().__init__(entry.name, pytorch, options, ENGINE)
        self.inputs = EngineInputs(specs)
        self.dtypes = tuple(dtypes)
        self.entry = entry
        self.is_quantized = in_floats is not None
        self.in_floats = in_floats
        self.alternatives = [] if alternative is None else [alternative]  # in a list, as it is no part of the graph
        self.runner: Runner | None = None
        self.failure: str | None = None
        self.weights: SpareWeights | None = None
        self.generation = Generation()
        self.static_engines: StaticEngines | None = None
        self.nodes: Nodes = {}
        self.further: list[Candidate] = []
        self._inductor = Inductor(entry.name, pytorch, options.tunes_inductor, is_checked=options.trial != "off")
        self._has_warned_of_range = False
        self._times_out_of_memory = 0
        self._build: Future[Built] | None = None
        if isinstance(build, Future):
            self.device = computing_device(pytorch, options)
            self._build = build
            self.state = "building"
        else:
            self.device = torch.device("cpu") if build is None or isinstance(build, NoEngine) else build.device
            self._load(build)
        entry.device = str(self.device) if self.device.index else ""
        entry.link = EngineLink(self)

    @property
    def has_won(self) -> bool:
        """True if the engine computes calls."""
        return self.state == "serving" and self.runner is not None

    def forward(self, *inputs: torch.Tensor) -> Sequence[torch.Tensor]:
        state = self.state  # read before `runner`, and written after it
        if state == "building":
            return self._while_building(inputs)
        statics = self.static_engines
        if statics is not None and (engine := statics.engine_for(inputs)) is not None:
            return engine(*inputs)  # type: ignore[no-any-return]
        runner = self.runner
        if runner is None:
            return self._without_engine(inputs)
        key = tuple((value.shape, value.dtype, value.device) for value in inputs)
        if key not in self.inputs.accepted:
            problem = self.inputs.check(key, inputs, runner.device)
            if problem is not None:
                return self._out_of_range(problem, inputs)
        if state == "untried":
            return self._first_call(inputs)
        try:
            return runner(inputs)
        except (BridgeError, RuntimeError, MemoryError) as error:
            failure = self._failure_of(error)
        return self._after(failure, inputs)  # not above, where the error still holds what the engine had allocated

    def in_pytorch(self, inputs: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
        """Compute the subgraph in PyTorch, whatever else computes it."""
        with self._weights_loaded(inputs):
            return super().in_pytorch(inputs)

    def time_layers(self, runs: int) -> LayerTimes:
        """Time the layers of the engine, for this report and all further ones; or say why that cannot be."""
        found = time_layers(self, runs)
        if not found.problem:
            self.entry.layer_times = found
        return found

    def drop(self, why: str) -> bool:
        """Drop the engine for good. Return whether an alternative takes over; if untried, the next call tries it.

        CUDA graphs that hold the engine are invalid from now on.
        """
        self.generation.count += 1
        self.static_engines = None
        if self.alternatives:
            self._become(self.alternatives.pop(), why)
            return True
        self.failure = self.entry.state = why
        self.state = "failed"
        self.runner = None
        return False

    def _become(self, other: EngineModule, why: str) -> None:
        """Be the unquantized alternative from now on."""
        other.wait()
        self.pytorch, self.inputs, self.dtypes = other.pytorch, other.inputs, other.dtypes
        self.in_floats, self._inductor, self.nodes = None, other._inductor, other.nodes
        self.entry.copy_from(other.entry)
        self.entry.unquantized = why
        warn_once(f"{self.name} is computed without quantization: {why}.")
        self.failure, self.choice, self.runner = other.failure, other.choice, other.runner
        self.state = other.state

    # Building ------------------------------------------------------------------------------------------------------

    def wait(self) -> None:
        """Wait for the engine. Raises, with ``fallback="error"``, why there is none."""
        with self._lock:
            if self._build is not None:
                self._load(self._build.result())
                self._build = None

    def is_built(self) -> bool:
        """Return whether nobody is building an engine of this subgraph any more."""
        is_done = self._build is None or self._build.done()
        return is_done and all(other.is_built() for other in self.alternatives)

    def _load(self, built: Built) -> None:
        if isinstance(built, NoEngine):
            self.drop(built.reason)
        else:
            self.runner = built
            self.state = "serving" if built is None or self.options.trial == "off" else "untried"

    def _while_building(self, inputs: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
        if is_capturing(inputs) or (not self.is_built() and self.options.build == "background"):
            return self.in_pytorch(inputs)  # no engine is loaded while the caller captures a CUDA graph
        if not self.is_built() and self.options.trial != "off":
            own = self._with_own_caches(inputs)
            self._in_pytorch(own)  # the trial will: so what PyTorch loads for its first call is loaded meanwhile
            if self._inductor_competes:
                self._inductor.prepare(own)
        self.wait()
        return self.forward(*inputs)

    def _out_of_range(self, problem: str, inputs: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
        widen = "Widen the range (dynamic_shapes, torch._dynamo.mark_dynamic, max_dynamic_size)"
        if self.options.fallback == "error":
            raise ShapeRangeError(
                f"{self.name}: {problem}. {widen}, or let PyTorch serve such calls with fallback='pytorch'."
            )
        if not self._has_warned_of_range:
            self._has_warned_of_range = True
            warn_once(f"{self.name}: {problem}; PyTorch runs such calls. {widen} to have them in TensorRT.")
        return self.in_pytorch(inputs)

    # The trial -----------------------------------------------------------------------------------------------------

    def _try(self, inputs: Sequence[torch.Tensor], expected: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
        runner = self.runner
        assert runner is not None
        runs = PLAIN_RUNS if runner.device.type == "cuda" else 1
        try:
            outcome = Trial(inputs, self._candidates(runner, inputs, expected), self._is_replayed, runs).run()
        except (BridgeError, RuntimeError, MemoryError) as error:
            failure = self._failure_of(error)
            return self._after(failure, inputs, expected)
        self.entry.error = outcome.error
        if outcome.problem is not None:
            return self._after(outcome.problem, inputs, expected)
        self._settle(outcome)
        return outcome.results

    def _candidates(
        self, runner: Runner, inputs: Sequence[torch.Tensor], expected: Sequence[torch.Tensor]
    ) -> list[Candidate]:
        """Return the engine, and what it is timed against."""
        candidates = [ready(ENGINE, runner, self._reference(inputs, expected))]
        if self.options.trial == "check" or self.options.engine == "reference":
            return candidates
        candidates.append(ready(PYTORCH, self._in_pytorch))
        if self._inductor_competes:
            candidates.append(Candidate(INDUCTOR, self._inductor.run_for))
        return candidates + [Candidate(UNQUANTIZED, other.run_for) for other in self.alternatives] + self.further

    def run_for(self, inputs: Sequence[torch.Tensor]) -> Run | None:
        """Have a trial of its own on these inputs; return what won it, None where the engine is not right."""
        try:
            self(*inputs)
        except (BridgeError, RuntimeError, MemoryError):  # with fallback="error"
            return None
        return None if self.state != "serving" else self.runner or self._without_engine

    def _reference(self, inputs: Sequence[torch.Tensor], expected: Sequence[torch.Tensor]) -> Reference:
        """Return what the engine's results for `inputs` are compared with; expected: PyTorch's."""
        usual = Reference(expected, error_bound(self.dtypes, self.options.tf32))
        if self.in_floats is None:
            return usual
        return quantized_reference(usual, self.in_floats(self.pytorch)(*inputs), expected)

    def _settle(self, outcome: Outcome) -> None:
        """Let the winner compute all calls from now on."""
        times = self.entry.milliseconds = outcome.milliseconds
        listed = ", ".join(f"{name} {milliseconds:.3g} ms" for name, milliseconds in times.items())
        info(f"{self.name} is computed by {outcome.winner}; {listed or 'only checked'}, error {outcome.error:.1e}")
        if outcome.winner == UNQUANTIZED:
            self.drop(f"in 8 bits it takes {times[ENGINE]:.3g} ms, without quantization {times[UNQUANTIZED]:.3g} ms")
            return
        self.alternatives.clear()
        self.further.clear()
        self.choice = self.entry.choice = outcome.winner
        if outcome.winner != ENGINE:
            self.runner = None
        if outcome.winner != INDUCTOR:
            self._inductor.discard()
        self.state = "serving"

    @property
    def _inductor_competes(self) -> bool:
        """True if inductor is a candidate of the trial."""
        return self.options.inductor_competes and self.options.trial == "check+time" and self.inputs.is_static

    @property
    def _is_replayed(self) -> bool:
        """True if calls of this subgraph will be replayed from CUDA graphs."""
        return self.options.cuda_graphs == "auto" and self.device.type == "cuda" and self.inputs.is_static

    # Without the engine --------------------------------------------------------------------------------------------

    def _failure_of(self, error: Exception) -> str | None:
        """Return why the engine is not to be used again; None if a later call may have more memory.

        A lack of memory is raised with ``fallback="error"``.
        """
        if not is_out_of_memory(error):
            return f"it failed at run time: {error}"
        self._times_out_of_memory += 1
        if self.options.fallback == "error":
            raise error
        if self._times_out_of_memory == 1:
            warn_once(f"{self.name}: too little memory ({error}); PyTorch runs this call, later ones try again.")
        if self._times_out_of_memory < MOST_OUT_OF_MEMORY:
            return None
        return f"{self._times_out_of_memory} calls had too little memory: {error}"

    def _after(
        self, failure: str | None, inputs: Sequence[torch.Tensor], expected: Sequence[torch.Tensor] | None = None
    ) -> Sequence[torch.Tensor]:
        """Return the results of a call that the engine did not compute; failure: why it is dropped, if it is."""
        if failure is None:
            return self.in_pytorch(inputs) if expected is None else expected
        if self.drop(failure):
            return self.forward(*inputs)
        warn_once(f"{self.name}: {failure}; {self.successor} from now on.")
        return self._without_engine(inputs) if expected is None or self.options.fallback == "error" else expected

    def _without_engine(self, inputs: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
        if self.choice == PYTORCH:
            return self._in_pytorch(inputs)
        if self.choice == INDUCTOR:
            return self._inductor(inputs)
        if self.options.fallback == "error" and self.failure is not None:
            raise EngineLoadError(
                f"{self.name} is not trusted: {self.failure}. fallback='pytorch' lets PyTorch run it; "
                "torch_ops=(...) keeps chosen operators in PyTorch."
            )
        if self.options.inductor == "off" or not self.inputs.is_static:
            return self.in_pytorch(inputs)
        with self._weights_loaded(inputs):
            return self._inductor(inputs)

    def _in_pytorch(self, inputs: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
        """Compute the subgraph in PyTorch where its weights are on the device for certain."""
        return super().in_pytorch(inputs)

    def _weights_loaded(self, inputs: Sequence[torch.Tensor]) -> contextlib.AbstractContextManager[None]:
        weights = self.weights
        return contextlib.nullcontext() if weights is None else weights.loaded(is_capturing(inputs))


def computing_device(module: fx.GraphModule, options: Options) -> torch.device:
    """Return where the engine of a subgraph will run: on the GPU of its tensors, else on the current one."""
    if options.engine == "reference" or not torch.cuda.is_available():
        return torch.device("cpu")
    return gpu_of(module) or torch.device("cuda", torch.cuda.current_device())


def _kind(value: torch.Tensor) -> str:
    return f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)}"
