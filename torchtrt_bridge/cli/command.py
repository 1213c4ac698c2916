"""Command line `torchtrt-bridge`: doctor, explain, export, demo, bench."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torchtrt_bridge as trtb
from torchtrt_bridge.errors import BridgeError, CaptureError, OptionsError
from torchtrt_bridge.options import choices, defaults, first_sentence

if TYPE_CHECKING:
    import torch
    from torch import nn

    from torchtrt_bridge.report.model import CompileReport

MODEL_HELP = "torchvision:resnet50, or package.module:callable, where the callable returns an nn.Module"
IMAGE = "1x3x224x224"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status: 0 if all is well, 1 with a message on stderr if not."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if argv[:1] == ["bench"]:
        return _bench(argv[1:])
    arguments = _parser().parse_args(argv)
    try:
        return int(arguments.run(arguments))
    except (BridgeError, OSError) as error:
        print(f"torchtrt-bridge {arguments.command}: {error}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="torchtrt-bridge", description="Run PyTorch models on TensorRT.")
    parser.add_argument("--version", action="version", version=f"torchtrt_bridge {trtb.__version__}")
    commands = parser.add_subparsers(dest="command", required=True)

    doctor = commands.add_parser("doctor", help="what is installed, what this GPU can use, what to do about it")
    doctor.set_defaults(run=_doctor)

    explain = commands.add_parser("explain", help="where each operator would run, and why; builds nothing")
    _add_model_arguments(explain)
    explain.set_defaults(run=_explain)

    export = commands.add_parser("export", help="build engines for named GPUs into a .pt2 file; needs no GPU")
    _add_model_arguments(export)
    export.add_argument("-o", "--output", type=Path, required=True, metavar="FILE.pt2")
    export.add_argument("--targets", default="", help="compute capabilities, as sm_86,sm_89; empty: a portable engine")
    export.add_argument("--dynamic-batch", metavar="MIN:MAX", help="let the first size of every input vary")
    _add_option(export, "fallback")
    export.set_defaults(run=_export)

    demo = commands.add_parser("demo", help="classify two photographs with ResNet-50 through TensorRT")
    demo.add_argument("--model", default="resnet50", help="a classification model of torchvision's")
    demo.add_argument("--weights", type=Path, help="a file with the model's weights (a state_dict)")
    _add_option(demo, "precision", default="fp16")
    demo.add_argument("--targets", default="sm_86,sm_89,sm_120", help="what to build for where there is no GPU")
    demo.add_argument("--output", type=Path, help="a directory for the .pt2 file and the report")
    demo.set_defaults(run=_demo)

    commands.add_parser("bench", help="speed, start and memory of models beside other compilers; in a checkout")
    return parser


def _add_option(parser: argparse.ArgumentParser, name: str, default: str | None = None) -> None:
    """Add one of `Options` that is a choice of words, as it is declared there."""
    default = default or defaults()[name]
    parser.add_argument(f"--{name}", choices=choices(name), default=default, help=f"{first_sentence(name)} ({default})")


def _add_model_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help=MODEL_HELP)
    parser.add_argument(
        "--input",
        action="append",
        dest="inputs",
        metavar="SIZES[:DTYPE]",
        help=f"an input's sizes and dtype, as {IMAGE} or 1x128:int64; once for each input",
    )
    _add_option(parser, "precision")
    parser.add_argument("--html", type=Path, metavar="FILE", help="also write the report as an HTML page")


def _bench(argv: Sequence[str]) -> int:
    """Hand the arguments to the benchmark suite, which is part of the repository and not of the installed package."""
    for root in (Path(trtb.__file__).parents[1], Path.cwd()):
        if (root / "benchmarks" / "suite" / "command.py").is_file():
            if str(root) not in sys.path:
                sys.path.insert(0, str(root))
            command = importlib.import_module("benchmarks.suite.command")
            return int(command.main(argv, prog="torchtrt-bridge bench"))
    print(
        "torchtrt-bridge bench: the benchmark suite is part of the repository, and neither this directory nor the one "
        f"that contains {Path(trtb.__file__).parent} is a checkout of it. Run this command, or "
        "`python -m benchmarks`, in the top directory of a checkout.",
        file=sys.stderr,
    )
    return 2


def _doctor(arguments: argparse.Namespace) -> int:
    from rich.console import Console
    from rich.text import Text

    from torchtrt_bridge.cli.doctor import diagnose

    console = Console(highlight=False, soft_wrap=True)
    diagnosis = diagnose()
    styles = {"ok": "green", "warn": "yellow", "fail": "bold red"}
    for check in diagnosis.checks:
        console.print(Text(f"{check.status:<4}  ", style=styles[check.status]) + Text(f"{check.name}: {check.found}"))
        if check.advice:
            console.print(Text(f"      -> {check.advice}", style="cyan"))
    return 0 if diagnosis.is_well else 1


def _explain(arguments: argparse.Namespace) -> int:
    _check_page(arguments.html)
    model, inputs = _model_and_inputs(arguments)
    report = trtb.explain(model, tuple(inputs), precision=arguments.precision)
    _show(report, arguments.html)
    return 0


def _export(arguments: argparse.Namespace) -> int:
    output: Path = arguments.output
    if output.suffix != ".pt2":
        raise OptionsError(f"--output: {output.name!r} must end in .pt2.")
    if not output.parent.is_dir():
        raise OptionsError(f"--output: there is no directory {output.parent}.")
    _check_page(arguments.html)
    batch = _batch_range(arguments.dynamic_batch) if arguments.dynamic_batch else None
    model, inputs = _model_and_inputs(arguments, batch)
    program = trtb.export(
        model,
        tuple(inputs),
        dynamic_shapes=_dynamic_shapes(inputs, batch),
        precision=arguments.precision,
        targets=_split(arguments.targets),
        fallback=arguments.fallback,
    )
    _show(program.report, arguments.html)
    if not any(entry.is_ready for entry in program.report.engines):
        print(f"\ntorchtrt-bridge export: no engine was built, so {output} is not written.", file=sys.stderr)
        return 1
    trtb.save(program, output)
    print(f"\nwrote {output} ({output.stat().st_size / 1e6:.1f} MB)")
    return 0


def _demo(arguments: argparse.Namespace) -> int:
    from torchtrt_bridge.cli.demo import demo

    demo(
        model=arguments.model,
        weights=arguments.weights,
        precision=arguments.precision,
        targets=_split(arguments.targets),
        output=arguments.output,
    )
    return 0


def _check_page(page: Path | None) -> None:
    """Raise OptionsError for a page that cannot be written, before anything is computed for it."""
    if page is not None and (page.is_dir() or not page.parent.is_dir()):
        found = f"{page} is a directory" if page.is_dir() else f"there is no directory {page.parent}"
        raise OptionsError(f"--html: {found}. Name a file in an existing directory.")


def _show(report: CompileReport, page: Path | None) -> None:
    print(report)
    if page is not None:
        report.save(page)
        print(f"\nwrote {page}")


def _split(names: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in names.split(",") if name.strip())


def _model_and_inputs(
    arguments: argparse.Namespace, batch: tuple[int, int] | None = None
) -> tuple[nn.Module, list[torch.Tensor]]:
    """Return the model in eval mode and random inputs; CaptureError if it fails on them in PyTorch."""
    import torch

    model = model_from_name(arguments.model)
    texts = arguments.inputs or ([IMAGE] if arguments.model.startswith("torchvision:") else [])
    if not texts:
        raise OptionsError(f"Say what {arguments.model} takes: --input {IMAGE} (--input 1x128:int64 for integers).")
    inputs = [input_from_text(text, batch) for text in texts]
    try:
        with torch.inference_mode():
            model(*inputs)
    except Exception as error:
        reason = f"{type(error).__name__}: {str(error).strip()}"
        raise CaptureError(
            f"{arguments.model} fails in PyTorch on --input {' --input '.join(texts)}: {reason}"
        ) from error
    return model, inputs


def model_from_name(name: str) -> nn.Module:
    """Return the module of ``torchvision:NAME`` or ``package.module:callable``, in eval mode."""
    from torch import nn

    home, _, attribute = name.partition(":")
    if not home or not attribute:
        raise OptionsError(f"{name!r} names no model. Write {MODEL_HELP}.")
    if home == "torchvision":
        return _torchvision_model(attribute)
    if "" not in sys.path:
        sys.path.insert(0, "")  # the user's own modules, as with `python -m`
    try:
        make: Any = importlib.import_module(home)
        for part in attribute.split("."):
            make = getattr(make, part)
    except (ImportError, AttributeError) as error:
        raise OptionsError(f"{name}: {error}. Write {MODEL_HELP}.") from error
    model = make if isinstance(make, nn.Module) else make()
    if not isinstance(model, nn.Module):
        raise OptionsError(f"{name} returned a {type(model).__name__}, not an nn.Module.")
    return model.eval()


def _torchvision_model(name: str) -> nn.Module:
    try:
        from torchvision import models
    except ImportError as error:
        raise OptionsError(
            f'torchvision does not import: {error}. Run: pip install "torchtrt_bridge[vision]"'
        ) from error
    if name not in models.list_models():
        import difflib

        near = difflib.get_close_matches(name, models.list_models(), n=1)
        raise OptionsError(f"torchvision has no model {name!r}." + (f" Did you mean {near[0]!r}?" if near else ""))
    import torch

    torch.manual_seed(0)
    options = {"weights_backbone": None} if "weights_backbone" in _parameters(models.get_model_builder(name)) else {}
    model: nn.Module = models.get_model(name, weights=None, **options)
    return model.eval()


def _parameters(function: Any) -> list[str]:
    import inspect

    return list(inspect.signature(function).parameters)


def input_from_text(text: str, batch: tuple[int, int] | None = None) -> torch.Tensor:
    """Return a random tensor of the sizes and dtype of ``"1x3x224x224:float32"``; zeros if the dtype is not a float.

    batch: the range of the first size, if it varies. The tensor then has the smallest size of the range from 2 on, as
        `torch.export` would take a size of 1 for fixed.
    """
    import torch

    sizes, _, name = text.partition(":")
    dtype = getattr(torch, name or "float32", None)
    if not isinstance(dtype, torch.dtype):
        raise OptionsError(f"--input {text}: {name!r} is not a dtype of PyTorch. Write int64, float16 and so on.")
    try:
        shape = [int(size) for size in sizes.split("x")]
    except ValueError:
        raise OptionsError(f"--input {text}: write sizes with x between them, as {IMAGE}.") from None
    if batch is not None:
        shape[0] = min(max(2, batch[0]), batch[1])
    torch.manual_seed(0)
    return torch.randn(shape).to(dtype) if dtype.is_floating_point else torch.zeros(shape, dtype=dtype)


def _batch_range(text: str) -> tuple[int, int]:
    low, _, high = text.partition(":")
    if not (low.isdigit() and high.isdigit() and 1 <= int(low) < int(high)):
        raise OptionsError(f"--dynamic-batch {text!r}: write the smallest and largest batch, as 1:16.")
    return int(low), int(high)


def _dynamic_shapes(inputs: Sequence[torch.Tensor], batch: tuple[int, int] | None) -> Any:
    if batch is None:
        return None
    from torch.export import Dim

    size = Dim("batch", min=batch[0], max=batch[1])
    return tuple({0: size} for _ in inputs)
