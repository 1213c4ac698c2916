"""The command line of the benchmark: torchtrt-bridge bench."""

from __future__ import annotations

import argparse
import datetime
import shlex
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, get_args

from benchmarks.suite import contenders
from benchmarks.suite import models as suite
from benchmarks.suite.job import PARTS, Job
from torchtrt_bridge.errors import OptionsError
from torchtrt_bridge.options import EngineKind, Precision

EXAMPLES = """examples:
  torchtrt-bridge bench --models resnet50,bert-base --precisions fp16 --output results.json
  torchtrt-bridge bench --contenders torchtrt_bridge,eager,inductor-reduce-overhead --deadline 540
  torchtrt-bridge bench --kinds start --batches 1 --output results.json
  torchtrt-bridge bench --kinds build --models resnet50 --batches 1 --output build.json   (needs no GPU)
  torchtrt-bridge bench --show results.json --markdown
  torchtrt-bridge bench --plot results.json speed.png                                     (anywhere)
  torchtrt-bridge bench --device cpu --engine reference --tiny    (tries the command; its times mean nothing)

The same command again goes on where the last one ended: rows that are in the file are not measured again.

With --together N the processes of N rows compile side by side, which saves time on a machine of many cores; what they
time to choose a kernel or an engine has the GPU alone. When all are ready, they measure one after the other.

kinds:
  speed  all contenders in one process for each row, in turns: time per call with calls queued back to back, time
         of single calls, the engine alone, error against eager fp32, device memory
  start  the time from compiling to the first result, with empty caches and, in a second process, with filled ones;
         the part of it that Dynamo takes to trace; host and device memory; a process for each contender
  build  seconds and memory of an export on the CPU
"""
TINY = {"calls": 3, "rounds": 2, "turn_seconds": 0.05}
WIDTH = 200


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = f"{EXAMPLES}\nmodels: {', '.join(suite.SUITE)}\ncontenders: {', '.join(contenders.CONTENDERS)}"
    what = parser.add_argument_group("what is measured; lists have commas between their names")
    what.add_argument("--models", metavar="LIST", help="default: all of real size")
    what.add_argument("--batches", default="1,8,32", metavar="LIST", help="default: %(default)s")
    what.add_argument("--precisions", default="fp16", metavar="LIST", help="of fp16, bf16, fp32; default: fp16")
    what.add_argument("--kinds", default="speed", metavar="LIST", help="of speed, start, build; default: speed")
    names = ", ".join(contenders.DEFAULTS)
    what.add_argument("--contenders", default=names, metavar="LIST", help="default: %(default)s")
    what.add_argument("--tiny", action="store_true", help="tiny models and few calls, to try the command")
    how = parser.add_argument_group("how")
    how.add_argument("--output", type=Path, metavar="FILE.json", help="default: bench.json")
    how.add_argument("--again", action="store_true", help="measure anew what the file has already")
    how.add_argument("--deadline", type=float, metavar="SECONDS", help="end by then, with what is done by then")
    how.add_argument("--row-timeout", type=float, default=900.0, metavar="SECONDS", help="default: %(default).0f")
    how.add_argument("--together", type=int, default=1, metavar="N", help="rows that get ready side by side (below)")
    how.add_argument("--calls", type=int, default=Job.calls, help="queued for one time, at most; default: %(default)s")
    how.add_argument("--rounds", type=int, default=Job.rounds, help="turns of each contender; default: %(default)s")
    how.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    how.add_argument("--engine", choices=get_args(EngineKind), default="auto", help="as the option of that name")
    shown = parser.add_argument_group("what is made of it")
    shown.add_argument("--markdown", action="store_true", help="print the tables as Markdown")
    shown.add_argument("--show", type=Path, metavar="FILE.json", help="print the tables of a file; measure nothing")
    shown.add_argument("--plot", type=Path, nargs=2, metavar=("FILE.json", "IMAGE.png"), help="draw those of a file")


def bench(arguments: argparse.Namespace) -> int:
    """Measure, or show or draw what was measured. Raises OptionsError for what makes no sense."""
    from benchmarks.suite.results import Results

    if arguments.plot is not None:
        from benchmarks.suite.plot import plot

        source, picture = arguments.plot
        plot(Results.read(source), picture)
        print(f"wrote {picture}")
        return 0
    results = _measured(arguments) if arguments.show is None else Results.read(arguments.show)
    _show(results, arguments.markdown)
    return 0


