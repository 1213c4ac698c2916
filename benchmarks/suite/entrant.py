"""A contender with its model: compiled, warmed up, compared with fp32, ready to be timed."""

from __future__ import annotations

import copy
import dataclasses
import math
import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from benchmarks.suite import clock
from benchmarks.suite.contenders import CONTENDERS, Made, Setting, family
from benchmarks.suite.figures import interquartile_range, median, relative_error
from benchmarks.suite.job import Job, Row
from benchmarks.suite.memory import DeviceMemory, mib
from benchmarks.suite.models import SUITE, Inputs
from benchmarks.suite.replay import engine_replay

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
WARM_UP = 10
CALLS_PER_LATENCY = 5  # back-to-back calls for each call that is timed alone


def strict_torch() -> None:
    """fp32 without TF32; a graph that Dynamo gives up on is an error, not a slow contender."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    torch._dynamo.config.recompile_limit = 64  # contenders compile the same code
    torch._dynamo.config.fail_on_recompile_limit_hit = True


def converted(name: str, job: Job, original: nn.Module, inputs: Inputs) -> tuple[nn.Module, Inputs]:
    """A copy of the model, and the inputs, on the device and as the contender takes them."""
    contender = CONTENDERS[name]
    dtype = torch.float32 if contender.keeps_fp32 else DTYPES[job.precision]
    model = copy.deepcopy(original).to(job.device, dtype)
    taken = {key: value.to(job.device, dtype if value.is_floating_point() else None) for key, value in inputs.items()}
    if contender.channels_last and SUITE[job.model].kind == "cnn":
        model = model.to(memory_format=torch.channels_last)
        taken = {key: value.to(memory_format=torch.channels_last) for key, value in taken.items()}
    return model, taken


def made(name: str, job: Job, model: nn.Module) -> Made:
    return CONTENDERS[name].make(model, Setting(job.precision, job.engine, job.cache_dir))


def tensors(results: Any) -> list[torch.Tensor]:
    """The floating point tensors among a model's results, in PyTorch's order."""
    leaves = pytree.tree_leaves(results)
    return [leaf for leaf in leaves if isinstance(leaf, torch.Tensor) and leaf.is_floating_point()]


@dataclasses.dataclass
class Entrant:
    """A contender ready to be timed, and the times so far, in milliseconds.

    facts: what is known of it before that.
    """

    call: clock.Call
    wait: clock.Call
    replay: clock.Call | None
    calls: int
    facts: Row
    times: list[float] = dataclasses.field(default_factory=list)
    latencies: list[float] = dataclasses.field(default_factory=list)
    replays: list[float] = dataclasses.field(default_factory=list)

    @torch.inference_mode()
    def take_turn(self) -> None:
        """One time of each sort. A call before them brings code and data back to where they are quick to reach."""
        self.call()
        self.times.append(clock.back_to_back(self.call, self.calls, self.wait))
        alone = max(clock.LEAST_CALLS, self.calls // CALLS_PER_LATENCY)
        self.latencies += clock.one_by_one(self.call, alone, self.wait)
        if self.replay is not None:
            self.replays.append(clock.back_to_back(self.replay, self.calls, self.wait))

    def row(self) -> Row:
        row = {"ms": median(self.times), "ms_iqr": interquartile_range(self.times), "times_ms": self.times}
        row |= {"latency_ms": median(self.latencies), "latency_ms_iqr": interquartile_range(self.latencies)}
        if self.replays:
            row |= {"replay_ms": median(self.replays), "replay_ms_iqr": interquartile_range(self.replays)}
        return {**row, "calls": self.calls, "rounds": len(self.times), **self.facts}


def entrant(name: str, job: Job, original: nn.Module, inputs: Inputs, expected: Sequence[torch.Tensor]) -> Entrant:
    """Compile, warm up and compare a contender. Whatever fails raises."""
    memory = DeviceMemory(job.device)
    model, taken = converted(name, job, original, inputs)  # not under inference mode, as a user's model is not
    with torch.inference_mode():
        return _warm(name, job, model, taken, expected, memory)


def _warm(
    name: str, job: Job, model: nn.Module, taken: Inputs, expected: Sequence[torch.Tensor], memory: DeviceMemory
) -> Entrant:
    wait = clock.waiter(job.device)
    wait()
    started = time.perf_counter()
    run = made(name, job, model)
    run(**taken)
    wait()
    first = time.perf_counter() - started

    def call() -> Any:
        return run(**taken)

    for _ in range(WARM_UP):
        call()
    wait()
    peak = memory.peak  # before comparing, which takes memory of its own
    error = relative_error(tensors(call()), expected)
    calls = clock.calls_within(job.turn_seconds, call, job.calls, wait)
    facts: Row = {"error": error if math.isfinite(error) else None, **reported(name, run)}
    if not job.lock:  # where others compile beside this one, neither is of this contender alone
        facts |= {"first_s": first, "device_held_mib": mib(memory.held)}
    if not math.isfinite(error):
        facts["problems"] = [*facts.get("problems", []), "its results are not finite"]
    facts["device_peak_mib"] = mib(peak)
    return Entrant(call, wait, engine_replay(run), calls, facts)


def reported(name: str, run: Made) -> Row:
    """What torchtrt_bridge says of what it compiled; nothing for other contenders."""
    if family(name) != "bridge":
        return {}
    import torchtrt_bridge as trtb

    report = trtb.report(run)
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
