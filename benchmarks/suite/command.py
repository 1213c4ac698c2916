"""The command line of the suite: python -m benchmarks, or torchtrt-bridge bench."""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import difflib
import shlex
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, get_args

from benchmarks.suite import models as suite
from benchmarks.suite.contenders import CONTENDERS, DEFAULTS
from benchmarks.suite.job import PARTS, Job
from torchtrt_bridge.errors import BridgeError, OptionsError
from torchtrt_bridge.options import EngineKind, Precision

EPILOG = f"""examples:
  %(prog)s --models resnet50,bert-base --precisions fp16 --output results.json
  %(prog)s --contenders torchtrt_bridge,eager,inductor-reduce-overhead --deadline 540
  %(prog)s --kinds start --batches 1 --output results.json
  %(prog)s --kinds build --models resnet50 --batches 1 --output build.json   (needs no GPU)
  %(prog)s --show results.json --markdown
  %(prog)s --plot results.json speed.png                                     (needs no GPU)
  %(prog)s --device cpu --engine reference --tiny    (tries the command; its times mean nothing)

The same command again goes on where the last one ended: rows that are in the file are not measured again.

With --together N the processes of N rows compile side by side, which saves time on a machine of many cores. Whatever
measures on the GPU to choose a kernel or an engine has it alone. When all are ready, they measure one after the other.

kinds:
  speed  all contenders in one process for each row, in turns: time per call with calls queued back to back, time
         of single calls, the engine alone, error against eager fp32, device memory
  start  the time from compiling to the first result, with empty caches and, in a second process, with filled ones;
         the part of it that Dynamo takes to trace; host and device memory; a process for each contender
  build  seconds and memory of an export on the CPU

models: {", ".join(suite.SUITE)}
contenders: {", ".join(CONTENDERS)}"""
TINY: dict[str, Any] = {"calls": 3, "rounds": 2, "turn_seconds": 0.05}
WIDTH = 200


def main(argv: Sequence[str] | None = None, prog: str = "python -m benchmarks") -> int:
    """Measure, or show or draw what was measured; return 0, or 1 with a message on stderr."""
    argv = list(sys.argv[1:] if argv is None else argv)
    arguments = parser(prog).parse_args(argv)
    try:
        if arguments.plot is not None:
            _plot(*arguments.plot)
        else:
            _show(arguments, shlex.join([*prog.split(), *argv]))
    except (BridgeError, OSError) as error:
        print(f"{prog}: {error}", file=sys.stderr)
        return 1
    return 0


