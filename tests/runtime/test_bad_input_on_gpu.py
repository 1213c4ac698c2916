"""Unusual calls of real engines, and what they hold on the device. The same without a GPU: test_bad_input.py."""

from __future__ import annotations

import gc
import pickle
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.functional import cosine_similarity

import torchtrt_bridge as trtb
from tests.gpu import assert_near, images
from tests.models import ConvNet, trained
from tests.runtime.forks import in_child, with_fork
from torchtrt_bridge.errors import EngineLoadError
from torchtrt_bridge.runtime.runners import Session

pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")]

OPTIONS: dict[str, Any] = {"precision": "fp16", "trial": "check"}
MIB = 2**20


@pytest.fixture
def model() -> ConvNet:
    return trained(ConvNet(32)).cuda().requires_grad_(False)


def roads(model: nn.Module, x: torch.Tensor, **options: Any) -> dict[str, Any]:
    """The model by both roads, each called often enough to be captured."""
    both = {
        "compile": trtb.compile(model, **{**OPTIONS, **options}),
        "export": trtb.export(model, x, **{**OPTIONS, **options}),
    }
    for fast in both.values():
        with torch.no_grad():
            for _ in range(4):
                fast(x)
    return both


with_each_road = pytest.mark.parametrize("road", ["compile", "export"])


@with_each_road
def test_transforms(road: str, model: ConvNet) -> None:
    x = images()
    fast = roads(model, x)[road]
    assert_near(torch.func.vmap(fast)(torch.stack([x, -x])), torch.func.vmap(model)(torch.stack([x, -x])))
    gradients = [torch.func.grad(lambda v, f=f: f(v).sum())(x) for f in (fast, model)]
    assert float(cosine_similarity(*(g.flatten() for g in gradients), dim=0)) > 0.99  # fp16 switches a relu or two
    assert_near(fast(x), model(x))


@with_each_road
def test_autocast(road: str, model: ConvNet) -> None:
    x = images()
    fast = roads(model, x)[road]
    for _ in range(4):
        with torch.no_grad(), torch.autocast("cuda", dtype=torch.float16):
            result, expected = fast(x), model(x)
        assert_near(result.float(), expected.float())
        assert result.dtype == (expected.dtype if road == "compile" else torch.float32)


@with_each_road
def test_tensors_on_the_cpu(road: str, model: ConvNet) -> None:
    fast = roads(model, images())[road]
    with torch.no_grad(), pytest.raises((RuntimeError, trtb.ShapeRangeError), match=r"device|cpu"):
        fast(images().cpu())
    x = images()
    assert_near(fast(x), model(x))


@with_fork
@with_each_road
def test_a_forked_process_gets_an_error(road: str, model: ConvNet) -> None:
    x = images()
    fast = roads(model, x)[road]
    assert "forked" in in_child(lambda: pickle.dumps(float(fast(x).sum())))
    assert_near(fast(x), model(x))


@with_each_road
def test_the_caller_captures_what_was_called_before(road: str, model: ConvNet) -> None:
    x = images()
    fast = roads(model, x)[road]
    graph = torch.cuda.CUDAGraph()
    torch.cuda.synchronize()
    with torch.no_grad(), torch.cuda.graph(graph):
        result = fast(x)
    x.copy_(images())
    graph.replay()
    assert_near(result, model(x))


def test_a_side_stream(model: ConvNet) -> None:
    x = images()
    fast = roads(model, x)["compile"]
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.no_grad(), torch.cuda.stream(stream):
        torch.cuda._sleep(10**7)
        y = x * 2
        result = fast(y)
    torch.cuda.current_stream().wait_stream(stream)
    assert_near(result, model(x * 2))


# Memory ------------------------------------------------------------------------------------------------------------


def wide() -> nn.Module:
    """Its weights take 32 MiB in fp32."""
    return nn.Sequential(nn.Linear(2048, 2048), nn.GELU(), nn.Linear(2048, 2048)).eval().cuda().requires_grad_(False)


def allocated() -> int:
    """Without cuBLAS's workspace, 32 MiB on a Hopper card, which the first product of a process takes."""
    gc.collect()
    torch._C._cuda_clearCublasWorkspaces()
    torch.cuda.synchronize()
    return torch.cuda.memory_allocated()


@pytest.mark.parametrize(("release", "halved"), [(False, 16), (True, 0)])
def test_what_a_compiled_model_holds(release: bool, halved: int) -> None:
    model, x = wide(), torch.randn(4, 2048, device="cuda")
    before = allocated()
    fast = trtb.compile(model, **OPTIONS, release_weights=release, cuda_graphs="off")
    with torch.no_grad():
        for _ in range(2):
            assert_near(fast(x), model(x))
    assert (allocated() - before) / MIB == pytest.approx(halved, abs=2)


def test_what_a_program_holds() -> None:
    model, x = wide(), torch.randn(4, 2048, device="cuda")
    before = allocated()
    program = trtb.export(model, x, **OPTIONS, release_weights=True, cuda_graphs="off")
    assert_near(program(x), model(x))
    assert (allocated() - before) / MIB == pytest.approx(0, abs=2)
    assert_near(program.exported.module()(x), model(x))
    assert (allocated() - before) / MIB == pytest.approx(16, abs=2)


def test_released_weights_come_back() -> None:
    model = wide()
    fast = trtb.compile(model, **OPTIONS, release_weights=True, dynamic=True, max_dynamic_size=2048)
    with torch.no_grad():
        for batch in (4, 5, 4096, 4, 4096):
            x = torch.randn(batch, 2048, device="cuda")
            assert_near(fast(x), model(x))


def test_a_capture_of_the_caller_keeps_its_weights() -> None:
    """Captured before the trial, the caller's graph reads PyTorch's weights, which are then not released."""
    model, x = wide(), torch.randn(4, 2048, device="cuda")
    program = trtb.export(model, x, **OPTIONS, release_weights=True)
    graph = torch.cuda.CUDAGraph()
    model(x)
    torch.cuda.synchronize()
    with torch.cuda.graph(graph):
        result = program(x)
    for _ in range(4):
        program(x)
    x.copy_(torch.randn(4, 2048, device="cuda"))
    filler = [torch.full((2048, 2048), 7.0, device="cuda", dtype=torch.half) for _ in range(8)]
    graph.replay()
    assert_near(result, model(x))
    del filler


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory"), EngineLoadError("OutOfMemory (Requested size 8)")]
)
def test_a_lack_of_memory_leaks_nothing(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = wide(), torch.randn(4, 2048, device="cuda")
    fast = trtb.compile(model, **OPTIONS, cuda_graphs="off")
    with torch.no_grad():
        assert_near(fast(x), model(x))
        before = allocated()
        enqueue = Session.enqueue

        def short(session: Session, inputs: Any) -> Any:
            enqueue(session, inputs)
            raise type(error)(*error.args)  # a new one: it will hold what this frame has

        monkeypatch.setattr(Session, "enqueue", short)
        assert_near(fast(x), model(x))
        monkeypatch.undo()
        assert abs(allocated() - before) < MIB
        assert_near(fast(x), model(x))
    assert trtb.report(fast).engines[0].serves
