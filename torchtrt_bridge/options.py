"""Options: one frozen dataclass, checked when it is built, shared by every entry point."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

from torchtrt_bridge.errors import OptionsError

Precision = Literal["fp32", "fp16", "bf16"]
Fallback = Literal["pytorch", "error"]
EngineKind = Literal["auto", "tensorrt", "tensorrt_rtx", "reference"]
CudaGraphs = Literal["auto", "off"]
TrialKind = Literal["off", "check", "check+time"]
Inductor = Literal["off", "fallback", "compete", "max-autotune"]
BuildKind = Literal["wait", "background"]
TorchTensorRT = Literal["auto", "off"]
TARGET_PREFIX = "sm_"


@dataclasses.dataclass(frozen=True)
class Options:
    """What the user may choose; every entry point takes these as keyword arguments.

    precision: the floating point type that an fp32 model computes in. Numerically delicate operators stay
        fp32, and a model that is already in half precision is taken as it is.
    tf32: let fp32 matrix products and convolutions use TF32 (10 mantissa bits) where the GPU has it.
    fallback: ``"pytorch"`` runs in PyTorch whatever TensorRT cannot; ``"error"`` raises instead.
    engine: which TensorRT builds and runs the engines. ``"reference"`` computes the lowered networks on the
        CPU in PyTorch, to test and to debug; ``"auto"`` takes the installed TensorRT that serves this GPU.
    targets: compute capabilities to build for, as ``("sm_86", "sm_120")``; empty means the GPU of this
        machine, or the portable engine (Ampere and newer) where there is none.
    torch_ops: operators to leave in PyTorch, as ``("aten.softmax.int",)``, for debugging.
    torch_tensorrt: ``"auto"`` lets converters of torch_tensorrt, where it is installed and a GPU is visible, write
        the operators that have no converter here; ``"off"`` leaves these to PyTorch.
    min_subgraph_nodes: subgraphs with fewer operators than this are not worth an engine and stay in PyTorch.
    workspace_bytes: the most scratch memory an engine may take, in bytes; None leaves it to TensorRT.
    optimization_level: TensorRT's builder effort, 0 (fastest build) to 5 (fastest engine).
    build: ``"wait"`` has the first call wait for its engines; ``"background"`` has PyTorch serve until they are there.
    max_dynamic_size: the upper end of a dynamic dimension whose range PyTorch does not bound.
    cuda_graphs: ``"auto"`` replays whole calls from CUDA graphs, where sizes are static or come again;
        ``"off"`` enqueues each call.
    reuse_outputs: let a call overwrite the results of the one before, which saves a copy where they are still held.
    release_weights: once the trial has settled on engines, move to host memory the weights that PyTorch holds for these
        subgraphs beyond the model's own: halved, folded and merged ones, and all those of an exported program. A call
        that PyTorch must serve brings them back. The model itself is not touched.
    trial: what is done with the first real inputs. ``"check"`` compares each engine with PyTorch, ``"check+time"``
        also times both and keeps the faster one, ``"off"`` trusts engines unseen.
    keep_int8: leave every quantized subgraph quantized. Otherwise ``trial="check+time"`` also builds an engine of the
        same subgraph without its quantization, which serves where the quantized one is wrong or slower.
    inductor: ``"fallback"`` lets PyTorch's inductor compile subgraphs whose engine failed, and the pieces between
        engines; ``"compete"`` lets it also take part in the trial of every subgraph; ``"max-autotune"`` too, by that
        mode of inductor, which takes minutes to compile a model. All where sizes are static.
    cache_dir: where built engines are kept; None means the per-user cache directory, ``""`` keeps none.
    cache_bytes: the size to which the cache is trimmed, in bytes.
    progress: show a progress bar while engines build; None shows it on a terminal only.
    """

    precision: Precision = "fp32"
    tf32: bool = False
    fallback: Fallback = "pytorch"
    engine: EngineKind = "auto"
    targets: tuple[str, ...] = ()
    torch_ops: tuple[str, ...] = ()
    torch_tensorrt: TorchTensorRT = "auto"
    min_subgraph_nodes: int = 1
    workspace_bytes: int | None = None
    optimization_level: int = 3
    build: BuildKind = "wait"
    max_dynamic_size: int = 4096
    cuda_graphs: CudaGraphs = "auto"
    reuse_outputs: bool = False
    release_weights: bool = False
    trial: TrialKind = "check+time"
    keep_int8: bool = False
    inductor: Inductor = "off"
    cache_dir: str | Path | None = None
    cache_bytes: int = 20 * 2**30
    progress: bool | None = None

    def __post_init__(self) -> None:
        _check_choice("precision", self.precision, get_args(Precision))
        _check_choice("fallback", self.fallback, get_args(Fallback))
        _check_choice("engine", self.engine, get_args(EngineKind))
        _check_choice("build", self.build, get_args(BuildKind))
        _check_choice("cuda_graphs", self.cuda_graphs, get_args(CudaGraphs))
        _check_choice("trial", self.trial, get_args(TrialKind))
        _check_choice("inductor", self.inductor, get_args(Inductor))
        _check_choice("torch_tensorrt", self.torch_tensorrt, get_args(TorchTensorRT))
        for name in ("tf32", "reuse_outputs", "release_weights", "keep_int8"):
            _check_type(name, getattr(self, name), bool)
        if self.progress is not None:
            _check_type("progress", self.progress, bool)
        for name, low, high in (
            ("min_subgraph_nodes", 1, None),
            ("workspace_bytes", 1, None),
            ("optimization_level", 0, 5),
            ("max_dynamic_size", 1, None),
            ("cache_bytes", 0, None),
        ):
            _check_range(name, getattr(self, name), low, high)
        object.__setattr__(self, "targets", _checked_targets(self.targets))
        object.__setattr__(self, "torch_ops", _checked_strings("torch_ops", self.torch_ops))
        if self.cache_dir is not None and not isinstance(self.cache_dir, (str, Path)):
            raise OptionsError(f"cache_dir must be a path or None, not {self.cache_dir!r}.")
        if self.engine == "reference" and self.targets:
            raise OptionsError(
                f"engine='reference' computes in PyTorch and builds for no GPU, but targets={self.targets!r} "
                "names some. Leave out one of the two."
            )
        if self.tf32 and self.precision != "fp32":
            raise OptionsError(
                f"tf32=True is about fp32 arithmetic, but precision={self.precision!r}. Leave out one of the two."
            )

    @property
    def inductor_competes(self) -> bool:
        """Whether inductor takes part in trials."""
        return self.inductor in ("compete", "max-autotune")

    @property
    def tunes_inductor(self) -> bool:
        """Whether inductor tries many kernels for each product."""
        return self.inductor == "max-autotune"

    @classmethod
    def from_mapping(cls, options: Mapping[str, Any] | None) -> Options:
        """Options from keyword arguments; an unknown name raises OptionsError with the nearest right one."""
        options = dict(options or {})
        known = [field.name for field in dataclasses.fields(cls)]
        for name in options:
            if name not in known:
                raise OptionsError(f"Unknown option {name!r}.{_suggestion(name, known)}")
        return cls(**options)


def _suggestion(word: str, known: list[str]) -> str:
    near = difflib.get_close_matches(str(word), known, n=1, cutoff=0.5)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return f"{hint} Known: {', '.join(known)}."


def _check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise OptionsError(f"{name}={value!r} is not a choice.{_suggestion(str(value), list(choices))}")


def _check_type(name: str, value: object, kind: type) -> None:
    if not isinstance(value, kind):
        raise OptionsError(f"{name} must be {kind.__name__}, not {value!r}.")


def _check_range(name: str, value: object, low: int, high: int | None) -> None:
    if value is None and name == "workspace_bytes":
        return
    if not isinstance(value, int) or isinstance(value, bool):
        raise OptionsError(f"{name} must be an integer, not {value!r}.")
    if value < low or (high is not None and value > high):
        upper = f" to {high}" if high is not None else " or more"
        raise OptionsError(f"{name}={value} is out of range: {low}{upper}.")


def _checked_strings(name: str, value: object) -> tuple[str, ...]:
    if isinstance(value, str):
        value = (value,)
    if not isinstance(value, (tuple, list)) or not all(isinstance(v, str) for v in value):
        raise OptionsError(f"{name} must be a tuple of strings, not {value!r}.")
    return tuple(value)


def _checked_targets(value: object) -> tuple[str, ...]:
    targets = _checked_strings("targets", value)
    for target in targets:
        if not (target.startswith(TARGET_PREFIX) and target[len(TARGET_PREFIX) :].isdigit()):
            raise OptionsError(
                f"targets: {target!r} is not a compute capability. Write it as 'sm_89' for 8.9 or 'sm_120' for 12.0."
            )
    return targets
