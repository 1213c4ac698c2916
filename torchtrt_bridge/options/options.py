"""Options: one declaration for each, checked when they are built, shared by every entry point.

A field of `Options` holds everything there is to say about an option: type, default, meaning, allowed range, part in an
engine, and whether a saved program takes it. Validation, the engine's key, `load`, the command line and the table of
the documentation read it there. Beside it stands one line in a `TypedDict`, which type checkers and editors read.
"""

# ruff: noqa: RUF009 - `option` gives a dataclass field
from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypedDict, get_type_hints

from torchtrt_bridge.errors import OptionsError
from torchtrt_bridge.options.declaration import Declaration, checked, option, suggestion, text_of

Precision = Literal["fp32", "fp16", "bf16"]
Float64 = Literal["pytorch", "fp32"]
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
    """The user's choices; every entry point takes them as keyword arguments."""

    precision: Precision = option(
        "fp32",
        """Floating point type that an fp32 model computes in. Numerically delicate operators stay in fp32, and a
        model that is already in half precision keeps its types.""",
        shapes="graph",
    )
    tf32: bool = option(
        False,
        "Let fp32 matrix products and convolutions use TF32 (10 mantissa bits) where the GPU has it.",
        shapes="engine",
    )
    fp16_accumulation: bool = option(
        False,
        """Let the products of fp16 matrices be summed in fp16, as TensorRT does by itself on tensor cores: up to 5 %
        faster for large batches on an H200, with 1.8 to 3 times the error. PyTorch sums them in fp32.""",
        shapes="engine",
    )
    float64: Float64 = option(
        "pytorch",
        """`"pytorch"` leaves float64 to PyTorch, as TensorRT does not have it; `"fp32"` lets engines compute it in
        fp32. Inputs and results keep their dtypes.""",
        shapes="graph",
    )
    fallback: Fallback = option(
        "pytorch",
        '`"pytorch"` runs in PyTorch whatever TensorRT cannot run; `"error"` raises an exception instead.',
        shapes="run",
        at_load=True,
    )
    engine: EngineKind = option(
        "auto",
        """The TensorRT that builds and runs the engines. `"auto"` takes the installed one that runs on this GPU;
        `"reference"` computes the lowered networks on the CPU in PyTorch, for tests and for debugging.""",
        shapes="graph",
    )
    targets: tuple[str, ...] = option(
        (),
        """Compute capabilities to build for, as `("sm_86", "sm_120")`. Empty means the GPU of this machine, or the
        portable engine (Ampere and newer) on a machine without one.""",
        shapes="engine",
    )
    torch_ops: tuple[str, ...] = option(
        (),
        """Operators to leave in PyTorch, as `("aten.softmax.int",)`, for debugging. A name that is no operator's raises
        OptionsError, and a note of the report names those that no graph has.""",
        shapes="graph",
    )
    torch_tensorrt: TorchTensorRT = option(
        "auto",
        """`"auto"` lets the converters of torch_tensorrt, where it is installed and a GPU is visible, write the
        operators that have no converter here; `"off"` leaves these to PyTorch.""",
        shapes="graph",
    )
    min_subgraph_nodes: int = option(
        1,
        "Smallest number of operators that is worth an engine; a smaller subgraph stays in PyTorch.",
        shapes="graph",
        least=1,
    )
    workspace_bytes: int | None = option(
        None,
        "Most scratch memory that an engine may take, in bytes; None leaves it to TensorRT.",
        shapes="engine",
        least=1,
    )
    optimization_level: int = option(
        3,
        "Effort of TensorRT's builder, from 0 (fastest build) to 5 (fastest engine).",
        shapes="engine",
        least=0,
        most=5,
    )
    build: BuildKind = option(
        "wait",
        '`"wait"` lets the first call wait for its engines; `"background"` lets PyTorch run until they are built.',
        shapes="run",
    )
    max_dynamic_size: int = option(
        4096,
        "Upper end of a dynamic dimension whose range PyTorch does not bound.",
        shapes="graph",
        least=1,
    )
    static_engines: int = option(
        0,
        """For how many combinations of sizes that come often a graph with dynamic sizes gets engines of their own. They
        are built in the background, hold the weights once more, and compute calls of these sizes where they are
        faster.""",
        shapes="run",
        least=0,
    )
    cuda_graphs: CudaGraphs = option(
        "auto",
        """`"auto"` replays whole calls from CUDA graphs where sizes are static or come again; `"off"` enqueues each
        call.""",
        shapes="run",
        at_load=True,
    )
    overlap_kernels: bool = option(
        False,
        """Let the GPU begin a kernel of an engine before those it depends on have ended, as TensorRT-RTX asks for on
        compute capability 9.0 and newer. A replay of a CUDA graph is then 3 to 17 % faster on an H100, where results
        differed from call to call by up to 1e-1.""",
        shapes="run",
        at_load=True,
    )
    reuse_outputs: bool = option(
        False,
        "Let a call overwrite the results of the call before, which saves a copy where they are still held.",
        shapes="run",
        at_load=True,
    )
    release_weights: bool = option(
        False,
        """Once the trial has settled on engines, move to host memory the weights that PyTorch holds for these
        subgraphs beyond the model's own: halved and folded ones, and all those of an exported program. A call that
        PyTorch must run restores them. The model itself is not changed.""",
        shapes="run",
        at_load=True,
    )
    trial: TrialKind = option(
        "check+time",
        """Use of the first real inputs: `"check"` compares each engine with PyTorch, `"check+time"` also times both
        and keeps the faster one, `"off"` trusts engines without a check.""",
        shapes="run",
        at_load=True,
    )
    keep_int8: bool = option(
        False,
        """Leave every quantized subgraph quantized. Otherwise `trial="check+time"` also builds an engine of the
        same subgraph without its quantization, and takes it where the quantized one is wrong or slower.""",
        shapes="run",
    )
    inductor: Inductor = option(
        "off",
        """`"fallback"` lets PyTorch's inductor compile the subgraphs whose engine failed, and the subgraphs between
        engines; `"compete"` also lets it take part in the trial of every subgraph; `"max-autotune"` does the
        same with that mode of inductor, which takes minutes to compile a model. All three apply where sizes are
        static.""",
        shapes="run",
        at_load=True,
    )
    cache_dir: str | Path | None = option(
        None,
        'Directory of built engines; None means the per-user cache directory, `""` keeps none.',
        shapes="run",
        at_load=True,
    )
    cache_bytes: int = option(
        20 * 2**30,
        "Size to which the cache is trimmed, in bytes.",
        shapes="run",
        at_load=True,
        least=0,
    )
    progress: bool | None = option(
        None,
        "Show a progress bar while engines build; None shows it on a terminal only.",
        shapes="run",
    )

    def __post_init__(self) -> None:
        for name, hint in type_hints().items():
            object.__setattr__(self, name, checked(name, getattr(self, name), hint, DECLARATIONS[name]))
        _check_targets(self.targets)
        _check_operators(self.torch_ops)
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
        """True if inductor takes part in trials."""
        return self.inductor in ("compete", "max-autotune")

    @property
    def tunes_inductor(self) -> bool:
        """True if inductor tries many kernels for each product."""
        return self.inductor == "max-autotune"

    @classmethod
    def from_mapping(cls, options: Mapping[str, Any] | None) -> Options:
        """Return options from keyword arguments; OptionsError for an unknown name suggests a similar one."""
        options = dict(options or {})
        for name in options:
            check_name(name)
        return cls(**options)


