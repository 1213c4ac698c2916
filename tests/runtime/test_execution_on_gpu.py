"""Whole calls from CUDA graphs: right on any stream, from any thread, for results that are kept, dropped or changed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import torchtrt_bridge as trtb
from tests.gpu import assert_near, assert_serves_threads, images
from tests.models import ConvNet, WithUnsupported, trained
from torchtrt_bridge.entry import torch_compile as backend
from torchtrt_bridge.runtime import Execution
from torchtrt_bridge.runtime.cuda_graph import CudaGraphCall, CudaGraphPair

pytestmark = pytest.mark.gpu


@pytest.fixture
def model() -> ConvNet:
    return trained(ConvNet(32)).cuda()


def compiled(model: nn.Module, **options: Any) -> Any:
    """Engines are compared with PyTorch but not timed, so that it is they that serve."""
    return trtb.compile(model, **{"precision": "fp16", "trial": "check", **options})


def execution() -> Execution:
    (graph,) = [graph for graph in backend._all_graphs if graph.compiled is not None]
    assert graph.compiled is not None
    return graph.compiled.run


def pairs() -> list[CudaGraphPair]:
    return execution().thread_state.graphs.pairs()


@pytest.fixture(autouse=True)
def _no_other_graphs() -> None:
    torch._dynamo.reset()
    backend._all_graphs.clear()


def test_a_static_call_is_captured(model: ConvNet) -> None:
    fast = compiled(model)
    with torch.inference_mode():
        for _ in range(4):
            x = images()
            assert_near(fast(x), model(x))
    assert [pair.aliased is not None for pair in pairs()] == [True]
    assert pairs()[0].aliased.resources == [engine.runner for engine in execution().engines]
    assert trtb.report(fast).notes == []


def test_an_input_that_stays_is_read_where_it_lies(model: ConvNet) -> None:
    fast = compiled(model)
    with torch.inference_mode():
        x = images()
        for _ in range(4):
            assert_near(fast(x.normal_()), model(x))
        assert pairs()[0].aliased._buffers == []
        for y in (images(), x.normal_(), images()):
            assert_near(fast(y), model(y))
    assert len(pairs()[0].aliased._buffers) == 1


def test_results_given_back_as_inputs() -> None:
    model = nn.Sequential(nn.Linear(64, 64), nn.Tanh()).eval().cuda().requires_grad_(False)
    fast, y = compiled(model), torch.randn(4, 64, device="cuda")
    with torch.inference_mode():
        for _ in range(8):
            expected = model(y)
            y = fast(y)
            assert_near(y, expected)


def test_results_that_are_kept_are_never_overwritten(model: ConvNet) -> None:
    fast = compiled(model)
    inputs = [images() for _ in range(12)]
    with torch.inference_mode():
        results = [fast(x) for x in inputs]
        views = [fast(x)[0] for x in inputs]  # a view keeps its memory as the whole does
        for x, result, view in zip(inputs, results, views, strict=True):
            assert_near(result, model(x))
            assert_near(view, model(x)[0])


def test_results_may_be_changed_in_place(model: ConvNet) -> None:
    fast, x = compiled(model), images()
    with torch.no_grad():
        for _ in range(6):
            result = fast(x)
            assert_near(result, model(x))
            result.zero_()


def test_reuse_outputs(model: ConvNet) -> None:
    fast = compiled(model, reuse_outputs=True)
    with torch.inference_mode():
        results = [fast(images()) for _ in range(6)]
    assert results[-1].data_ptr() == results[-2].data_ptr()


def test_off(model: ConvNet) -> None:
    fast = compiled(model, cuda_graphs="off")
    with torch.inference_mode():
        for _ in range(4):
            x = images()
            assert_near(fast(x), model(x))
    assert pairs() == []


def test_engines_and_pytorch_in_one_graph() -> None:
    model = trained(WithUnsupported(32)).cuda()
    fast = compiled(model)
    with torch.inference_mode():
        for _ in range(5):
            x = images(size=4) * 0.3
            assert_near(fast(x), model(x))
    assert trtb.report(fast).in_torch


class Counted(nn.Module):
    """What no CUDA graph can hold: the number of results is known only after looking."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = (x * 2).relu()
        return y.sum() + y.nonzero().shape[0] * 0.5


