"""Export, save and load: programs that are built once, saved as a file, and run on another machine."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import types
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import fx, nn
from torch.export import ExportedProgram
from torch.export.passes import move_to_device_pass

from torchtrt_bridge.capture.arguments import arguments_from
from torchtrt_bridge.capture.export import CapturedGraph, export_program, graph_from_program
from torchtrt_bridge.engine.builder import load_engine
from torchtrt_bridge.entry import archive
from torchtrt_bridge.entry.manifest import FORMAT, Manifest, versions
from torchtrt_bridge.entry.option_signature import shows_options
from torchtrt_bridge.entry.program import Program
from torchtrt_bridge.entry.reported_model import describe_model
from torchtrt_bridge.entry.rounded_program import why_not_in_fp32, why_not_in_half
from torchtrt_bridge.errors import BridgeError, CaptureError, EngineLoadError, OptionsError, UnsupportedOpError
from torchtrt_bridge.options import AT_LOAD, KeywordOptions, LoadOptions, Options
from torchtrt_bridge.partition import extract_subgraphs
from torchtrt_bridge.pipeline import bounded, compile_graph, compile_torch_subgraphs, engine_module, report_stages
from torchtrt_bridge.report.log import warn_once
from torchtrt_bridge.report.model import CompileReport, EngineEntry, note_absent_operators, source_lines
from torchtrt_bridge.runtime import Execution
from torchtrt_bridge.runtime.engine_module import computing_device
from torchtrt_bridge.runtime.recurrent_weights import join_recurrent_weights
from torchtrt_bridge.runtime.runners import Built, NoEngine
from torchtrt_bridge.trt import library as libraries

if TYPE_CHECKING:
    from typing_extensions import Unpack


@shows_options(KeywordOptions)
def export(
    model: nn.Module | Callable[..., Any],
    example_inputs: Any,
    *,
    kwargs: Mapping[str, Any] | None = None,
    dynamic_shapes: Any = None,
    **options: Unpack[KeywordOptions],
) -> Program:
    """Build engines for `model` ahead of time; no GPU is needed with TensorRT-RTX.

    example_inputs: a tuple of positional arguments, one tensor, or a mapping of keyword arguments, as a tokenizer gives
        it. kwargs: further keyword arguments.
    dynamic_shapes: as in `torch.export.export`; the ranges of its dimensions become the engines' ranges.
    options: the fields of `Options`, of which `targets` names the GPUs to build for.
    The program keeps copies of the weights: a later change of `model` does not reach it. It computes in fp32 if half
    precision gives other results for the example inputs.
    Raises CaptureError for a model that `torch.export` cannot turn into one graph.
    """
    checked = Options.from_mapping(options)
    if checked.targets:
        libraries.choose(checked.engine).check_targets(checked.targets)
    module = _as_module(model)
    if module.training:
        warn_once(f"{type(model).__name__} is exported in training mode; call model.eval() first to deploy it.")
    original = export_program(module, *arguments_from(model, example_inputs, kwargs), dynamic_shapes)
    checked, problems = _holding(original, checked)
    captured = graph_from_program(original)
    can_run = checked.engine == "reference" or (torch.cuda.is_available() and not checked.targets)
    compiled = compile_graph(captured, checked, run=can_run, original=original)
    describe_model(compiled.report, model)
    note_absent_operators(compiled.report)
    _check_engines(compiled.report, module)
    for problem in problems:
        compiled.report.note(problem)
    assert compiled.flat is not None
    exported = archive.program_from_graph(original, captured, compiled.flat)
    manifest = _manifest(checked, compiled.proposal.subgraphs, compiled.plans, compiled.report)
    return Program(exported, captured, compiled.run, manifest, compiled.plans)


def _holding(original: ExportedProgram, options: Options) -> tuple[Options, list[str]]:
    """Return the options with a precision that holds the program's values, and why it is another, if it is."""
    problems = []
    if (problem := why_not_in_fp32(original, options)) is not None:
        problems.append(_warned("fp32", "leaves float64 to PyTorch", problem, options))
        options = dataclasses.replace(options, float64="pytorch")
    if (problem := why_not_in_half(original, options)) is not None:
        hint = "; precision='bf16' has the range of fp32" if options.precision == "fp16" else ""
        problems.append(_warned(options.precision, "computes in fp32", f"{problem}{hint}", options))
        options = dataclasses.replace(options, precision="fp32")
    return options, problems


