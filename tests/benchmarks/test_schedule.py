"""The order of the jobs, what is skipped, and what a death or a deadline costs. Processes are pretended here."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from benchmarks.suite import schedule
from benchmarks.suite.job import Job
from benchmarks.suite.results import Results
from benchmarks.suite.schedule import Run, plan
from benchmarks.suite.supervise import Outcome

TEMPLATE = Job("speed", "", 0, "", (), device="cpu", engine="reference", calls=7)
SPEED = dataclasses.replace(TEMPLATE, model="tiny-cnn", batch=1, precision="fp16", contenders=("a", "b", "c"))
START = dataclasses.replace(SPEED, kind="start", contenders=("a",))


class Processes:
    """Answers in place of processes, by a function of the job; keeps what it was asked."""

    def __init__(self, answer: Callable[[Job], Outcome] | None = None) -> None:
        self.jobs: list[Job] = []
        self.timeouts: list[float] = []
        self.variables: list[dict[str, str]] = []
        self.answer = answer or (lambda job: Outcome({name: {"ms": 1.0} for name in job.contenders}))

    def __call__(self, job: Job, timeout: float, variables: Mapping[str, str]) -> Outcome:
        self.jobs.append(job)
        self.timeouts.append(timeout)
        self.variables.append(dict(variables))
        return self.answer(job)


@pytest.fixture
def results(tmp_path: Path) -> Results:
    return Results(tmp_path / "bench.json", {"gpu": None})


def carry_out(results: Results, processes: Processes, *jobs: Job, **options: Any) -> int:
    return Run(results, tell=lambda message: None, supervise=processes, **options).carry_out(jobs)


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
    carry_out(results, Processes(), SPEED)
    later = dataclasses.replace(SPEED, batch=8)
    processes = Processes()
    carry_out(Results.read(results.path), processes, SPEED, later)
    assert [(job.batch, job.contenders) for job in processes.jobs] == [(8, ("a", "b", "c"))]


def test_with_again_they_are(results: Results) -> None:
    carry_out(results, Processes(), SPEED)
    carry_out(
        results, Processes(lambda job: Outcome({name: {"ms": 2.0} for name in job.contenders})), SPEED, again=True
    )
    assert found(results, "ms") == {"a": 2.0, "b": 2.0, "c": 2.0}


def test_a_new_contender_is_compared_within_one_process_but_not_with_failures(results: Results) -> None:
    row = dict.fromkeys(("model", "batch", "precision", "kind"), None) | {"model": "tiny-cnn", "batch": 1}
    row |= {"precision": "fp16", "kind": "speed", "source": "old"}
    results.add([{**row, "contender": "a", "ms": 9.0}, {**row, "contender": "b", "failed": "no"}])
    processes = Processes()
    carry_out(results, processes, SPEED)
    assert [job.contenders for job in processes.jobs] == [("a", "c")]
    assert found(results, "ms") == {"a": 1.0, "b": None, "c": 1.0}


def test_kept_rows_of_other_source_code_are_told(results: Results, monkeypatch: pytest.MonkeyPatch) -> None:
    carry_out(results, Processes(), SPEED)
    told: list[str] = []
    monkeypatch.setattr(schedule, "source_digest", lambda: "changed")
    Run(results, tell=told.append, supervise=Processes()).carry_out([SPEED])
    assert "1 of 1 are in" in told[0]
    assert "3 of the rows are of other source code" in told[0]


# Deaths ------------------------------------------------------------------------------------------------------------


def test_one_that_kills_the_process_is_left_out_of_the_next(results: Results) -> None:
    def answer(job: Job) -> Outcome:
        if "b" in job.contenders:
            return Outcome({}, "ended by signal 11", "b")
        return Outcome({name: {"ms": 1.0} for name in job.contenders})

    processes = Processes(answer)
    assert carry_out(results, processes, SPEED) == 0
    assert [job.contenders for job in processes.jobs] == [("a", "b", "c"), ("a", "c")]
    assert found(results, "failed") == {"a": None, "b": "ended by signal 11", "c": None}


def test_a_failure_told_before_a_death_is_kept(results: Results) -> None:
    first = [Outcome({"a": {"failed": "no backend"}}, "exited with status 1", None)]
    processes = Processes(lambda job: first.pop() if first else Outcome({n: {"ms": 1.0} for n in job.contenders}))
    carry_out(results, processes, SPEED)
    assert [job.contenders for job in processes.jobs] == [("a", "b", "c"), ("b", "c")]
    assert found(results, "failed") == {"a": "no backend", "b": None, "c": None}


@pytest.mark.parametrize(
    ("outcome", "reason"),
    [(Outcome({}, "exited with status 1"), "exited with status 1"), (Outcome({}), "the process told nothing of it")],
    ids=["death", "silence"],
)
def test_what_is_nobody_s_fault_is_everybody_s_row(outcome: Outcome, reason: str, results: Results) -> None:
    processes = Processes(lambda job: outcome)
    carry_out(results, processes, SPEED)
    assert len(processes.jobs) == 1
    assert set(found(results, "failed").values()) == {reason}


def test_a_hung_row_is_a_row(results: Results) -> None:
    processes = Processes(lambda job: Outcome({}, "killed after 5 s", job.contenders[0], is_timeout=True))
    carry_out(results, processes, START, row_timeout=5.0)
    assert processes.timeouts == [5.0]
    assert found(results, "failed") == {"a": "cold: killed after 5 s"}


# The deadline ------------------------------------------------------------------------------------------------------


def test_nothing_starts_after_the_deadline(results: Results) -> None:
    processes = Processes()
    assert carry_out(results, processes, SPEED, START, deadline=0.0) == 2
    assert processes.jobs == []


def test_nothing_starts_that_would_not_end_in_time(results: Results, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(schedule.time, "monotonic", lambda: clock[0])

    def answer(job: Job) -> Outcome:
        clock[0] += 40.0
        return Outcome({name: {"ms": 1.0} for name in job.contenders})

    jobs = [dataclasses.replace(SPEED, batch=batch) for batch in (1, 8, 32)]
    processes = Processes(answer)
    assert carry_out(results, processes, *jobs, deadline=100.0) == 1
    assert [job.batch for job in processes.jobs] == [1, 8]
    assert processes.timeouts == [100.0, 60.0]


def test_a_row_that_the_deadline_ends_leaves_no_trace(results: Results) -> None:
    processes = Processes(lambda job: Outcome({}, "killed", "a", is_timeout=True))
    assert carry_out(results, processes, SPEED, deadline=10.0, row_timeout=60.0) == 1
    assert results.rows == []
    assert not results.path.exists()


# Parts and caches --------------------------------------------------------------------------------------------------


def test_the_parts_of_a_start_share_caches_that_no_other_has(results: Results) -> None:
    processes = Processes(lambda job: Outcome({"a": {"seconds": 4.0 if job.part == "cold" else 2.0}}))
    carry_out(results, processes, START, dataclasses.replace(START, batch=8))
    assert [job.part for job in processes.jobs] == ["cold", "warm"] * 2
    caches = [variables["TORCHINDUCTOR_CACHE_DIR"] for variables in processes.variables]
    engines = [job.cache_dir for job in processes.jobs]
    assert [caches[0] == caches[1], caches[1] == caches[2], engines[0] == engines[1]] == [True, False, True]
    assert [(row["cold_seconds"], row["warm_seconds"]) for row in results.rows] == [(4.0, 2.0)] * 2


def test_after_a_cold_failure_nothing_is_called_warm(results: Results) -> None:
    processes = Processes(lambda job: Outcome({"a": {"failed": "no"}}))
    carry_out(results, processes, START)
    assert [job.part for job in processes.jobs] == ["cold"]
    assert found(results, "failed") == {"a": "cold: no"}


# Side by side ------------------------------------------------------------------------------------------------------


class Together(Processes):
    """The same for jobs that get ready side by side; keeps how many came at a time."""

    def __init__(self, answer: Callable[[Job], Outcome] | None = None) -> None:
        super().__init__(answer)
        self.counts: list[int] = []

    def wave(self, jobs: Sequence[Job], timeout: float, variables: Mapping[str, str]) -> list[Outcome]:
        self.counts.append(len(jobs))
        return [self(job, timeout, variables) for job in jobs]


def test_rows_get_ready_side_by_side_in_groups(results: Results) -> None:
    jobs = [dataclasses.replace(SPEED, batch=batch) for batch in (1, 8, 32)] + [START]
    processes = Together()
    left = carry_out(results, processes, *jobs, together=2, supervise_together=processes.wave)
    assert left == 0
    assert processes.counts == [2]  # the third row and the start are alone
    assert [bool(job.lock) for job in processes.jobs] == [True, True, False, False, False]
    assert len(results.rows) == 10


def test_what_died_among_others_is_measured_alone(results: Results) -> None:
    died = Outcome({"a": {"ms": 1.0}}, "it died", "b")
    processes = Together(
        lambda job: died if job.lock and job.batch == 8 else Outcome({name: {"ms": 2.0} for name in job.contenders})
    )
    jobs = [SPEED, dataclasses.replace(SPEED, batch=8)]
    assert carry_out(results, processes, *jobs, together=4, supervise_together=processes.wave) == 0
    rows = {row["contender"]: row for row in results.rows if row["batch"] == 8}
    assert (rows["a"]["ms"], rows["b"]["failed"], rows["c"]["ms"]) == (1.0, "it died", 2.0)
    assert processes.jobs[-1].contenders == ("c",)


def test_who_is_late_among_others_is_left_for_the_next_run(results: Results) -> None:
    late = Outcome({}, "killed after 5 s, while compiling", "a", is_timeout=True)
    processes = Together(
        lambda job: late if job.batch == 8 else Outcome({name: {"ms": 1.0} for name in job.contenders})
    )
    jobs = [SPEED, dataclasses.replace(SPEED, batch=8)]
    assert carry_out(results, processes, *jobs, together=2, supervise_together=processes.wave) == 1
    assert {row["batch"] for row in results.rows} == {1}
    again = Together()
    assert carry_out(results, again, *jobs, together=2, supervise_together=again.wave) == 0
    assert [job.batch for job in again.jobs] == [8]
