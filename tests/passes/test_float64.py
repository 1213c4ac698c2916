"""Float64 in fp32 engines: what is cast, what stays in float64, and what the results are compared with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import torchtrt_bridge as trtb
from tests.models import ConvNet, image, trained
from tests.passes.case import Called, assert_computes, aten, call, calls, constants, passed
from torchtrt_bridge.graph.views import AT_BORDER
from torchtrt_bridge.options import Options
from torchtrt_bridge.partition import propose
from torchtrt_bridge.passes import normalize
from torchtrt_bridge.passes.float64 import narrow_float64

IN_FP32: dict[str, Any] = {"float64": "fp32", "engine": "reference", "cache_dir": ""}
LOWEST = torch.finfo(torch.float64).min


def x_of(*shape: int) -> torch.Tensor:
    return torch.rand(*(shape or (4, 4)), dtype=torch.float64) + 0.5


def in_float64(module: Any) -> list[Any]:
    """Return the operators that compute float64, other than casts at the border of engines."""
    nodes = [node for node in module.graph.nodes if node.op == "call_function" and not node.meta.get(AT_BORDER)]
    return [node.target for node in nodes if getattr(node.meta["val"], "dtype", None) == torch.float64]


FUNCTIONS: dict[str, Callable[[torch.Tensor], Any]] = {
    "arithmetic": lambda x: (x * 2 + x.exp()) / 3,
    "created": lambda x: x + torch.arange(4, dtype=torch.float64, device=x.device) + x.new_zeros(4),
    "cast": lambda x: x.float().double() + x.long(),
    "promoted": lambda x: x.float() + x,
    "sum": lambda x: x.sum(0, dtype=torch.float64),
    "parts": lambda x: [part * 2 for part in x.split(2)],
    "compared": lambda x: (x > 1, x.argmax(0), x.half()),
    "softmax": lambda x: x.softmax(-1, dtype=torch.float64),
    "complex": lambda x: torch.view_as_real(torch.view_as_complex(x.view(4, 2, 2)) * 1j),
    "masked": lambda x: x.masked_fill(x > 1, LOWEST).softmax(-1),
    "mask": lambda x: (x + torch.where(x > 1, torch.tensor(LOWEST, dtype=x.dtype), 0.0)).softmax(-1),
    "kept from zero": lambda x: (x - x) / (x - x + 1e-300),
    "infinite": lambda x: x.masked_fill(x > 1, -torch.inf),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_float64_is_fp32_in_engines(name: str) -> None:
    model, x = FUNCTIONS[name], x_of()
    module = passed(model, x, normalize, float64="fp32")
    assert in_float64(module) == []
    assert propose(module, Options()).rejections == []
    assert_computes(module, model, x)


def test_it_is_left_to_pytorch_by_default() -> None:
    model = FUNCTIONS["arithmetic"]
    module = passed(model, x_of(), normalize)
    assert calls(module) == calls(passed(model, x_of()))
    assert {rejection.reason for rejection in propose(module, Options()).rejections} == {"dtype float64"}


def test_complex128_is_left_to_pytorch_by_default() -> None:
    module = passed(FUNCTIONS["complex"], x_of(), normalize)
    assert aten.view_as_complex.default in calls(module)


STAYING: dict[str, tuple[Callable[[torch.Tensor], Any], Any]] = {
    "no converter": (lambda x: torch.linalg.det(x * 2) + x, aten._linalg_det.default),
    "a factor beyond fp32": (lambda x: x * 1e300 * 1e-300 + x, aten.mul.Tensor),
    "a constant beyond fp32": (lambda x: x * torch.tensor([1e-300], dtype=torch.float64) * 1e300, aten.mul.Tensor),
}


@pytest.mark.parametrize("name", STAYING)
def test_what_no_engine_runs_stays_in_float64(name: str) -> None:
    model, op = STAYING[name]
    x = x_of()
    module = passed(model, x, normalize, float64="fp32")
    assert op in [n.target for n in module.graph.nodes if n.op == "call_function"]
    assert in_float64(module) or op is aten._linalg_det.default
    assert_computes(module, model, x)


def test_an_operator_named_by_torch_ops_stays_in_float64() -> None:
    module = passed(lambda x: (x * 2).exp(), x_of(), narrow_float64, float64="fp32", torch_ops=("aten.exp.default",))
    assert in_float64(module) == [aten.exp.default]
    assert call(module, aten.mul.Tensor).meta["val"].dtype == torch.float32


def test_weights_are_cast_once_and_the_models_own_are_not_touched() -> None:
    model = nn.Linear(4, 4).double()
    module = passed(model, x_of(), normalize, float64="fp32")
    assert {value.dtype for value in constants(module)} == {torch.float32}
    assert {value.dtype for value in model.parameters()} == {torch.float64}


def test_models_without_float64_are_untouched() -> None:
    model, x = trained(ConvNet()), image()
    assert calls(passed(model, x, normalize, float64="fp32")) == calls(passed(model, x, normalize))


# From end to end ---------------------------------------------------------------------------------------------------


def assert_whole_in_fp32(fast: Any, model: Callable[..., Any], x: torch.Tensor) -> None:
    with torch.no_grad():
        found, expected = fast(x), model(x)
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert not torch.equal(found, expected)
    report = trtb.report(fast)
    assert report.is_whole, str(report)
    assert "float64" not in report.engines[0].dtypes
    assert "fp32" in str(report)


@pytest.mark.parametrize("is_dynamic", [False, True], ids=["static", "dynamic"])
def test_compiled_model(is_dynamic: bool) -> None:
    model = trained(ConvNet()).double()
    fast = trtb.compile(model, dynamic=is_dynamic, fallback="error", **IN_FP32)
    assert_whole_in_fp32(fast, model, image().double())
    assert 0 < (trtb.report(fast).error or 0) < 1e-5


def test_exported_model() -> None:
    model = trained(ConvNet()).double()
    fast = trtb.export(model, (image().double(),), fallback="error", **IN_FP32)
    assert_whole_in_fp32(fast, model, image().double())


def test_fp16_is_an_option_beside() -> None:
    model = trained(ConvNet()).double()
    fast, x = trtb.compile(model, precision="fp16", **IN_FP32), image().double()
    with torch.no_grad():
        torch.testing.assert_close(fast(x), model(x), rtol=2e-2, atol=2e-2)
    assert "float16" in trtb.report(fast).engines[0].dtypes


def cancelling(x: torch.Tensor) -> torch.Tensor:
    """Compute what fp32 has no digits for."""
    return (x + 1e8) - 1e8


def test_a_compiled_model_whose_results_fp32_does_not_hold_runs_in_pytorch() -> None:
    fast, x = trtb.compile(cancelling, **IN_FP32), x_of()
    for _ in range(2):
        assert torch.equal(fast(x), cancelling(x))
    assert not trtb.report(fast).is_whole


def test_an_export_whose_results_fp32_does_not_hold_leaves_float64_to_pytorch() -> None:
    model, x = Called(cancelling), x_of()
    program = trtb.export(model, (x,), **IN_FP32)
    assert torch.equal(program(x), cancelling(x))
    assert "leaves float64 to PyTorch" in str(trtb.report(program))
    with pytest.raises(trtb.CaptureError, match="in fp32 the results"):
        trtb.export(model, (x,), fallback="error", **IN_FP32)


def test_a_buffer_that_the_model_writes_to_keeps_its_dtype() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("total", torch.zeros(4, dtype=torch.float64))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.total.add_(x.exp().sum(0))
            return F.relu(self.total)

    model, other = Model(), Model()
    fast = trtb.compile(model, **IN_FP32)
    for _ in range(2):
        x = x_of()
        torch.testing.assert_close(fast(x), other(x), rtol=1e-6, atol=1e-6)
    assert model.total.dtype == torch.float64
    torch.testing.assert_close(model.total, other.total, rtol=1e-6, atol=1e-6)
