"""Processes that hang or die cost their row and nothing else."""

from __future__ import annotations

import dataclasses
import sys
import time
from pathlib import Path

import pytest

from benchmarks.suite.job import Job
from benchmarks.suite.supervise import Outcome, supervise, supervise_together

JOB = Job("speed", "tiny-cnn", 1, "fp16", ("a", "b"))

START = """
import json, os, sys, time
file = open(sys.argv[2], "a", buffering=1)
def tell(**event): file.write(json.dumps(event) + "\\n")
"""


def run(script: str, timeout: float = 60.0, **environment: str) -> Outcome:
    return supervise(JOB, timeout, environment, [sys.executable, "-c", START + script])


def test_rows_are_those_that_were_told() -> None:
    script = """
tell(contender="a", doing="compiling")
tell(contender="a", row={"ms": float(os.environ["MS"]), "model": json.loads(sys.argv[1])["model"]})
tell(contender="b", row={"failed": "no"})
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
def test_a_death_is_told_with_the_contender_at_work(ending: str, death: str) -> None:
    script = f"""
tell(contender="a", row={{"failed": "no"}})
tell(contender="b", doing="compiling")
{ending}
"""
    assert run(script) == Outcome({"a": {"failed": "no"}}, death, "b")


def test_a_death_before_anything_is_nobody_s_fault() -> None:
    outcome = run("sys.exit(2)")
    assert (outcome.rows, outcome.contender) == ({}, None)
    assert outcome.death == "the process exited with status 2 while starting"


def test_a_half_written_line_is_no_event() -> None:
    outcome = run("tell(contender='b', doing='compiling'); file.write('{\"contender\": \"a\"'); sys.exit(1)")
    assert (outcome.rows, outcome.contender) == ({}, "b")


def test_a_process_that_hangs_is_killed_with_those_it_started(tmp_path: Path) -> None:
    script = f"""
import subprocess
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
open({str(tmp_path / "pid")!r}, "w").write(str(child.pid))
tell(contender="a", doing="compiling")
time.sleep(60)
"""
    started = time.monotonic()
    outcome = run(script, timeout=3.0)
    assert time.monotonic() - started < 30
    assert outcome == Outcome({}, "killed after 3 s, while compiling", "a", is_timeout=True)
    assert is_gone(int((tmp_path / "pid").read_text()))


def is_gone(process: int, patience: float = 10.0) -> bool:
    """Whether a process ended, or waits only for its parent to notice."""
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


READY_THEN = """
import time
job = json.loads(sys.argv[1])
tell(contender="a", doing="compiling")
time.sleep(float(job["precision"]))
tell(contender=None, doing="waiting for its turn")
began = time.monotonic()
sys.stdin.read()
measured = time.monotonic()
time.sleep(0.3)
tell(contender="a", row={"waited": measured - began, "from": measured, "to": time.monotonic()})
"""


def test_jobs_get_ready_side_by_side_and_measure_one_at_a_time() -> None:
    jobs = [dataclasses.replace(JOB, precision=seconds) for seconds in ("0", "1.5", "0")]
    outcomes = list(supervise_together(jobs, 60.0, {}, [sys.executable, "-c", START + READY_THEN]))
    rows = [outcome.rows["a"] for outcome in outcomes]
    assert rows[0]["waited"] > 0.5  # for the second, which was not ready yet
    assert rows[0]["to"] <= rows[1]["from"]
    assert rows[1]["to"] <= rows[2]["from"]


TICKING = """
import threading, time
job = json.loads(sys.argv[1])
ticks = [time.monotonic()]
def tick():
    while True:
        ticks.append(time.monotonic())
        time.sleep(0.01)
threading.Thread(target=tick, daemon=True).start()
tell(contender=None, doing="waiting for its turn")
sys.stdin.read()
time.sleep(0.5)
longest = max(later - earlier for earlier, later in zip(ticks, ticks[1:]))
tell(contender="a", row={"halted": longest})
"""


def test_nothing_of_the_others_runs_while_one_measures() -> None:
    jobs = [dataclasses.replace(JOB, precision=name) for name in ("fp16", "bf16")]
    _, second = supervise_together(jobs, 60.0, {}, [sys.executable, "-c", START + TICKING])
    assert second.rows["a"]["halted"] > 0.4


def test_one_that_does_not_get_ready_costs_its_own_row_only() -> None:
    jobs = [dataclasses.replace(JOB, precision=seconds) for seconds in ("60", "0")]
    late, early = supervise_together(jobs, 6.0, {}, [sys.executable, "-c", START + READY_THEN])
    assert (late.rows, late.contender, late.is_timeout) == ({}, "a", True)
    assert "a" in early.rows
