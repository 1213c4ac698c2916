"""Time models with recurrent layers in several ways, in turns in one process: python -m benchmarks.recurrent [--tiny]

In fp16 on a GPU: eager, which calls cuDNN, by inductor, compiled and exported. A way that fails has the reason in place
of times. `--tiny` takes small models, on the CPU by the reference interpreter.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import datetime
import functools
import signal
import statistics
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch._dynamo.utils import counters

import torchtrt_bridge as trtb
from benchmarks.measured import RESULTS, keep, seconds
from benchmarks.suite.job import failure
from benchmarks.suite.speed import float_tensors, relative_error
from torchtrt_bridge.trt import library as libraries

BATCHES = (1, 8)
ROUNDS = 9
WARM_UP = 10  # calls: a trial, then recordings of CUDA graphs
TURN_SECONDS, MOST_CALLS = 0.05, 100
INDUCTOR, UNROLLED = "inductor reduce-overhead", "inductor reduce-overhead, allow_rnn"
BRIDGE: dict[str, dict[str, Any]] = {"compile, trial check": {"trial": "check"}, "compile": {}, "export": {}}

Call = Callable[[torch.Tensor], Any]


class Crnn(nn.Module):
    """A reader of text lines: convolutions over 32 rows of grey, then layers of both directions over the columns."""

    def __init__(self, width: int, units: int, classes: int) -> None:
        super().__init__()
        self.features = nn.Sequential(
            *_convolution(1, width), nn.MaxPool2d(2),
            *_convolution(width, 2 * width), nn.MaxPool2d(2),
            *_convolution(2 * width, 4 * width), *_convolution(4 * width, 4 * width), nn.MaxPool2d((2, 1)),
            *_convolution(4 * width, 8 * width), *_convolution(8 * width, 8 * width), nn.MaxPool2d((2, 1)),
            *_convolution(8 * width, 8 * width, size=2, padding=0),
        )  # fmt: skip
        self.layers = nn.LSTM(8 * width, units, num_layers=2, bidirectional=True, batch_first=True)
        self.head = nn.Linear(2 * units, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        columns = self.features(x).flatten(1, 2).transpose(1, 2)
        y, _ = self.layers(columns)  # a line of its own, as Dynamo ends a graph at the line of a recurrent layer
        result: torch.Tensor = self.head(y).log_softmax(-1)
        return result


def _convolution(inputs: int, outputs: int, size: int = 3, padding: int = 1) -> tuple[nn.Module, ...]:
    return nn.Conv2d(inputs, outputs, size, padding=padding, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()


class Encoder(nn.Module):
    """A speech encoder: every second frame, then layers of one direction over what is left."""

    def __init__(self, kind: Callable[..., nn.Module], features: int, units: int, layers: int) -> None:
        super().__init__()
        self.subsampled = nn.Conv1d(features, units, 3, stride=2, padding=1)
        self.layers = kind(units, units, num_layers=layers, batch_first=True)
        self.norm = nn.LayerNorm(units)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        frames = self.subsampled(x).relu().transpose(1, 2)
        y, _ = self.layers(frames)
        result: torch.Tensor = self.norm(y)
        return result


Models = dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]]
MODELS: Models = {
    "crnn": (lambda: Crnn(64, 256, 96), (1, 32, 400)),
    "encoder-lstm": (lambda: Encoder(nn.LSTM, 80, 512, 4), (80, 800)),
    "encoder-gru": (lambda: Encoder(nn.GRU, 80, 512, 4), (80, 800)),
}
TINY: Models = {
    "crnn": (lambda: Crnn(2, 8, 10), (1, 32, 40)),
    "encoder-lstm": (lambda: Encoder(nn.LSTM, 8, 8, 2), (8, 40)),
    "encoder-gru": (lambda: Encoder(nn.GRU, 8, 8, 2), (8, 40)),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tiny", action="store_true", help="small models on the CPU")
    parser.add_argument("--models", default=",".join(MODELS), help="default: %(default)s")
    parser.add_argument("--limit", type=float, default=20.0, help="seconds for inductor to compile unrolled layers")
    parser.add_argument("--results", type=Path, default=RESULTS, help="the folder of the results")
    arguments = parser.parse_args()
    device = "host" if arguments.tiny else torch.cuda.get_device_name()
    rows: list[dict[str, Any]] = []
    for name in arguments.models.split(","):
        given_up: dict[str, Any] = {}  # what fails with one batch is not tried with the next
        for batch in BATCHES:
            print(f"{name}, batch {batch}", file=sys.stderr, flush=True)
            found = measured(name, batch, arguments.tiny, arguments.limit, given_up)
            rows.append({"model": name, "batch": batch, "ways": found})
    result = {
        "date": datetime.date.today().isoformat(),
        "command": "python -m benchmarks.recurrent" + (" --tiny" if arguments.tiny else ""),
        "device": device,
        "tensorrt": str(libraries.choose("auto")),
        "versions": {"torch": torch.__version__, "cudnn": torch.backends.cudnn.version()},
        "limit_s": arguments.limit,
        "rows": rows,
    }
    keep(arguments.results, "recurrent", device, result)
    return int(any("failed" in row["ways"][way] for row in rows for way in BRIDGE))


@torch.inference_mode()
def measured(name: str, batch: int, tiny: bool, limit: float, given_up: dict[str, Any]) -> dict[str, Any]:
    """Return what each way gives: times, engines, and the error beside eager PyTorch in fp32.

    given_up: the ways that are not tried, with the reason; those that inductor fails at are added.
    """
    device, dtype = ("cpu", torch.float32) if tiny else ("cuda", torch.float16)
    make, shape = (TINY if tiny else MODELS)[name]
    torch.manual_seed(0)
    with torch.inference_mode(False):
        original = make().eval()
        inputs = torch.randn(batch, *shape).to(device)
    torch.backends.cudnn.allow_tf32 = False
    expected = float_tensors(copy.deepcopy(original).to(device)(inputs))
    x = inputs.to(dtype)
    torch._dynamo.reset()
    calls: dict[str, Call] = {}
    found: dict[str, dict[str, Any]] = {}
    for way, prepare in _ways(tiny, limit).items():
        if way in given_up:
            found[way] = given_up[way]
            continue
        with torch.inference_mode(False):
            model = copy.deepcopy(original).to(device, dtype)  # `to` joins the weights of a layer, as cuDNN wants them
            _give_own_code(model, way)
        try:
            counters.clear()
            calls[way], found[way] = _prepared(functools.partial(prepare, model, x), x, expected)
            if way == INDUCTOR:
                found[way]["graph_breaks"] = _graph_breaks()
        except Exception as error:
            found[way] = failure(error)
            if way == UNROLLED:
                given_up[way] = found[way]
    for way, ms in _milliseconds(calls, x).items():
        found[way] = {"ms": ms, **found[way], **(_reported(calls[way]) if way in BRIDGE else {})}
    return found


def _ways(tiny: bool, limit: float) -> dict[str, Callable[[nn.Module, torch.Tensor], Call]]:
    """Return how each way prepares a model in eval mode, and makes its first call."""
    engine = "reference" if tiny else "auto"
    ways: dict[str, Callable[[nn.Module, torch.Tensor], Call]] = {"eager": _called}
    for way, options in BRIDGE.items():
        prepare = _exported if way == "export" else _compiled
        ways[way] = functools.partial(prepare, cache_dir="", engine=engine, **options)
    if not tiny:  # on the CPU, inductor would compile for minutes
        ways[INDUCTOR] = _broken
        ways[UNROLLED] = functools.partial(_unrolled, limit=limit)
    return ways


def _compiled(model: nn.Module, x: torch.Tensor, **options: Any) -> Call:
    return _called(trtb.compile(model, **options), x)


def _exported(model: nn.Module, x: torch.Tensor, **options: Any) -> Call:
    return _called(trtb.export(model, (x,), **options), x)


def _broken(model: nn.Module, x: torch.Tensor) -> Call:
    """Let inductor compile what is not in recurrent layers, at which Dynamo breaks the graph."""
    return _called(torch.compile(model, mode="reduce-overhead"), x)


def _unrolled(model: nn.Module, x: torch.Tensor, limit: float) -> Call:
    """Let inductor compile the recurrent layers too, each step by itself, as PyTorch decomposes them."""
    with torch._dynamo.config.patch(allow_rnn=True), time_limit(limit):
        return _called(torch.compile(model, mode="reduce-overhead", fullgraph=True), x)


def _give_own_code(model: nn.Module, name: str) -> None:
    """Give a model a `forward` of its own: what Dynamo decided for one way, as to skip it, holds for its code."""
    forward: Any = type(model).forward
    code = forward.__code__.replace(co_name=f"forward, {name}")
    own = types.FunctionType(code, forward.__globals__, "forward", forward.__defaults__, forward.__closure__)
    model.__class__ = type(type(model).__name__, (type(model),), {"forward": own})


def _called(call: Call, x: torch.Tensor) -> Call:
    call(x)
    return call


@contextlib.contextmanager
def time_limit(limit: float) -> Iterator[None]:
    """Raise TimeoutError in the main thread if what is within takes more than so many seconds.

    It does so by a signal, as Python code sees it: what runs in C is not interrupted.
    """

    class _TimeUp(BaseException):
        """Passes by handlers of errors, of which a compiler has many."""

    def stop(*_: Any) -> None:
        raise _TimeUp

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, limit, 5.0)  # again later: an exception in a destructor is lost
    try:
        yield
    except _TimeUp:
        raise TimeoutError(f"given up after {limit:g} s") from None
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _prepared(
    prepare: Callable[[], Call], x: torch.Tensor, expected: list[torch.Tensor]
) -> tuple[Call, dict[str, Any]]:
    """Return a model that is warmed up, the seconds until its first results, and its error."""
    made: list[Call] = []
    first = seconds(lambda: made.append(prepare()))
    (call,) = made
    for _ in range(WARM_UP):
        call(x)
    error = relative_error(float_tensors(call(x)), expected)
    return call, {"first_call_s": round(first, 2), "error": float(f"{error:.2e}")}


def _milliseconds(calls: dict[str, Call], x: torch.Tensor) -> dict[str, float]:
    """Return the median time per call of each way, of turns of many calls that are queued without waiting."""
    counts = {}
    for way, call in calls.items():
        one = seconds(functools.partial(_repeated, call, x, 3)) / 3
        counts[way] = max(1, min(MOST_CALLS, int(TURN_SECONDS / max(one, 1e-9))))
    times: dict[str, list[float]] = {way: [] for way in calls}
    for _ in range(ROUNDS):
        for way, call in calls.items():
            call(x)  # brings code and data back into caches
            turn = seconds(functools.partial(_repeated, call, x, counts[way]))
            times[way].append(turn / counts[way] * 1e3)
    return {way: round(statistics.median(turns), 4) for way, turns in times.items()}


def _repeated(call: Call, x: torch.Tensor, count: int) -> None:
    for _ in range(count):
        call(x)


def _graph_breaks() -> list[str]:
    """Return why Dynamo broke graphs since its counters were cleared, each in a line."""
    reasons = [*counters["graph_break"], *counters["unimplemented"]]
    return list(dict.fromkeys(reason.partition("\n")[0] for reason in reasons))


def _reported(compiled: Any) -> dict[str, Any]:
    """Return the figures of torchtrt_bridge's own report."""
    report = trtb.report(compiled)
    return {
        "engines": len(report.engines),
        "is_whole": report.is_whole,
        "build_s": round(sum(entry.build_seconds for entry in report.engines), 2),
        "choices": [entry.choice if entry.is_ready else entry.state for entry in report.engines],
        "trials_ms": [{way: round(ms, 4) for way, ms in entry.milliseconds.items()} for entry in report.engines],
        "in_torch": {entry.op: entry.reason for entry in report.in_torch},
        "notes": report.notes,
    }


if __name__ == "__main__":
    sys.exit(main())
