"""What is measured side by side: one row each. To add one: a function that makes a callable of a model, and a row."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from torch import nn

    from torchtrt_bridge.entry.program import Program
    from torchtrt_bridge.report.model import CompileReport

EAGER = "eager"
Made = Callable[..., Any]


@dataclasses.dataclass(frozen=True)
class Setting:
    """What a contender is told beside the model.

    precision: what the row is about; the model is in it already, unless the contender keeps it in fp32.
    engine: the `engine` option of torchtrt_bridge.
    cache_dir: where torchtrt_bridge keeps engines; other contenders have their caches named in the environment.
    """

    precision: str
    engine: str
    cache_dir: str


@dataclasses.dataclass(frozen=True)
class Contender:
    """One way of running a model.

    make: of the model, what is called with the inputs. What it raises becomes the contender's row.
    title: its column in a table.
    channels_last: whether it takes a CNN's weights and images in that order.
    keeps_fp32: whether it takes the fp32 model and converts it itself.
    is_default: whether it runs without being named.
    """

    make: Callable[[nn.Module, Setting], Made]
    title: str
    family: Literal["bridge", "eager", "inductor", "peer"]
    channels_last: bool = False
    keeps_fp32: bool = False
    is_default: bool = True


def _bridge(**options: Any) -> Callable[[nn.Module, Setting], Made]:
    """As the user calls it, with these options."""

    def make(model: nn.Module, setting: Setting) -> Made:
        import torchtrt_bridge as trtb

        made: Made = trtb.compile(model, engine=setting.engine, cache_dir=setting.cache_dir, **options)
        return made

    return make


def _casting_bridge(model: nn.Module, setting: Setting) -> Made:
    """An fp32 model that torchtrt_bridge itself takes to the precision."""
    return _bridge(precision=setting.precision)(model, setting)


class Exported:
    """A program, which is exported when the first inputs are there."""

    def __init__(self, model: nn.Module, setting: Setting, **options: Any) -> None:
        self._model = model
        self._options = {"engine": setting.engine, "cache_dir": setting.cache_dir, **options}
        self.program: Program | None = None

    def __call__(self, **inputs: Any) -> Any:
        if self.program is None:
            import torchtrt_bridge as trtb

            self.program = trtb.export(self._model, inputs, **self._options)
        return self.program(**inputs)

    @property
    def report(self) -> CompileReport | None:
        return None if self.program is None else self.program.report


def _eager(model: nn.Module, setting: Setting) -> Made:
    return model


def _inductor(mode: str) -> Callable[[nn.Module, Setting], Made]:
    def make(model: nn.Module, setting: Setting) -> Made:
        import torch

        made: Made = torch.compile(model, mode=mode)
        return made

    return make


def _torch_tensorrt(model: nn.Module, setting: Setting) -> Made:
    """As its documentation shows; the import registers the backend."""
    import torch
    import torch_tensorrt  # noqa: F401

    made: Made = torch.compile(model, backend="torch_tensorrt", dynamic=False)
    return made


CONTENDERS: Mapping[str, Contender] = {
    "torchtrt_bridge": Contender(_bridge(), "bridge", "bridge"),
    "torchtrt_bridge-cast": Contender(_casting_bridge, "bridge, cast", "bridge", keeps_fp32=True, is_default=False),
    "torchtrt_bridge-no-graphs": Contender(
        _bridge(cuda_graphs="off"), "bridge, no CUDA graphs", "bridge", is_default=False
    ),
    "torchtrt_bridge-background": Contender(
        _bridge(build="background"), "bridge, built in the background", "bridge", is_default=False
    ),
    "torchtrt_bridge-inductor": Contender(_bridge(inductor="compete"), "bridge, inductor competes", "bridge"),
    "torchtrt_bridge-export": Contender(
        functools.partial(Exported, inductor="compete"),
        "bridge, exported, inductor competes",
        "bridge",
        is_default=False,
    ),
    "torchtrt_bridge-max-autotune": Contender(
        _bridge(inductor="max-autotune"), "bridge, inductor competes, tuned", "bridge", is_default=False
    ),
    EAGER: Contender(_eager, "eager", "eager", channels_last=True),
    "inductor": Contender(_inductor("default"), "inductor", "inductor", channels_last=True),
    "inductor-reduce-overhead": Contender(
        _inductor("reduce-overhead"), "inductor, reduce-overhead", "inductor", channels_last=True
    ),
    "inductor-max-autotune": Contender(
        _inductor("max-autotune"), "inductor, max-autotune", "inductor", channels_last=True
    ),
    "torch_tensorrt": Contender(_torch_tensorrt, "torch_tensorrt", "peer"),
}

DEFAULTS = tuple(name for name, contender in CONTENDERS.items() if contender.is_default)


def family(name: str) -> str:
    """The family of a contender; ``"peer"`` for one in an old file that is no longer in the table."""
    return CONTENDERS[name].family if name in CONTENDERS else "peer"


def title(name: str) -> str:
    """How a table calls a contender."""
    return CONTENDERS[name].title if name in CONTENDERS else name
