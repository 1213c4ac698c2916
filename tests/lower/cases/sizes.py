"""Sizes that are known only at run time."""

import torch

from tests.lower.case import Case, Rejected

aten = torch.ops.aten

CASES: list[Case] = []
REJECTED: list[Rejected] = []
