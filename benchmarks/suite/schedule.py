"""The jobs of a run, their order, and the time that they may take."""

from __future__ import annotations

import dataclasses
import datetime
import itertools
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from benchmarks.suite.job import PARTS, Job, Kind, Row
from benchmarks.suite.models import SUITE
from benchmarks.suite.processes import Outcome, run_jobs
from benchmarks.suite.results import KEY, Results
from torchtrt_bridge.cache import source_digest

BUILDER = "torchtrt_bridge"  # the only one that builds without a GPU
FP32_COST = 4  # fp32 without TF32 is at least so much slower than half precision
KIND_ORDER: tuple[Kind, ...] = ("build", "speed", "start")

RunJobs = Callable[[Sequence[Job], float, Mapping[str, str]], Iterable[tuple[Job, Outcome]]]


def plan(
    kinds: Sequence[str],
    models: Sequence[str],
    batches: Sequence[int],
    precisions: Sequence[str],
    contenders: Sequence[str],
    template: Job,
) -> list[Job]:
    """Return the jobs of a run, cheap ones first; the fields that do not vary are those of `template`.

    Contenders are timed in one process. The time to the first result takes a process for each.
    """
    jobs = []
    processes: dict[str, list[tuple[str, ...]]] = {
        "speed": [tuple(contenders)],
        "start": [(name,) for name in contenders],
        "build": [(BUILDER,)],
    }
    wanted = [kind for kind in KIND_ORDER if kind in kinds]
    for kind, model, batch, precision in itertools.product(wanted, models, batches, precisions):
        row = dataclasses.replace(template, kind=kind, model=model, batch=batch, precision=precision)
        jobs += [dataclasses.replace(row, contenders=names) for names in processes[kind]]
    return sorted(jobs, key=_cost)


def _cost(job: Job) -> float:
    """Estimate the arithmetic, where fp32 weighs more."""
    return SUITE[job.model].gflop * job.batch * (FP32_COST if job.precision == "fp32" else 1)


