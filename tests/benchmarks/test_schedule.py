"""The order of the jobs, the rows that are skipped, and the cost of a death or a deadline, with simulated processes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from benchmarks.suite import schedule
from benchmarks.suite.job import Job
from benchmarks.suite.processes import Outcome
from benchmarks.suite.results import Results
from benchmarks.suite.schedule import Round, plan

TEMPLATE = Job("speed", "", 0, "", (), device="cpu", engine="reference", calls=7)
SPEED = dataclasses.replace(TEMPLATE, model="tiny-cnn", batch=1, precision="fp16", contenders=("a", "b", "c"))
START = dataclasses.replace(SPEED, kind="start", contenders=("a",))


class Processes:
    """Answers in place of processes, by a function of the job; keeps the jobs, and how many came at a time."""

    def __init__(self, answer: Callable[[Job], Outcome] | None = None) -> None:
        self.jobs: list[Job] = []
        self.counts: list[int] = []
        self.timeouts: list[float] = []
        self.variables: list[dict[str, str]] = []
        self.answer = answer or (lambda job: Outcome({name: {"ms": 1.0} for name in job.contenders}))

    def __call__(
        self, jobs: Sequence[Job], timeout: float, variables: Mapping[str, str]
    ) -> Iterator[tuple[Job, Outcome]]:
        self.counts.append(len(jobs))
        self.timeouts.append(timeout)
        for job in jobs:
            self.jobs.append(job)
            self.variables.append(dict(variables))
            yield job, self.answer(job)


@pytest.fixture
def results(tmp_path: Path) -> Results:
    return Results(tmp_path / "bench.json", {"gpu": None})


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Replace the clock by a number that a test changes."""
    now = [0.0]
    monkeypatch.setattr(schedule.time, "monotonic", lambda: now[0])
    return now


def measure(results: Results, processes: Processes, *jobs: Job, **options: Any) -> int:
    return Round(results, log=lambda message: None, run_jobs=processes, **options).measure(jobs)


def found(results: Results, field: str) -> dict[str, Any]:
    return {row["contender"]: row.get(field) for row in results.rows}


# The plan ----------------------------------------------------------------------------------------------------------


def test_cheap_rows_come_first() -> None:
    jobs = plan(["speed"], ["gpt2", "minilm-l6"], [1, 32], ["fp32", "fp16"], ["eager"], TEMPLATE)
    assert [(job.model, job.batch, job.precision) for job in jobs] == [
        ("minilm-l6", 1, "fp16"),
        ("minilm-l6", 1, "fp32"),
        ("gpt2", 1, "fp16"),
        ("minilm-l6", 32, "fp16"),
        ("gpt2", 1, "fp32"),
        ("minilm-l6", 32, "fp32"),
        ("gpt2", 32, "fp16"),
        ("gpt2", 32, "fp32"),
    ]
    assert {job.calls for job in jobs} == {7}


def test_contenders_are_timed_together_started_alone_and_one_builds() -> None:
    jobs = plan(["start", "build", "speed"], ["tiny-cnn"], [1], ["fp16"], ["eager", "inductor"], TEMPLATE)
    assert [(job.kind, job.contenders) for job in jobs] == [
        ("build", ("torchtrt_bridge",)),
        ("speed", ("eager", "inductor")),
        ("start", ("eager",)),
        ("start", ("inductor",)),
    ]


# What is skipped ---------------------------------------------------------------------------------------------------


def test_rows_that_are_there_are_not_measured_again(results: Results) -> None:
    measure(results, Processes(), SPEED)
    later = dataclasses.replace(SPEED, batch=8)
    processes = Processes()
    measure(Results.read(results.path), processes, SPEED, later)
    assert [(job.batch, job.contenders) for job in processes.jobs] == [(8, ("a", "b", "c"))]


def test_with_again_they_are(results: Results) -> None:
    measure(results, Processes(), SPEED)
    measure(results, Processes(lambda job: Outcome({name: {"ms": 2.0} for name in job.contenders})), SPEED, again=True)
    assert found(results, "ms") == {"a": 2.0, "b": 2.0, "c": 2.0}


