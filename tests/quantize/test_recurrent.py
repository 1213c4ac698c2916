"""Models with recurrent layers: these stay in floating point, and what is around them is quantized."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import torchtrt_bridge as trtb
from tests.quantize.nets import relative_error

FRAMES = 120


class Encoder(nn.Module):
    def __init__(self, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        self.features = nn.Conv1d(8, 16, 3, padding=1)
        self.layer = kind(16, 8, batch_first=True)
        self.head = nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y, _ = self.layer(self.features(x).relu().transpose(1, 2))
        result: torch.Tensor = self.head(y)
        return result


def quantized(kind: type[nn.RNNBase]) -> tuple[nn.Module, trtb.QuantizedModel]:
    model = Encoder(kind).eval()
    return model, trtb.quantize(model, [torch.randn(2, 8, FRAMES) for _ in range(4)], method="absmax", table=False)


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_the_layer_stays_in_floating_point_with_a_reason(kind: type[nn.RNNBase]) -> None:
    model, found = quantized(kind)
    dtypes = {entry.name: entry.dtype for entry in found.quantization.layers}
    assert dtypes == {"features": "int8", "head": "int8", "layer": "float"}
    (entry,) = (entry for entry in found.quantization.layers if entry.dtype == "float")
    assert entry.op == "recurrent layer"
    assert "would add up over the steps" in entry.reason
    x = torch.randn(3, 8, FRAMES)
    with torch.no_grad():
        assert 0 < relative_error(found(x), model(x)) < 0.05


def test_a_quantized_model_is_whole() -> None:
    _, found = quantized(nn.LSTM)
    x = torch.randn(2, 8, FRAMES)
    with torch.no_grad():
        fast = trtb.compile(found, engine="reference", fallback="error")
        torch.testing.assert_close(fast(x), found(x), rtol=1e-4, atol=1e-4)
    report = trtb.report(fast)
    assert report.is_whole
    assert len(report.engines) == 1


@pytest.mark.parametrize(
    "way", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))], ids=["copy", "pickle"]
)
def test_a_copy_computes_the_same_for_any_batch(way: Callable[[Any], Any]) -> None:
    """Its first states are zeros, as many as the batch has samples."""
    _, found = quantized(nn.LSTM)
    twin = way(found)
    for batch in (1, 5):
        x = torch.randn(batch, 8, FRAMES)
        torch.testing.assert_close(twin(x), found(x), rtol=0, atol=0)
