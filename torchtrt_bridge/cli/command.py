"""Command line `torchtrt-bridge`: doctor, explain, export, quantize, demo, bench."""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torchtrt_bridge as trtb
from torchtrt_bridge.cli.arguments import (
    Request,
    add_bench,
    add_choice,
    add_export,
    add_model,
    add_page,
    add_quantize,
    check_objects,
    names_of,
    request_from,
)
from torchtrt_bridge.cli.console import check_file, say, show, step, write_program
from torchtrt_bridge.errors import BridgeError, OptionsError

if TYPE_CHECKING:
    from torchtrt_bridge.cli.calls import ModelCall
    from torchtrt_bridge.report.model import CompileReport

INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status.

    0 if all is well, 1 with a message on stderr if not, 130 after Ctrl-C.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    try:
        return _run(argv)
    except (BridgeError, OSError) as error:
        say(f"torchtrt-bridge {argv[0]}: {error}")
        return 1
    except KeyboardInterrupt:
        say(f"\ntorchtrt-bridge {' '.join(argv[:1])}: interrupted")
        return INTERRUPTED


def _run(argv: list[str]) -> int:
    if argv[:1] == ["bench"]:
        return _bench(argv[1:])
    arguments = _parser().parse_args(argv)
    return int(arguments.run(arguments))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="torchtrt-bridge", description="Run PyTorch models on TensorRT.")
    parser.add_argument("--version", action="version", version=f"torchtrt_bridge {trtb.__version__}")
    commands = parser.add_subparsers(dest="command", required=True)

    doctor = commands.add_parser("doctor", help="what is installed, what this GPU can use, what to do about it")
    doctor.add_argument("--json", action="store_true", help="print the checks as JSON")
    doctor.set_defaults(run=_doctor)

    explain = commands.add_parser("explain", help="where each operator would run, and why; builds nothing")
    add_model(explain)
    add_page(explain)
    add_choice(explain, "fallback")
    explain.add_argument(
        "--require-coverage",
        metavar="SHARE",
        help="end with status 1 if a smaller share of the nodes, as 0.95, would run in TensorRT",
    )
    explain.set_defaults(run=_explain)

    export = commands.add_parser("export", help="build engines for named GPUs into a .pt2 file; needs no GPU")
    add_model(export)
    add_page(export)
    add_export(export)
    export.set_defaults(run=_export)

    quantize = commands.add_parser("quantize", help="quantize with your data, and export as `export` does")
    add_model(quantize)
    add_page(quantize)
    add_export(quantize)
    add_quantize(quantize)
    quantize.set_defaults(run=_quantize)

    demo = commands.add_parser("demo", help="classify two photographs with ResNet-50 through TensorRT")
    demo.add_argument("--model", default="resnet50", help="a classification model of torchvision's")
    demo.add_argument("--weights", type=Path, help="a file with the model's weights (a state_dict)")
    add_choice(demo, "precision", default="fp16")
    demo.add_argument("--targets", default="sm_86,sm_89,sm_120", help="what to build for where there is no GPU")
    demo.add_argument("--output", type=Path, help="a directory for the .pt2 file and the report")
    demo.set_defaults(run=_demo)

    commands.add_parser("bench", help="bench MODEL times your model beside inductor; without MODEL: the suite")
    return parser


def _bench(argv: Sequence[str]) -> int:
    """Time the user's own model if the first argument is one; else hand the arguments to the benchmark suite."""
    if argv and not argv[0].startswith("-"):
        return _bench_model(_bench_parser().parse_args(argv))
    return _bench_suite(argv)


def _bench_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="torchtrt-bridge bench", description="Time a model in eager PyTorch, inductor and torchtrt_bridge."
    )
    add_model(parser)
    add_page(parser)
    add_bench(parser)
    return parser


def _bench_model(arguments: argparse.Namespace) -> int:
    request = request_from(arguments)
    if min(arguments.rounds, arguments.calls) < 1:
        raise OptionsError("--rounds and --calls must be 1 or more.")
    check_file("--json", arguments.json)
    check_file("--html", arguments.html)
    with step("loading PyTorch"):
        from torchtrt_bridge.cli.bench import bench
    return bench(arguments, request)


def _bench_suite(argv: Sequence[str]) -> int:
    """Run the benchmark suite, which is part of the repository and not of the installed package."""
    for root in (Path(trtb.__file__).parents[1], Path.cwd()):
        if (root / "benchmarks" / "suite" / "command.py").is_file():
            if str(root) not in sys.path:
                sys.path.insert(0, str(root))
            command = importlib.import_module("benchmarks.suite.command")
            return int(command.main(argv, prog="torchtrt-bridge bench"))
    print(
        "torchtrt-bridge bench: the benchmark suite is part of the repository, and neither this directory nor the one "
        f"that contains {Path(trtb.__file__).parent} is a checkout of it. Run this command, or "
        "`python -m benchmarks`, in the top directory of a checkout. `torchtrt-bridge bench MODEL` times a model of "
        "yours, and needs none.",
        file=sys.stderr,
    )
    return 2