def test_what_cannot_be_captured_is_enqueued(model: ConvNet) -> None:
    counted = Counted().cuda()
    fast, x = compiled(counted), images()
    with torch.inference_mode():
        for _ in range(5):
            assert_near(fast(x), counted(x))


def test_dynamic_sizes_are_captured_when_they_come_again(model: ConvNet) -> None:
    fast = compiled(model, dynamic=True)
    with torch.inference_mode():
        for batch in [4, 5, 7] * 6 + list(range(4, 20)):
            x = images(batch)
            assert_near(fast(x), model(x))
        assert len(pairs()) <= 8
        for batch in [5] * 6:
            x = images(batch)
            assert_near(fast(x), model(x))
    assert any(pair.aliased is not None for pair in pairs())


def test_eight_threads_each_on_its_stream(model: ConvNet) -> None:
    fast = compiled(model)
    with torch.inference_mode():
        fast(images())
    assert_serves_threads(fast, model, calls=20)
    assert len(execution()._threads) <= 9


def test_streams_in_turn(model: ConvNet) -> None:
    """A thread's buffers are written on one stream after the other, in the order of the calls."""
    fast = compiled(model)
    streams = [torch.cuda.Stream() for _ in range(3)]
    inputs = [images() for _ in range(12)]
    results = []
    torch.cuda.synchronize()
    with torch.inference_mode():
        for index, x in enumerate(inputs):
            with torch.cuda.stream(streams[index % 3]):
                results.append(fast(x))
        torch.cuda.synchronize()
        for x, result in zip(inputs, results, strict=True):
            assert_near(result, model(x))


@pytest.mark.parametrize("warm", [True, False], ids=["later", "at first"])
def test_the_caller_captures_a_graph(model: ConvNet, warm: bool) -> None:
    x = images()
    with torch.inference_mode():
        program = trtb.export(model, x, precision="fp16", trial="check")
        expected = model(x)
        if warm:
            for _ in range(4):
                program(x)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            result = program(x)
        result.zero_()
        graph.replay()
        torch.cuda.synchronize()
    assert_near(result, expected)


@pytest.mark.parametrize("context", [torch.inference_mode, torch.no_grad], ids=["inference_mode", "no_grad"])
def test_modes_may_change_between_calls(model: ConvNet, context: Any) -> None:
    program = trtb.export(model, images(), precision="fp16", trial="check")
    with context():
        for _ in range(3):
            program(images())
    for other in (torch.no_grad, torch.inference_mode):
        with other():
            for _ in range(3):
                x = images()
                assert_near(program(x), model(x))


class Passing(nn.Module):
    """One result is the input itself."""

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return x, x * 2


@pytest.mark.parametrize("graphs", ["auto", "off"])
def test_slices_of_a_batch(graphs: str, model: ConvNet) -> None:
    """They begin at addresses that TensorRT does not take."""
    fast = compiled(model, cuda_graphs=graphs, dynamic=True)
    many = torch.randn(6, 3, 15, 15, device="cuda")
    with torch.inference_mode():
        for start in (1, 2, 3, 1, 3, 2):
            x = many[start : start + 2]
            assert x.data_ptr() % 256 != 0
            assert_near(fast(x), model(x))


def test_a_result_that_is_an_input_stays_that_input() -> None:
    fast, x = compiled(Passing()), images()
    with torch.inference_mode():
        for _ in range(4):
            same, twice = fast(x)
            assert same.data_ptr() == x.data_ptr()
            torch.testing.assert_close(twice, x * 2)


def test_the_trial_times_both(model: ConvNet) -> None:
    fast, x = compiled(model, trial="check+time"), images()
    with torch.inference_mode():
        for _ in range(4):
            assert_near(fast(x), model(x))
    (entry,) = trtb.report(fast).engines
    assert set(entry.milliseconds) == {"engine", "PyTorch"}
    best = min(entry.milliseconds, key=entry.milliseconds.__getitem__)
    assert entry.choice in (best, "engine")