def _warned(precision: str, remedy: str, problem: str, options: Options) -> str:
    """Warn of a precision that does not hold a program's values, and return the message.

    Raises CaptureError with ``fallback="error"``.
    """
    problem = f"in {precision} the results for the example inputs are not the model's own: {problem}"
    if options.fallback == "error":
        raise CaptureError(f"{problem}. With fallback='pytorch' the program {remedy}.")
    warn_once(f"the program {remedy}, as {problem}.")
    return f"the program {remedy}, as {problem}"


def _check_engines(report: CompileReport, module: nn.Module) -> None:
    """Warn of a program without any engine; UnsupportedOpError with ``fallback="error"``."""
    if any(entry.is_ready for entry in report.engines):
        return
    message = f"PyTorch runs all of {type(module).__name__}: it has no engine"
    if report.options.fallback == "error":
        raise UnsupportedOpError(f"{message}. fallback='pytorch' exports it all the same.")
    warn_once(f"{message}. The program's report says why.")


def save(program: Program, path: str | Path) -> None:
    """Write a program as a `.pt2` file, which `torch.export.load` reads too.

    An existing file stays as it was if writing fails. Raises OptionsError for a path that does not name such a file in
    an existing folder, and for a program that `torch.export` cannot write: arguments or results of an unknown class, or
    an operator such as flex_attention.
    """
    if not isinstance(program, Program):
        raise OptionsError(f"save() takes what export() returns, not {type(program).__name__}.")
    path = _path(path, "save")
    if path.suffix != ".pt2":
        raise OptionsError(f"save() writes .pt2 files, not {path.name!r}.")
    if not path.parent.is_dir():
        raise OptionsError(f"save() finds no folder {path.parent} to write {path.name} into; create it first.")
    archive.write_archive(program.exported, program.plans, program.manifest, path)


