"""Bench: the user's own model in eager PyTorch, inductor and torchtrt_bridge, timed side by side in turns."""

from __future__ import annotations

import argparse
import contextlib
import copy
import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.utils import _pytree as pytree

import torchtrt_bridge as trtb
from torchtrt_bridge.cli.arguments import Request, is_file
from torchtrt_bridge.cli.bench_results import Row, print_results, results, write_results
from torchtrt_bridge.cli.calls import ModelCall, call_from
from torchtrt_bridge.cli.console import say, step, write_page
from torchtrt_bridge.cli.models import is_saved_by_us, module_from_program
from torchtrt_bridge.cli.user_code import reason_of
from torchtrt_bridge.errors import EngineLoadError, OptionsError
from torchtrt_bridge.options import Options
from torchtrt_bridge.runtime.tolerance import relative_distance

if TYPE_CHECKING:
    from torchtrt_bridge.report.model import CompileReport

DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}
WARM_UP = 10
LEAST_CALLS = 3
TURN_SECONDS = 0.5

# What runs the model, and the call that it takes.
Compiled = tuple[Callable[..., Any], ModelCall]


def bench(arguments: argparse.Namespace, request: Request) -> int:
    """Time the contenders, print the table and write the files; return status 1 if torchtrt_bridge has no time."""
    options = Options.from_mapping(request.options)
    device = device_for(options)
    with step(f"loading {request.model}, and running it in PyTorch"):
        call = on_device(call_from(request), device)
    with tf32(options.tf32):
        contenders = prepared(call, request, options, device)
        rows = [timed.row() for timed in take_turns(contenders, arguments.rounds, arguments.calls)]
    report = next((c.report for c in contenders if c.report is not None), None)
    content = results(request, call, rows, report, device)
    print_results(content, rows)
    if arguments.json is not None:
        write_results(content, arguments.json)
    if arguments.html is not None and report is not None:
        with step("timing the layers of its engines"), contextlib.suppress(EngineLoadError):  # of those that there are
            report.profile()
        write_page(report, arguments.html)
        print(f"wrote {arguments.html}")
    return 1 if rows[-1].failure else 0


def device_for(options: Options) -> str:
    """Return the device to measure on; OptionsError where there is none for these options."""
    if options.engine == "reference":
        return "cpu"
    if not torch.cuda.is_available():
        raise OptionsError(
            "no GPU is visible to PyTorch, and TensorRT runs on no CPU. `--engine reference` shows that the command "
            "works, with times that mean nothing; `torchtrt-bridge doctor` says what is missing."
        )
    return "cuda"


def on_device(call: ModelCall, device: str) -> ModelCall:
    """Return the call with its model and its tensors on a device."""
    moved = dataclasses.replace(call, **_converted(call, device=device))
    program = getattr(call.module, "exported_program", None)
    if program is not None and device != "cpu":
        from torch.export.passes import move_to_device_pass

        return dataclasses.replace(moved, module=module_from_program(move_to_device_pass(program, device)))
    return dataclasses.replace(moved, module=call.module.to(device))


def _converted(call: ModelCall, device: str | None = None, dtype: torch.dtype | None = None) -> dict[str, Any]:
    """Return the arguments of a call on another device, and what is fp32 among them in another dtype."""

    def convert(leaf: Any) -> Any:
        if not isinstance(leaf, torch.Tensor):
            return leaf
        return leaf.to(device, dtype if leaf.dtype == torch.float32 else None)

    args, kwargs = pytree.tree_map(convert, (call.args, call.kwargs))
    return {"args": args, "kwargs": kwargs}


@contextlib.contextmanager
def tf32(is_allowed: bool) -> Iterator[None]:
    """Let PyTorch use TF32 where torchtrt_bridge does, and nowhere else."""
    backends: tuple[Any, ...] = torch.backends.cuda.matmul, torch.backends.cudnn
    before = [backend.allow_tf32 for backend in backends]
    try:
        for backend in backends:
            backend.allow_tf32 = is_allowed
        yield
    finally:
        for backend, value in zip(backends, before, strict=True):
            backend.allow_tf32 = value


