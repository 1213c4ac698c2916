"""Quantization on the GPU: the same ranges as on the CPU, and engines that compute what was calibrated."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

import torchtrt_bridge as trtb
from tests.quantize.nets import loader, relative_error

pytestmark = pytest.mark.gpu


def convolutional() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU6(), nn.Conv2d(16, 16, 3, groups=16),
        nn.ReLU(), nn.Conv2d(16, 32, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10),
    )  # fmt: skip


def transformer() -> nn.Module:
    return nn.TransformerEncoderLayer(64, 4, 128, batch_first=True)


NETS: dict[str, tuple[Any, tuple[int, ...]]] = {
    "convolutional": (convolutional, (8, 3, 16, 16)),
    "transformer": (transformer, (4, 12, 64)),
}
CHOICES: dict[str, dict[str, Any]] = {
    "auto": {},
    "entropy": {"method": "entropy", "smooth": None, "equalize": False, "correct_bias": True},
    "smooth": {"method": "mse", "smooth": 0.7, "equalize": True, "correct_bias": False},
    "attention": {"method": "absmax", "attention": True},
    "fp8": {"dtype": "fp8", "method": "mse"},
    "int4": {"dtype": "int4", "block_size": 32},
}


@pytest.mark.parametrize("choice", CHOICES)
@pytest.mark.parametrize("name", NETS)
def test_ranges_are_those_of_the_cpu(name: str, choice: str) -> None:
    make, shape = NETS[name]
    model, data = make().eval(), loader(*shape)
    options = {"max_error": None, "table": False, **CHOICES[choice]}
    if choice == "auto":  # which of two equally good methods is taken may differ
        options |= {"smooth": None, "equalize": False, "method": "percentile"}
    there, here = (trtb.quantize(m, data, **options) for m in (copy.deepcopy(model).cuda(), model))
    scales = [[layer.scale for layer in q.quantization.layers] for q in (there, here)]
    assert [s is None for s in scales[0]] == [s is None for s in scales[1]]
    assert [s for s in scales[0] if s] == pytest.approx([s for s in scales[1] if s], rel=2e-2)
    with torch.no_grad():
        assert relative_error(there(data[0].cuda()).cpu(), model(data[0])) < 0.2


@pytest.mark.parametrize("choice", CHOICES)
@pytest.mark.parametrize("name", NETS)
def test_engines_are_as_near_to_floats_as_pytorch_s_own_rounding(name: str, choice: str) -> None:
    make, shape = NETS[name]
    model, data = make().eval().cuda(), [batch.cuda() for batch in loader(*shape)]
    quantized = trtb.quantize(model, data, table=False, **CHOICES[choice])
    compiled = trtb.compile(quantized, precision="fp16", fallback="error", trial="check")
    with torch.no_grad():
        expected, rounded, found = model(data[0]), quantized(data[0]), compiled(data[0])
    assert relative_error(found, expected) < max(1e-2, 1.5 * relative_error(rounded, expected))
    assert all(entry.serves for entry in trtb.report(compiled).engines)