@shows_options(LoadOptions)
def load(path: str | Path, *, device: str | torch.device | None = None, **options: Unpack[LoadOptions]) -> Program:
    """Read a program that `save` wrote, with its engines where this machine can run them.

    device: where it runs, as ``"cuda:1"``; None means the current GPU if there is one, else the CPU.
    options: how it runs, which the file does not keep.
    No file can run code: see SECURITY.md. Raises EngineLoadError for a file that is missing, damaged or not written by
    `save`.
    """
    wrong = sorted(set(options) - set(AT_LOAD))
    if wrong:
        raise OptionsError(f"load() takes {', '.join(AT_LOAD)}; {', '.join(wrong)} was settled by export().")
    exported, manifest, plans = archive.read_archive(_path(path, "load"))
    checked = Options.from_mapping({**manifest.settings(), **options})
    place = _place(device)
    try:
        return _loaded(exported, manifest, plans, checked, place)
    except (BridgeError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # the parts of a file that `save` did not write may fit in no way
        raise EngineLoadError(
            f"{path} cannot be loaded: its graph, its signature and its manifest do not fit each other: "
            f"{type(error).__name__}: {error}"
        ) from error


def _loaded(
    exported: ExportedProgram, manifest: Manifest, plans: dict[str, bytes], options: Options, place: torch.device
) -> Program:
    exported = move_to_device_pass(exported, str(place))
    captured = graph_from_program(exported)
    report = manifest.report(options)
    module = _with_engines(captured, manifest, plans, report)
    run = Execution(module, captured.outputs, captured.mutations, options, report)
    return Program(exported, captured, run, manifest, plans)


def _place(device: str | torch.device | None) -> torch.device:
    """Return the device to load onto; OptionsError for one that is not there."""
    try:
        place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    except RuntimeError as error:
        raise OptionsError(f"load(device={device!r}): {str(error).splitlines()[0]}") from error
    if place.type != "cuda":
        return place
    count = torch.cuda.device_count()
    if (place.index or 0) >= count:
        raise OptionsError(f"load(device={device!r}): PyTorch sees {count} GPU{'' if count == 1 else 's'} here.")
    return place if place.index is not None else torch.device("cuda", torch.cuda.current_device())


def _path(path: Any, verb: str) -> Path:
    if not isinstance(path, (str, os.PathLike)):
        raise OptionsError(f"{verb}() takes the path of a .pt2 file, not a {type(path).__name__}.")
    return Path(path)


def _as_module(model: Any) -> nn.Module:
    if isinstance(model, nn.Module):
        return model
    if not callable(model):
        raise CaptureError(f"export() takes a module or a function, not {type(model).__name__}.")

    wrapper: nn.Module = type("Function", (nn.Module,), {"forward": staticmethod(_named_forward(model))})()
    return wrapper.eval()


def _named_forward(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return the function under the name `forward`: `torch.export` keeps source lines for no other name."""
    if not isinstance(function, types.FunctionType):
        return function
    code = function.__code__.replace(co_name="forward")
    renamed = types.FunctionType(code, function.__globals__, "forward", function.__defaults__, function.__closure__)
    renamed.__kwdefaults__ = function.__kwdefaults__
    return renamed


def _manifest(
    options: Options, subgraphs: Mapping[str, list[str]], plans: Mapping[str, bytes], report: CompileReport
) -> Manifest:
    content = report.to_dict()
    return Manifest(
        FORMAT,
        versions() | {"tensorrt": str(libraries.choose(options.engine))},
        {name: value for name, value in content["options"].items() if name not in AT_LOAD},
        {name: list(nodes) for name, nodes in subgraphs.items()},
        {name: hashlib.sha256(plan).hexdigest() for name, plan in plans.items()},
        [{name: value for name, value in entry.items() if name != "sources"} for entry in content["engines"]],
        content["in_torch"],
        content["in_float"],
    )


def _with_engines(
    captured: CapturedGraph, manifest: Manifest, plans: Mapping[str, bytes], report: CompileReport
) -> fx.GraphModule:
    """Return the loaded graph with its subgraphs extracted again, each with its engine if that loads."""
    module = captured.module
    subgraphs = extract_subgraphs(module, manifest.nodes)
    ranges = bounded(captured.ranges, report.options)
    for entry in report.engines:
        entry.forget_trial()  # that of another machine
        entry.sources = source_lines(subgraphs[entry.name])  # which the file's graph has, and its manifest not
        device = computing_device(subgraphs[entry.name], report.options)
        runner = _runner(entry, plans, manifest, report.options, device)
        module.set_submodule(entry.name, engine_module(subgraphs[entry.name], ranges, runner, entry, report.options))
    torch_subgraphs = compile_torch_subgraphs(module, report)
    join_recurrent_weights(module)
    report_stages(module, report, torch_subgraphs)
    return module


def _runner(
    entry: EngineEntry,
    plans: Mapping[str, bytes],
    manifest: Manifest,
    options: Options,
    device: torch.device,
) -> Built:
    """Load the engine of a subgraph; entry: as the manifest has it."""
    if entry.name not in plans:
        return None if entry.is_ready else NoEngine(entry.state)
    try:
        library = libraries.load(
            "tensorrt" if manifest.versions["tensorrt"].startswith("TensorRT ") else "tensorrt_rtx"
        )
        return load_engine(plans[entry.name], manifest.sha256[entry.name], library, options, device)
    except BridgeError as error:
        if options.fallback == "error":
            raise
        warn_once(f"{entry.name} runs in PyTorch: {error}")
        return NoEngine(str(error))
