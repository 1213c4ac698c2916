"""Operators without a converter here, in real engines by torch_tensorrt's converters."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import torchtrt_bridge as trtb
from tests.interop import fake
from torchtrt_bridge.interop import torch_tensorrt as interop
from torchtrt_bridge.interop.torch_tensorrt import PeerLibrary
from torchtrt_bridge.trt import library as libraries

pytestmark = pytest.mark.gpu
aten, prims = torch.ops.aten, torch.ops.prims


@pytest.fixture(autouse=True)
def library() -> PeerLibrary:
    found = interop.find()
    if isinstance(found, str):
        pytest.skip(f"torch_tensorrt is {found}")
    return found


class Called(nn.Module):
    """Module that calls `call` with its inputs, between two operators that have converters here."""

    def __init__(self, call: Callable[..., Any]) -> None:
        super().__init__()
        self.call = call

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        return self.call(*[value.sin() for value in inputs]).tanh()


@dataclasses.dataclass(frozen=True)
class Case:
    """One operator."""

    op: str
    call: Callable[..., Any]
    inputs: Callable[[], tuple[torch.Tensor, ...]]
    name: str = ""

    @property
    def id(self) -> str:
        return f"{self.op}-{self.name}" if self.name else self.op


def two_sets() -> tuple[torch.Tensor, ...]:
    return torch.randn(2, 7, 6), torch.randn(2, 9, 6)


def points() -> tuple[torch.Tensor, ...]:
    return (torch.randn(7, 6),)


def images() -> tuple[torch.Tensor, ...]:
    return (torch.randn(2, 4, 6, 6),)


CASES = [
    Case("aten._cdist_forward.default", torch.cdist, two_sets, name="euclidean"),
    Case("aten._cdist_forward.default", lambda x, y: torch.cdist(x, y, p=1.0), two_sets, name="manhattan"),
    Case("aten._pdist_forward.default", F.pdist, points),
    Case("aten._reshape_copy.default", lambda x: aten._reshape_copy(x, [2, -1]), images),
    Case("prims.div.default", lambda x: prims.div(x, x.abs() + 1), images),
    Case("prims.sum.default", lambda x: prims.sum(x, [1]), images),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_operator(case: Case) -> None:
    torch.manual_seed(0)
    model, inputs = Called(case.call).cuda().eval(), [value.cuda() for value in case.inputs()]
    fast = trtb.compile(model, trial="check")
    with torch.inference_mode():
        for _ in range(4):  # the later calls replay a CUDA graph
            torch.testing.assert_close(fast(*inputs), model(*inputs), rtol=1e-3, atol=1e-3)
    assert_wrote(trtb.report(fast), case.op)


def assert_wrote(report: trtb.CompileReport, op: str) -> None:
    """Assert that one engine runs the whole model, with `op` by torch_tensorrt, and was compared with PyTorch."""
    assert report.is_whole, str(report)
    (engine,) = report.engines
    assert list(engine.by_torch_tensorrt.values()) == [op]
    assert engine.is_ready, engine.state
    assert engine.error is not None


def test_it_uses_the_tensorrt_of_the_engines(library: PeerLibrary) -> None:
    assert interop.mismatch(library, libraries.choose("auto")) is None
    assert not libraries.choose("auto").is_rtx or not libraries.installed("tensorrt")


def test_beside_half_precision() -> None:
    torch.manual_seed(0)

    class Prototypes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(16, 8)
            self.prototypes = nn.Parameter(torch.randn(5, 8))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.cdist(self.layer(x), self.prototypes).softmax(-1)

    model, x = Prototypes().cuda().eval(), torch.randn(7, 16).cuda()
    fast = trtb.compile(model, precision="fp16", trial="check")
    with torch.inference_mode():
        torch.testing.assert_close(fast(x), model(x), rtol=1e-2, atol=1e-2)
    assert_wrote(trtb.report(fast), "aten._cdist_forward.default")


def test_dynamic_sizes() -> None:
    torch.manual_seed(0)
    model = Called(lambda x: prims.div(x, x.abs() + 1)).cuda().eval()
    fast = trtb.compile(model, dynamic=True, trial="check")
    with torch.inference_mode():
        for batch in (3, 5, 8):
            x = torch.randn(batch, 4, 6).cuda()
            torch.testing.assert_close(fast(x), model(x), rtol=1e-3, atol=1e-3)
    assert_wrote(trtb.report(fast), "prims.div.default")


def test_a_saved_program(tmp_path: Path) -> None:
    """The engine in the file needs no torch_tensorrt any more."""
    torch.manual_seed(0)
    model, (x,) = Called(F.pdist).cuda().eval(), (torch.randn(7, 6).cuda(),)
    trtb.save(trtb.export(model, x), tmp_path / "model.pt2")
    loaded = trtb.load(tmp_path / "model.pt2", fallback="error", trial="check")
    torch.testing.assert_close(loaded(x), model(x), rtol=1e-3, atol=1e-3)
    assert_wrote(loaded.report, "aten._pdist_forward.default")


def test_a_users_converter(library: PeerLibrary, monkeypatch: pytest.MonkeyPatch) -> None:
    """A converter that a user registered with torch_tensorrt, as its documentation shows, is used too."""
    from torch_tensorrt.dynamo.conversion import dynamo_tensorrt_converter

    monkeypatch.setitem(library.converters, fake.CUBE, [])  # type: ignore[arg-type]
    dynamo_tensorrt_converter(fake.CUBE, supports_dynamic_shapes=True)(fake.write_cube)
    model, x = Called(fake.cube).cuda().eval(), torch.randn(3, 4).cuda()
    fast = trtb.compile(model, trial="check")
    with torch.inference_mode():
        torch.testing.assert_close(fast(x), model(x), rtol=1e-3, atol=1e-3)
    assert_wrote(trtb.report(fast), f"{fake.NAMESPACE}.cube.default")


def test_without_it_pytorch_runs_the_operator() -> None:
    model, (x,) = Called(F.pdist).cuda().eval(), (torch.randn(7, 6).cuda(),)
    fast = trtb.compile(model, torch_tensorrt="off", trial="check")
    with torch.inference_mode():
        torch.testing.assert_close(fast(x), model(x), rtol=1e-3, atol=1e-3)
    assert [entry.op for entry in trtb.report(fast).in_torch] == ["aten._pdist_forward.default"]
