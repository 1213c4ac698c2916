"""Models on the second GPU of a host, on both, and moved between them."""

from __future__ import annotations

import copy
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import torchtrt_bridge as trtb
from tests.compare import assert_matches
from tests.models import ConvNet, image, trained

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs"),
]
CLOSE = (5e-2, 5e-3)  # fp16
SECOND = "cuda:1"


@pytest.fixture
def model() -> nn.Module:
    return trained(ConvNet()).eval()


def assert_served(fast: Any, model: nn.Module, device: str) -> None:
    """Call on a device, several times, and find an engine's results there."""
    placed, x = copy.deepcopy(model).to(device), image().to(device)
    with torch.inference_mode():
        expected = placed(x)
        for _ in range(4):
            result = fast(x)
    assert result.device == torch.device(device)
    assert_matches([result], [expected], tolerance=CLOSE)
    report = fast.report if isinstance(fast, trtb.Program) else trtb.report(fast)
    assert [(entry.state, entry.choice) for entry in report.engines][-1] == ("ready", "engine")
    assert report.notes == []


OPTIONS: dict[str, Any] = {"precision": "fp16", "trial": "check", "fallback": "error"}


def test_a_model_on_the_second_gpu(model: nn.Module) -> None:
    fast = trtb.compile(copy.deepcopy(model).to(SECOND), **OPTIONS)
    assert torch.cuda.current_device() == 0
    assert_served(fast, model, SECOND)
    assert torch.cuda.current_device() == 0


def test_a_program_is_loaded_onto_the_gpu_that_is_asked_for(model: nn.Module, tmp_path: Path) -> None:
    program = trtb.export(copy.deepcopy(model).cuda(), image().cuda(), precision="fp16")
    trtb.save(program, tmp_path / "model.pt2")
    assert_served(trtb.load(tmp_path / "model.pt2", device=SECOND, trial="check"), model, SECOND)
    with torch.cuda.device(1):
        loaded = trtb.load(tmp_path / "model.pt2", trial="check")
    assert_served(loaded, model, SECOND)


def test_a_model_that_moves_is_built_anew(model: nn.Module) -> None:
    moving = copy.deepcopy(model).cuda()
    fast = trtb.compile(moving, **OPTIONS)
    assert_served(fast, model, "cuda:0")
    moving.to(SECOND)
    assert_served(fast, model, SECOND)


class OverTwo(nn.Module):
    """A model whose halves are on two GPUs."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Linear(32, 64), nn.ReLU()).cuda()
        self.second = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 8)).to(SECOND)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(x).to(SECOND))


def test_a_model_over_two_gpus_has_engines_on_each() -> None:
    over, x = OverTwo().eval(), torch.randn(8, 32, device="cuda:0")
    fast = trtb.compile(over, precision="fp16", trial="check")
    with torch.inference_mode():
        expected = over(x)
        for _ in range(4):
            result = fast(x)
    assert_matches([result], [expected], tolerance=CLOSE)
    report = trtb.report(fast)
    assert [entry.choice for entry in report.engines if entry.is_ready] == ["engine", "engine"]
    assert ["move" in entry.reason for entry in report.in_torch] == [True]


def test_threads_on_different_gpus(model: nn.Module) -> None:
    devices = ["cuda:0", SECOND] * 2
    compiled = {device: trtb.compile(copy.deepcopy(model).to(device), **OPTIONS) for device in set(devices)}
    for device, fast in compiled.items():
        assert_served(fast, model, device)
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda device: assert_served(compiled[device], model, device), devices))