def parser(prog: str) -> argparse.ArgumentParser:
    """Return the parser; `prog` is the name of the command in its help."""
    parser = argparse.ArgumentParser(prog=prog, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_argument_group("rows to measure; lists have commas between their names")
    what.add_argument("--models", metavar="LIST", help="default: all of real size")
    what.add_argument("--batches", default="1,8,32", metavar="LIST", help="default: %(default)s")
    what.add_argument("--precisions", default="fp16", metavar="LIST", help="of fp16, bf16, fp32; default: fp16")
    what.add_argument("--kinds", default="speed", metavar="LIST", help="of speed, start, build; default: speed")
    what.add_argument("--contenders", default=",".join(DEFAULTS), metavar="LIST", help="default: %(default)s")
    what.add_argument("--tiny", action="store_true", help="tiny models and few calls, to try the command")
    how = parser.add_argument_group("measuring")
    how.add_argument("--output", type=Path, default=Path("bench.json"), metavar="FILE.json", help="default: bench.json")
    how.add_argument("--again", action="store_true", help="measure anew what the file has already")
    how.add_argument("--deadline", type=float, metavar="SECONDS", help="end by then, with the rows done by then")
    how.add_argument("--row-timeout", type=float, default=900.0, metavar="SECONDS", help="default: %(default).0f")
    how.add_argument("--together", type=int, default=1, metavar="N", help="rows that compile side by side (below)")
    how.add_argument("--calls", type=int, default=Job.calls, help="queued for one time, at most; default: %(default)s")
    how.add_argument("--rounds", type=int, default=Job.rounds, help="turns of each contender; default: %(default)s")
    how.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    how.add_argument("--engine", choices=get_args(EngineKind), default="auto", help="as the option of that name")
    shown = parser.add_argument_group("results")
    shown.add_argument("--markdown", action="store_true", help="print the tables as Markdown")
    shown.add_argument("--show", type=Path, metavar="FILE.json", help="print the tables of a file; measure nothing")
    shown.add_argument(
        "--plot", type=Path, nargs=2, metavar=("FILE.json", "IMAGE.png"), help="draw the speeds of a file"
    )
    return parser


def jobs_of(arguments: argparse.Namespace) -> list[Job]:
    """Return the jobs that the command line asks for, cheap ones first. Raises OptionsError for what makes no sense."""
    from benchmarks.suite.schedule import plan

    models = _chosen("models", arguments.models, suite.SUITE) if arguments.models else suite.names(tiny=arguments.tiny)
    batches = _listed(arguments.batches)
    if not batches or not all(batch.isdigit() and int(batch) > 0 for batch in batches):
        raise OptionsError(f"--batches {arguments.batches}: write sizes with commas between them, as 1,8,32.")
    if min(arguments.calls, arguments.rounds, arguments.together) < 1:
        raise OptionsError("--calls, --rounds and --together must be 1 or more.")
    template = Job("speed", "", 0, "", (), arguments.device, arguments.engine, arguments.calls, arguments.rounds)
    return plan(
        _chosen("kinds", arguments.kinds, PARTS),
        models,
        [int(batch) for batch in batches],
        _chosen("precisions", arguments.precisions, get_args(Precision)),
        _chosen("contenders", arguments.contenders, CONTENDERS),
        dataclasses.replace(template, **TINY) if arguments.tiny else template,
    )


def _measured(arguments: argparse.Namespace, command: str) -> Any:
    """Return the results in the file, with those of this run."""
    jobs = jobs_of(arguments)
    if any(job.kind != "build" for job in jobs):
        _check_device(arguments)
    from benchmarks.suite.environment import environment
    from benchmarks.suite.results import Results
    from benchmarks.suite.schedule import Round

    path: Path = arguments.output
    if not path.parent.is_dir():
        raise OptionsError(f"--output: there is no directory {path.parent}.")
    results = Results.open(path, environment(arguments.device, arguments.engine))
    results.runs.append({"date": datetime.date.today().isoformat(), "command": command})
    options = arguments.again, arguments.deadline, arguments.row_timeout, arguments.together
    left = Round(results, *options, log=_log).measure(jobs)
    if left:
        _log(f"{left} jobs were left for lack of time; the same command again goes on with them.")
    return results


def _check_device(arguments: argparse.Namespace) -> None:
    import torch

    if arguments.device == "cpu" and arguments.engine != "reference":
        raise OptionsError("--device cpu: TensorRT runs on no CPU. Add --engine reference to try the command.")
    if arguments.device == "cuda" and not torch.cuda.is_available():
        raise OptionsError(
            "no GPU is visible to PyTorch. `--kinds build` measures what needs none; "
            "`--device cpu --engine reference --tiny` tries the command; `torchtrt-bridge doctor` says what is missing."
        )


def _listed(text: str) -> tuple[str, ...]:
    """Split a list into its names, each once."""
    return tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))


def _chosen(option: str, text: str, known: Iterable[str]) -> Sequence[str]:
    """Return the names in a list; an unknown one raises OptionsError with the nearest right one."""
    chosen, choices = _listed(text), list(known)
    for name in chosen:
        if name not in choices:
            near = difflib.get_close_matches(name, choices, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise OptionsError(f"--{option}: there is no {name!r}.{hint} Known: {', '.join(choices)}.")
    if not chosen:
        raise OptionsError(f"--{option}: name at least one of {', '.join(choices)}.")
    return chosen


def _log(message: str) -> None:
    """Print the progress beside the tables, which go to stdout."""
    print(message, file=sys.stderr, flush=True)


def _plot(source: Path, picture: Path) -> None:
    from benchmarks.suite.plot import plot
    from benchmarks.suite.results import Results

    plot(Results.read(source), picture)
    print(f"wrote {picture}")


def _show(arguments: argparse.Namespace, command: str) -> None:
    """Print the tables of a file, or of what is measured first."""
    from rich.console import Console

    from benchmarks.suite.results import Results
    from benchmarks.suite.tables import footnotes, tables

    results = _measured(arguments, command) if arguments.show is None else Results.read(arguments.show)
    found, notes = tables(results), footnotes(results)
    if arguments.markdown:
        print("\n\n".join([*(table.markdown() for table in found), "\n".join(f"- {note}" for note in notes)]))
        return
    width = None if sys.stdout.isatty() else WIDTH
    console = Console(width=width, highlight=False, markup=False, emoji=False)
    for table in found:
        table.print(console)
    for note in notes:
        console.print(note)
