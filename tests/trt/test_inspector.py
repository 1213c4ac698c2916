"""What an engine says of itself: its kernels, without a GPU."""

from __future__ import annotations

import torch
from torch import nn

import torchtrt_bridge as trtb
from torchtrt_bridge.trt.inspector import Kernel, kernels


def kernels_of(model: nn.Module, *inputs: torch.Tensor, **options: object) -> list[Kernel]:
    program = trtb.export(model.eval(), inputs, precision="fp16", targets=("sm_86",), trial="off", **options)  # type: ignore[arg-type]
    (plan,) = program.plans.values()
    return kernels(plan)


def test_products_come_in_their_order() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 128), nn.GELU(), nn.LayerNorm(128), nn.Linear(128, 64))
    found = kernels_of(model, torch.randn(32, 64))
    products = [kernel for kernel in found if kernel.kind == "fully_connected"]
    assert [kernel.sums_in for kernel in products] == ["float16"] * 2
    first, second = products
    assert first.name.startswith("linear/")
    assert second.name.startswith("linear_1/")
    assert any(kernel.kind == "function" for kernel in found[found.index(first) : found.index(second)])


def test_products_summed_in_fp32() -> None:
    found = kernels_of(nn.Linear(64, 128), torch.randn(32, 64), fp16_accumulation=False)
    assert [kernel.sums_in for kernel in found if kernel.kind == "fully_connected"] == ["float32"]


def test_convolutions_and_what_is_fused() -> None:
    model = nn.Sequential(nn.Conv2d(16, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.Softmax(1))
    found = kernels_of(model, torch.randn(2, 16, 12, 12))
    assert sum(kernel.kind == "corrltn" for kernel in found) == 2
    assert any(kernel.kind == "function" and "Exp" in kernel.name for kernel in found)


def test_bytes_that_are_no_engine() -> None:
    assert kernels(b"nothing of that kind") == []
