"""The process that measures a job: python -m benchmarks.suite.worker JOB EVENTS.

JOB is the job as JSON. The file EVENTS gets a line of JSON for each event as it happens.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock

from benchmarks.suite import once, speed
from benchmarks.suite.job import READY, Event, Job, Row, failure
from benchmarks.suite.processes import GPU_LOCK, TURN_LOCK
from torchtrt_bridge.runtime import trial


def main(text: str, events: str) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    job = Job.from_json(text)
    if job.locks:
        share_gpu(Path(job.locks, GPU_LOCK))
    with Path(events).open("a", buffering=1, encoding="utf-8") as file, contextlib.ExitStack() as turn:
        for event in MEASURES[job.kind](job):
            if event[1] == READY:
                _stop_compilers()
            file.write(json.dumps(event) + "\n")
            if event[1] == READY and job.locks:
                turn.enter_context(FileLock(Path(job.locks, TURN_LOCK)))


def share_gpu(path: Path) -> None:
    """Hold the lock at `path` in each trial of torchtrt_bridge, and while inductor times a kernel.

    Of processes that compile side by side, one at a time then measures on the GPU to choose.
    """
    from torch._inductor.runtime.benchmarking import benchmarker

    lock = FileLock(path)
    trial.exclusive = lambda: lock
    owner = type(benchmarker)
    benchmark = owner.benchmark_gpu

    @functools.wraps(benchmark)
    def benchmark_alone(*args: Any, **kwargs: Any) -> Any:
        with lock:  # reentrant
            return benchmark(*args, **kwargs)

    owner.benchmark_gpu = benchmark_alone  # type: ignore[method-assign]


def measure_one(measure: Callable[[Job], Row], job: Job) -> Iterator[Event]:
    """Yield the row of the only contender of a job."""
    (name,) = job.contenders
    yield name, "measuring"
    try:
        row = measure(job)
    except Exception as error:
        row = failure(error)
    yield name, row


def _stop_compilers() -> None:
    """End inductor's compiler processes, which would disturb what is measured from here on."""
    if "torch._inductor.async_compile" in sys.modules:
        sys.modules["torch._inductor.async_compile"].shutdown_compile_workers()


def _end_with_parent() -> None:
    """Wait until the process that started this one is gone; then nobody reads the measurement, which ends."""
    os.read(sys.stdin.fileno(), 1)
    os.killpg(0, signal.SIGKILL)


MEASURES: Mapping[str, Callable[[Job], Iterator[Event]]] = {
    "speed": speed.measure,
    "start": functools.partial(measure_one, once.first_result),
    "build": functools.partial(measure_one, once.export_cost),
}

if __name__ == "__main__":
    main(*sys.argv[1:])
