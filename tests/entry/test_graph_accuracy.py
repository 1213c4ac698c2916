"""Accuracy check of a whole graph against the model as the user wrote it."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import pytest
import torch
from torch import fx, nn

import torchtrt_bridge as trtb
from tests.models import ConvNet, image, trained
from torchtrt_bridge import pipeline
from torchtrt_bridge.entry import graph_accuracy
from torchtrt_bridge.graph.edit import fake_mode_of, insert_call
from torchtrt_bridge.graph.ops import own
from torchtrt_bridge.runtime import Execution
from torchtrt_bridge.runtime.tolerance import BOUNDS, quantized_reference

REFERENCE: dict[str, Any] = {"engine": "reference", "cache_dir": ""}


def squares(x: torch.Tensor) -> torch.Tensor:
    """Compute values beyond the range of fp16, and a result within it."""
    y = x * 600
    return y * torch.rsqrt((y * y).mean(-1, keepdim=True) + 1e-6)


def beyond(x: torch.Tensor) -> torch.Tensor:
    return (x * 600).square().sum(-1)


def below(x: torch.Tensor) -> torch.Tensor:
    """Compute values below the range of fp16, by numbers that are within it."""
    return torch.matmul(x, x.t()) * 1e-3 * 1e-3 * 1e-3 * 1e9


NUMBERS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {"squares": squares, "beyond": beyond, "below": below}
X = torch.linspace(-2, 2, 64).view(2, 32)


def called(model: Callable[..., Any], *args: Any, **options: Any) -> tuple[Any, Any]:
    """Return the results of the first call of a compiled model, and the compiled model."""
    fast = trtb.compile(model, **{**REFERENCE, **options})
    with torch.inference_mode():
        return fast(*args), fast


@pytest.mark.parametrize("name", NUMBERS)
def test_numbers_that_fp16_cannot_hold(name: str) -> None:
    function = NUMBERS[name]
    found, fast = called(function, X, precision="fp16")
    for result in (found, fast(X)):
        torch.testing.assert_close(result, function(X), rtol=2e-3, atol=0)


def test_the_report_says_why() -> None:
    _, fast = called(below, X, precision="fp16")
    report = trtb.report(fast)
    (note,) = report.notes
    assert "with engines its results are not the model's own: its relative L2 distance" in note
    assert "precision='bf16'" in note
    assert report.trt_nodes == 0
    assert not report.is_whole


def test_bf16_holds_them() -> None:
    _, fast = called(below, X, precision="bf16")
    assert trtb.report(fast).is_whole


@pytest.mark.parametrize(("precision", "most"), [("fp32", 1e-5), ("fp16", 5e-3), ("bf16", 5e-2)])
def test_the_report_has_the_error_to_the_model_itself(precision: str, most: float) -> None:
    model, x = trained(ConvNet()), image()
    found, fast = called(model, x, precision=precision)
    report = trtb.report(fast)
    with torch.no_grad():
        expected = model(x)
    assert report.error == pytest.approx(float((found - expected).norm() / expected.norm()), rel=1e-3)
    assert report.error is not None
    assert report.error < most
    assert f"error to the model itself {report.error:.1e}" in str(report)
    assert report.to_dict()["error"] == report.error


@pytest.fixture
def wrong_normalization(monkeypatch: pytest.MonkeyPatch) -> None:
    """Change the graph before it is partitioned, so that each engine agrees with its own subgraph."""
    normalize = pipeline.normalize

    def planted(module: fx.GraphModule, *args: Any) -> fx.GraphModule:
        for node in module.graph.find_nodes(op="call_function", target=torch.ops.aten.sin.default):
            node.target = torch.ops.aten.cos.default
        module.recompile()
        return normalize(module, *args)

    monkeypatch.setattr(pipeline, "normalize", planted)


def sine(x: torch.Tensor) -> torch.Tensor:
    return x.sin() + 1


@pytest.mark.usefixtures("wrong_normalization")
@pytest.mark.parametrize("trial", ["check", "check+time"])
def test_a_difference_from_before_the_subgraphs(trial: str) -> None:
    found, fast = called(sine, X, trial=trial)
    torch.testing.assert_close(found, sine(X))
    torch.testing.assert_close(fast(X), sine(X))


@pytest.mark.usefixtures("wrong_normalization")
def test_engines_are_not_checked_without_a_trial() -> None:
    torch.testing.assert_close(called(sine, X, trial="off")[0], X.cos() + 1)


@pytest.mark.usefixtures("wrong_normalization")
def test_without_fallback_it_raises() -> None:
    with pytest.raises(trtb.CaptureError, match="its results are not the model's own"):
        called(sine, X, fallback="error")


def counting(x: torch.Tensor, count: torch.Tensor) -> torch.Tensor:
    count.add_(1)
    return x.sin() + count


def test_a_graph_that_writes_to_its_inputs_does_so_once() -> None:
    count = torch.zeros(1)
    found, fast = called(counting, X, count)
    assert float(count) == 1
    assert float(fast(X, count)[0, 0] - X.sin()[0, 0]) == pytest.approx(2)
    torch.testing.assert_close(found, X.sin() + 1)


@pytest.mark.usefixtures("wrong_normalization")
def test_wrong_values_in_an_input_are_replaced() -> None:
    def kept(x: torch.Tensor, last: torch.Tensor) -> torch.Tensor:
        last.copy_(x.sin())
        return x + 1

    last = torch.zeros_like(X)
    called(kept, X, last)
    torch.testing.assert_close(last, X.sin())


def test_random_numbers_are_drawn_once() -> None:
    dropout = nn.Dropout(0.5)
    torch.manual_seed(0)
    found, fast = called(lambda x: dropout(x) * 2, X)
    torch.manual_seed(0)
    torch.testing.assert_close(found, dropout(X) * 2)
    assert trtb.report(fast).error is None


def test_without_memory_for_a_comparison_the_engines_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def short(*_: Any) -> Any:
        raise torch.OutOfMemoryError("planted")

    fast = trtb.compile(sine, **REFERENCE)
    run = Execution.__call__

    def planted(execution: Execution, inputs: Any) -> Any:
        fast._torchtrt_bridge_backend.graphs[0]._accuracy.original = short
        return run(execution, inputs)

    monkeypatch.setattr(Execution, "__call__", planted)
    torch.testing.assert_close(fast(X), sine(X))
    assert trtb.report(fast).notes == ["there was no memory to compare the results with the model's own"]
    assert [entry.serves for entry in trtb.report(fast).engines] == [True]


def test_pytorch_alone_runs_while_engines_are_built(monkeypatch: pytest.MonkeyPatch) -> None:
    runs: list[int] = []
    run, built = Execution.__call__, Future[None]()
    monkeypatch.setattr(Execution, "__call__", lambda self, inputs: (runs.append(1), run(self, inputs))[1])
    monkeypatch.setattr(Execution, "is_building", property(lambda _: not built.done()))
    _, fast = called(sine, X)
    assert (len(runs), trtb.report(fast).error) == (0, None)
    built.set_result(None)
    torch.testing.assert_close(fast(X), sine(X))
    assert len(runs) == 1
    assert trtb.report(fast).error is not None


@pytest.fixture
def ten_per_cent_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the first activation of a graph give more, before the graph is partitioned."""
    normalize = pipeline.normalize

    def planted(module: fx.GraphModule, *args: Any) -> fx.GraphModule:
        node = module.graph.find_nodes(op="call_function", target=torch.ops.aten.relu.default)[0]
        more = insert_call(node.next, fake_mode_of(module), torch.ops.aten.mul.Tensor, node, 1.1)
        node.replace_all_uses_with(more, delete_user_cb=lambda user: user is not more)
        module.recompile()
        return normalize(module, *args)

    monkeypatch.setattr(pipeline, "normalize", planted)


