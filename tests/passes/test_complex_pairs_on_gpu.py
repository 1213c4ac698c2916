"""Complex numbers as pairs of reals, on a GPU: a model of Llama's reference code, and numbers that are not finite."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

import torchtrt_bridge as trtb
from tests.gpu import CALLS, assert_one_right_engine
from tests.llama import Llama, frequencies

pytestmark = pytest.mark.gpu

WHOLE = {"precision": "fp16", "trial": "check", "cache_dir": ""}


def x_of(length: int) -> torch.Tensor:
    return torch.randn(2, length, 16, device="cuda")


@pytest.mark.parametrize("is_dynamic", [False, True], ids=["static", "dynamic"])
@pytest.mark.parametrize("kind", ["attribute", "buffer"])
def test_compiled_llama_is_one_engine(kind: str, is_dynamic: bool) -> None:
    model = Llama(kind).eval().cuda()
    fast = trtb.compile(model, dynamic=is_dynamic, **WHOLE)
    assert_one_right_engine(fast, model, x_of(6))
    if is_dynamic:
        assert_one_right_engine(fast, model, x_of(9))


def test_exported_llama_is_one_engine() -> None:
    model = Llama("buffer").eval().cuda()
    shapes = {"x": {1: torch.export.Dim("length", min=2, max=32)}}
    fast = trtb.export(model, (x_of(6),), dynamic_shapes=shapes, **WHOLE)
    assert_one_right_engine(fast, model, x_of(6))
    assert_one_right_engine(fast, model, x_of(9))


def test_rotations_as_an_argument() -> None:
    model = Llama().eval().cuda()
    rotations = frequencies(8, 6).cuda()
    fast = trtb.export(model, (x_of(6), rotations), **WHOLE)
    assert_one_right_engine(fast, model, x_of(6), rotations)
    assert_one_right_engine(fast, model, x_of(6), rotations.conj())


class Numbers(nn.Module):
    """All that is done with complex numbers whose parts need not be finite."""

    def forward(self, z: torch.Tensor, w: torch.Tensor) -> Any:
        polar = torch.polar(z.real.exp(), w.real)
        return z * w, z + w, z - w, z.real * w, z + 1j, z.abs(), z.conj() * w, polar


def test_infinities_and_nan_are_those_of_pytorch() -> None:
    numbers = torch.tensor([0.0, 1.0, -2.5, math.inf, -math.inf, math.nan], device="cuda")
    grid = torch.complex(*torch.meshgrid(numbers, numbers, indexing="ij")).flatten()
    z, w = (part.flatten() for part in torch.meshgrid(grid, grid, indexing="ij"))
    model = Numbers()
    fast = trtb.compile(model, trial="off", cache_dir="")
    for _ in range(CALLS):
        torch.testing.assert_close(fast(z, w), model(z, w), equal_nan=True)
    report = trtb.report(fast)
    assert report.is_whole, str(report)


def test_a_fourier_transform_stays_between_engines() -> None:
    class Model(nn.Module):
        def forward(self, x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
            return torch.fft.irfft(torch.fft.rfft(x.exp()) * w).exp()

    model = Model()
    x, w = torch.rand(4, 16, device="cuda"), torch.randn(9, dtype=torch.complex64, device="cuda")
    fast = trtb.compile(model, trial="check", cache_dir="")
    for _ in range(CALLS):
        torch.testing.assert_close(fast(x, w), model(x, w), rtol=1e-4, atol=1e-4)
    report = trtb.report(fast)
    assert len(report.engines) == 3, str(report)
    assert all(engine.is_ready for engine in report.engines), str(report)
