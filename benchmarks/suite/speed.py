"""Speed: all contenders of a row in one process, in turns, so that a drift of the clocks meets each alike."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator, Sequence
from statistics import median
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from benchmarks.suite import clock
from benchmarks.suite.contenders import CONTENDERS, Compiled, ExportedModel, family
from benchmarks.suite.job import READY, Event, Job, Row, failure
from benchmarks.suite.memory import DeviceMemory
from benchmarks.suite.models import SUITE, Inputs, build
from torchtrt_bridge.entry.torch_compile import backend_of
from torchtrt_bridge.runtime import Execution
from torchtrt_bridge.runtime.tolerance import relative_distance

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
WARM_UP = 10
CALLS_PER_LATENCY = 5  # back-to-back calls for each call that is timed alone


def measure(job: Job) -> Iterator[Event]:
    """Compile each contender, then give each a turn, round by round; a row for each at the end, or when it fails."""
    strict_torch()
    yield None, "building the model"
    original = build(SUITE[job.model], job.device)
    inputs = SUITE[job.model].inputs(job.batch)
    expected = fp32_results(job, original, inputs)
    timers: dict[str, Timer] = {}
    for name in job.contenders:
        yield name, "compiling"
        try:
            timers[name] = Timer(name, job, original, inputs, expected)
        except Exception as error:
            yield name, failure(error)
    yield None, READY
    for index in range(job.rounds):
        for name in list(timers):
            yield name, f"round {index + 1} of {job.rounds}"
            try:
                timers[name].take_turn()
            except Exception as error:
                del timers[name]
                yield name, failure(error)
    for name, timer in timers.items():
        yield name, timer.row()


def strict_torch() -> None:
    """Run fp32 without TF32, and make an error of a graph that Dynamo gives up on, which would run in eager mode."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    torch._dynamo.config.recompile_limit = 64  # contenders compile the same code
    torch._dynamo.config.fail_on_recompile_limit_hit = True


def fp32_results(job: Job, original: nn.Module, inputs: Inputs) -> list[torch.Tensor]:
    """Return PyTorch's fp32 results on the device, kept on the CPU; the model ends there too."""
    original.to(job.device)
    with torch.inference_mode():
        results = original(**{key: value.to(job.device) for key, value in inputs.items()})
        expected = [result.cpu() for result in float_tensors(results)]
    original.cpu()
    return expected


def converted(name: str, job: Job, original: nn.Module, inputs: Inputs) -> tuple[nn.Module, Inputs]:
    """Return a copy of the model, and the inputs, on the device and in the format that a contender takes."""
    contender = CONTENDERS[name]
    dtype = torch.float32 if contender.keeps_fp32 else DTYPES[job.precision]
    model = copy.deepcopy(original).to(job.device, dtype)
    taken = {key: value.to(job.device, dtype if value.is_floating_point() else None) for key, value in inputs.items()}
    if contender.channels_last and SUITE[job.model].kind == "cnn":
        model = model.to(memory_format=torch.channels_last)
        taken = {key: value.to(memory_format=torch.channels_last) for key, value in taken.items()}
    return model, taken