@dataclasses.dataclass
class Round:
    """One run of the command: measures the jobs that have no rows yet, and keeps their rows as they come.

    again: measure anew what the file has already.
    deadline: the seconds from now after which nothing is started or goes on; None for no end.
    row_timeout: the seconds after which a process is killed.
    together: the number of jobs of the kind "speed" that compile side by side, before each measures alone.
    """

    results: Results
    again: bool = False
    deadline: float | None = None
    row_timeout: float = 900.0
    together: int = 1
    log: Callable[[str], None] = print
    run_jobs: RunJobs = run_jobs

    def __post_init__(self) -> None:
        self._started = time.monotonic()
        self._source = source_digest()[:12]

    def measure(self, jobs: Sequence[Job]) -> int:
        """Measure, and return the number of jobs that were left for lack of time."""
        due = [dataclasses.replace(job, contenders=names) for job in jobs if (names := self._missing(job))]
        if len(due) < len(jobs):
            self.log(f"{len(jobs) - len(due)} of {len(jobs)} are in {self.results.path} already{self._outdated(jobs)}")
        total, left = len(due), 0
        seconds: dict[str, float] = {}  # of the last jobs of each kind, which the next ones may take too
        with tempfile.TemporaryDirectory(prefix="torchtrt_bridge-") as caches:
            while due and self._seconds_left > 0 and self._seconds_left >= seconds.get(due[0].kind, 0.0):
                started, kind = time.monotonic(), due[0].kind
                speed = itertools.takewhile(lambda job: job.kind == "speed", due[: self.together])
                count = max(1, len(list(speed)))
                for index, job in enumerate(due[:count], total - len(due) + 1):
                    self.log(f"[{index}/{total}] {job}: {', '.join(job.contenders)}")
                left += self._measure(due[:count], Path(caches))
                due = due[count:]
                seconds[kind] = time.monotonic() - started
        return len(due) + left

    def _missing(self, job: Job) -> tuple[str, ...]:
        """Return the contenders to measure: none if each has a row; else all but those that failed.

        So contenders are always compared within one process, also when one is added later.
        """
        rows = {name: None if self.again else self.results.get(job.key(name)) for name in job.contenders}
        if all(row is not None for row in rows.values()):
            return ()
        return tuple(name for name, row in rows.items() if row is None or "failed" not in row)

    def _outdated(self, jobs: Sequence[Job]) -> str:
        """Return a hint if rows that are kept were measured before the source code changed."""
        rows = [self.results.get(job.key(name)) for job in jobs for name in job.contenders]
        old = sum(row is not None and row["source"] != self._source for row in rows)
        return f"; {old} of the rows are of other source code than this, and --again measures them anew" if old else ""

    @property
    def _seconds_left(self) -> float:
        return float("inf") if self.deadline is None else self.deadline - (time.monotonic() - self._started)

    def _measure(self, jobs: Sequence[Job], caches: Path) -> int:
        """Measure until each contender has a row, or time is over; return the number of jobs left.

        A contender in whose step the process dies is left out of the next process. A job that is too slow among others
        is measured alone.
        """
        if self._seconds_left <= 0:
            return len(jobs)
        left, again = 0, []
        for job, outcome in self._outcomes(jobs, caches):
            if outcome.is_timeout and self._seconds_left <= 0:
                self.log(f"    {job}: {outcome.death}; left out")
                left += 1
            elif outcome.is_timeout and len(jobs) > 1:
                again.append(job)
            else:
                rows = outcome.rows_of(job.contenders)
                self._keep(job, rows)
                rest = tuple(name for name in job.contenders if name not in rows)
                again += [dataclasses.replace(job, contenders=rest)] if rest else []
        return left + sum(self._measure([job], caches) for job in again)

    def _outcomes(self, jobs: Sequence[Job], caches: Path) -> Iterator[tuple[Job, Outcome]]:
        """Yield the outcomes of jobs. Those of speed share their caches; others have caches of their own."""
        if jobs[0].kind == "speed":
            yield from self._run(jobs, caches)
            return
        for job in jobs:
            with tempfile.TemporaryDirectory(dir=caches) as own:
                yield job, self._parts(job, Path(own))

    def _parts(self, job: Job, caches: Path) -> Outcome:
        """Run the parts of a job with one contender, and join their rows."""
        (name,) = job.contenders
        joined: Row = {}
        for part in PARTS[job.kind]:
            ((_, outcome),) = self._run([dataclasses.replace(job, part=part)], caches)
            row = outcome.rows_of(job.contenders)[name]
            if "failed" in row:  # a process whose caches are not filled would be called warm
                reason = f"{part}: {row['failed']}"
                return Outcome({name: {"failed": reason}}, reason, name, outcome.is_timeout)
            joined |= {f"{part}_{field}": value for field, value in row.items()}
        return Outcome({name: joined})

    def _run(self, jobs: Sequence[Job], caches: Path) -> Iterable[tuple[Job, Outcome]]:
        timeout = min(self.row_timeout, self._seconds_left)
        placed = {dataclasses.replace(job, cache_dir=str(caches / "engines")): job for job in jobs}
        variables = cache_variables(caches) | (_thread_variables(len(jobs)) if len(jobs) > 1 else {})
        for job, outcome in self.run_jobs(list(placed), timeout, variables):
            yield placed[job], outcome

    def _keep(self, job: Job, rows: Mapping[str, Row]) -> None:
        marks = {"date": datetime.date.today().isoformat(), "source": self._source}
        self.results.add([dict(zip(KEY, job.key(name), strict=True)) | row | marks for name, row in rows.items()])
        for name, row in rows.items():
            self.log(f"    {job}, {name}: {row.get('failed') or _gist(row)}")


def cache_variables(folder: Path) -> dict[str, str]:
    """Return the environment variables that keep the caches of PyTorch's compilers and of the driver in a folder."""
    return {
        "TORCHINDUCTOR_CACHE_DIR": str(folder / "inductor"),
        "TRITON_CACHE_DIR": str(folder / "triton"),
        "CUDA_CACHE_PATH": str(folder / "cuda"),
    }


def _thread_variables(processes: int) -> dict[str, str]:
    """Return a share of the cores for each of so many processes."""
    share = max(1, (os.cpu_count() or 1) // processes)
    return {"TORCHINDUCTOR_COMPILE_THREADS": str(2 * share), "OMP_NUM_THREADS": str(share)}


def _gist(row: Row) -> str:
    """Return the figure that says most."""
    if "ms" in row:
        return f"{row['ms']:.3f} ms"
    seconds = {"cold_seconds": "cold", "warm_seconds": "warm", "cold_export_s": "export", "warm_export_s": "again"}
    return ", ".join(f"{name} {row[field]:.1f} s" for field, name in seconds.items() if field in row)
