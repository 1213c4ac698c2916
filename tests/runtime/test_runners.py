"""How an engine is given its inputs, on a GPU that is not there; real engines: test_execution_on_runners.py."""

from __future__ import annotations

import ctypes
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.runtime.fakes import FakeCopy
from torchtrt_bridge.errors import ShapeRangeError
from torchtrt_bridge.runtime import runners

CPU_ALIGNMENT = 64  # of PyTorch's allocator


class Copying(FakeCopy):
    """Engine and context in one, of an engine that copies its input `x` to its output `y`."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: dict[str, int] = {}
        self.shape: tuple[int, ...] = ()

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        """As TensorRT does, it takes no shape outside the ranges that it was built for."""
        self.shape = shape if len(shape) < 3 else (-1,)
        return len(shape) < 3

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self.shape

    def set_tensor_address(self, name: str, address: int) -> None:
        self.addresses[name] = address

    def execute_async_v3(self, stream: int) -> bool:
        ctypes.memmove(self.addresses["y"], self.addresses["x"], 4 * torch.Size(self.shape).numel())
        return True


CPU = torch.device("cpu")


@pytest.fixture
def runner(monkeypatch: pytest.MonkeyPatch) -> runners.GpuRunner:
    monkeypatch.setattr(torch.cuda, "current_device", lambda: None)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: SimpleNamespace(cuda_stream=0))
    monkeypatch.setattr(runners, "torch_dtype_from_trt", lambda dtype: dtype)
    monkeypatch.setattr(runners, "ALIGNMENT", CPU_ALIGNMENT)
    monkeypatch.setattr(runners, "may_overlap", lambda device: False)
    monkeypatch.setattr(runners.torch, "device", lambda *_: CPU)
    return runners.GpuRunner(b"", Copying())  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "take",
    [lambda x: x, lambda x: x[1:], lambda x: x.t(), lambda x: x.flatten()[3:]],
    ids=["whole", "slice", "transposed", "odd address"],
)
def test_inputs_lie_where_tensorrt_takes_them(take: Any, runner: runners.GpuRunner) -> None:
    """A slice of a batch begins at any address; TensorRT's kernels read many elements at once."""
    x = take(torch.randn(5, 3))
    for _ in range(2):
        (result,) = runner([x])
        torch.testing.assert_close(result, x)
        assert runner._engine.addresses["x"] % CPU_ALIGNMENT == 0


def test_what_lies_right_is_not_copied(runner: runners.GpuRunner) -> None:
    x = torch.randn(5, 3)
    runner([x])
    assert runner._engine.addresses["x"] == x.data_ptr()


def test_a_shape_that_the_engine_was_not_built_for(runner: runners.GpuRunner) -> None:
    runner([torch.randn(5, 3)])
    for _ in range(2):
        with pytest.raises(ShapeRangeError, match=r"no x of shape \(5, 3, 2\)"):
            runner([torch.randn(5, 3, 2)])
    (result,) = runner([torch.ones(5, 3)])
    assert result.sum() == 15
