"""What commands say while they work, on stderr, and the check of files before they work."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from torchtrt_bridge.errors import OptionsError

if TYPE_CHECKING:
    from torchtrt_bridge.entry.program import Program
    from torchtrt_bridge.report.model import CompileReport

# A step that took longer shows its time.
LONG_SECONDS = 2.0


def say(message: str) -> None:
    """Print a message beside the results, which go to stdout."""
    print(message, file=sys.stderr, flush=True)


@contextlib.contextmanager
def step(title: str) -> Iterator[None]:
    """Say what is being done before it is done, and how long it took if that was long.

    What the user's code prints meanwhile goes to stderr.
    """
    say(f"{title} ...")
    started = time.monotonic()
    with contextlib.redirect_stdout(sys.stderr):
        yield
    seconds = time.monotonic() - started
    if seconds >= LONG_SECONDS:
        say(f"{title}: {seconds:.0f} s")


def check_file(flag: str, path: Path | None, suffix: str = "") -> None:
    """Raise OptionsError for a file that cannot be written, before anything is computed for it."""
    if path is None:
        return
    problem = None
    if suffix and path.suffix != suffix:
        problem = f"{path.name!r} must end in {suffix}"
    elif path.is_dir():
        problem = f"{path} is a directory"
    elif not path.parent.is_dir():
        problem = f"there is no directory {path.parent}"
    elif not os.access(path if path.exists() else path.parent, os.W_OK):
        problem = f"{path} cannot be written, for lack of permission"
    if problem:
        raise OptionsError(f"{flag}: {problem}. Name a file in an existing directory.")


def show(report: CompileReport, page: Path | None) -> None:
    """Print a report, and write it as a page."""
    print(report)
    if page is not None:
        write_page(report, page)
        print(f"\nwrote {page}")


def write_page(report: CompileReport, page: Path) -> None:
    """Write a report as a page, whole or not at all."""
    from torchtrt_bridge.cache import written_aside

    with written_aside(page, mode=None, suffix=".html") as aside:
        report.save(aside)


def write_program(program: Program, output: Path, command: str) -> int:
    """Write a program that has an engine, and return the exit status."""
    if not any(entry.is_ready for entry in program.report.engines):
        say(f"\ntorchtrt-bridge {command}: no engine was built, so {output} is not written.")
        return 1
    import torchtrt_bridge as trtb

    trtb.save(program, output)
    print(f"\nwrote {output} ({output.stat().st_size / 1e6:.1f} MB)")
    return 0
