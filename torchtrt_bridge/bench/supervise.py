"""Start the process of a job, follow what it tells, and end it when it takes too long."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from torchtrt_bridge.bench.job import Event, Job, Row

WORKER = (sys.executable, "-m", "torchtrt_bridge.bench.worker")


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of a job.

    rows: by contender, those that were told.
    death: why the process ended before its time; None if it did not.
    contender: the one it was busy with then; None if with none of them.
    """

    rows: dict[str, Row]
    death: str | None = None
    contender: str | None = None
    is_timeout: bool = False


def supervise(job: Job, timeout: float, environment: Mapping[str, str], command: Sequence[str] = WORKER) -> Outcome:
    """Run a job in a process group of its own, which is killed after `timeout` seconds.

    environment: variables beside those of this process.
    command: what is started, with the job and a file for its events as arguments.
    """
    with tempfile.TemporaryDirectory(prefix="torchtrt_bridge-") as folder:
        events, output = Path(folder, "events"), Path(folder, "output")
        events.touch()
        with output.open("wb") as file:
            process = subprocess.Popen(
                [*command, job.to_json(), str(events)],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                env={**os.environ, **environment},
                start_new_session=True,
            )
            try:
                status: int | None = process.wait(timeout)
            except subprocess.TimeoutExpired:
                status = None
            finally:
                _kill_group(process)
        return _outcome(_told(events), status, timeout, output)


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    """End the process and the compilers that it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _told(path: Path) -> list[Event]:
    """The events in a file; its last line may be half written."""
    events = []
    for line in path.read_text(encoding="utf-8").splitlines():
        with contextlib.suppress(json.JSONDecodeError):
            events.append(json.loads(line))
    return events


def _outcome(events: Sequence[Event], status: int | None, timeout: float, output: Path) -> Outcome:
    rows = {event["contender"]: event["row"] for event in events if "row" in event}
    if status == 0:
        return Outcome(rows)
    last = events[-1] if events else {"contender": None, "doing": "starting"}
    doing = last.get("doing", "going on")
    if status is None:
        death = f"killed after {timeout:.0f} s, while {doing}"
    else:
        ended = f"was ended by signal {-status}" if status < 0 else f"exited with status {status}"
        death = f"the process {ended} while {doing}{_last_words(output)}"
    busy = last["contender"] if "doing" in last else None
    return Outcome(rows, death, busy, is_timeout=status is None)


def _last_words(output: Path) -> str:
    """The last line that was printed, as ``": TEXT"``."""
    lines = [line.strip() for line in output.read_text(encoding="utf-8", errors="replace").splitlines()]
    words = next((line for line in reversed(lines) if line), "")
    return f": {words[:300]}" if words else ""
