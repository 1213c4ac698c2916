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
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from benchmarks.suite.job import READY, Event, Job, Row

WORKER = (sys.executable, "-m", "benchmarks.suite.worker")
POLL_SECONDS = 0.02
READY_SHARE = 0.7


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
    with Worker(job, environment, command) as worker:
        worker.go()
        worker.wait(timeout)
        return worker.outcome()


def supervise_together(
    jobs: Sequence[Job], timeout: float, environment: Mapping[str, str], command: Sequence[str] = WORKER
) -> Iterator[Outcome]:
    """Let jobs get ready side by side, and then measure one after the other, each while the others are halted or gone.

    Halted, as a process that waits has threads and compilers that do not: beside ten of them, what the host does for
    a call was seen to take twice the time.

    timeout: the seconds for all of them, of which READY_SHARE are there to get ready; who takes longer is killed.
    Gives the outcomes in the order of the jobs, each when it is there.
    """
    with contextlib.ExitStack() as stack:
        workers = [stack.enter_context(Worker(job, environment, command)) for job in jobs]
        started = time.monotonic()
        for worker in workers:
            worker.wait(started + READY_SHARE * timeout - time.monotonic(), until_ready=True)
        for worker in workers:
            worker.signal(signal.SIGSTOP)
        for worker in workers:
            worker.go()
            worker.wait(started + timeout - time.monotonic())
            yield worker.outcome()


class Worker:
    """The process of a job, which waits before it measures until `go`; nothing of it outlives the context."""

    def __init__(self, job: Job, environment: Mapping[str, str], command: Sequence[str]) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="torchtrt_bridge-")
        self._events, self._output = Path(self._folder.name, "events"), Path(self._folder.name, "output")
        self._events.touch()
        self._started = time.monotonic()
        self._killed_after: float | None = None
        with self._output.open("wb") as file:
            self._process = subprocess.Popen(
                [*command, job.to_json(), str(self._events)],
                stdin=subprocess.PIPE,
                stdout=file,
                stderr=subprocess.STDOUT,
                env={**os.environ, **environment},
                start_new_session=True,
            )

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *error: object) -> None:
        self.go()
        self._kill_group()
        self._folder.cleanup()

    def go(self) -> None:
        """End the input, for which it waits, and its halt."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self.signal(signal.SIGCONT)

    def wait(self, timeout: float, until_ready: bool = False) -> None:
        """Wait until it has ended, or is ready to measure; kill it after `timeout` seconds."""
        deadline = time.monotonic() + timeout
        while self._process.poll() is None and not (until_ready and self._is_ready):
            if time.monotonic() > deadline:
                self._killed_after = time.monotonic() - self._started
                self._kill_group()
                return
            time.sleep(POLL_SECONDS)

    def outcome(self) -> Outcome:
        """What it told, and how it ended."""
        events = _told(self._events)
        rows = {event["contender"]: event["row"] for event in events if "row" in event}
        if self._process.returncode == 0:
            return Outcome(rows)
        last: Event = events[-1] if events else {"contender": None, "doing": "starting"}
        busy = last["contender"] if "doing" in last else None
        return Outcome(rows, self._death(str(last.get("doing", "going on"))), busy, self._killed_after is not None)

    def _death(self, doing: str) -> str:
        if self._killed_after is not None:
            return f"killed after {self._killed_after:.0f} s, while {doing}"
        status = self._process.returncode
        ended = f"was ended by signal {-status}" if status < 0 else f"exited with status {status}"
        return f"the process {ended} while {doing}{_last_words(self._output)}"

    @property
    def _is_ready(self) -> bool:
        events = _told(self._events)
        return bool(events) and events[-1].get("doing") == READY

    def _kill_group(self) -> None:
        """End the process and the compilers that it started."""
        self.signal(signal.SIGKILL)
        self._process.wait()

    def signal(self, number: int) -> None:
        """Send a signal to the process, if it is still there, and to the compilers that it started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)


def _told(path: Path) -> list[Event]:
    """The events in a file; its last line may be half written."""
    events = []
    for line in path.read_text(encoding="utf-8").splitlines():
        with contextlib.suppress(json.JSONDecodeError):
            events.append(json.loads(line))
    return events


def _last_words(output: Path) -> str:
    """The last line that was printed, as ``": TEXT"``."""
    lines = [line.strip() for line in output.read_text(encoding="utf-8", errors="replace").splitlines()]
    words = next((line for line in reversed(lines) if line), "")
    return f": {words[:300]}" if words else ""
