"""Calls under transforms, modes and captures that engines know nothing of: right results, or an error that says why."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.autograd import forward_ad

import torchtrt_bridge as trtb
from torchtrt_bridge.entry import compiled_graph

Call = Callable[[torch.Tensor], torch.Tensor]


class Scores(nn.Module):
    """Two layers with one in the middle that the tests may leave to PyTorch."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 8)
        self.last = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(torch.nn.functional.gelu(self.first(x))).softmax(-1)


@pytest.fixture
def model() -> Scores:
    return Scores().eval().requires_grad_(False)


def compiled(model: nn.Module, x: torch.Tensor, **options: Any) -> Any:
    """Compiled, with an engine in place."""
    fast = trtb.compile(model, engine="reference", **options)
    with torch.no_grad():
        fast(x)
    assert trtb.report(fast).is_whole or options
    return fast


def exported(model: nn.Module, x: torch.Tensor, **options: Any) -> Any:
    program = trtb.export(model, x, engine="reference", **options)
    program(x)
    return program


ROADS = {"compile": compiled, "export": exported}
with_each_road = pytest.mark.parametrize("road", ROADS)


# Transforms --------------------------------------------------------------------------------------------------------


def mapped(call: Call, x: torch.Tensor) -> torch.Tensor:
    return torch.func.vmap(call)(torch.stack([x, -x]))


def differentiated(call: Call, x: torch.Tensor) -> torch.Tensor:
    return torch.func.grad(lambda v: call(v)[:, 0].sum())(x)


def pushed_forward(call: Call, x: torch.Tensor) -> torch.Tensor:
    return torch.func.jvp(call, (x,), (x.cos(),))[1]


def with_a_dual(call: Call, x: torch.Tensor) -> torch.Tensor:
    with forward_ad.dual_level():
        tangent = forward_ad.unpack_dual(call(forward_ad.make_dual(x, x.cos()))).tangent
    assert tangent is not None
    return tangent


@with_each_road
@pytest.mark.parametrize("transform", [mapped, differentiated, pushed_forward, with_a_dual])
def test_transforms(road: str, transform: Callable[[Call, torch.Tensor], torch.Tensor], model: Scores) -> None:
    x = torch.randn(5, 4)
    fast = ROADS[road](model, x)
    torch.testing.assert_close(transform(fast, x), transform(model, x))
    torch.testing.assert_close(fast(x), model(x))


def test_a_transform_within_is_compiled(model: Scores) -> None:
    x = torch.randn(5, 4)
    fast = compiled(torch.func.vmap(model), x)  # type: ignore[arg-type]
    torch.testing.assert_close(fast(x), model(x))


def test_functional_call(model: Scores) -> None:
    x = torch.randn(5, 4)
    fast = compiled(model, x)
    other = {name: torch.randn_like(value) for name, value in fast.named_parameters()}
    plain = {name.removeprefix("_orig_mod."): value for name, value in other.items()}
    expected = torch.func.functional_call(model, plain, (x,))
    with torch.no_grad():
        results = [torch.func.functional_call(fast, other, (x,)) for _ in range(3)]
        torch.testing.assert_close(results, [expected] * 3)
        torch.testing.assert_close(fast(x), model(x))


# Modes -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode, torch.enable_grad])
@with_each_road
def test_grad_modes(road: str, context: Any, model: Scores) -> None:
    x = torch.randn(5, 4)
    fast = ROADS[road](model, x)
    with context():
        result, expected = fast(x), model(x)
    torch.testing.assert_close(result, expected)
    assert (result.requires_grad, result.is_inference()) == (expected.requires_grad, expected.is_inference())


def test_gradients_that_are_asked_for(model: Scores) -> None:
    x = torch.randn(5, 4)
    fast = compiled(model, x)
    compiled_x, eager_x = (x.clone().requires_grad_() for _ in range(2))
    fast(compiled_x)[:, 0].sum().backward()
    model(eager_x)[:, 0].sum().backward()
    torch.testing.assert_close(compiled_x.grad, eager_x.grad)


