"""The processes of jobs: started side by side or alone, followed by their events, and killed at their time limit."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from filelock import FileLock

from benchmarks.suite.job import READY, Event, Job, Row

WORKER = (sys.executable, "-m", "benchmarks.suite.worker")
ROOT = Path(__file__).parents[2]
POLL_SECONDS = 0.02
READY_SHARE = 0.7  # of the time limit of processes side by side; the rest is for measuring
TURN_LOCK, GPU_LOCK = "turn.lock", "gpu.lock"


@dataclasses.dataclass(frozen=True)
class Outcome:
    """The rows of a process by contender, and the way it ended.

    death: the reason why the process ended early; None if it did not.
    contender: the one whose step it was then; None for a step that belongs to no contender.
    """

    rows: dict[str, Row]
    death: str | None = None
    contender: str | None = None
    is_timeout: bool = False

    def rows_of(self, contenders: Sequence[str]) -> dict[str, Row]:
        """Return the rows, with a failure for the contender in whose step the process died.

        If no contender is to blame and there is no row at all, each of `contenders` gets the failure: another try
        would end in the same way.
        """
        if self.contender is not None:
            return {**self.rows, self.contender: {"failed": self.death}}
        if self.death is not None and self.rows:
            return self.rows
        reason = self.death or "the process wrote no row for it"
        return {name: self.rows.get(name, {"failed": reason}) for name in contenders}


def run_jobs(
    jobs: Sequence[Job], timeout: float, variables: Mapping[str, str], command: Sequence[str] = WORKER
) -> Iterator[tuple[Job, Outcome]]:
    """Run a process for each job, and yield each outcome as its process ends.

    Several processes compile side by side. They measure one after the other, once none of them compiles any more: this
    process holds the lock that a turn needs until each is ready, dead, or killed after READY_SHARE of the time.

    timeout: seconds for all of them together. A process that takes longer is killed, with the processes it started.
    variables: environment variables beside those of this process.
    command: the program to start; its arguments are the job and a file for the events.
    """
    end = time.monotonic() + timeout
    with tempfile.TemporaryDirectory(prefix="torchtrt_bridge-") as folder, contextlib.ExitStack() as stack:
        locks = folder if len(jobs) > 1 else ""
        with FileLock(Path(folder, TURN_LOCK)):
            running = []
            for index, job in enumerate(jobs):
                files = Path(folder, str(index))
                process = JobProcess(dataclasses.replace(job, locks=locks), files, variables, command)
                running.append((job, stack.enter_context(process)))
            for _, process in running if locks else ():
                while not (process.is_ready or process.has_ended(end - (1 - READY_SHARE) * timeout)):
                    time.sleep(POLL_SECONDS)
        while running:
            for pair in [pair for pair in running if pair[1].has_ended(end)]:
                running.remove(pair)
                yield pair[0], pair[1].outcome()
            time.sleep(POLL_SECONDS)


class JobProcess:
    """The process of one job, in a session of its own; leaving the context kills all that is left of it."""

    def __init__(self, job: Job, files: Path, variables: Mapping[str, str], command: Sequence[str]) -> None:
        files.mkdir()
        self._events, self._output = files / "events", files / "output"
        self._events.touch()
        self._started = time.monotonic()
        self._killed_after: float | None = None
        path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        with self._output.open("wb") as output:
            self._process = subprocess.Popen(
                [*command, job.to_json(), str(self._events)],
                stdin=subprocess.PIPE,  # it ends with this process, and the worker with it
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, "PYTHONPATH": path, **variables},
                start_new_session=True,
            )

    def __enter__(self) -> JobProcess:
        return self

    def __exit__(self, *error: object) -> None:
        self._kill()
        assert self._process.stdin is not None
        self._process.stdin.close()

    @property
    def is_ready(self) -> bool:
        """True if it waits for its turn to measure."""
        events = self._read_events()
        return bool(events) and events[-1][1] == READY

    def has_ended(self, deadline: float) -> bool:
        """Check if it has ended; kill it first if the deadline is over."""
        if self._process.poll() is None and time.monotonic() > deadline:
            self._killed_after = time.monotonic() - self._started
            self._kill()
        return self._process.poll() is not None

    def outcome(self) -> Outcome:
        """Return the rows it wrote and the way it ended."""
        events = self._read_events()
        rows = {name: row for name, row in events if name is not None and isinstance(row, dict)}
        if self._process.returncode == 0:
            return Outcome(rows)
        name, step = events[-1] if events else (None, "starting")
        if isinstance(step, dict):
            name, step = None, "going on"
        return Outcome(rows, self._death(step), name, self._killed_after is not None)

    def _death(self, step: str) -> str:
        if self._killed_after is not None:
            return f"killed after {self._killed_after:.0f} s, while {step}"
        status = self._process.returncode
        ended = f"was ended by signal {-status}" if status < 0 else f"exited with status {status}"
        lines = [line.strip() for line in self._output.read_text(encoding="utf-8", errors="replace").splitlines()]
        last_line = next((f": {line[:300]}" for line in reversed(lines) if line), "")
        return f"the process {ended} while {step}{last_line}"

    def _read_events(self) -> list[Event]:
        """Return the events so far; the last line of the file may be half written."""
        events = []
        for line in self._events.read_text(encoding="utf-8").splitlines():
            with contextlib.suppress(json.JSONDecodeError):
                events.append(tuple(json.loads(line)))
        return events

    def _kill(self) -> None:
        """End the process and the compilers that it started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
