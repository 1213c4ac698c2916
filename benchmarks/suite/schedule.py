"""Which jobs there are, in which order, and how far time goes."""

from __future__ import annotations

import dataclasses
import datetime
import itertools
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from benchmarks.suite.environment import source_digest
from benchmarks.suite.job import PARTS, Job, Kind, Row
from benchmarks.suite.models import SUITE
from benchmarks.suite.results import KEY, Results
from benchmarks.suite.supervise import Outcome, supervise, supervise_together

BUILDER = "torchtrt_bridge"  # the only one that builds without a GPU
FP32_COST = 4  # fp32 without TF32 is at least so much slower than half precision
KIND_ORDER: tuple[Kind, ...] = ("build", "speed", "start")

Tell = Callable[[str], None]
Supervise = Callable[[Job, float, Mapping[str, str]], Outcome]
SuperviseTogether = Callable[[Sequence[Job], float, Mapping[str, str]], Iterable[Outcome]]
Due = tuple[Job, tuple[str, ...]]


def plan(
    kinds: Sequence[str],
    models: Sequence[str],
    batches: Sequence[int],
    precisions: Sequence[str],
    contenders: Sequence[str],
    template: Job,
) -> list[Job]:
    """The jobs of a run, cheap ones first; what is not varied is as in `template`."""
    jobs = []
    wanted = [kind for kind in KIND_ORDER if kind in kinds]
    for kind, model, batch, precision in itertools.product(wanted, models, batches, precisions):
        row = dataclasses.replace(template, kind=kind, model=model, batch=batch, precision=precision)
        jobs += [dataclasses.replace(row, contenders=names) for names in _together(kind, contenders)]
    return sorted(jobs, key=cost)


def _together(kind: Kind, contenders: Sequence[str]) -> list[tuple[str, ...]]:
    """The contenders that share a process: all when they are timed, none when each is started from nothing."""
    if kind == "speed":
        return [tuple(contenders)]
    return [(name,) for name in (contenders if kind == "start" else (BUILDER,))]


def cost(job: Job) -> float:
    """What orders the jobs: arithmetic, where fp32 weighs more."""
    return SUITE[job.model].gflop * job.batch * (FP32_COST if job.precision == "fp32" else 1)


