"""Start: the time from compiling to the first result, and the memory it took, in a process of its own."""

from __future__ import annotations

import time
from collections.abc import Iterator

import torch
from torch._dynamo.utils import calculate_time_spent

from benchmarks.suite import clock
from benchmarks.suite.entrant import converted, made, reported, strict_torch
from benchmarks.suite.job import Event, Job, failure
from benchmarks.suite.memory import DeviceMemory, forget_host_peak, host_bytes, mib
from benchmarks.suite.models import SUITE, build


def measure(job: Job) -> Iterator[Event]:
    """One row, of the job's only contender. Its model is on the device already when the clock starts.

    What the contender imports when it is called is in the time, and so is loading what it uses of CUDA's libraries;
    torch and torchtrt_bridge are imported before, as at the top of a script.
    Whether caches are empty is up to who starts the process.
    """
    (name,) = job.contenders
    yield {"contender": name, "doing": "building the model"}
    try:
        row = _first_result(name, job)
    except Exception as error:
        row = failure(error)
    yield {"contender": name, "row": row}


def _first_result(name: str, job: Job) -> dict[str, object]:
    strict_torch()
    original = build(SUITE[job.model], job.device)
    model, taken = converted(name, job, original, SUITE[job.model].inputs(job.batch))
    del original
    wait = clock.waiter(job.device)
    memory = DeviceMemory(job.device)
    forget_host_peak()
    before = host_bytes("VmRSS")
    with torch.inference_mode():
        started = time.perf_counter()
        run = made(name, job, model)
        results = run(**taken)
        wait()
        seconds = time.perf_counter() - started
        del results
    return {
        "seconds": seconds,
        "trace_seconds": _trace_seconds(),
        "host_before_mib": mib(before),
        "host_peak_mib": mib(host_bytes("VmHWM")),
        "device_peak_mib": mib(memory.peak),
        "device_held_mib": mib(memory.held),
        **reported(name, run),
    }


def _trace_seconds() -> float:
    """How long Dynamo took, without the backend that it called; by its own clock, in this process."""
    spent = calculate_time_spent()
    return float(spent.get("entire_frame_compile", 0.0) - spent.get("backend_compile", 0.0))
