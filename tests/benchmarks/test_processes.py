"""Processes that hang or die cost their row and nothing else; side by side, one at a time measures."""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from benchmarks.suite.job import Job
from benchmarks.suite.processes import Outcome, run_jobs

pytestmark = pytest.mark.full  # each test starts processes
JOB = Job("speed", "tiny-cnn", 1, "fp16", ("a", "b"))

START = """
import json, os, sys, time
job = json.loads(sys.argv[1])
file = open(sys.argv[2], "a", buffering=1)
def write(name, event): file.write(json.dumps([name, event]) + "\\n")
"""


def run(script: str, timeout: float = 60.0, **environment: str) -> Outcome:
    ((job, outcome),) = run_jobs([JOB], timeout, environment, [sys.executable, "-c", START + script])
    assert job is JOB
    return outcome


def side_by_side(script: str, seconds: Sequence[str], timeout: float) -> dict[str, Outcome]:
    """Run a job for each number of seconds, which the script gets as the job's precision."""
    jobs = [dataclasses.replace(JOB, precision=each) for each in seconds]
    command = [sys.executable, "-c", START + script]
    return {job.precision: outcome for job, outcome in run_jobs(jobs, timeout, {}, command)}


def test_rows_are_those_that_were_written() -> None:
    script = """
write("a", "compiling")
write("a", {"ms": float(os.environ["MS"]), "model": job["model"]})
write("b", {"failed": "no"})
"""
    assert run(script, MS="2.5") == Outcome({"a": {"ms": 2.5, "model": "tiny-cnn"}, "b": {"failed": "no"}})


@pytest.mark.parametrize(
    ("ending", "death"),
    [
        ("os.kill(os.getpid(), 11)", "the process was ended by signal 11 while compiling"),
        ("print('CUDA error'); sys.exit(3)", "the process exited with status 3 while compiling: CUDA error"),
        ("raise ValueError('wrong')", "the process exited with status 1 while compiling: ValueError: wrong"),
    ],
    ids=["crash", "exit", "exception"],
)
def test_a_death_names_the_contender_at_work(ending: str, death: str) -> None:
    script = f"""
write("a", {{"failed": "no"}})
write("b", "compiling")
{ending}
"""
    assert run(script) == Outcome({"a": {"failed": "no"}}, death, "b")


def test_a_death_before_any_step_blames_no_contender() -> None:
    outcome = run("sys.exit(2)")
    assert (outcome.rows, outcome.contender) == ({}, None)
    assert outcome.death == "the process exited with status 2 while starting"


def test_a_half_written_line_is_no_event() -> None:
    outcome = run("write('b', 'compiling'); file.write('[\"a\", '); sys.exit(1)")
    assert (outcome.rows, outcome.contender) == ({}, "b")


def test_a_process_that_hangs_is_killed_with_those_it_started(tmp_path: Path) -> None:
    script = f"""
import subprocess
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
open({str(tmp_path / "pid")!r}, "w").write(str(child.pid))
write("a", "compiling")
time.sleep(60)
"""
    outcome = run(script, timeout=3.0)
    assert outcome == Outcome({}, "killed after 3 s, while compiling", "a", is_timeout=True)
    assert is_gone(int((tmp_path / "pid").read_text()))


def is_gone(process: int, patience: float = 10.0) -> bool:
    """Wait until a process has ended; one that waits only for its parent to notice has."""
    end = time.monotonic() + patience
    while time.monotonic() < end:
        try:
            state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
        except FileNotFoundError:
            return True
        if state == "Z":
            return True
        time.sleep(0.05)
    return False


COMPILE_AND_MEASURE = """
from filelock import FileLock
write("a", "compiling")
time.sleep(float(job["precision"]))
ready = time.monotonic()
write(None, "waiting for its turn")
with FileLock(job["locks"] + "/turn.lock"):
    began = time.monotonic()
    time.sleep(0.2)
    write("a", {"ready": ready, "from": began, "to": time.monotonic()})
"""


def test_jobs_compile_side_by_side_and_measure_one_at_a_time_when_all_are_ready() -> None:
    outcomes = side_by_side(COMPILE_AND_MEASURE, ["0", "0.01", "1"], 60.0)
    rows = sorted((outcome.rows["a"] for outcome in outcomes.values()), key=lambda row: row["from"])
    assert len(rows) == 3
    assert rows[0]["from"] >= max(row["ready"] for row in rows)
    assert rows[0]["to"] <= rows[1]["from"]
    assert rows[1]["to"] <= rows[2]["from"]


def test_one_that_does_not_get_ready_costs_its_own_row_only() -> None:
    outcomes = side_by_side(COMPILE_AND_MEASURE, ["60", "0"], 4.0)
    late = outcomes["60"]
    assert (late.rows, late.contender, late.is_timeout) == ({}, "a", True)
    assert "a" in outcomes["0"].rows


def test_a_job_alone_shares_no_locks() -> None:
    assert run("write('a', {'locks': job['locks']})").rows == {"a": {"locks": ""}}
