"""The stages of the time to a first result: python -m benchmarks.first_result [--models NAMES] [--out FILE]

Batch 1 in fp16 on a GPU, with empty and then with filled caches, each in a new process; elsewhere it shows that the
command works.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch.export import ExportedProgram

from benchmarks.suite import clock
from benchmarks.suite.contenders import CONTENDERS
from benchmarks.suite.job import PARTS, Job, Row
from benchmarks.suite.models import SUITE, build
from benchmarks.suite.results import keep_rows
from benchmarks.suite.schedule import cache_variables
from benchmarks.suite.speed import converted, strict_torch
from torchtrt_bridge import pipeline
from torchtrt_bridge.cache import EngineCache
from torchtrt_bridge.capture import capture_cache, dynamo
from torchtrt_bridge.engine import builder
from torchtrt_bridge.entry.compiled_graph import CompiledGraph
from torchtrt_bridge.entry.graph_accuracy import GraphAccuracyCheck
from torchtrt_bridge.runtime.cuda_graph import CudaGraphCall
from torchtrt_bridge.runtime.engine_module import EngineModule
from torchtrt_bridge.runtime.runners import GpuRunner
from torchtrt_bridge.runtime.trial import Trial
from torchtrt_bridge.trt import library as libraries

OURS = "torchtrt_bridge"

# The stages: the name, the object that holds the function of the stage, and the name of the function there.
STAGES: tuple[tuple[str, Any, str], ...] = (
    ("backend", CompiledGraph, "__init__"),
    ("key of the graph", capture_cache, "capture_key"),
    ("graph is read from the cache", capture_cache, "graph_from_text"),
    ("capture", dynamo, "capture"),
    ("torch.export", torch.export, "export"),
    ("its decompositions", ExportedProgram, "run_decompositions"),
    ("graph of the program", dynamo, "graph_from_program"),
    ("TensorRT is imported", libraries, "load"),
    ("normalize", pipeline, "normalize"),
    ("partition", pipeline, "propose"),
    ("digest", builder, "engine_key"),
    ("cache is read", EngineCache, "get"),
    ("lower", builder, "network_from_graph"),
    ("TensorRT builds", builder, "engine_from_network"),
    ("engine is loaded", GpuRunner, "__init__"),
    ("its context is made", GpuRunner, "prepare"),
    ("first call", CompiledGraph, "__call__"),
    ("the engine is waited for", EngineModule, "wait"),
    ("subgraph in PyTorch", EngineModule, "_in_pytorch"),
    ("trial", Trial, "run"),
    ("the engine runs", GpuRunner, "__call__"),
    ("a CUDA graph is recorded", CudaGraphCall, "__init__"),
    ("contenders are timed", Trial, "_race"),
    ("compared with the model", GraphAccuracyCheck, "call"),
)
LEAST_SECONDS = 0.02  # shorter spans are left out


@dataclasses.dataclass
class Span:
    """A stage, from `start` in seconds since compiling began.

    depth: the number of stages around it. is_aside: True if it ran in a thread beside the one that called the model.
    """

    stage: str
    start: float
    seconds: float
    depth: int
    is_aside: bool


class Timeline:
    """The spans of all stages that are entered while it is `watching`."""

    def __init__(self) -> None:
        self.spans: list[Span] = []
        self._started = time.perf_counter()
        self._depth = threading.local()

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            for stage, owner, name in STAGES:
                own = getattr(owner, name)
                setattr(owner, name, self._timed(stage, own))
                stack.callback(setattr, owner, name, own)
            self._started = time.perf_counter()
            yield

    def _timed(self, stage: str, call: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(call)
        def timed(*args: Any, **kwargs: Any) -> Any:
            depth = getattr(self._depth, "value", 0)
            self._depth.value = depth + 1
            started = time.perf_counter()
            try:
                return call(*args, **kwargs)
            finally:
                self._depth.value = depth
                seconds = time.perf_counter() - started
                is_aside = threading.current_thread() is not threading.main_thread()
                self.spans.append(Span(stage, started - self._started, seconds, depth, is_aside))

        return timed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", default="resnet50,bert-base")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--child", nargs=2, metavar=("MODEL", "CACHES"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if arguments.child:
        print(json.dumps(measured(*arguments.child, device)))
        return
    rows = [row for name in arguments.models.split(",") for row in in_processes(name)]
    for row in rows:
        show(row)
    if arguments.out is not None:
        keep_rows(arguments.out, device, rows)


def in_processes(name: str) -> Iterator[Row]:
    """Yield the timelines of a model with empty caches, and with those that this left."""
    with tempfile.TemporaryDirectory() as folder:
        for part in PARTS["start"]:
            command = [sys.executable, "-m", "benchmarks.first_result", "--child", name, folder]
            variables = {**os.environ, **cache_variables(Path(folder))}
            done = subprocess.run(command, env=variables, check=True, stdout=subprocess.PIPE, text=True)
            yield {"model": name, "caches": part, **json.loads(done.stdout.splitlines()[-1])}


def measured(name: str, folder: str, device: str) -> Row:
    """Return the timeline of a first call in this process."""
    job = dataclasses.replace(Job.on(device, "start", name, 1, (OURS,)), cache_dir=f"{folder}/engines")
    strict_torch()
    model, inputs = converted(OURS, job, build(SUITE[name], device), SUITE[name].inputs(1))
    wait = clock.waiter(device)
    timeline = Timeline()
    with torch.inference_mode(), timeline.watching():
        started = time.perf_counter()
        CONTENDERS[OURS].compile(model, job)(**inputs)
        wait()
        seconds = time.perf_counter() - started
    spans = sorted((span for span in timeline.spans if span.seconds >= LEAST_SECONDS), key=lambda span: span.start)
    return {"seconds": seconds, "spans": [dataclasses.asdict(span) for span in spans]}


def show(row: Row) -> None:
    title = f"{row['model']}, {row['caches']} caches: {row['seconds']:.2f} s to the first result"
    table = Table("from s", "for s", "stage", "in a thread of its own", title=title)
    for span in row["spans"]:
        stage = "  " * span["depth"] + span["stage"]
        left, right = ("", stage) if span["is_aside"] else (stage, "")
        table.add_row(f"{span['start']:.2f}", f"{span['seconds']:.2f}", left, right)
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