def test_a_program_says_that_it_computes_no_gradients(model: Scores, caplog: pytest.LogCaptureFixture) -> None:
    x = torch.randn(5, 4)
    program = exported(model, x)
    assert caplog.text == ""
    assert not program(x.requires_grad_()).requires_grad
    assert "computes no gradients" in caplog.text


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("options", [{}, {"torch_ops": ("aten.gelu.default",)}], ids=["one engine", "two"])
def test_autocast(dtype: torch.dtype, options: dict[str, Any], model: Scores, caplog: pytest.LogCaptureFixture) -> None:
    x = torch.randn(5, 4)
    fast = compiled(model, x, **options)
    before = len(caplog.records)
    with torch.no_grad():
        with torch.autocast("cpu", dtype=dtype):
            results, expected = [fast(x) for _ in range(2)], model(x)
        torch.testing.assert_close(results, [expected] * 2, rtol=2e-2, atol=2e-2)
        torch.testing.assert_close(fast(x), model(x))
    assert [
        r.message for r in caplog.records[before:] if "runs this subgraph" in r.message or "engine serves" in r.message
    ] == []


def test_a_program_keeps_its_dtypes_under_autocast(model: Scores, caplog: pytest.LogCaptureFixture) -> None:
    """PyTorch's part between two engines too, whose inputs would be of another dtype."""
    x = torch.randn(5, 4)
    program = exported(model, x, torch_ops=("aten.gelu.default",))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = program(x)
    torch.testing.assert_close(result, model(x))
    assert "the engine serves" not in caplog.text
    assert [entry.serves for entry in program.report.engines] == [True, True]


def test_a_program_exported_under_autocast(model: Scores) -> None:
    x = torch.randn(5, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        program = exported(model, x)
        expected = model(x)
    assert program(x).dtype == expected.dtype == torch.bfloat16
    torch.testing.assert_close(program(x), expected, rtol=2e-2, atol=2e-2)


# Devices and captures ----------------------------------------------------------------------------------------------


def test_a_program_names_the_device_that_it_is_for(model: Scores) -> None:
    program = exported(model, torch.randn(5, 4))
    with pytest.raises(trtb.ShapeRangeError, match="is on meta, and the program on cpu"):
        program(torch.randn(5, 4, device="meta"))


def test_tensors_on_another_device_raise_as_in_torch_compile(model: Scores) -> None:
    x = torch.randn(5, 4)
    fast = compiled(model, x)
    with torch.no_grad(), pytest.raises(RuntimeError, match="device"):
        fast(x.to("meta"))
    torch.testing.assert_close(fast(x), model(x))


def test_nothing_is_built_during_a_capture(
    model: Scores, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    x = torch.randn(5, 4)
    monkeypatch.setattr(compiled_graph, "is_capturing", lambda values: True)
    fast = trtb.compile(model, engine="reference")
    torch.testing.assert_close(fast(x), model(x))
    assert "engines are built at the next one" in caplog.text
    assert trtb.report(fast).engines == []
    monkeypatch.undo()
    torch.testing.assert_close(fast(x), model(x))
    assert trtb.report(fast).is_whole


@torch.no_grad()
def test_changed_weights_are_not_built_during_a_capture(model: Scores, monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(5, 4)
    fast = compiled(model, x)
    (before,) = trtb.report(fast).engines
    model.last.weight.mul_(2)
    monkeypatch.setattr(compiled_graph, "is_capturing", lambda values: True)
    torch.testing.assert_close([fast(x), fast(x), fast(x)], [model(x)] * 3)
    assert trtb.report(fast).engines[0] is before
    monkeypatch.undo()
    torch.testing.assert_close([fast(x), fast(x), fast(x)], [model(x)] * 3)
    assert trtb.report(fast).engines[0] is not before


# Copies ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda fast: pickle.loads(pickle.dumps(fast))], ids=["copy", "pickle"]
)
def test_copies_compile_anew(copied: Callable[[Any], Any], model: Scores) -> None:
    x = torch.randn(5, 4)
    fast = compiled(model, x, precision="bf16")
    twin = copied(fast)
    assert trtb.report(twin).graphs == 0
    with torch.no_grad():
        torch.testing.assert_close(twin(x), fast(x))
    assert trtb.report(twin).options.precision == "bf16"
    assert trtb.report(twin).engines[0] is not trtb.report(fast).engines[0]


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, pickle.dumps])
def test_a_program_says_how_to_send_it_instead(copied: Callable[[Any], Any], model: Scores) -> None:
    with pytest.raises(TypeError, match=r"trtb\.save.*trtb\.load"):
        copied(exported(model, torch.randn(5, 4)))
