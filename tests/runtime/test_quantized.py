"""A quantized engine beside one without quantization: 8 bits serve only where they are right and no slower."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any

import pytest
import torch
from torch import fx, nn

from tests.quantize.nets import loader, quantized
from tests.runtime.fakes import SPEC, WRONG, Compute, FakeRunner, InPyTorch, clock, in_pytorch, right, slow, x_of
from torchtrt_bridge import pipeline
from torchtrt_bridge.capture.export import export_program, graph_from_program
from torchtrt_bridge.engine.builder import Builder
from torchtrt_bridge.errors import BuildError
from torchtrt_bridge.options import Options
from torchtrt_bridge.report.model import CompileReport, EngineEntry
from torchtrt_bridge.runtime import EngineModule
from torchtrt_bridge.runtime.runners import NoEngine

FLOAT = 1.01  # what the subgraph without quantization gives, in parts of the quantized one's results


@pytest.fixture(autouse=True)
def _own_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torchtrt_bridge.runtime.trial.time", clock)


def of_float(x: torch.Tensor) -> torch.Tensor:
    return right(x) * FLOAT


class InFloat(InPyTorch):
    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor]:
        return (super().forward(x)[0] * FLOAT,)


def built(runner: Any) -> Future[Any]:
    future: Future[Any] = Future()
    future.set_result(NoEngine("it could not be built") if runner is None else runner)
    return future


def unquantized_in(options: Options, runner: Any) -> EngineModule:
    pytorch: Any = InFloat()
    pytorch.delay = 0.02
    entry = EngineEntry("other", {}, [], [], {"float32": 1})
    return EngineModule(pytorch, [SPEC], built(runner), [torch.float32], entry, options)


def module_of(quantized: Any, unquantized: Any, **options: Any) -> EngineModule:
    """Both in PyTorch take 20 ms, so that no trial is about them."""
    checked = Options.from_mapping({"engine": "auto", **options})
    pytorch: Any = InPyTorch()
    pytorch.delay = 0.02
    entry = EngineEntry("trt_0", {}, [], [], {"int8": 1})
    alternative = unquantized_in(checked, unquantized)
    return EngineModule(
        pytorch, [SPEC], built(quantized), [torch.int8], entry, checked, lambda module: module, alternative
    )


def assert_serves(module: EngineModule, compute: Compute, runner: FakeRunner) -> None:
    """After the trial, `runner` is asked once for each call, and PyTorch not at all."""
    asked, called = runner.count, in_pytorch(module)
    torch.testing.assert_close(module(x := x_of())[0], compute(x))
    assert (runner.count, in_pytorch(module)) == (asked + 1, called)
    assert module.has_won


def test_a_fast_quantized_engine_stays() -> None:
    narrow, other = FakeRunner(), FakeRunner(slow(of_float), slow(of_float))
    module = module_of(narrow, other)
    module(x_of())
    assert_serves(module, right, narrow)
    assert module.entry.milliseconds["unquantized"] == pytest.approx(20)
    assert module.entry.milliseconds["engine"] == 0
    report = CompileReport(Options(), [module.entry])
    assert "trt_0 is quantized: it takes" in str(report)


def test_a_slow_quantized_engine_goes() -> None:
    narrow, other = FakeRunner(slow(right), slow(right)), FakeRunner(of_float, of_float)
    module = module_of(narrow, other)
    module(x_of())
    assert_serves(module, of_float, other)
    assert module.entry.name == "trt_0"
    assert module.entry.serves
    assert module.entry.dtypes == {"float32": 1}
    assert "in 8 bits it takes 2" in module.entry.unquantized
    assert "trt_0 is computed without quantization: in 8 bits" in str(CompileReport(Options(), [module.entry]))


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_quantized_engine_goes(name: str, caplog: pytest.LogCaptureFixture) -> None:
    first, words = WRONG[name]
    other = FakeRunner(of_float, of_float)
    module = module_of(FakeRunner(first), other)
    torch.testing.assert_close(module(x := x_of())[0], of_float(x))
    assert_serves(module, of_float, other)
    assert words in module.entry.unquantized
    assert words in caplog.text


def test_one_that_could_not_be_built_goes() -> None:
    other = FakeRunner(of_float, of_float)
    module = module_of(None, other)
    module(x_of())
    assert_serves(module, of_float, other)
    assert module.entry.unquantized == "it could not be built"


BAD_ALTERNATIVES: dict[str, Callable[[], Any]] = {
    "not built": lambda: None,
    "wrong": lambda: FakeRunner(right, right),
    "slow": lambda: FakeRunner(slow(slow(of_float)), slow(slow(of_float))),
}


@pytest.mark.parametrize("name", BAD_ALTERNATIVES)
def test_a_bad_alternative_is_no_reason_to_go(name: str) -> None:
    narrow = FakeRunner()
    module = module_of(narrow, BAD_ALTERNATIVES[name]())
    module(x_of())
    assert_serves(module, right, narrow)
    assert module.entry.is_ready


@pytest.mark.parametrize("error", [BuildError("planted"), RuntimeError("planted"), MemoryError("planted")])
def test_an_alternative_that_raises_is_no_reason_to_go(error: Exception) -> None:
    """As its build does with ``fallback="error"``."""
    narrow = FakeRunner()
    module = module_of(narrow, None, fallback="error")
    pending: Future[Any] = Future()
    pending.set_exception(error)
    module.alternatives[0]._build = pending
    module(x_of())
    assert_serves(module, right, narrow)


def test_without_either_engine_pytorch_serves() -> None:
    module = module_of(None, None)
    for _ in range(2):
        torch.testing.assert_close(module(x := x_of())[0], of_float(x))
    assert not module.entry.is_ready


def test_in_the_background_both_are_waited_for() -> None:
    narrow, other = FakeRunner(slow(right), slow(right)), FakeRunner(of_float, of_float)
    module = module_of(narrow, other, build="background")
    (alternative,) = module.alternatives
    alternative._build = pending = Future()
    module(x_of())
    assert not module.is_settled
    pending.set_result(other)
    module(x_of())
    assert_serves(module, of_float, other)


# What is right ----------------------------------------------------------------------------------------------------


def rounded_by(noise: float) -> Compute:
    """What is `noise` away from floats, each time in another direction."""

    def computed(x: torch.Tensor) -> torch.Tensor:
        exact = right(x)
        off = torch.randn_like(exact)
        return exact + off * (noise * exact.norm() / off.norm())

    return computed


class Rounded(InPyTorch):
    def __init__(self, noise: float) -> None:
        super().__init__()
        self.noise = noise

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor]:
        return (rounded_by(self.noise)(x),)


def compared(of_pytorch: float, of_engine: float) -> EngineModule:
    """A quantized subgraph after its check; how far PyTorch and the engine are from floats."""
    entry = EngineEntry("trt_0", {}, [], [], {"int8": 1, "float16": 2})
    runner = built(FakeRunner(rounded_by(of_engine), rounded_by(of_engine)))
    rounded: Any = Rounded(of_pytorch)
    floats: Any = InPyTorch()
    options, dtypes = Options(engine="reference"), [torch.int8, torch.float16]
    module = EngineModule(rounded, [SPEC], runner, dtypes, entry, options, lambda module: floats)
    module(torch.randn(4, 3))
    return module


@pytest.mark.parametrize(("of_pytorch", "of_engine"), [(0.02, 0.04), (0.25, 0.25), (0.25, 0.01), (0.0, 0.04)])
def test_an_engine_as_near_to_floats_as_pytorch_is_right(of_pytorch: float, of_engine: float) -> None:
    module = compared(of_pytorch, of_engine)
    assert module.has_won
    assert module.entry.error == pytest.approx(of_engine, rel=0.01)


@pytest.mark.parametrize(("of_pytorch", "of_engine"), [(0.02, 0.1), (0.25, 0.5), (0.0, 0.1)])
def test_one_that_is_further_is_wrong(of_pytorch: float, of_engine: float) -> None:
    module = compared(of_pytorch, of_engine)
    assert not module.has_won
    assert "relative L2 distance" in module.entry.state


# What the pipeline makes of a quantized model --------------------------------------------------------------------


class InPlace:
    """Computes a subgraph in PyTorch, as its engine would; a call takes `seconds` by the clock."""

    device = torch.device("cpu")

    def __init__(self, module: fx.GraphModule, seconds: float) -> None:
        self.module, self.seconds = module, seconds

    def __call__(self, inputs: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
        clock.advance(self.seconds)
        results: Sequence[torch.Tensor] = self.module(*inputs)
        return results


def compiled(monkeypatch: pytest.MonkeyPatch, model: nn.Module, x: torch.Tensor, **options: Any) -> Any:
    """Compile for engines that take 20 ms without quantization and 50 with it; PyTorch takes 100."""

    def begin(self: Builder, module: fx.GraphModule, entry: EngineEntry, count: int) -> Future[Any]:
        engine = fx.GraphModule(module, module.graph)
        module.register_forward_pre_hook(lambda *_: clock.advance(0.1))
        return built(InPlace(engine, 0.02 if entry.name.endswith("without quantization") else 0.05))

    monkeypatch.setattr(Builder, "begin", begin)
    captured = graph_from_program(export_program(model, (x,)))
    return pipeline.compile_graph(captured, Options.from_mapping({"engine": "tensorrt_rtx", **options}))


NET = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 16)).eval()


@pytest.mark.parametrize(
    ("options", "is_quantized"), [({}, False), ({"keep_int8": True}, True), ({"trial": "check"}, True)]
)
def test_slow_8_bits_give_way_to_floats(
    monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], is_quantized: bool
) -> None:
    data = loader(8, 16)
    model = quantized(NET, data)
    found = compiled(monkeypatch, model, data[0], **options)
    with torch.no_grad():
        found.run([data[0]])
        result = found.run([data[0]])[0]
        float_result, rounded = NET(data[0]), model(data[0])
    torch.testing.assert_close(result, rounded if is_quantized else float_result, rtol=0, atol=2e-2)
    near_float, near_rounded = ((result - other).abs().max() for other in (float_result, rounded))
    assert bool(near_rounded < near_float) == is_quantized
    assert [bool(entry.unquantized) for entry in found.report.engines] == [not is_quantized]
