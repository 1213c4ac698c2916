"""Both entry points with real engines."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch.export import Dim

import torchtrt_bridge as trtb
from tests.gpu import CALLS, assert_near, assert_serves_threads, images
from tests.models import ConvNet, WithUnsupported, image, trained

pytestmark = pytest.mark.gpu


@pytest.fixture
def model() -> ConvNet:
    return trained(ConvNet(32)).cuda()


def test_compile(model: ConvNet) -> None:
    fast, x = trtb.compile(model, precision="fp16"), images()
    with torch.inference_mode():
        for _ in range(5):
            assert_near(fast(x), model(x))
    (engine,) = trtb.report(fast).engines
    assert engine.is_ready
    assert engine.error is not None
    assert trtb.report(fast).is_whole
    error = trtb.report(fast).error
    assert error is not None
    assert error < 5e-3


def test_results_are_the_callers_to_keep(model: ConvNet) -> None:
    fast = trtb.compile(model, precision="fp16")
    inputs = [images() for _ in range(6)]
    with torch.inference_mode():
        results = [fast(x) for x in inputs]
        for x, result in zip(inputs, results, strict=True):
            assert_near(result, model(x))


def test_fallback_in_the_middle() -> None:
    model = trained(WithUnsupported(32)).cuda()
    fast, x = trtb.compile(model, precision="fp16"), images(size=4) * 0.3
    with torch.inference_mode():
        assert_near(fast(x), model(x))
    assert trtb.report(fast).in_torch


def test_dynamic_batch(model: ConvNet) -> None:
    fast = trtb.compile(model, precision="fp16", dynamic=True)
    with torch.inference_mode():
        for batch in (4, 5, 7):
            x = images(batch)
            assert_near(fast(x), model(x))
    assert [engine.is_ready for engine in trtb.report(fast).engines] == [True]


def test_changed_weights(model: ConvNet) -> None:
    fast, x = trtb.compile(model, precision="fp16"), images()
    with torch.no_grad():
        fast(x)
        model.conv.weight.mul_(2)
        for _ in range(3):
            assert_near(fast(x), model(x))


def test_another_stream(model: ConvNet) -> None:
    fast, x = trtb.compile(model, precision="fp16"), images()
    stream = torch.cuda.Stream()
    with torch.inference_mode():
        expected = model(x)
        torch.cuda.synchronize()
        with torch.cuda.stream(stream):
            results = [fast(x) for _ in range(5)]
        stream.synchronize()
    for result in results:
        assert_near(result, expected)


def test_threads(model: ConvNet) -> None:
    program = trtb.export(model, images(), precision="fp16")
    assert_serves_threads(program, model, calls=5)


def test_built_on_the_cpu_run_on_the_gpu(model: ConvNet, tmp_path: Path) -> None:
    shapes = ({0: Dim("batch", min=1, max=8)},)
    program = trtb.export(copy.deepcopy(model).cpu(), image(2, 16), dynamic_shapes=shapes, precision="fp16")
    trtb.save(program, tmp_path / "model.pt2")
    loaded = trtb.load(tmp_path / "model.pt2", fallback="error")
    with torch.inference_mode():
        for batch in (1, 8):
            x = images(batch)
            assert_near(loaded(x), model(x))
    assert loaded.report.engines[0].error is not None


def test_an_fp32_engine_is_as_good_as_fp32_or_not_used(model: ConvNet) -> None:
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    fast, x = trtb.compile(model), images()
    with torch.inference_mode():
        for _ in range(4):
            torch.testing.assert_close(fast(x), model(x), rtol=1e-3, atol=1e-3)


def test_inputs_on_the_cpu_are_served_by_pytorch(model: ConvNet, tmp_path: Path) -> None:
    program = trtb.export(copy.deepcopy(model).cpu(), image(2, 16), precision="fp16")
    trtb.save(program, tmp_path / "model.pt2")
    loaded = trtb.load(tmp_path / "model.pt2", device="cpu")
    x = image(2, 16)
    with torch.inference_mode():
        assert_near(loaded(x), copy.deepcopy(model).cpu()(x))


def test_inputs_on_the_cpu_that_are_moved_and_numbers_leave_the_rest_to_engines(model: ConvNet) -> None:
    fast = trtb.compile(lambda x, scale: model(x.cuda()) * scale, precision="fp16", trial="check")
    with torch.inference_mode():
        for scale in (0.5, 3.0):
            x, number = image(2, 16), torch.tensor(scale)
            for _ in range(CALLS):
                assert_near(fast(x, number), model(x.cuda()) * number)
    report = trtb.report(fast)
    assert [entry.serves for entry in report.engines] == [True]
    assert report.notes == []
    assert {entry.op for entry in report.in_torch} == {"aten._to_copy.default"}
