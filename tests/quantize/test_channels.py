"""Channels: in which dimension they lie for each layer, and what is scaled along them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tests.quantize.nets import Apply, loader
from tests.quantize.test_tools import calibrated, draft_of, uneven
from torchtrt_bridge.quantize.equalize import equalize

Shape = tuple[int, ...]


def chain(one: nn.Module, between: Callable[[torch.Tensor], torch.Tensor], two: nn.Module) -> Apply:
    """Two layers with something between, and channels of the first that differ a thousandfold."""
    return Apply(lambda m, x: m.two(between(m.one(x))), one=uneven(one), two=two)


# Eight channels, and eight values beside them, so that factors along the wrong dimension would fit.
FITTING: dict[str, tuple[Callable[[], nn.Module], Shape]] = {
    "one dimension": (lambda: chain(nn.Conv1d(3, 8, 1), F.relu6, nn.Conv1d(8, 4, 1)), (4, 3, 8)),
    "three dimensions": (lambda: chain(nn.Conv3d(3, 8, 1), F.relu6, nn.Conv3d(8, 4, 1)), (4, 3, 8, 8, 8)),
    "grouped": (lambda: chain(nn.Conv1d(4, 8, 1, groups=2), F.relu6, nn.Conv1d(8, 8, 1, groups=4)), (4, 4, 8)),
    "linear of 2": (lambda: chain(nn.Linear(3, 8), F.relu6, nn.Linear(8, 4)), (4, 3)),
    "linear of 3": (lambda: chain(nn.Linear(3, 8), F.relu6, nn.Linear(8, 4)), (4, 8, 3)),
    "linear of 4": (lambda: chain(nn.Linear(3, 8), F.relu6, nn.Linear(8, 4)), (4, 8, 8, 3)),
    "linear of 5": (lambda: chain(nn.Linear(3, 8), F.relu6, nn.Linear(8, 4)), (4, 2, 8, 8, 3)),
}


@pytest.mark.parametrize("name", FITTING)
def test_channels_of_any_rank_are_equalized(name: str) -> None:
    make, shape = FITTING[name]
    model, data = make(), [x * 3 for x in loader(*shape)]
    draft = draft_of(calibrated(model, data))
    equalize(draft)
    (factors,) = draft.factors.values()
    assert factors.max() / factors.min() > 2
    torch.testing.assert_close(draft.finished()(data[0])[0], model(data[0]), rtol=1e-4, atol=1e-5)
