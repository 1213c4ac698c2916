"""The contenders, which run the models side by side. To add one: a function that compiles a model, and a row."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal

from benchmarks.suite.job import Job

if TYPE_CHECKING:
    from torch import nn

    from torchtrt_bridge.entry.program import Program
    from torchtrt_bridge.report.model import CompileReport

EAGER = "eager"
Compiled = Callable[..., Any]
Family = Literal["bridge", "eager", "inductor", "peer"]


@dataclasses.dataclass(frozen=True)
class Contender:
    """One way to run a model.

    compile: returns the callable for a model. An exception becomes the contender's row.
    title: the heading of its column.
    channels_last: True if it takes the weights and images of a CNN in that order.
    keeps_fp32: True if it takes the fp32 model and converts it itself.
    is_default: True if it runs without being named.
    """

    compile: Callable[[nn.Module, Job], Compiled]
    title: str
    family: Family
    channels_last: bool = False
    keeps_fp32: bool = False
    is_default: bool = True


def _bridge(model: nn.Module, job: Job, **options: Any) -> Compiled:
    import torchtrt_bridge as trtb

    compiled: Compiled = trtb.compile(model, engine=job.engine, cache_dir=job.cache_dir, **options)
    return compiled


def _casting_bridge(model: nn.Module, job: Job) -> Compiled:
    return _bridge(model, job, precision=job.precision)


class ExportedModel:
    """A program, exported with the inputs of its first call."""

    def __init__(self, model: nn.Module, job: Job) -> None:
        self._model, self._job = model, job
        self.program: Program | None = None

    def __call__(self, **inputs: Any) -> Any:
        if self.program is None:
            import torchtrt_bridge as trtb

            options: dict[str, Any] = {
                "engine": self._job.engine,
                "cache_dir": self._job.cache_dir,
                "inductor": "compete",
            }
            self.program = trtb.export(self._model, inputs, **options)
        return self.program(**inputs)

    @property
    def report(self) -> CompileReport | None:
        return None if self.program is None else self.program.report


def _inductor(model: nn.Module, job: Job, mode: str) -> Compiled:
    import torch

    compiled: Compiled = torch.compile(model, mode=mode)
    return compiled


def _torch_tensorrt(model: nn.Module, job: Job) -> Compiled:
    """Compile as its documentation shows; the import registers the backend."""
    import torch
    import torch_tensorrt  # noqa: F401

    compiled: Compiled = torch.compile(model, backend="torch_tensorrt", dynamic=False)
    return compiled


def _ours(title: str, is_default: bool = False, **options: Any) -> Contender:
    return Contender(functools.partial(_bridge, **options), title, "bridge", is_default=is_default)


def _inductor_mode(title: str, mode: str) -> Contender:
    return Contender(functools.partial(_inductor, mode=mode), title, "inductor", channels_last=True)


CONTENDERS: Mapping[str, Contender] = {
    "torchtrt_bridge": _ours("bridge", is_default=True),
    "torchtrt_bridge-cast": Contender(_casting_bridge, "bridge, cast", "bridge", keeps_fp32=True, is_default=False),
    "torchtrt_bridge-no-graphs": _ours("bridge, no CUDA graphs", cuda_graphs="off"),
    "torchtrt_bridge-background": _ours("bridge, built in the background", build="background"),
    "torchtrt_bridge-inductor": _ours("bridge, inductor competes", is_default=True, inductor="compete"),
    "torchtrt_bridge-export": Contender(
        ExportedModel, "bridge, exported, inductor competes", "bridge", is_default=False
    ),
    "torchtrt_bridge-max-autotune": _ours("bridge, inductor competes, tuned", inductor="max-autotune"),
    EAGER: Contender(lambda model, job: model, "eager", "eager", channels_last=True),
    "inductor": _inductor_mode("inductor", "default"),
    "inductor-reduce-overhead": _inductor_mode("inductor, reduce-overhead", "reduce-overhead"),
    "inductor-max-autotune": _inductor_mode("inductor, max-autotune", "max-autotune"),
    "torch_tensorrt": Contender(_torch_tensorrt, "torch_tensorrt", "peer"),
}

DEFAULTS = tuple(name for name, contender in CONTENDERS.items() if contender.is_default)


def family(name: str) -> Family:
    """Return the family of a contender; ``"peer"`` for one of an old file that is no longer in the table."""
    return CONTENDERS[name].family if name in CONTENDERS else "peer"


def title(name: str) -> str:
    """Return the heading of a contender's column."""
    return CONTENDERS[name].title if name in CONTENDERS else name