def test_a_new_contender_is_compared_within_one_process_but_not_with_failures(results: Results) -> None:
    row = dict.fromkeys(("model", "batch", "precision", "kind"), None) | {"model": "tiny-cnn", "batch": 1}
    row |= {"precision": "fp16", "kind": "speed", "source": "old"}
    results.add([{**row, "contender": "a", "ms": 9.0}, {**row, "contender": "b", "failed": "no"}])
    processes = Processes()
    measure(results, processes, SPEED)
    assert [job.contenders for job in processes.jobs] == [("a", "c")]
    assert found(results, "ms") == {"a": 1.0, "b": None, "c": 1.0}


def test_kept_rows_of_other_source_code_are_counted(results: Results, monkeypatch: pytest.MonkeyPatch) -> None:
    measure(results, Processes(), SPEED)
    lines: list[str] = []
    monkeypatch.setattr(schedule, "source_digest", lambda: "changed")
    Round(results, log=lines.append, run_jobs=Processes()).measure([SPEED])
    assert "1 of 1 are in" in lines[0]
    assert "3 of the rows are of other source code" in lines[0]


# Deaths ------------------------------------------------------------------------------------------------------------


def test_one_that_kills_the_process_is_left_out_of_the_next(results: Results) -> None:
    def answer(job: Job) -> Outcome:
        if "b" in job.contenders:
            return Outcome({}, "ended by signal 11", "b")
        return Outcome({name: {"ms": 1.0} for name in job.contenders})

    processes = Processes(answer)
    assert measure(results, processes, SPEED) == 0
    assert [job.contenders for job in processes.jobs] == [("a", "b", "c"), ("a", "c")]
    assert found(results, "failed") == {"a": None, "b": "ended by signal 11", "c": None}


def test_a_failure_before_a_death_is_kept(results: Results) -> None:
    first = [Outcome({"a": {"failed": "no backend"}}, "exited with status 1", None)]
    processes = Processes(lambda job: first.pop() if first else Outcome({n: {"ms": 1.0} for n in job.contenders}))
    measure(results, processes, SPEED)
    assert [job.contenders for job in processes.jobs] == [("a", "b", "c"), ("b", "c")]
    assert found(results, "failed") == {"a": "no backend", "b": None, "c": None}


@pytest.mark.parametrize(
    ("outcome", "reason"),
    [(Outcome({}, "exited with status 1"), "exited with status 1"), (Outcome({}), "the process wrote no row for it")],
    ids=["death", "silence"],
)
def test_a_death_that_no_contender_is_to_blame_for_is_a_row_of_each(
    outcome: Outcome, reason: str, results: Results
) -> None:
    processes = Processes(lambda job: outcome)
    measure(results, processes, SPEED)
    assert len(processes.jobs) == 1
    assert set(found(results, "failed").values()) == {reason}


def test_a_hung_row_is_a_row(results: Results) -> None:
    processes = Processes(lambda job: Outcome({}, "killed after 5 s", job.contenders[0], is_timeout=True))
    measure(results, processes, START, row_timeout=5.0)
    assert processes.timeouts == [5.0]
    assert found(results, "failed") == {"a": "cold: killed after 5 s"}


# The deadline ------------------------------------------------------------------------------------------------------


def test_nothing_starts_after_the_deadline(results: Results) -> None:
    processes = Processes()
    assert measure(results, processes, SPEED, START, deadline=0.0) == 2
    assert processes.jobs == []


def test_nothing_starts_that_would_not_end_in_time(results: Results, clock: list[float]) -> None:
    def answer(job: Job) -> Outcome:
        clock[0] += 40.0
        return Outcome({name: {"ms": 1.0} for name in job.contenders})

    jobs = [dataclasses.replace(SPEED, batch=batch) for batch in (1, 8, 32)]
    processes = Processes(answer)
    assert measure(results, processes, *jobs, deadline=100.0) == 1
    assert [job.batch for job in processes.jobs] == [1, 8]
    assert processes.timeouts == [100.0, 60.0]