class Perceptron(nn.Sequential):
    def __init__(self) -> None:
        torch.manual_seed(0)
        super().__init__(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 16))


def perceptron(is_quantized: bool) -> nn.Module:
    model = Perceptron().eval()
    return trtb.quantize(model, [torch.randn(8, 32) for _ in range(4)]) if is_quantized else model


settings = pytest.mark.parametrize(
    ("precision", "is_quantized"), [("fp32", False), ("fp16", False), ("bf16", False), ("fp32", True), ("fp16", True)]
)


@settings
@pytest.mark.usefixtures("ten_per_cent_more")
def test_ten_per_cent_are_too_much(precision: str, is_quantized: bool) -> None:
    model, x = perceptron(is_quantized), torch.randn(8, 32)
    found, fast = called(model, x, precision=precision)
    (note,) = trtb.report(fast).notes
    assert "its results are not the model's own" in note
    with torch.no_grad():
        torch.testing.assert_close(found, model(x))


@settings
def test_rounding_is_not(precision: str, is_quantized: bool) -> None:
    _, fast = called(perceptron(is_quantized), torch.randn(8, 32), precision=precision)
    assert trtb.report(fast).is_whole
    assert trtb.report(fast).error is not None


def cancelling(x: torch.Tensor) -> torch.Tensor:
    """Lose digits, so that the rounding of a product is a large part of the result."""
    return x @ x.t() - (x + 3e-2) @ x.t()


def test_rounding_that_autocast_does_too_is_allowed() -> None:
    _, fast = called(cancelling, X * 3, precision="bf16")
    report = trtb.report(fast)
    assert report.is_whole
    assert report.error is not None
    assert report.error > BOUNDS[torch.bfloat16]


class Rounded(nn.Module):
    """Rounds an activation by operators of this package, which a caller may name in two ways."""

    def __init__(self, quantize: Any, dequantize: Any) -> None:
        super().__init__()
        self.quantize, self.dequantize = quantize, dequantize
        self.scale = nn.Buffer(torch.tensor([0.5]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        quantized = self.quantize(x, self.scale, None, torch.int8)
        return self.dequantize(quantized, self.scale, None, x.dtype).relu()


@pytest.mark.parametrize(
    "operators",
    [(own.quantize, own.dequantize), (own.quantize.default, own.dequantize.default)],
    ids=["packets", "overloads"],
)
def test_a_quantized_graph_is_compared_with_floats(operators: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    references: list[Any] = []

    def reference(usual: Any, floats: Any, rounded: Any) -> Any:
        references.append((floats, rounded))
        return quantized_reference(usual, floats, rounded)

    off = iter([1.1])  # the first call of the engine rounds otherwise: within its slack, beyond the usual bound

    def comparing(self: Any, args: Any) -> Any:
        (result,) = call(self, args)
        return (result * next(off, 1.0),)

    call = Execution.__call__
    monkeypatch.setattr(Execution, "__call__", comparing)
    monkeypatch.setattr(graph_accuracy, "quantized_reference", reference)
    x = torch.rand(4, 8)
    _, fast = called(Rounded(*operators), x)
    ((floats, rounded),) = references
    assert torch.equal(floats[0], x)
    assert not torch.equal(rounded[0], x)
    assert trtb.report(fast).is_whole
