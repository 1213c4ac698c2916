"""Speed-ups row by row, their geometric means, and the problems of the rows."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from statistics import geometric_mean

from benchmarks.suite.contenders import EAGER, family
from benchmarks.suite.job import Row

PLACES = 3  # named in one line


@dataclasses.dataclass(frozen=True)
class Comparison:
    """The contenders of one model, batch and precision; `rows` by contender, those that failed included."""

    model: str
    batch: int
    precision: str
    rows: dict[str, Row]

    @property
    def best_inductor(self) -> str | None:
        """The fastest of inductor's modes; None if none ran."""
        times = {name: row["ms"] for name, row in self.rows.items() if family(name) == "inductor" and "ms" in row}
        return min(times, key=lambda name: times[name], default=None)

    def speedup(self, contender: str, against: str | None) -> float | None:
        """Divide the time of `against` by that of a contender; None if one of the two has no time."""
        ours, other = (self.rows.get(name or "", {}).get("ms") for name in (contender, against))
        return None if ours is None or other is None else float(other / ours)

    @property
    def spread(self) -> float | None:
        """The largest interquartile range of a contender's times, as a part of their median."""
        return max((row["ms_iqr"] / row["ms"] for row in self.rows.values() if "ms" in row), default=None)


@dataclasses.dataclass(frozen=True)
class Mean:
    """The speed-ups of a contender over another in a group of rows.

    batch: None for all batches.
    total: the number of the contender's rows; compared: the number of those that have a time of both.
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
    """Put the rows of speed side by side."""
    groups: dict[tuple[str, int, str], dict[str, Row]] = {}
    for row in rows:
        if row["kind"] == "speed":
            groups.setdefault((row["model"], row["batch"], row["precision"]), {})[row["contender"]] = row
    return [Comparison(*place, rows=group) for place, group in groups.items()]


def means(compared: Sequence[Comparison]) -> list[Mean]:
    """Average the speed-ups of our contenders over inductor's best and over eager, by precision and batch, then all."""
    found = []
    for precision in sorted({c.precision for c in compared}):
        batches: list[int | None] = [*sorted({c.batch for c in compared if c.precision == precision}), None]
        for batch in batches:
            group = [c for c in compared if c.precision == precision and batch in (None, c.batch)]
            ours = sorted({name for c in group for name in c.rows if family(name) == "bridge"})
            found += [_mean(group, name, against, precision, batch) for name in ours for against in ("inductor", EAGER)]
    return found


def _mean(group: Sequence[Comparison], name: str, against: str, precision: str, batch: int | None) -> Mean:
    rows = [c for c in group if name in c.rows]
    speedups = {}
    for c in rows:
        speedup = c.speedup(name, EAGER if against == EAGER else c.best_inductor)
        if speedup is not None:
            speedups[f"{c.model}, batch {c.batch}"] = speedup
    least_at = min(speedups, key=lambda at: speedups[at], default="")
    mean = geometric_mean(speedups.values()) if speedups else None
    return Mean(precision, batch, name, against, len(speedups), len(rows), mean, speedups.get(least_at), least_at)


def problems(rows: Sequence[Row]) -> list[str]:
    """Return a line for each failure, and for each problem that torchtrt_bridge reports, with its places."""
    places: dict[tuple[str, str, str], list[str]] = {}
    for row in rows:
        found = [row["failed"]] if "failed" in row else []
        for field in ("problems", "cold_problems", "warm_problems"):
            found += row.get(field, [])
        for problem in dict.fromkeys(found):
            place = f"{row['model']} {row['batch']} {row['precision']}"
            places.setdefault((row["contender"], row["kind"], problem), []).append(place)
    return [
        f"{contender}, {kind} of {', '.join(found[:PLACES])}{_more(found)}: {problem}"
        for (contender, kind, problem), found in places.items()
    ]


def _more(places: Sequence[str]) -> str:
    return f" and {len(places) - PLACES} more" if len(places) > PLACES else ""