@dataclasses.dataclass
class Run:
    """Carries jobs out, one after the other, and keeps what they give.

    again: measure anew what the file has already.
    deadline: the seconds from now after which nothing is started or goes on; None for no end.
    row_timeout: the seconds after which a process is killed.
    together: how many jobs of the kind "speed" get ready side by side, before each measures alone.
    """

    results: Results
    again: bool = False
    deadline: float | None = None
    row_timeout: float = 900.0
    together: int = 1
    tell: Tell = print
    supervise: Supervise = supervise
    supervise_together: SuperviseTogether = supervise_together

    def __post_init__(self) -> None:
        self._started = time.monotonic()
        self._seconds: dict[str, float] = {}
        self._late = 0
        self._source = source_digest()

    def carry_out(self, jobs: Sequence[Job]) -> int:
        """Returns how many jobs were left for lack of time."""
        due = [(job, todo) for job in jobs if (todo := self.due(job))]
        if len(due) < len(jobs):
            self.tell(f"{len(jobs) - len(due)} of {len(jobs)} are in {self.results.path} already{self._old(jobs)}")
        with tempfile.TemporaryDirectory(prefix="torchtrt_bridge-") as caches:
            total = len(due)
            while due:
                kind, count = due[0][0].kind, self._count_together(due)
                if self._time_left < self._seconds.get(kind, 0.0) or self._time_left <= 0:
                    break
                started = time.monotonic()
                if not self._carry_out_next(due[:count], f"{total - len(due) + 1}/{total}", Path(caches)):
                    break
                self._seconds[kind] = time.monotonic() - started
                due = due[count:]
        return len(due) + self._late

    def _count_together(self, due: Sequence[Due]) -> int:
        """How many of the first jobs get ready side by side."""
        speed = list(itertools.takewhile(lambda pair: pair[0].kind == "speed", due))
        return max(1, min(self.together, len(speed)))

    def _carry_out_next(self, jobs: Sequence[Due], place: str, caches: Path) -> bool:
        """Returns False if time ran out."""
        for job, todo in jobs:
            self.tell(f"[{place}] {job}: {', '.join(todo)}")
        rest = jobs if len(jobs) == 1 else self._measure_together(jobs, caches)
        return all(self._measure(job, todo, caches) for job, todo in rest)

    def due(self, job: Job) -> tuple[str, ...]:
        """The contenders to measure: none if each has a row; else all but those that failed.

        So contenders are always compared within one process, also when one is added later.
        """
        rows = {name: None if self.again else self.results.get(_key(job, name)) for name in job.contenders}
        if all(row is not None for row in rows.values()):
            return ()
        return tuple(name for name, row in rows.items() if row is None or "failed" not in row)

    def _old(self, jobs: Sequence[Job]) -> str:
        """What to know of rows that are kept, and were measured before the source code changed."""
        rows = [self.results.get(_key(job, name)) for job in jobs for name in job.contenders]
        old = sum(row is not None and row["source"] != self._source for row in rows)
        return f"; {old} of the rows are of other source code than this, and --again measures them anew" if old else ""

    @property
    def _time_left(self) -> float:
        return float("inf") if self.deadline is None else self.deadline - (time.monotonic() - self._started)

    def _measure(self, job: Job, todo: tuple[str, ...], caches: Path) -> bool:
        """Measure until each contender has a row: one in whose turn the process dies is left out of the next.

        Returns False if time ran out.
        """
        while todo:
            part_rows: dict[str, Row] = {name: {} for name in todo}
            with tempfile.TemporaryDirectory(dir=caches) as own:
                # The time to the first result is measured with caches of its own; the rest share what they can.
                folder = caches if job.kind == "speed" else Path(own)
                for part in PARTS[job.kind]:
                    outcome = self._outcome(job, todo, part, folder)
                    if outcome is None:
                        return False
                    for name, row in {**outcome.rows, **_without_row(outcome, todo)}.items():
                        part_rows[name] |= _prefixed(part, row)
                    if any("failed" in row for row in part_rows.values()):
                        break  # a process whose caches are not filled would be called warm
            done = {name: row for name, row in part_rows.items() if row}
            self._keep(job, done)
            todo = tuple(name for name in todo if name not in done)
        return True

    def _measure_together(self, jobs: Sequence[Due], caches: Path) -> list[Due]:
        """Measure what gets ready side by side, and in time.

        Returns the contenders that have no row yet because one before them died, to be measured alone.
        """
        timeout = min(self.row_timeout, self._time_left)
        folder = str(caches / "engines")
        own = [
            dataclasses.replace(job, contenders=todo, cache_dir=folder, lock=str(caches / "gpu.lock"))
            for job, todo in jobs
        ]
        variables = cache_variables(caches) | _thread_variables(len(jobs))
        rest = []
        for (job, todo), outcome in zip(jobs, self.supervise_together(own, timeout, variables), strict=True):
            if outcome.is_timeout:
                self.tell(f"    {job}: {outcome.death}; left out")
                self._late += 1
                continue
            rows = {**outcome.rows, **_without_row(outcome, todo)}
            self._keep(job, rows)
            rest.append((job, tuple(name for name in todo if name not in rows)))
        return rest

    def _outcome(self, job: Job, todo: tuple[str, ...], part: str, folder: Path) -> Outcome | None:
        """What the process gave; None if it was the deadline that ended it."""
        timeout = min(self.row_timeout, self._time_left)
        if timeout <= 0:
            return None
        own = dataclasses.replace(job, contenders=todo, part=part, cache_dir=str(folder / "engines"))
        outcome = self.supervise(own, timeout, cache_variables(folder))
        return None if outcome.is_timeout and timeout < self.row_timeout else outcome

    def _keep(self, job: Job, rows: Mapping[str, Row]) -> None:
        marks = {"date": datetime.date.today().isoformat(), "source": self._source}
        self.results.add([dict(zip(KEY, _key(job, name), strict=True)) | row | marks for name, row in rows.items()])
        for name, row in rows.items():
            self.tell(f"    {name}: {row.get('failed') or _gist(row)}")


def _key(job: Job, contender: str) -> tuple[object, ...]:
    return job.model, job.batch, job.precision, job.kind, contender


def _without_row(outcome: Outcome, todo: Sequence[str]) -> dict[str, Row]:
    """Rows for the contender in whose turn the process died, and for all where nothing is gained by another try."""
    if outcome.contender is not None:
        return {outcome.contender: {"failed": outcome.death}}
    missing = [name for name in todo if name not in outcome.rows]
    if outcome.death is not None and outcome.rows:
        return {}
    return {name: {"failed": outcome.death or "the process told nothing of it"} for name in missing}


def _prefixed(part: str, row: Row) -> Row:
    """A part's figures behind its name; that a part failed is said of the whole."""
    if not part:
        return row
    if "failed" in row:
        return {"failed": f"{part}: {row['failed']}"}
    return {f"{part}_{name}": value for name, value in row.items()}


def cache_variables(folder: Path) -> dict[str, str]:
    """Where PyTorch's compilers and the driver keep what they compiled."""
    return {
        "TORCHINDUCTOR_CACHE_DIR": str(folder / "inductor"),
        "TRITON_CACHE_DIR": str(folder / "triton"),
        "CUDA_CACHE_PATH": str(folder / "cuda"),
    }


def _thread_variables(processes: int) -> dict[str, str]:
    """A share of the cores for each of so many processes."""
    share = max(1, (os.cpu_count() or 1) // processes)
    return {"TORCHINDUCTOR_COMPILE_THREADS": str(2 * share), "OMP_NUM_THREADS": str(share)}


def _gist(row: Row) -> str:
    """The one figure that says most."""
    if "ms" in row:
        return f"{row['ms']:.3f} ms"
    seconds = {"cold_seconds": "cold", "warm_seconds": "warm", "cold_export_s": "export", "warm_export_s": "again"}
    return ", ".join(f"{name} {row[field]:.1f} s" for field, name in seconds.items() if field in row)
