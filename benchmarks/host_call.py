"""What the host does for one call, and how long: python benchmarks/host_call.py [--models NAMES] [--out FILE]

Batch 1 in fp16, on a GPU and with nothing else on the machine; elsewhere it shows that the command works.
"""

from __future__ import annotations

import argparse
import datetime
import functools
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

import torchtrt_bridge as trtb
from torchtrt_bridge.backend import backend_of
from torchtrt_bridge.bench.clock import back_to_back, waiter
from torchtrt_bridge.bench.environment import environment
from torchtrt_bridge.bench.suite import SUITE, build
from torchtrt_bridge.files import written_aside
from torchtrt_bridge.served import ServedGraph

Row = dict[str, Any]
Call = Callable[[], Any]
CALLS, ROUNDS = 20, 15


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", default="mobilenet-v3-large,minilm-l6,bert-base")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with torch.inference_mode():
        rows = [measured(name, device) for name in arguments.models.split(",")]
    show(rows)
    if arguments.out is not None:
        keep(arguments.out, device, rows)


def measured(name: str, device: str) -> Row:
    """Microseconds of the host for each part of a call, and milliseconds per call when many are queued."""
    dtype = torch.float16 if device == "cuda" else torch.float32
    with torch.inference_mode(False):
        model = build(SUITE[name], device).to(device, dtype)
    inputs = {key: value.to(device) for key, value in SUITE[name].inputs(1).items()}
    inputs = {key: value.to(dtype) if value.is_floating_point() else value for key, value in inputs.items()}
    engine = "auto" if device == "cuda" else "reference"
    fast = trtb.compile(model, engine=engine, trial="check", cache_dir="")
    arguments = arguments_of_last_call(lambda: fast(**inputs))
    (graph,) = backend_of(fast).graphs  # type: ignore[union-attr]
    run, wait = graph.compiled.run, waiter(device)  # type: ignore[union-attr]
    taken = [arguments[index] for index in graph._inputs]
    row = {
        "model": name,
        "arguments": len(arguments),
        "call us": host(lambda: fast(**inputs), wait),
        "Dynamo us": host(lambda: fast(**inputs), wait, results=graph(*arguments)),
        "look after the weights us": host(lambda: graph._bound.hold(arguments), wait),  # type: ignore[union-attr]
        "run us": host(lambda: run(taken), wait),
        "ms": milliseconds(lambda: fast(**inputs), wait),
    }
    for recording in run.lane.replays():
        row["copy and replay us"] = host(functools.partial(recording, taken), wait)
        row["replay ms"] = milliseconds(recording.replay, wait)
    torch._dynamo.reset()
    theirs = torch.compile(model, mode="reduce-overhead")
    theirs(**inputs)
    row |= {
        "inductor us": host(lambda: theirs(**inputs), wait),
        "inductor ms": milliseconds(lambda: theirs(**inputs), wait),
    }
    return row


def arguments_of_last_call(call: Call, calls: int = 6) -> list[Any]:
    """What Dynamo gives to the graph, once the call is recorded."""
    seen: list[Any] = []
    own = ServedGraph.__call__

    def noting(graph: ServedGraph, *arguments: Any) -> Any:
        seen[:] = arguments
        return own(graph, *arguments)

    ServedGraph.__call__ = noting  # type: ignore[method-assign]
    try:
        for _ in range(calls):
            call()
    finally:
        ServedGraph.__call__ = own  # type: ignore[method-assign]
    return seen


def host(call: Call, wait: Call, results: Any = None) -> float:
    """The median time until a call returns, in microseconds; results: what the graph gives without being computed."""
    own = ServedGraph.__call__
    if results is not None:
        ServedGraph.__call__ = lambda graph, *arguments: results  # type: ignore[method-assign]
    try:
        times = [_queued(call, wait) for _ in range(ROUNDS)]
    finally:
        ServedGraph.__call__ = own  # type: ignore[method-assign]
    return statistics.median(times)


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


def keep(path: Path, device: str, rows: list[Row]) -> None:
    command = " ".join(["python", "benchmarks/host_call.py", *sys.argv[1:]])
    date = datetime.date.today().isoformat()
    result = {"date": date, "command": command, "environment": environment(device, "auto"), "rows": rows}
    with written_aside(path, mode=0o644) as aside:
        aside.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
