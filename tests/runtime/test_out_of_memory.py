"""Too little memory, when engines are built, loaded, tried and run: PyTorch serves, and nothing stays behind."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Sequence
from typing import Any

import pytest
import torch

import torchtrt_bridge as trtb
from tests.models import ConvNet, image, trained
from tests.runtime.fakes import FakeRunner, FakeTensorRT, assert_right, in_pytorch, module_of, right, x_of
from torchtrt_bridge import pipeline
from torchtrt_bridge.engine import builder
from torchtrt_bridge.errors import EngineLoadError
from torchtrt_bridge.runtime import runners
from torchtrt_bridge.runtime.engine_module import MOST_OUT_OF_MEMORY
from torchtrt_bridge.runtime.runners import is_out_of_memory

NO_MEMORY = "CUDA out of memory. Tried to allocate 2.00 GiB."
ERRORS: dict[str, Exception] = {
    "PyTorch's": torch.OutOfMemoryError(NO_MEMORY),
    "TensorRT's": EngineLoadError("TensorRT could not run the engine: Error Code 2: OutOfMemory (Requested size 4096)"),
    "the host's": MemoryError(),
    "PyTorch's on the host": RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_a_lack_of_memory_is_known(name: str) -> None:
    assert is_out_of_memory(ERRORS[name])


@pytest.mark.parametrize("text", ["CUDA error: an illegal memory access was encountered", "could not run the engine"])
def test_another_failure_is_none(text: str) -> None:
    assert not is_out_of_memory(RuntimeError(text))


class ShortRunner(FakeRunner):
    """Runs out of memory in some of its calls, with what it has allocated until then in hand."""

    def __init__(self, short: range, error: Exception) -> None:
        super().__init__()
        self.short = short
        self.error = error
        self.allocated: list[weakref.ref[torch.Tensor]] = []

    def __call__(self, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        if self.count in self.short:
            self.count += 1
            output = torch.empty(1000)
            self.allocated.append(weakref.ref(output))
            raise type(self.error)(*self.error.args)
        return super().__call__(inputs)


@pytest.mark.parametrize("name", ERRORS)
@pytest.mark.parametrize("first", [0, 3], ids=["in the trial", "later"])
def test_the_next_call_tries_again(name: str, first: int, caplog: pytest.LogCaptureFixture) -> None:
    runner = ShortRunner(range(first, first + MOST_OUT_OF_MEMORY - 1), ERRORS[name])
    module = module_of(runner)
    for _ in range(8):
        assert_right(module, x_of())
    assert module.is_settled
    assert module.entry.serves
    assert runner.count == 8
    assert caplog.text.count("too little memory") == 1


@pytest.mark.parametrize("first", [0, 3], ids=["in the trial", "later"])
def test_an_engine_that_lacks_memory_again_and_again_is_dropped(first: int, caplog: pytest.LogCaptureFixture) -> None:
    runner = ShortRunner(range(first, 100), ERRORS["PyTorch's"])
    alive = weakref.ref(runner)
    module = module_of(runner)
    for _ in range(8):
        assert_right(module, x_of())
    assert runner.count == first + MOST_OUT_OF_MEMORY
    assert f"{MOST_OUT_OF_MEMORY} calls had too little memory" in module.entry.state
    assert caplog.text.count("too little memory (") == 1
    del runner
    assert alive() is None, "its memory is given back"


def test_what_the_engine_had_is_free_when_pytorch_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    runner = ShortRunner(range(1, 2), ERRORS["PyTorch's"])
    module = module_of(runner)
    assert_right(module, x_of())
    left: list[object] = []

    def looking(x: torch.Tensor) -> tuple[torch.Tensor]:
        left.extend(allocated() for allocated in runner.allocated)
        return (right(x),)

    monkeypatch.setattr(module.pytorch, "forward", looking)
    assert_right(module, x_of())
    assert left == [None]


@pytest.mark.parametrize("first", [0, 1], ids=["in the trial", "later"])
def test_fallback_error_raises_it(first: int) -> None:
    module = module_of(ShortRunner(range(first, 100), ERRORS["PyTorch's"]), fallback="error")
    for _ in range(first):
        module(x_of())
    with pytest.raises(torch.OutOfMemoryError, match="out of memory"):
        module(x_of())


def test_a_lack_of_pytorch_itself_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    def short(x: torch.Tensor) -> None:
        raise torch.OutOfMemoryError(NO_MEMORY)

    module = module_of(ShortRunner(range(100), ERRORS["PyTorch's"]))
    monkeypatch.setattr(module.pytorch, "forward", short)
    with pytest.raises(torch.OutOfMemoryError):
        module(x_of())
    monkeypatch.undo()
    assert_right(module, x_of())
    assert in_pytorch(module) == 1


@pytest.mark.parametrize(("home", "stage"), [(pipeline, "normalize"), (builder, "network_from_graph")])
def test_a_lack_during_the_build(
    home: Any, stage: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    allocated: list[weakref.ref[torch.Tensor]] = []

    def short(*_: Any, **__: Any) -> None:
        weight = torch.empty(1000)
        allocated.append(weakref.ref(weight))
        raise torch.OutOfMemoryError(NO_MEMORY)

    monkeypatch.setattr(home, stage, short)
    model, x = trained(ConvNet()), image()
    fast = trtb.compile(model, engine="reference")
    with torch.no_grad():
        torch.testing.assert_close([fast(x), fast(x)], [model(x)] * 2)
    assert caplog.text.count("out of memory") == 1
    assert len(allocated) == 1, "it is not built again at each call"
    gc.collect()
    assert allocated[0]() is None


# TensorRT's own, on a GPU that is not there ------------------------------------------------------------------------


@pytest.fixture
def emptied(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What PyTorch's allocator was asked for."""
    asked: list[str] = []
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: asked.append("empty"))
    monkeypatch.setattr(runners, "may_overlap", lambda device: False)
    return asked


@pytest.mark.parametrize("what", ["engine", "context"])
def test_pytorch_gives_back_what_tensorrt_lacks(what: str, emptied: list[str]) -> None:
    runner = runners.GpuRunner(b"", FakeTensorRT("[resizePhysical] OutOfMemory", **{what: 1}))  # type: ignore[arg-type]
    runner.prepare()
    assert emptied == ["empty"]


@pytest.mark.parametrize(("words", "times"), [("OutOfMemory", 1), ("unsupported GPU", 0)])
@pytest.mark.parametrize("what", ["engine", "context"])
def test_what_fails_still_says_why(what: str, words: str, times: int, emptied: list[str]) -> None:
    with pytest.raises(EngineLoadError, match=words):
        runners.GpuRunner(b"", FakeTensorRT(words, **{what: 2})).prepare()  # type: ignore[arg-type]
    assert emptied == ["empty"] * times


def test_a_dropped_engine_is_freed_at_once(emptied: list[str]) -> None:
    runner = runners.GpuRunner(b"", FakeTensorRT(""))  # type: ignore[arg-type]
    runner.prepare()
    alive = weakref.ref(runner)
    gc.disable()
    try:
        del runner
        assert alive() is None
    finally:
        gc.enable()
