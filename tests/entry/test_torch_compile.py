"""`torch.compile`, computed by the reference interpreter."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import torchtrt_bridge as trtb
from tests.entry.reference import REFERENCE, assert_same, compiled
from tests.models import ConvNet, WithUnsupported, image, trained
from torchtrt_bridge import pipeline
from torchtrt_bridge.engine import builder
from torchtrt_bridge.entry.compiled_graph import why_not_these_devices
from torchtrt_bridge.options import Options


def test_backend_is_found_by_name() -> None:
    assert "torchtrt_bridge" in torch.compiler.list_backends()
    model = trained(ConvNet())
    fast = torch.compile(model, backend="torchtrt_bridge", options=REFERENCE)
    with torch.no_grad():
        x = image()
        assert_same(fast(x), model(x))


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_the_engine_computes_in_the_precision(precision: str) -> None:
    model, x = trained(ConvNet()), image()
    fast = compiled(model, precision=precision)
    with torch.no_grad():
        result, expected = fast(x), model(x)
    bound = {"fp32": 1e-5, "fp16": 5e-3, "bf16": 5e-2}[precision]
    assert float((result - expected).norm() / expected.norm()) < bound
    assert result.dtype == torch.float32
    (engine,) = trtb.report(fast).engines
    name = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}[precision]
    assert engine.dtypes[name] == max(engine.dtypes.values())


def test_a_model_in_half_precision_keeps_its_types() -> None:
    model, x = trained(ConvNet()).half(), image().half()
    fast = compiled(model)
    with torch.no_grad():
        torch.testing.assert_close(fast(x), model(x), rtol=1e-2, atol=1e-2)
    assert set(trtb.report(fast).engines[0].dtypes) == {"float16"}


def test_unsupported_operator_stays_in_pytorch_with_reason_and_source() -> None:
    model, x = trained(WithUnsupported()), image()
    fast = compiled(model)
    with torch.no_grad():
        assert_same(fast(x), model(x))
    report = trtb.report(fast)
    assert len(report.engines) == 2
    assert any("linalg" in entry.op for entry in report.in_torch)
    assert all("no converter" in entry.reason for entry in report.in_torch)
    assert all(entry.source and "tests/models.py" in entry.source for entry in report.in_torch)


def test_fallback_error_names_the_operator() -> None:
    fast = compiled(trained(WithUnsupported()), fallback="error")
    with torch.no_grad(), pytest.raises(Exception, match=r"linalg.*fallback='pytorch'"):
        fast(image())


def test_torch_ops_keeps_operators_in_pytorch() -> None:
    model, x = trained(ConvNet()), image()
    fast = compiled(model, torch_ops=("aten.relu.default",))
    with torch.no_grad():
        assert_same(fast(x), model(x))
    assert [entry.op for entry in trtb.report(fast).in_torch] == ["aten.relu.default"]
    assert len(trtb.report(fast).engines) == 2


# Weights are constants ---------------------------------------------------------------------------------------


def sgd_step(model: ConvNet) -> None:
    optimizer = torch.optim.SGD(model.parameters(), 0.5)
    model(image()).square().sum().backward()
    optimizer.step()


def replace_parameter(model: ConvNet) -> None:
    model.head.weight = nn.Parameter(torch.randn_like(model.head.weight))


def load_state(model: ConvNet) -> None:
    model.load_state_dict(trained(ConvNet()).state_dict())


def edit_in_place(model: ConvNet) -> None:
    with torch.no_grad():
        model.conv.weight.mul_(2)


def assign_data(model: ConvNet) -> None:
    model.conv.weight.data = torch.randn_like(model.conv.weight)


def edit_buffer(model: ConvNet) -> None:
    model.norm.running_var.fill_(3.0)


@pytest.mark.parametrize("change", [sgd_step, replace_parameter, load_state, edit_in_place, assign_data, edit_buffer])
def test_changed_weights_are_noticed(change: Callable[[ConvNet], None]) -> None:
    model, x = trained(ConvNet()), image()
    fast = compiled(model)
    with torch.no_grad():
        before = fast(x)
    change(model)  # type: ignore[arg-type]
    with torch.no_grad():
        expected = model(x)
        assert not torch.allclose(before, expected, atol=1e-3)
        assert_same(fast(x), expected)  # PyTorch runs
        assert_same(fast(x), expected)  # the engine is built again
        assert_same(fast(x), expected)
    assert trtb.report(fast).engines[-1].is_ready


def test_changed_weights_keep_sizes_dynamic() -> None:
    def model(x: torch.Tensor) -> torch.Tensor:
        return head(x).view(x.shape[0] // 2, -1) + x.shape[0]

    head = nn.Linear(6, 6)
    fast = compiled(model, dynamic=True)
    with torch.no_grad():
        assert_same(fast(torch.ones(4, 6)), model(torch.ones(4, 6)))
        head.weight.mul_(2)
        results = [fast(torch.ones(batch, 6)) for batch in (4, 4, 8, 12)]
        assert_same(results, [model(torch.ones(batch, 6)) for batch in (4, 4, 8, 12)])
    assert ".." in trtb.report(fast).engines[0].inputs[0]


def test_weights_are_no_inputs_of_the_engine() -> None:
    fast = compiled(trained(ConvNet()))
    with torch.no_grad():
        fast(image())
    assert len(trtb.report(fast).engines[0].inputs) == 1


def test_gradients_are_computed_by_pytorch(caplog: pytest.LogCaptureFixture) -> None:
    model, x = trained(ConvNet()), image()
    fast = compiled(model)
    fast(x).sum().backward()
    assert model.conv.weight.grad is not None
    assert "gradients are needed" in caplog.text
    assert "gradients are needed" in trtb.report(fast).notes[0]
    with torch.no_grad():
        fast(x)
    assert trtb.report(fast).engines


def test_training_mode_updates_the_statistics() -> None:
    model, x = trained(ConvNet()).train(), image()
    twin = copy.deepcopy(model)
    fast = compiled(model)
    with torch.no_grad():
        for _ in range(3):
            assert_same(fast(x), twin(x))
    assert_same(model.norm.running_mean, twin.norm.running_mean)


# Shapes ------------------------------------------------------------------------------------------------------


def test_one_engine_runs_a_dynamic_batch() -> None:
    model = trained(ConvNet())
    fast = compiled(model, dynamic=True)
    with torch.no_grad():
        for batch in (4, 5, 7):
            x = image(batch)
            assert_same(fast(x), model(x))
    (engine,) = trtb.report(fast).engines
    assert ".." in engine.inputs[0]


def test_outside_the_range_pytorch_runs() -> None:
    model = trained(ConvNet())
    fast = compiled(model, dynamic=True, max_dynamic_size=6)
    with torch.no_grad():
        for batch in (3, 9):
            x = image(batch, 5)
            assert_same(fast(x), model(x))


# Inputs and outputs as they come -----------------------------------------------------------------------------


@dataclasses.dataclass
class Pair:
    first: torch.Tensor
    second: torch.Tensor | None


def nested(x: torch.Tensor, *, scale: float = 2.0, extra: dict[str, torch.Tensor] | None = None) -> Any:
    y = x.sigmoid() * scale
    if extra is not None:
        y = y + extra["bias"]
    return {"y": y, "both": (y, y), "none": None, "more": [y.relu(), 3]}


def test_nested_outputs_and_keyword_arguments() -> None:
    fast = compiled(nested)
    x, extra = torch.randn(2, 3), {"bias": torch.randn(3)}
    with torch.no_grad():
        result, expected = fast(x, scale=3.0, extra=extra), nested(x, scale=3.0, extra=extra)
    assert_same(result["y"], expected["y"])
    assert_same(result["more"][0], expected["more"][0])
    assert result["none"] is None
    assert result["more"][1] == 3
    assert result["both"][0] is result["both"][1]


def test_dataclass_output() -> None:
    def model(x: torch.Tensor) -> Pair:
        return Pair(x.sigmoid(), None)

    x = torch.randn(3)
    assert_same(compiled(model)(x).first, x.sigmoid())


def test_no_outputs() -> None:
    def model(x: torch.Tensor) -> None:
        x.mul_(2)

    x = torch.ones(3)
    assert compiled(model)(x) is None
    assert_same(x, torch.full((3,), 2.0))


def test_data_dependent_control_flow_splits_the_graph() -> None:
    def model(x: torch.Tensor) -> torch.Tensor:
        y = x.sigmoid() * 2
        return y.tanh() + 1 if y.sum() > 3 else y.relu() - 1

    fast = compiled(model)
    for x in (torch.full((4,), 5.0), torch.full((4,), -5.0)):
        assert_same(fast(x), model(x))
    assert trtb.report(fast).graphs > 1


@pytest.mark.parametrize(
    "x",
    [
        torch.randn(0, 3, 8, 8),
        torch.randn(2, 8, 8, 3).permute(0, 3, 1, 2),
        torch.randn(2, 3, 8, 8).to(memory_format=torch.channels_last),
        torch.full((2, 3, 8, 8), float("nan")),
    ],
    ids=["zero-size", "non-contiguous", "channels-last", "nan"],
)
def test_unusual_inputs(x: torch.Tensor) -> None:
    model = trained(ConvNet())
    with torch.no_grad():
        result, expected = compiled(model)(x), model(x)
    torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-5, equal_nan=True)


def test_complex_and_sparse_values_stay_in_pytorch() -> None:
    def model(x: torch.Tensor) -> torch.Tensor:
        return torch.fft.fft(x).abs() + x.relu()

    x = torch.randn(4)
    fast = compiled(model)
    assert_same(fast(x), model(x))
    assert any("complex" in entry.reason or "no converter" in entry.reason for entry in trtb.report(fast).in_torch)
    matrix = torch.eye(3).to_sparse()
    assert_same(compiled(lambda m: (m @ torch.ones(3, 1)).relu())(matrix), torch.ones(3, 1))


def test_dtype_and_shape_at_call_time_may_change() -> None:
    model = trained(ConvNet())
    fast = compiled(model)
    with torch.no_grad():
        x = image()
        assert_same(fast(x), model(x))
        model.double()
        assert_same(fast(x.double()), model(x.double()))


def test_a_real_engine_leaves_cpu_tensors_to_pytorch(caplog: pytest.LogCaptureFixture) -> None:
    model, x = trained(ConvNet()), image()
    fast = trtb.compile(model)
    with torch.no_grad():
        assert_same(fast(x), model(x))
    assert "tensors are on cpu" in caplog.text
    assert "trtb.export" in trtb.report(fast).notes[0]


@pytest.mark.parametrize(
    ("engine", "devices", "may"),
    [
        ("auto", {"cuda"}, True),
        ("auto", {"cuda", "cpu"}, True),
        ("auto", {"cpu"}, False),
        ("auto", {"cuda", "xpu"}, False),
        ("reference", {"cpu"}, True),
        ("reference", {"cuda", "cpu"}, False),
        ("auto", set(), True),
    ],
)
def test_beside_a_gpu_tensors_may_be_on_the_cpu(engine: Any, devices: set[str], may: bool) -> None:
    assert (why_not_these_devices(devices, Options(engine=engine)) is None) is may


@pytest.mark.parametrize(
    ("home", "stage"), [(pipeline, "normalize"), (pipeline, "propose"), (builder, "network_from_graph")]
)
def test_an_error_of_this_package_leaves_the_model_running(
    home: Any, stage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError("planted")

    monkeypatch.setattr(home, stage, fail)
    model, x = trained(ConvNet()), image()
    fast = compiled(model)
    with torch.no_grad():
        assert_same(fast(x), model(x))
    reasons = [*trtb.report(fast).notes, *[engine.state for engine in trtb.report(fast).engines]]
    assert "ZeroDivisionError: planted" in reasons[0]
    with torch.no_grad(), pytest.raises(Exception, match="planted"):
        compiled(trained(ConvNet()), fallback="error")(x)


# The decorator -----------------------------------------------------------------------------------------------


def test_decorated_function() -> None:
    @trtb.compile(engine="reference")
    def model(x: torch.Tensor) -> torch.Tensor:
        return x.sigmoid() * 2

    x = torch.randn(3)
    assert_same(model(x), x.sigmoid() * 2)
    assert trtb.report(model).is_whole


def test_decorated_class() -> None:
    @trtb.compile(engine="reference")
    class Net(ConvNet):
        pass

    model, x = trained(Net()), image()
    plain = ConvNet().eval()
    plain.load_state_dict(model.state_dict())
    with torch.no_grad():
        assert_same(model(x), plain(x))
    assert isinstance(model, Net)
    assert trtb.report(model).is_whole


def test_decorated_method() -> None:
    class Service:
        def __init__(self) -> None:
            self.model = trained(ConvNet())

        @trtb.compile(engine="reference")
        def predict(self, x: torch.Tensor) -> torch.Tensor:
            return self.model(x).softmax(-1)

    service, x = Service(), image()
    with torch.no_grad():
        assert_same(service.predict(x), service.model(x).softmax(-1))


@pytest.mark.parametrize("target", [3, dict])
def test_what_cannot_be_compiled(target: Any) -> None:
    with pytest.raises(trtb.OptionsError, match="compile"):
        trtb.compile(target)


def test_the_report_of_torch_compile_is_found_by_the_weights() -> None:
    model = trained(ConvNet())
    other = trained(ConvNet())
    fast = torch.compile(model, backend="torchtrt_bridge", options=REFERENCE)
    with torch.no_grad():
        fast(image())
    assert trtb.report(fast).is_whole
    assert trtb.report(other).graphs == 0


def test_the_source_model_is_not_modified() -> None:
    model = trained(ConvNet())
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.no_grad():
        compiled(model, precision="fp16")(image())
    assert list(before) == list(model.state_dict())
    for name, value in model.state_dict().items():
        assert torch.equal(before[name], value)


def test_the_report_of_an_uncompiled_model_has_its_options() -> None:
    fast = torch.compile(nn.Linear(2, 2), backend="torchtrt_bridge", options={"precision": "fp16"})
    assert trtb.report(fast).options.precision == "fp16"
    assert trtb.report(trtb.compile(nn.Linear(2, 2), precision="fp16")).options.precision == "fp16"
