"""Float64 in engines, on a GPU."""

from __future__ import annotations

import pytest
import torch

import torchtrt_bridge as trtb
from tests.gpu import assert_one_right_engine, images
from tests.models import ConvNet, trained

pytestmark = pytest.mark.gpu

# Products in fp32 are TF32 on an H100, which the bound of fp32 refuses.
WHOLE = {"float64": "fp32", "precision": "fp16", "trial": "check", "cache_dir": ""}


def test_a_compiled_model_of_float64_is_one_engine() -> None:
    model = trained(ConvNet()).double().cuda()
    fast = trtb.compile(model, **WHOLE)
    assert_one_right_engine(fast, model, images().double())
    assert fast(images().double()).dtype == torch.float64


def test_an_exported_model_of_float64_is_one_engine() -> None:
    model = trained(ConvNet()).double().cuda()
    fast = trtb.export(model, (images().double(),), **WHOLE)
    assert_one_right_engine(fast, model, images().double())


def test_sums_and_products_of_elements_are_as_near_as_fp32() -> None:
    def model(x: torch.Tensor) -> torch.Tensor:
        return (x * 2 + x.exp()).sum(-1)

    fast = trtb.compile(model, float64="fp32", trial="check", cache_dir="")
    x = torch.rand(8, 16, dtype=torch.float64, device="cuda")
    assert_one_right_engine(fast, model, x)
    torch.testing.assert_close(fast(x), model(x), rtol=1e-5, atol=1e-5)