class Timer:
    """A contender that is compiled, warmed up and compared with fp32, and its times so far, in milliseconds."""

    def __init__(
        self, name: str, job: Job, original: nn.Module, inputs: Inputs, expected: Sequence[torch.Tensor]
    ) -> None:
        """Prepare a contender. Raises whatever fails."""
        memory = DeviceMemory(job.device)
        model, self._inputs = converted(name, job, original, inputs)  # no inference tensors, as a user's are not
        self._wait = clock.waiter(job.device)
        self.times: list[float] = []
        self.latencies: list[float] = []
        self.replays: list[float] = []
        with torch.inference_mode():
            self._wait()
            started = time.perf_counter()
            self._compiled = CONTENDERS[name].compile(model, job)
            self._call()
            self._wait()
            first = time.perf_counter() - started
            for _ in range(WARM_UP):
                self._call()
            self._wait()
            peak = memory.peak  # before comparing, which takes memory of its own
            error = relative_error(float_tensors(self._call()), expected)
            self.calls = clock.calls_within(job.turn_seconds, self._call, job.calls, self._wait)
        self._replay = engine_replay(self._compiled)
        self._facts: Row = {"error": error if math.isfinite(error) else None, **reported(name, self._compiled)}
        if not job.locks:  # among others that compile too, neither is of this contender alone
            self._facts |= {"first_s": first, "device_held_mib": memory.held}
        if not math.isfinite(error):
            self._facts["problems"] = [*self._facts.get("problems", []), "its results are not finite"]
        self._facts["device_peak_mib"] = peak

    def _call(self) -> Any:
        return self._compiled(**self._inputs)

    @torch.inference_mode()
    def take_turn(self) -> None:
        """Measure one time of each kind, after a call that brings code and data back into caches."""
        self._call()
        self.times.append(clock.back_to_back(self._call, self.calls, self._wait))
        alone = max(clock.LEAST_CALLS, self.calls // CALLS_PER_LATENCY)
        self.latencies += clock.one_by_one(self._call, alone, self._wait)
        if self._replay is not None:
            self.replays.append(clock.back_to_back(self._replay, self.calls, self._wait))

    def row(self) -> Row:
        named = {"ms": self.times, "latency_ms": self.latencies, "replay_ms": self.replays}
        row: Row = {"times_ms": self.times}
        for name, times in named.items():
            if times:
                row |= {name: median(times), f"{name}_iqr": clock.interquartile_range(times)}
        return {**row, "calls": self.calls, "rounds": len(self.times), **self._facts}


def float_tensors(results: Any) -> list[torch.Tensor]:
    """Return the floating point tensors among a model's results, in PyTorch's order."""
    leaves = pytree.tree_leaves(results)
    return [leaf for leaf in leaves if isinstance(leaf, torch.Tensor) and leaf.is_floating_point()]


def relative_error(results: Sequence[torch.Tensor], expected: Sequence[torch.Tensor]) -> float:
    """Return the largest relative L2 distance of the outputs; not finite if a result is not.

    Raises ValueError if number or shapes of the outputs differ.
    """
    if [t.shape for t in results] != [t.shape for t in expected]:
        shapes = f"{[list(t.shape) for t in results]}, not {[list(t.shape) for t in expected]}"
        raise ValueError(f"the results have the shapes {shapes}")
    errors = [relative_distance(a, b.to(a.device)) for a, b in zip(results, expected, strict=True)]
    return max(errors, key=lambda error: math.inf if math.isnan(error) else error, default=0.0)


def engine_replay(compiled: Any) -> Callable[[], Any] | None:
    """Return a function that launches the CUDA graph of a compiled model, without the rest of a call.

    None for another contender, and for several CUDA graphs or none.
    """
    graphs = [graph for run in _executions(compiled) for graph in run.thread_state.graphs.captured()]
    return graphs[0].replay if len(graphs) == 1 else None


def _executions(compiled: Any) -> list[Execution]:
    if isinstance(compiled, ExportedModel):
        return [] if compiled.program is None else [compiled.program._run]
    backend = backend_of(compiled)
    return [] if backend is None else [graph.compiled.run for graph in backend.graphs if graph.compiled is not None]


def reported(name: str, compiled: Compiled) -> Row:
    """Return the figures of torchtrt_bridge's own report; nothing for other contenders."""
    if family(name) != "bridge":
        return {}
    import torchtrt_bridge as trtb

    report = trtb.report(compiled)
    states = [entry.state for entry in report.engines if not entry.is_ready]
    return {
        "engines": sum(entry.is_ready for entry in report.engines),
        "trt_nodes": report.trt_nodes,
        "torch_nodes": report.torch_nodes,
        "build_s": sum(entry.build_seconds for entry in report.engines),
        "choices": [entry.choice for entry in report.engines],
        "trials_ms": [entry.milliseconds for entry in report.engines],
        "problems": states + report.notes,
    }
