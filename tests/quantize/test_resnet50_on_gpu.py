"""ResNet-50 in INT8 as an engine that runs: against fp32 in PyTorch, and against the rounding in PyTorch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import torchtrt_bridge as trtb
from torchtrt_bridge.runtime.tolerance import relative_distance

photographs = pytest.importorskip("tests.quantize.photographs")

pytestmark = pytest.mark.gpu

TO_FLOAT = 3e-2
LAYERS = 54


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return photographs.resnet50().cuda()


@pytest.fixture(scope="module")
def quantized(model: nn.Module) -> Any:
    batches = [batch.cuda() for batch in photographs.batches()]
    return trtb.quantize(
        model, batches, method="absmax", smooth=None, equalize=False, correct_bias=False, table=False, progress=False
    )


def test_the_engine_is_right(model: nn.Module, quantized: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", False)
    assert quantized.quantization.quantized == LAYERS
    images = photographs.unseen().cuda()
    fast = trtb.compile(quantized, precision="fp16", fallback="error", trial="check", dynamic=False)
    with torch.inference_mode():
        found = [fast(images).clone() for _ in range(5)]  # enqueued, then recorded and replayed
        expected, rounded = model(images), quantized(images)
    (engine,) = trtb.report(fast).engines
    assert engine.serves
    assert sum(engine.products.values()) == LAYERS
    assert engine.products.get("int8", 0) >= 1
    assert max(relative_distance(result, expected) for result in found) <= TO_FLOAT
    assert max(relative_distance(result, rounded) for result in found) <= 1.5 * relative_distance(rounded, expected)
