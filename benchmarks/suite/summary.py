"""What the rows say: speed-ups row by row, and their geometric means."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from benchmarks.suite.contenders import EAGER, family
from benchmarks.suite.figures import geometric_mean
from benchmarks.suite.job import Row

Place = tuple[str, int, str]  # model, batch, precision
PLACES = 3  # how many a line names


@dataclasses.dataclass(frozen=True)
class Comparison:
    """The contenders of one model, batch and precision; `rows` by contender, those that failed included."""

    model: str
    batch: int
    precision: str
    rows: dict[str, Row]

    def ms(self, contender: str) -> float | None:
        """Milliseconds per call, back to back; None if there are none."""
        return self.rows.get(contender, {}).get("ms")

    @property
    def best_inductor(self) -> str | None:
        """The fastest of inductor's modes; None if none ran."""
        times = {name: row["ms"] for name, row in self.rows.items() if family(name) == "inductor" and "ms" in row}
        return min(times, key=lambda name: times[name], default=None)

    def speedup(self, contender: str, against: str | None) -> float | None:
        """How many times as fast as another contender; None if one of the two has no time."""
        mine, theirs = self.ms(contender), self.ms(against) if against is not None else None
        return theirs / mine if mine is not None and theirs is not None else None

    @property
    def spread(self) -> float | None:
        """The largest interquartile range of a contender's times, as a part of their median."""
        parts = [row["ms_iqr"] / row["ms"] for row in self.rows.values() if "ms" in row]
        return max(parts, default=None)


@dataclasses.dataclass(frozen=True)
class Mean:
    """The speed-ups of a contender over another in a group of rows.

    total: how many rows the contender was to have there; compared: how many have a time of both.
    least: the smallest speed-up, and the model and batch of its row.
    """

    precision: str
    batch: int | None
    contender: str
    against: str
    compared: int
    total: int
    mean: float | None
    least: float | None
    least_at: str


def comparisons(rows: Sequence[Row]) -> list[Comparison]:
    """The rows of speed, side by side."""
    groups: dict[Place, dict[str, Row]] = {}
    for row in rows:
        if row["kind"] == "speed":
            groups.setdefault((row["model"], row["batch"], row["precision"]), {})[row["contender"]] = row
    return [Comparison(*place, rows=group) for place, group in groups.items()]


def means(compared: Sequence[Comparison]) -> list[Mean]:
    """Of each contender of ours, against inductor's best and against eager, by precision and batch; then over all."""
    found = []
    for precision in sorted({each.precision for each in compared}):
        batches: list[int | None] = [*sorted({c.batch for c in compared if c.precision == precision}), None]
        for batch in batches:
            group = [c for c in compared if c.precision == precision and batch in (None, c.batch)]
            ours = sorted({name for c in group for name in c.rows if family(name) == "bridge"})
            found += [_mean(group, name, against, precision, batch) for name in ours for against in ("inductor", EAGER)]
    return found


def _mean(group: Sequence[Comparison], name: str, against: str, precision: str, batch: int | None) -> Mean:
    entered = [c for c in group if name in c.rows]
    speedups = {}
    for c in entered:
        speedup = c.speedup(name, EAGER if against == EAGER else c.best_inductor)
        if speedup is not None:
            speedups[f"{c.model}, batch {c.batch}"] = speedup
    least_at = min(speedups, key=lambda at: speedups[at], default="")
    mean = geometric_mean(list(speedups.values())) if speedups else None
    return Mean(precision, batch, name, against, len(speedups), len(entered), mean, speedups.get(least_at), least_at)


def problems(rows: Sequence[Row]) -> list[str]:
    """What failed, and what torchtrt_bridge says did not go as it should, with where; one line for each."""
    places: dict[tuple[str, str, str], list[str]] = {}
    for row in rows:
        told = [row["failed"]] if "failed" in row else []
        for field in ("problems", "cold_problems", "warm_problems"):
            told += [problem for problem in row.get(field, []) if problem not in told]
        for problem in told:
            place = f"{row['model']} {row['batch']} {row['precision']}"
            places.setdefault((row["contender"], row["kind"], problem), []).append(place)
    return [
        f"{contender}, {kind} of {', '.join(found[:PLACES])}{_more(found)}: {problem}"
        for (contender, kind, problem), found in places.items()
    ]


def _more(places: Sequence[str]) -> str:
    return f" and {len(places) - PLACES} more" if len(places) > PLACES else ""
