"""Distances between points."""

import math

import torch
import torch.nn.functional as F

from tests.lower.case import Case, Rejected

aten = torch.ops.aten
OP = aten._cdist_forward.default
PDIST = aten._pdist_forward.default
NORMS = (0.0, 0.5, 1.0, 2.0, 3.0, math.inf)


def sets(n: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Two sets of points, of which one is in both."""
    x, y = torch.randn(2, n, 3), torch.randn(2, n + 2, 3)
    y[:, 0] = x[:, 0]
    return x, y


def batches(points: int, size: int):
    return lambda n: (torch.randn(n, points, size), torch.randn(n, points + 1, size))


def distances(p: float = 2.0, mode: str = "use_mm_for_euclid_dist_if_necessary"):
    return lambda x, y: torch.cdist(x, y, p, mode)


def numbers(n: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Points infinitely far away, and one that is nowhere."""
    x = torch.randn(n, 4, 2)
    x[:, 0, 0], x[:, 1, 1], x[:, 2, 0] = math.inf, -math.inf, math.nan
    return x, torch.randn(n, 3, 2)


def points() -> torch.Tensor:
    """Points of which two are the same."""
    return torch.randn(6, 5)[[0, 1, 2, 3, 4, 5, 0]]


def pairs(p: float):
    return lambda x: F.pdist(x, p)


ALWAYS, NEVER = "use_mm_for_euclid_dist", "donot_use_mm_for_euclid_dist"
# PyTorch computes neither operator in half precision on the CPU.
CASES: list[Case] = [
    *[Case(OP, distances(p), sets, half=False, name=f"p={p}") for p in NORMS],
    *[Case(OP, distances(p), batches(5, 40), half=False, name=f"long-p={p}") for p in NORMS],
    *[Case(OP, distances(p), numbers, half=False, name=f"numbers-p={p}") for p in (1.0, 2.0, 3.0)],
    Case(OP, distances(mode=NEVER), batches(30, 40), half=False, name="no-product"),
    # By a product of matrices, which PyTorch itself takes apart.
    Case(aten.matmul.default, distances(), batches(30, 40), half=False, name="cdist"),
    Case(aten.matmul.default, distances(mode=ALWAYS), lambda n: batches(4, 3)(2), half=False, name="cdist-always"),
    Case(OP, distances(), lambda n: (torch.randn(3, 1, n, 2), torch.randn(2, 5, 2)), half=False, name="broadcast"),
    Case(OP, distances(1.0), lambda n: (torch.randn(n, 1), torch.randn(3, 1)), half=False, name="flat"),
    *[Case(PDIST, pairs(p), lambda n: (points(),), half=False, name=f"p={p}") for p in NORMS],
    Case(PDIST, pairs(2.0), lambda n: (torch.randn(60, 40),), half=False, name="many"),
]

REJECTED: list[Rejected] = [
    Rejected(OP, distances(), lambda n: batches(n, 40)(2), "known only at run time", dynamic=True),
    Rejected(OP, distances(1.0), batches(400, 40), "differences; at most", name="many"),
    Rejected(
        OP,
        distances(),
        lambda n: (torch.randn(1, 1, 1, 1, 1, 1, n, 2), torch.randn(3, 2)),
        "distances in 8 dimensions",
        name="8d",
    ),
    Rejected(PDIST, pairs(2.0), lambda n: (torch.randn(n, 3),), "known only at run time", dynamic=True),
    Rejected(PDIST, pairs(2.0), lambda n: (torch.randn(3000, 1),), "differences; at most", name="many"),
]