def test_inductor_competes(model: ConvNet) -> None:
    fast, x = compiled(model, trial="check+time", inductor="compete"), images()
    with torch.inference_mode():
        for _ in range(4):
            assert_near(fast(x), model(x))
    (entry,) = trtb.report(fast).engines
    assert set(entry.milliseconds) == {"engine", "PyTorch", "inductor"}


def test_scratch_memory_is_given_back() -> None:
    """Engines of the largest profile hold no memory for sizes that do not come."""
    big = nn.Sequential(nn.Linear(64, 4096), nn.GELU(), nn.Linear(4096, 64)).half().cuda()
    fast = compiled(big, dynamic=True, max_dynamic_size=2**20)
    with torch.inference_mode():
        for batch in (16, 32, 48):
            fast(torch.randn(batch, 64, device="cuda").half())
    assert torch.cuda.max_memory_allocated() < 2**31


def test_a_graph_outlives_others_and_pytorchs_workspaces() -> None:
    """cuBLAS writes into a workspace that PyTorch may free: each graph has its own."""
    torch.manual_seed(0)
    weight, x = torch.randn(512, 512, device="cuda").half(), torch.randn(512, 512, device="cuda").half()

    def product(value: torch.Tensor) -> tuple[torch.Tensor]:
        return (value @ weight,)

    with torch.inference_mode():
        product(x)  # makes cuBLAS's handle, which no capture allows
        first, second = CudaGraphCall(product, [x]), CudaGraphCall(product, [x])
        del first
        torch._C._cuda_clearCublasWorkspaces()
        torch.cuda.empty_cache()
        others = [torch.zeros(2**20, device="cuda") for _ in range(64)]
        second([x])
        torch.testing.assert_close(second.outputs[0], x @ weight)
        assert not any(bool(other.any()) for other in others)


def test_random_numbers_go_on_after_a_capture_that_fails() -> None:
    x = torch.ones(4, device="cuda")
    with pytest.raises(RuntimeError, match="captur"):
        CudaGraphCall(lambda value: (value * value.sum().item(),), [x])
    torch.cuda.manual_seed(0)
    first = torch.rand(4, device="cuda")
    torch.cuda.manual_seed(0)
    assert torch.equal(torch.rand(4, device="cuda"), first)
    call = CudaGraphCall(lambda value: (value * 2,), [x])
    call([x + 1])
    assert call.outputs[0].tolist() == [4.0] * 4


def test_an_input_that_is_negated_when_it_is_read(model: ConvNet) -> None:
    fast = compiled(model)
    with torch.inference_mode():
        for _ in range(4):
            x = torch.complex(images(), images()).conj().imag
            assert x.is_neg()
            assert_near(fast(x), model(x))


class Decoder(nn.Module):
    """One step of a decoder: writes a key to a cache, reads the cache, and counts."""

    def forward(self, cache: torch.Tensor, new: torch.Tensor, count: torch.Tensor) -> torch.Tensor:
        cache[:, :, torch.arange(new.shape[2], device=new.device) + count] = new
        count.add_(new.shape[2])
        return torch.softmax(cache @ new.transpose(-1, -2), 2)


@pytest.mark.parametrize("is_inference", [True, False])
@pytest.mark.parametrize("moves", [True, False])
def test_a_cache_is_written_in_place(is_inference: bool, moves: bool) -> None:
    """It is written once a call, in the trial, call by call, while captured, and in replays."""
    model = Decoder().eval()
    fast = compiled(model, precision="fp32", tf32=True, fallback="error")
    with torch.inference_mode(is_inference), torch.no_grad():
        cache, count = torch.zeros(2, 4, 16, 64, device="cuda"), torch.zeros((), dtype=torch.int64, device="cuda")
        expected_cache, expected_count = cache.clone(), count.clone()
        for number in range(1, 9):
            if moves:
                cache = cache.clone()
            new = torch.randn(2, 4, 1, 64, device="cuda")
            result = fast(cache, new, count)
            assert_near(result, model(expected_cache, new, expected_count))
            assert int(count) == number
            assert_near(cache, expected_cache)
    (engine,) = trtb.report(fast).engines
    assert engine.is_ready
    assert "torchtrt_bridge.kv_cache_update.default" in engine.nodes
    assert [pair.aliased is not None for pair in pairs()] == [True]
