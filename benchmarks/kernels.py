"""Kernels of a call, and the time of each: python -m benchmarks.kernels [--models NAMES] [--batch N] [--out FILE]

In fp16 on a GPU, for an engine alone and for inductor in its place; elsewhere it shows that the command works.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch.profiler import ProfilerActivity, profile

import torchtrt_bridge as trtb
from benchmarks.suite.clock import back_to_back, waiter
from benchmarks.suite.job import Job, Row
from benchmarks.suite.models import SUITE, build
from benchmarks.suite.results import keep_rows
from benchmarks.suite.speed import converted

OURS = "torchtrt_bridge"
OPTIONS = {"engine": {"trial": "off"}, "with inductor competing": {"inductor": "compete"}}
CALLS, PROFILED, SHOWN = 50, 5, 12


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", default="resnet50,efficientnet-b0,vit-b-16,bert-base")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    rows = []
    for model in arguments.models.split(","):
        for name in OPTIONS:
            rows.append(measured(model, arguments.batch, name, device))
            show(rows[-1])
    if arguments.out is not None:
        keep_rows(arguments.out, device, rows)


def measured(model: str, batch: int, name: str, device: str) -> Row:
    """Return the milliseconds per call with calls queued, and the kernels of a call with their microseconds."""
    job = Job.on(device, "speed", model, batch, (OURS,))
    module, inputs = converted(OURS, job, build(SUITE[model], device), SUITE[model].inputs(batch))
    torch._dynamo.reset()
    fast = trtb.compile(module, dynamic=False, engine=job.engine, **OPTIONS[name])
    wait = waiter(device)
    with torch.inference_mode():
        for _ in range(PROFILED):
            fast(**inputs)
        ms = min(back_to_back(lambda: fast(**inputs), CALLS, wait) for _ in range(PROFILED))
        with profile(activities=[ProfilerActivity.CUDA if device == "cuda" else ProfilerActivity.CPU]) as profiler:
            for _ in range(PROFILED):
                fast(**inputs)
            wait()
    found = [(e.key, e.count / PROFILED, _microseconds(e, device) / PROFILED) for e in profiler.key_averages()]
    kernels = sorted((kernel for kernel in found if kernel[2]), key=lambda kernel: -kernel[2])
    return {
        "model": model,
        "batch": batch,
        "what": name,
        "choices": [entry.choice for entry in trtb.report(fast).engines],
        "ms": ms,
        "kernels": sum(count for _, count, _ in kernels),
        "kernels us": sum(us for *_, us in kernels),
        "longest": [{"name": key, "count": count, "us": us} for key, count, us in kernels[:SHOWN]],
    }


def _microseconds(event: object, device: str) -> float:
    return float(getattr(event, "self_device_time_total" if device == "cuda" else "self_cpu_time_total"))


def show(row: Row) -> None:
    title = f"{row['model']}, batch {row['batch']}, {row['what']} ({', '.join(row['choices'])}): {row['ms']:.3f} ms"
    table = Table("kernel", "count", "us", title=f"{title}, {row['kernels']:.0f} kernels in {row['kernels us']:.0f} us")
    for kernel in row["longest"]:
        table.add_row(kernel["name"][:90], f"{kernel['count']:.0f}", f"{kernel['us']:.1f}")
    Console().print(table)


if __name__ == "__main__":
    main()