class Contender:
    """One way to run the model, and its times so far."""

    def __init__(self, name: str, compiled: Callable[..., Any] | None, call: ModelCall, device: str) -> None:
        self.name, self.compiled, self.inputs = name, compiled, call
        self._wait: Callable[[], Any] = torch.cuda.synchronize if device == "cuda" else lambda: None
        self.times: list[float] = []
        self.first_seconds: float | None = None
        self.error: float | None = None
        self.failure: str | None = None

    def run(self) -> Any:
        """Call the model."""
        assert self.compiled is not None
        return self.compiled(*self.inputs.args, **self.inputs.kwargs)

    def warm_up(self, expected: Sequence[torch.Tensor]) -> None:
        """Compile with the first call, reach the steady state, and compare the results."""
        self.first_seconds = self._seconds(1)
        self._seconds(WARM_UP)
        with torch.inference_mode():
            self.error = largest_error(float_tensors(self.run()), expected)

    def take_turn(self, most_calls: int) -> None:
        """Time calls that are queued back to back: so many as fit in a turn, and at most `most_calls`."""
        fitting = int(TURN_SECONDS / max(self._seconds(1), 1e-9))
        calls = max(min(LEAST_CALLS, most_calls), min(most_calls, fitting))
        self.times.append(self._seconds(calls) / calls * 1e3)

    def fail(self, error: Exception) -> None:
        """Keep the reason, and drop the times."""
        self.failure = reason_of(error).partition("\n")[0]
        self.times = []

    @property
    def report(self) -> CompileReport | None:
        """The report of what torchtrt_bridge compiled; None for other contenders."""
        if isinstance(self.compiled, trtb.Program):
            return self.compiled.report
        return trtb.report(self.compiled) if self.name == "torchtrt_bridge" and not self.failure else None

    def row(self) -> Row:
        """Return the result."""
        return Row(self.name, tuple(self.times), self.first_seconds, self.error, self.failure)

    def _seconds(self, calls: int) -> float:
        with torch.inference_mode():
            self._wait()
            started = time.perf_counter()
            for _ in range(calls):
                self.run()
            self._wait()
            return time.perf_counter() - started


def prepared(call: ModelCall, request: Request, options: Options, device: str) -> list[Contender]:
    """Return the contenders, each compiled and warmed up, or with the reason why not."""
    with torch.inference_mode():
        expected = [tensor.cpu() for tensor in float_tensors(call.module(*call.args, **call.kwargs))]
    makers: dict[str, Callable[[], Compiled]] = {
        "eager": lambda: _eager(call, options),
        "inductor": lambda: _inductor(call, options),
        "torchtrt_bridge": lambda: (_bridge(call, request, device), call),
    }
    found = []
    for name, make in makers.items():
        contender = Contender(name, None, call, device)
        with step(f"compiling and warming up: {name}"):
            try:
                contender.compiled, contender.inputs = make()
                contender.warm_up(expected)
            except Exception as error:
                contender.fail(error)
                say(f"{name} is left out: {contender.failure}")
        found.append(contender)
    return found


def take_turns(contenders: list[Contender], rounds: int, most_calls: int) -> list[Contender]:
    """Give each contender a turn, round by round, so that a drift of the clocks meets each alike."""
    for index in range(rounds):
        say(f"timing, round {index + 1} of {rounds} ...")
        for contender in contenders:
            if contender.failure is None:
                try:
                    contender.take_turn(most_calls)
                except Exception as error:
                    contender.fail(error)
    return contenders


def _eager(call: ModelCall, options: Options) -> Compiled:
    """Return the model in the precision that torchtrt_bridge computes in; a program keeps its dtypes."""
    dtype = DTYPES.get(options.precision)
    if dtype is None or hasattr(call.module, "exported_program"):
        return call.module, call
    module = copy.deepcopy(call.module).to(dtype)
    return module, dataclasses.replace(call, module=module, **_converted(call, dtype=dtype))


def _inductor(call: ModelCall, options: Options) -> Compiled:
    module, converted = _eager(call, options)
    return torch.compile(module), converted


def _bridge(call: ModelCall, request: Request, device: str) -> Any:
    """Return the model through TensorRT: with the engines of the file where it has some."""
    if device == "cuda" and is_file(request.model) and is_saved_by_us(Path(request.model)):
        return trtb.load(request.model, device=device, **request.options)
    return trtb.compile(call.module, **request.options)


def float_tensors(found: Any) -> list[torch.Tensor]:
    """Return the floating point tensors among a model's results, in PyTorch's order."""
    leaves = pytree.tree_leaves(found)
    return [leaf for leaf in leaves if isinstance(leaf, torch.Tensor) and leaf.is_floating_point()]


def largest_error(actual: Sequence[torch.Tensor], expected: Sequence[torch.Tensor]) -> float:
    """Return the largest relative L2 distance of the outputs; ValueError if their shapes differ."""
    if [a.shape for a in actual] != [b.shape for b in expected]:
        raise ValueError(f"the results have the shapes {[list(a.shape) for a in actual]}, not those of PyTorch")
    errors = [relative_distance(a.cpu(), b) for a, b in zip(actual, expected, strict=True)]
    return max(errors, key=lambda error: math.inf if math.isnan(error) else error, default=0.0)
