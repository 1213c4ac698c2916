"""The op table: all cases of all families, and the batches they are lowered in."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterable
from typing import Any

from tests.lower import cases
from tests.lower.batch import Batch, batches_of
from tests.lower.case import Case, Point, Rejected, points_of

_FAMILIES = {
    m.name: importlib.import_module(f"{cases.__name__}.{m.name}") for m in pkgutil.iter_modules(cases.__path__)
}
CASES: list[Case] = [case for module in _FAMILIES.values() for case in module.CASES]
REJECTED: list[Rejected] = [case for module in _FAMILIES.values() for case in module.REJECTED]
POINTS: list[Point] = [point for case in CASES for point in points_of(case)]


def one_more(cases: Iterable[Case]) -> set[str]:
    """Return the points that `--full` adds to each run.

    A run has the first point of each kind, which is an operator with known or dynamic sizes, in fp32 or fp16.
    """
    kinds: set[Any] = set()
    found: set[str] = set()
    for case in cases:
        for point in points_of(case):
            kind = (case.op, point.dynamic, point.dtype)
            if kind in kinds:
                found.add(point.id)
            kinds.add(kind)
    return found


ONE_MORE = one_more(CASES)


def batches_of_points(takes: Callable[[Point], bool] = lambda point: True) -> list[Batch[Point]]:
    """Return the batches of all points of all cases that `takes` accepts."""
    return [
        batch
        for family, module in _FAMILIES.items()
        for batch in batches_of(
            family,
            filter(takes, (point for case in module.CASES for point in points_of(case))),
            lambda point: (point.dynamic, point.dtype, point.id in ONE_MORE),
        )
    ]


def batches_of_rejected() -> list[Batch[Rejected]]:
    """Return the batches of all calls that converters decline."""
    return [
        batch
        for family, module in _FAMILIES.items()
        for batch in batches_of(f"{family}-rejected", module.REJECTED, lambda case: case.dynamic)
    ]