def test_a_row_that_the_deadline_ends_leaves_no_trace(results: Results, clock: list[float]) -> None:
    def answer(job: Job) -> Outcome:
        clock[0] += 10.0
        return Outcome({}, "killed", "a", is_timeout=True)

    assert measure(results, Processes(answer), SPEED, deadline=10.0, row_timeout=60.0) == 1
    assert results.rows == []
    assert not results.path.exists()


# Parts and caches --------------------------------------------------------------------------------------------------


def test_the_parts_of_a_start_share_caches_that_no_other_has(results: Results) -> None:
    processes = Processes(lambda job: Outcome({"a": {"seconds": 4.0 if job.part == "cold" else 2.0}}))
    measure(results, processes, START, dataclasses.replace(START, batch=8))
    assert [job.part for job in processes.jobs] == ["cold", "warm"] * 2
    caches = [variables["TORCHINDUCTOR_CACHE_DIR"] for variables in processes.variables]
    engines = [job.cache_dir for job in processes.jobs]
    assert [caches[0] == caches[1], caches[1] == caches[2], engines[0] == engines[1]] == [True, False, True]
    assert [(row["cold_seconds"], row["warm_seconds"]) for row in results.rows] == [(4.0, 2.0)] * 2


def test_after_a_cold_failure_nothing_is_called_warm(results: Results) -> None:
    processes = Processes(lambda job: Outcome({"a": {"failed": "no"}}))
    measure(results, processes, START)
    assert [job.part for job in processes.jobs] == ["cold"]
    assert found(results, "failed") == {"a": "cold: no"}


# Side by side ------------------------------------------------------------------------------------------------------


def test_rows_compile_side_by_side_in_groups(results: Results) -> None:
    jobs = [dataclasses.replace(SPEED, batch=batch) for batch in (1, 8, 32)] + [START]
    processes = Processes()
    assert measure(results, processes, *jobs, together=2) == 0
    assert processes.counts == [2, 1, 1, 1]  # the third row, and the two parts of the start
    assert len(results.rows) == 10


def test_a_job_that_died_among_others_is_measured_alone(results: Results) -> None:
    def answer(job: Job) -> Outcome:
        if job.batch == 8 and job.contenders == SPEED.contenders:
            return Outcome({"a": {"ms": 1.0}}, "it died", "b")
        return Outcome({name: {"ms": 2.0} for name in job.contenders})

    processes = Processes(answer)
    assert measure(results, processes, SPEED, dataclasses.replace(SPEED, batch=8), together=4) == 0
    rows = {row["contender"]: row for row in results.rows if row["batch"] == 8}
    assert (rows["a"]["ms"], rows["b"]["failed"], rows["c"]["ms"]) == (1.0, "it died", 2.0)
    assert processes.counts == [2, 1]
    assert processes.jobs[-1].contenders == ("c",)


def test_a_job_that_is_late_among_others_is_measured_alone(results: Results) -> None:
    late = Outcome({}, "killed after 5 s, while compiling", "a", is_timeout=True)
    processes = Processes()

    def answer(job: Job) -> Outcome:
        return (
            late if job.batch == 8 and len(processes.jobs) == 2 else Outcome({n: {"ms": 1.0} for n in job.contenders})
        )

    processes.answer = answer
    assert measure(results, processes, SPEED, dataclasses.replace(SPEED, batch=8), together=2) == 0
    assert processes.counts == [2, 1]
    assert found(results, "failed") == {"a": None, "b": None, "c": None}


def test_without_time_a_late_job_is_left_for_the_next_run(results: Results, clock: list[float]) -> None:
    def answer(job: Job) -> Outcome:
        clock[0] += 0.0 if job.batch == 1 else 10.0
        is_late = job.batch == 8
        if is_late:
            return Outcome({}, "killed", "a", is_timeout=True)
        return Outcome({name: {"ms": 1.0} for name in job.contenders})

    jobs = [SPEED, dataclasses.replace(SPEED, batch=8)]
    assert measure(results, Processes(answer), *jobs, together=2, deadline=10.0) == 1
    assert {row["batch"] for row in results.rows} == {1}
    again = Processes()
    assert measure(results, again, *jobs, together=2) == 0
    assert [job.batch for job in again.jobs] == [8]
