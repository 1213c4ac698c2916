"""Start and build: a first result and an export, each measured once in a process of its own."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch._dynamo.utils import calculate_time_spent

from benchmarks.suite import clock
from benchmarks.suite.contenders import CONTENDERS
from benchmarks.suite.job import Job, Row
from benchmarks.suite.memory import DeviceMemory, host_mib, reset_host_peak
from benchmarks.suite.models import SUITE, build
from benchmarks.suite.speed import converted, reported, strict_torch

TARGET = "sm_89"


def first_result(job: Job) -> Row:
    """Measure the time from compiling to the first result, and the memory. The model is on the device before.

    The time contains what a contender imports when it is called, and the loading of CUDA's libraries that it uses;
    torch and torchtrt_bridge are imported before, as at the top of a script. Whoever starts the process chooses empty
    or filled caches.
    """
    (name,) = job.contenders
    strict_torch()
    model, inputs = converted(name, job, build(SUITE[job.model], job.device), SUITE[job.model].inputs(job.batch))
    wait = clock.waiter(job.device)
    memory = DeviceMemory(job.device)
    reset_host_peak()
    before = host_mib("VmRSS")
    with torch.inference_mode():
        started = time.perf_counter()
        compiled = CONTENDERS[name].compile(model, job)
        results = compiled(**inputs)
        wait()
        seconds = time.perf_counter() - started
        del results
    spent = calculate_time_spent()  # by Dynamo's own clock
    return {
        "seconds": seconds,
        "trace_seconds": spent.get("entire_frame_compile", 0.0) - spent.get("backend_compile", 0.0),
        "host_before_mib": before,
        "host_peak_mib": host_mib("VmHWM"),
        "device_peak_mib": memory.peak,
        "device_held_mib": memory.held,
        **reported(name, compiled),
    }


def export_cost(job: Job) -> Row:
    """Measure an export for one target on the CPU: seconds, and the memory above that of the loaded model.

    The model is in fp32, and the export takes it to the precision, as one does with a trained model. cpu_s counts all
    threads, so that other work on the machine does not show in it.
    """
    model, inputs = build(SUITE[job.model]), SUITE[job.model].inputs(job.batch)
    weights = sum(tensor.nbytes for tensor in model.state_dict().values()) / 2**20
    before = host_mib("VmRSS") or 0
    reset_host_peak()
    started, started_cpu = time.perf_counter(), time.process_time()
    import torchtrt_bridge as trtb
    from torchtrt_bridge.trt import library as libraries

    libraries.choose(job.engine)
    loaded = (host_mib("VmRSS") or 0) - before
    options: dict[str, Any] = {
        "targets": (TARGET,),
        "precision": job.precision,
        "engine": job.engine,
        "cache_dir": job.cache_dir,
    }
    report = trtb.export(model, (), kwargs=inputs, **options).report
    seconds, cpu = time.perf_counter() - started, time.process_time() - started_cpu
    peak = (host_mib("VmHWM") or 0) - before
    ready = [entry for entry in report.engines if entry.is_ready]
    return {
        "export_s": seconds,
        "cpu_s": cpu,
        "build_s": sum(entry.build_seconds for entry in ready),
        "weights_mib": round(weights, 1),
        "libraries_mib": round(loaded, 1),
        "peak_mib": round(peak, 1),
        "peak_by_weights": round(peak / weights, 2),
        "engines": len(ready),
        "built": sum(not entry.from_cache for entry in ready),
        "torch_nodes": report.torch_nodes,
    }