def _doctor(arguments: argparse.Namespace) -> int:
    from rich.console import Console
    from rich.text import Text

    from torchtrt_bridge.cli.doctor import diagnose

    with step("looking at the installation"):
        diagnosis = diagnose()
    if arguments.json:
        print(json.dumps(diagnosis.to_dict(), indent=1))
        return 0 if diagnosis.is_well else 1
    console = Console(highlight=False, soft_wrap=True)
    styles = {"ok": "green", "warn": "yellow", "fail": "bold red"}
    for check in diagnosis.checks:
        console.print(Text(f"{check.status:<4}  ", style=styles[check.status]) + Text(f"{check.name}: {check.found}"))
        if check.advice:
            console.print(Text(f"      -> {check.advice}", style="cyan"))
    return 0 if diagnosis.is_well else 1


def _explain(arguments: argparse.Namespace) -> int:
    request = request_from(arguments)
    share = _share(arguments.require_coverage)
    check_file("--html", arguments.html)
    call = _call(request)
    with step("finding out where its operators would run"):
        report = trtb.explain(call.module, call.args, kwargs=call.kwargs, **request.options)
    show(report, arguments.html)
    is_error = request.options.get("fallback") == "error"
    return max(_stays_whole(report) if is_error else 0, 0 if share is None else _covers(report, share))


def _call(request: Request) -> ModelCall:
    """Return the call of the model that is asked about, which PyTorch has run."""
    with step(f"loading PyTorch, and running {request.model} in it"):
        from torchtrt_bridge.cli.calls import call_from

        return call_from(request)


def _share(text: str | None) -> float | None:
    try:
        share = None if text is None else float(text)
    except ValueError:
        share = -1.0
    if share is not None and not 0 <= share <= 1:
        raise OptionsError(f"--require-coverage {text}: write a share of the nodes from 0 to 1, as 0.95.")
    return share


def _stays_whole(report: CompileReport) -> int:
    """Return status 0 if no node stays in PyTorch, else 1 with the error that ``fallback="error"`` would give."""
    left = [f"{entry.op} ({entry.reason})" for entry in report.in_torch] + _uncounted(report)
    if left:
        more = f", and {len(left) - 1} more" if len(left) > 1 else ""
        say(f"torchtrt-bridge explain: --fallback error: PyTorch runs {left[0]}{more}.")
    return 1 if left else 0


def _uncounted(report: CompileReport) -> list[str]:
    """Return the graphs that could not be looked at, each by its reason: the report has no nodes of them."""
    return [f"a graph whose nodes are not counted ({stage.reason})" for stage in report.stages if stage.reason]


def _covers(report: CompileReport, share: float) -> int:
    """Return status 0 if TensorRT would run this share of the nodes, else 1 with a message."""
    total = report.trt_nodes + report.torch_nodes
    uncounted = _uncounted(report)
    if uncounted:
        say(f"torchtrt-bridge explain: --require-coverage {share:g}: PyTorch runs {uncounted[0]}.")
        return 1
    if total and report.trt_nodes / total >= share:
        return 0
    found = f"{report.trt_nodes} of {total} nodes" + (f" ({report.trt_nodes / total:.4g})" if total else "")
    say(f"torchtrt-bridge explain: --require-coverage {share:g}: {found} would run in TensorRT.")
    return 1


def _export(arguments: argparse.Namespace) -> int:
    request = request_from(arguments)
    output: Path = arguments.output
    check_file("--output", output, ".pt2")
    check_file("--html", arguments.html)
    call = _call(request)
    with step("capturing it and building engines"):
        program = trtb.export(
            call.module, call.args, kwargs=call.kwargs, dynamic_shapes=call.dynamic_shapes, **request.options
        )
    show(program.report, arguments.html)
    return write_program(program, output, "export")


def _quantize(arguments: argparse.Namespace) -> int:
    request = request_from(arguments)
    check_objects(arguments)
    check_file("--output", arguments.output, ".pt2")
    check_file("--html", arguments.html)
    check_file("--calibration", arguments.calibration)
    with step("loading PyTorch"):
        from torchtrt_bridge.cli.quantize import quantize
    return quantize(arguments, request)


def _demo(arguments: argparse.Namespace) -> int:
    say("loading PyTorch ...")
    from torchtrt_bridge.cli.demo import demo

    demo(
        model=arguments.model,
        weights=arguments.weights,
        precision=arguments.precision,
        targets=names_of(arguments.targets),
        output=arguments.output,
    )
    return 0
