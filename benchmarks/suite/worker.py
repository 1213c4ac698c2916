"""The process that measures a job: python -m torchtrt_bridge.bench.worker JOB EVENTS.

JOB is the job as JSON; to the file EVENTS go its events, a line of JSON each, as they happen. Before it measures speed
it waits for the end of its standard input.
"""

from __future__ import annotations

import ctypes
import json
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from benchmarks.suite import building, speed, start
from benchmarks.suite.job import READY, Event, Job

MEASURES: Mapping[str, Callable[[Job], Iterator[Event]]] = {
    "speed": speed.measure,
    "start": start.measure,
    "build": building.measure,
}
PR_SET_PDEATHSIG = 1


def main(job: str, events: str) -> None:
    _end_with_parent()
    parsed = Job.from_json(job)
    with Path(events).open("a", buffering=1, encoding="utf-8") as file:
        for event in MEASURES[parsed.kind](parsed):
            file.write(json.dumps(event) + "\n")
            if event.get("doing") == READY:
                sys.stdin.read()


def _end_with_parent() -> None:
    """A measurement that nobody waits for would disturb the next one; Linux can end it."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


if __name__ == "__main__":
    main(*sys.argv[1:])
