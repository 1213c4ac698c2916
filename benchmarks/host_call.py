"""The host's part of one call, in microseconds: python -m benchmarks.host_call [--models NAMES] [--out FILE]

Batch 1 in fp16, on a GPU and with nothing else on the machine; elsewhere it shows that the command works.
"""

from __future__ import annotations

import argparse
import functools
import statistics
import time
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from benchmarks.suite.clock import Call, back_to_back, waiter
from benchmarks.suite.contenders import CONTENDERS
from benchmarks.suite.job import Job, Row
from benchmarks.suite.models import SUITE, build
from benchmarks.suite.results import keep_rows
from benchmarks.suite.speed import converted
from torchtrt_bridge.entry.compiled_graph import CompiledGraph
from torchtrt_bridge.entry.torch_compile import backend_of

OURS, INDUCTOR = "torchtrt_bridge", "inductor-reduce-overhead"
CALLS, ROUNDS = 20, 15


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", default="mobilenet-v3-large,minilm-l6,bert-base")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    rows = [measured(name, device) for name in arguments.models.split(",")]
    show(rows)
    if arguments.out is not None:
        keep_rows(arguments.out, device, rows)


@torch.inference_mode()
def measured(name: str, device: str) -> Row:
    """Return the host's microseconds for each part of a call, and milliseconds per call when many are queued."""
    job = Job.on(device, "speed", name, 1, (OURS, INDUCTOR))
    with torch.inference_mode(False):
        original = build(SUITE[name], device)
    fast, call = called(OURS, job, original)
    arguments = arguments_of_last_call(call)
    (graph,) = backend_of(fast).graphs  # type: ignore[union-attr]
    run, wait = graph.compiled.run, waiter(device)  # type: ignore[union-attr]
    taken = [arguments[index] for index in graph._inputs]
    row = {
        "model": name,
        "arguments": len(arguments),
        "call us": host(call, wait),
        "look after the weights us": host(lambda: graph._bound.matches(arguments), wait),  # type: ignore[union-attr]
        "run us": host(lambda: run(taken), wait),
        "ms": milliseconds(call, wait),
    }
    with torch.compiler.set_stance(skip_guard_eval_unsafe=True):
        row["call without guards us"] = host(call, wait)
    results = graph(*arguments)
    with patch.object(CompiledGraph, "__call__", lambda graph, *arguments: results):
        row["Dynamo us"] = host(call, wait)
    for cuda_graph in run.thread_state.graphs.captured():
        row["copy and replay us"] = host(functools.partial(cuda_graph, taken), wait)
        row["replay ms"] = milliseconds(cuda_graph.replay, wait)
    torch._dynamo.reset()
    _, call = called(INDUCTOR, job, original)
    return {**row, "inductor us": host(call, wait), "inductor ms": milliseconds(call, wait)}


def called(contender: str, job: Job, original: nn.Module) -> tuple[Any, Call]:
    """Return the compiled model of a contender, and a call of it, after its first call."""
    with torch.inference_mode(False):
        model, inputs = converted(contender, job, original, SUITE[job.model].inputs(job.batch))
    fast = CONTENDERS[contender].compile(model, job)
    fast(**inputs)
    return fast, lambda: fast(**inputs)


def arguments_of_last_call(call: Call, calls: int = 6) -> list[Any]:
    """Return the arguments that Dynamo passes to the graph, once the call is recorded."""
    seen: list[Any] = []
    own = CompiledGraph.__call__

    def noting(graph: CompiledGraph, *arguments: Any) -> Any:
        seen[:] = arguments
        return own(graph, *arguments)

    with patch.object(CompiledGraph, "__call__", noting):
        for _ in range(calls):
            call()
    return seen


def host(call: Call, wait: Call) -> float:
    """Return the median time until a call returns, in microseconds."""
    return statistics.median(_queued(call, wait) for _ in range(ROUNDS))


def _queued(call: Call, wait: Call) -> float:
    call()
    wait()
    started = time.perf_counter()
    for _ in range(CALLS):
        call()
    seconds = time.perf_counter() - started
    wait()
    return seconds / CALLS * 1e6


def milliseconds(call: Call, wait: Call) -> float:
    return statistics.median(back_to_back(call, 5 * CALLS, wait) for _ in range(ROUNDS))


def show(rows: list[Row]) -> None:
    table = Table("", *(row["model"] for row in rows))
    for key in [key for key in rows[0] if key != "model"]:
        table.add_row(key, *(f"{row[key]:.4g}" for row in rows))
    Console().print(table)


if __name__ == "__main__":
    main()
