"""What an engine says of itself: its steps, without a GPU."""

from __future__ import annotations

import torch
from torch import nn

import torchtrt_bridge as trtb
from torchtrt_bridge.trt.inspector import Step, steps


def steps_of(model: nn.Module, *inputs: torch.Tensor, **options: object) -> list[Step]:
    program = trtb.export(model.eval(), inputs, precision="fp16", targets=("sm_86",), trial="off", **options)  # type: ignore[arg-type]
    (plan,) = program.plans.values()
    return steps(plan)


def test_products_come_in_their_order() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 128), nn.GELU(), nn.LayerNorm(128), nn.Linear(128, 64))
    found = steps_of(model, torch.randn(32, 64), fp16_accumulation=True)
    products = [step for step in found if step.kind == "fully_connected"]
    assert [step.sums_in for step in products] == ["float16"] * 2
    first, second = products
    assert first.name.startswith("linear/")
    assert second.name.startswith("linear_1/")
    assert any(step.kind == "function" for step in found[found.index(first) : found.index(second)])


def test_products_summed_in_fp32() -> None:
    found = steps_of(nn.Linear(64, 128), torch.randn(32, 64))
    assert [step.sums_in for step in found if step.kind == "fully_connected"] == ["float32"]


def test_convolutions_and_what_is_fused() -> None:
    model = nn.Sequential(nn.Conv2d(16, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.Softmax(1))
    found = steps_of(model, torch.randn(2, 16, 12, 12))
    assert sum(step.kind == "corrltn" for step in found) == 2
    assert any(step.kind == "function" and "Exp" in step.name for step in found)


def test_bytes_that_are_no_engine() -> None:
    assert steps(b"nothing of that kind") == []