class LoadOptions(TypedDict, total=False):
    """Options that `load` takes, as type checkers and editors know them."""

    fallback: Fallback
    cuda_graphs: CudaGraphs
    overlap_kernels: bool
    reuse_outputs: bool
    release_weights: bool
    trial: TrialKind
    inductor: Inductor
    cache_dir: str | Path | None
    cache_bytes: int


class KeywordOptions(LoadOptions, total=False):
    """Options that `compile`, `export`, `explain` and `accelerate` take, as type checkers and editors know them."""

    precision: Precision
    tf32: bool
    fp16_accumulation: bool
    float64: Float64
    engine: EngineKind
    targets: tuple[str, ...]
    torch_ops: tuple[str, ...]
    torch_tensorrt: TorchTensorRT
    min_subgraph_nodes: int
    workspace_bytes: int | None
    optimization_level: int
    build: BuildKind
    max_dynamic_size: int
    static_engines: int
    keep_int8: bool
    progress: bool | None


DECLARATIONS: dict[str, Declaration] = {
    field.name: field.metadata["declaration"] for field in dataclasses.fields(Options)
}

# The options that `load` takes: a saved program keeps all others.
AT_LOAD = tuple(name for name, declaration in DECLARATIONS.items() if declaration.at_load)


@functools.cache
def type_hints() -> dict[str, Any]:
    """Return the type of each option, by name."""
    return get_type_hints(Options)


def check_name(name: str) -> None:
    """Raise OptionsError for a name that is no option's, with the most similar one."""
    if name not in DECLARATIONS:
        raise OptionsError(f"Unknown option {name!r}.{suggestion(name, list(DECLARATIONS))}")


def defaults() -> dict[str, Any]:
    """Return the default of each option, by name."""
    return {field.name: field.default for field in dataclasses.fields(Options)}


def builder_settings(options: Options) -> dict[str, Any]:
    """Return the values of the options that are settings of TensorRT's builder, by name."""
    return {name: getattr(options, name) for name, declared in DECLARATIONS.items() if declared.shapes == "engine"}


def _check_targets(targets: tuple[str, ...]) -> None:
    for target in targets:
        if not (target.startswith(TARGET_PREFIX) and target[len(TARGET_PREFIX) :].isdigit()):
            raise OptionsError(
                f"targets: {target!r} is not a compute capability. Write it as 'sm_89' for 8.9 or 'sm_120' for 12.0."
            )


def _check_operators(names: tuple[str, ...]) -> None:
    if not names:
        return
    from torchtrt_bridge.graph.operator_names import is_operator_name, similar_operator  # loads PyTorch

    for name in names:
        if not is_operator_name(name):
            near = similar_operator(name)
            hint = f" Did you mean {near!r}?" if near else ""
            raise OptionsError(
                f"torch_ops: {name!r} is no operator of PyTorch.{hint} Write it as a report does, with its overload: "
                "'aten.relu.default', 'aten.add.Tensor'."
            )


Options.__doc__ = f"{Options.__doc__ or ''}\n\n{text_of(DECLARATIONS)}\n"
