"""Batches of cases that share one graph, one network and one engine; each case is a test of its own."""

from __future__ import annotations

import functools
import itertools
import warnings
from collections.abc import Callable, Collection, Hashable, Iterable, Sequence
from typing import Any, Generic, TypeVar

import pytest

from tests.lower.case import Point, Rejected

# More cases a graph save nothing: what they cost beyond a graph of one is their own.
MOST_CASES = 32

Item = TypeVar("Item", Point, Rejected)
Found = TypeVar("Found")


class Batch(Generic[Item]):
    """Cases of one family, all static or all dynamic, and of one dtype."""

    def __init__(self, name: str, items: Sequence[Item]) -> None:
        self.name = name
        self.items = tuple(items)

    def compute(self, index: int, compute: Callable[[tuple[Item, ...]], Sequence[Found]]) -> Found:
        """Return what `compute` gives for the case of this index, from all cases together if it can take them.

        compute: returns something for each of some cases. Where it raises for all of them together, it is called for
            each case alone, so that the failure is that of the case it belongs to.
        """
        found = _together(self, compute)
        return compute((self.items[index],))[0] if found is None else found[index]


@functools.lru_cache(maxsize=2)
def _together(batch: Batch[Any], compute: Callable[..., Sequence[Any]]) -> Sequence[Any] | None:
    try:
        return compute(batch.items)
    except Exception as error:
        reason = str(error).strip().partition("\n")[0]
        warnings.warn(f"the cases of {batch.name} run alone: {type(error).__name__}: {reason}", stacklevel=1)
        return None


def batches_of(family: str, items: Iterable[Item], kind: Callable[[Item], Hashable]) -> list[Batch[Item]]:
    """Return batches of at most `MOST_CASES` each; the cases of a batch have one `kind`."""
    groups: dict[Hashable, list[Item]] = {}
    for item in items:
        groups.setdefault(kind(item), []).append(item)
    count = itertools.count()
    return [
        Batch(f"{family}-{next(count)}", members[start : start + MOST_CASES])
        for members in groups.values()
        for start in range(0, len(members), MOST_CASES)
    ]


def parameters(batches: Iterable[Batch[Any]], full: Collection[str] = ()) -> list[Any]:
    """Return a parameter set, (batch, index), for each case; pytest-xdist gives all cases of a batch to one worker.

    full: ids of the cases that run with `--full` only; no batch has some of them beside others.
    """
    return [
        pytest.param(
            batch,
            index,
            id=item.id,
            marks=[pytest.mark.xdist_group(batch.name), *[pytest.mark.full] * (item.id in full)],
        )
        for batch in batches
        for index, item in enumerate(batch.items)
    ]