def _measured(arguments: argparse.Namespace) -> Any:
    """The results, with those of this run."""
    jobs = jobs_of(arguments)
    _check_device(arguments, {job.kind for job in jobs})
    from benchmarks.suite.environment import environment
    from benchmarks.suite.results import Results
    from benchmarks.suite.schedule import Run

    path: Path = arguments.output or Path("bench.json")
    if not path.parent.is_dir():
        raise OptionsError(f"--output: there is no directory {path.parent}.")
    results = Results.open(path, environment(arguments.device, arguments.engine))
    command = shlex.join(["torchtrt-bridge", *sys.argv[1:]])
    results.runs.append({"date": datetime.date.today().isoformat(), "command": command})
    run = Run(results, arguments.again, arguments.deadline, arguments.row_timeout, arguments.together, tell=_tell)
    left = run.carry_out(jobs)
    if left:
        _tell(f"{left} jobs were left for lack of time; the same command again goes on with them.")
    return results


def jobs_of(arguments: argparse.Namespace) -> list[Job]:
    """The jobs that the command line asks for, cheap ones first."""
    from benchmarks.suite.schedule import plan

    models = _chosen("models", arguments.models, suite.SUITE) if arguments.models else suite.names(tiny=arguments.tiny)
    batches = _listed(arguments.batches)
    if not batches or not all(batch.isdigit() and int(batch) > 0 for batch in batches):
        raise OptionsError(f"--batches {arguments.batches}: write sizes with commas between them, as 1,8,32.")
    if min(arguments.calls, arguments.rounds, arguments.together) < 1:
        raise OptionsError("--calls, --rounds and --together must be 1 or more.")
    job = Job("speed", "", 0, "", (), arguments.device, arguments.engine, arguments.calls, arguments.rounds)
    if arguments.tiny:
        job = Job("speed", "", 0, "", (), arguments.device, arguments.engine, **TINY)  # type: ignore[arg-type]
    return plan(
        _chosen("kinds", arguments.kinds, PARTS),
        models,
        [int(batch) for batch in batches],
        _chosen("precisions", arguments.precisions, get_args(Precision)),
        _chosen("contenders", arguments.contenders, contenders.CONTENDERS),
        job,
    )


def _check_device(arguments: argparse.Namespace, kinds: Iterable[str]) -> None:
    if set(kinds) == {"build"}:
        return
    if arguments.device == "cpu":
        if arguments.engine != "reference":
            raise OptionsError("--device cpu: TensorRT runs on no CPU. Add --engine reference to try the command.")
        return
    import torch

    if not torch.cuda.is_available():
        raise OptionsError(
            "no GPU is visible to PyTorch. `--kinds build` measures what needs none; "
            "`--device cpu --engine reference --tiny` tries the command; `torchtrt-bridge doctor` says what is missing."
        )


def _listed(text: str) -> tuple[str, ...]:
    """The names in a list, each once."""
    return tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))


def _chosen(option: str, text: str, known: Iterable[str]) -> Sequence[str]:
    """The names in a list; an unknown one raises OptionsError with the nearest right one."""
    import difflib

    chosen, choices = _listed(text), list(known)
    for name in chosen:
        if name not in choices:
            near = difflib.get_close_matches(name, choices, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise OptionsError(f"--{option}: there is no {name!r}.{hint} Known: {', '.join(choices)}.")
    if not chosen:
        raise OptionsError(f"--{option}: name at least one of {', '.join(choices)}.")
    return chosen


def _tell(message: str) -> None:
    """How far it is, beside the tables, which go to stdout."""
    print(message, file=sys.stderr, flush=True)


def _show(results: Any, as_markdown: bool) -> None:
    from rich.console import Console

    from benchmarks.suite.sheets import footnotes, sheets

    tables, notes = sheets(results), footnotes(results)
    if as_markdown:
        print("\n\n".join([*(table.markdown() for table in tables), "\n".join(f"- {note}" for note in notes)]))
        return
    options: dict[str, Any] = {"highlight": False, "markup": False, "emoji": False}
    console = Console(width=None if sys.stdout.isatty() else WIDTH, **options)
    for table in tables:
        table.print(console)
    for note in notes:
        console.print(note)
