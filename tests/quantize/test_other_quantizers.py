"""Graphs that torchao's PT2E and modelopt quantized: as they write them, and by torchao where it is installed."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable, Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import torchtrt_bridge as trtb
from tests.quantize.by_hand import own
from tests.quantize.lowered import network_of, normalized, products
from tests.quantize.recorded import COMPUTED, PT2E, SCHEMAS, ModelOpt
from torchtrt_bridge.lower import why_not


@pytest.fixture(scope="module", autouse=True)
def _operators() -> Iterator[None]:
    """The operators: PyTorch's own where it has them, else those of `recorded`."""
    with contextlib.suppress(ImportError):
        importlib.import_module("torch.ao.quantization.fx._decomposed")
    libraries = []
    for name, schema in SCHEMAS.items():
        namespace, _, operator = name.partition("::")
        if not _is_defined(namespace, *operator.split(".")):
            libraries.append(torch.library.Library(namespace, "FRAGMENT"))
            libraries[-1].define(operator + schema)
            libraries[-1].impl(operator, COMPUTED[name], "CompositeExplicitAutograd")
    yield
    for library in libraries:
        library._destroy()


def _is_defined(namespace: str, operator: str, overload: str = "default") -> bool:
    packet = getattr(getattr(torch.ops, namespace), operator, None)
    return packet is not None and overload in packet.overloads()


def image(dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(2, 8, 6, 6).to(dtype)


def quantizing(module: torch.fx.GraphModule) -> dict[str, int]:
    """Count the calls of each quantizing operator, by name."""
    names = [str(node.target) for node in module.graph.nodes if node.op == "call_function"]
    return {name: names.count(name) for name in sorted(set(names)) if "quantize" in name}


FITTING: dict[str, tuple[Callable[[], nn.Module], torch.dtype]] = {
    "PT2E": (PT2E, torch.float32),
    "PT2E, scales as tensors": (lambda: PT2E(by_tensor=True), torch.float32),
    "PT2E, range from -128": (lambda: PT2E(limits=(-128, 127)), torch.float32),
    "PT2E, fp16": (lambda: PT2E(real=torch.float16), torch.float16),
    "modelopt": (ModelOpt, torch.float32),
    "modelopt, range of four dimensions": (lambda: ModelOpt(shape=(1, 1, 1, 1)), torch.float32),
    "modelopt, fp8": (lambda: ModelOpt((8, 4)), torch.float32),
}


@pytest.mark.parametrize("name", FITTING)
def test_they_become_operators_of_this_package(name: str) -> None:
    make, dtype = FITTING[name]
    found = quantizing(normalized(make().eval(), image(dtype)))
    assert set(found) == {"torchtrt_bridge.quantize.default", "torchtrt_bridge.dequantize.default"}
    assert found["torchtrt_bridge.quantize.default"] == 2  # of two activations: weights are quantized ahead of time


@pytest.mark.parametrize("name", FITTING)
def test_products_read_8_bits(name: str) -> None:
    make, dtype = FITTING[name]
    found = products(network_of(make().eval(), image(dtype)))
    weight = "DEQUANTIZE < CONSTANT FP8" if "fp8" in name else "DEQUANTIZE < CONSTANT INT8"
    assert list(found.values()) == [["DEQUANTIZE < QUANTIZE", weight]] * 2


@pytest.mark.first(5)
@pytest.mark.parametrize("name", FITTING)
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_they_compute_the_same(name: str, precision: str) -> None:
    make, dtype = FITTING[name]
    model, x = make().eval(), image(dtype)
    program = trtb.export(model, x, engine="reference", precision=precision, fallback="error")
    bound = 2e-2 if "half" in str(dtype) or precision == "fp16" or "fp8" in name else 2e-3
    with torch.no_grad():
        result, expected = program(x).float(), model(x).float()
    assert float((result - expected).norm() / expected.norm()) < bound


@pytest.mark.parametrize("name", FITTING)
def test_they_are_built(name: str) -> None:
    make, dtype = FITTING[name]
    program = trtb.export(make().eval(), image(dtype), targets=("sm_89",), precision="fp16", fallback="error")
    assert program.report.is_whole
    assert program.report.in_float == []


def test_a_batch_norm_goes_into_the_scales_of_the_weight() -> None:
    module = normalized(ModelOpt().eval(), image())
    kinds = {node.target for node in module.graph.nodes if node.op == "call_function"}
    assert torch.ops.aten.mul.Tensor not in kinds
    assert not any("batch_norm" in str(kind) for kind in kinds)
    (convolution,) = module.graph.find_nodes(op="call_function", target=torch.ops.aten.convolution.default)
    assert convolution.args[1].target is own.dequantize.default


def test_a_weight_of_the_least_integer_keeps_its_batch_norm() -> None:
    """-128 has no counterpart, so a negative factor cannot go into such a channel."""
    model = BatchNormed().eval()
    module = normalized(model, image())
    assert module.graph.find_nodes(op="call_function", target=torch.ops.aten.mul.Tensor)
    x = image()
    with torch.no_grad():
        torch.testing.assert_close(module(x)[0], model(x), rtol=1e-4, atol=1e-4)


class BatchNormed(nn.Module):
    """A quantized weight of -128 throughout, and a batch norm that negates."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(4)
        nn.init.constant_(self.norm.weight, -1.0)
        self.register_buffer("weight", torch.full((4, 8, 1, 1), -128, dtype=torch.int8))
        self.register_buffer("scale", torch.rand(4) * 0.01 + 0.001)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(F.conv2d(x, own.dequantize(self.weight, self.scale, 0, torch.float32)))


# What TensorRT cannot take -----------------------------------------------------------------------------------------

UNFIT: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "unsigned": (lambda: PT2E(limits=(0, 255), dtype=torch.uint8), "it quantizes to uint8"),
    "asymmetric": (lambda: PT2E(zero_point=-5), "its zero point is not 0"),
    "asymmetric, as a tensor": (lambda: PT2E(zero_point=-5, by_tensor=True), "its zero point is not 0"),
    "fewer bits": (lambda: PT2E(limits=(-8, 7)), "it clamps to -8 to 7"),
    "modelopt, unsigned": (lambda: ModelOpt(unsigned=True), "unsigned integers"),
    "modelopt, 4 bits": (lambda: ModelOpt((4, 0)), "it quantizes to 4 bits"),
    "modelopt, two dimensions": (lambda: ModelOpt(shape=(1, 8, 6, 1)), r"scales along the dimensions [1, 2]"),
}


@pytest.mark.parametrize("name", UNFIT)
def test_the_rest_stays_in_pytorch_with_its_reason(name: str) -> None:
    make, words = UNFIT[name]
    module = normalized(make().eval(), image())
    reasons = [why_not(node) or "" for node in module.graph.nodes if node.op == "call_function"]
    assert any(words in reason for reason in reasons), reasons


@pytest.mark.parametrize("name", [name for name in UNFIT if "modelopt" not in name])
def test_a_model_with_such_nodes_still_runs(name: str) -> None:
    model, x = UNFIT[name][0]().eval(), image()
    program = trtb.export(model, x, engine="reference")
    assert {entry.reason.split(":")[0] for entry in program.report.in_torch} == {UNFIT[name][1].split(":")[0]}
    with torch.no_grad():
        torch.testing.assert_close(program(x), model(x), rtol=1e-4, atol=1e-4)


def test_a_scale_that_changes_from_call_to_call_is_a_reason() -> None:
    module = normalized(Dynamic().eval(), image())
    reasons = [why_not(node) for node in module.graph.nodes if "quantize_op" in str(node.target)]
    assert reasons == ["scales known only at run time"]


class Dynamic(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.ops.tensorrt.quantize_op(x, x.abs().amax(), 8, 0, False, False)


def test_a_weight_that_cannot_stay_an_integer_is_folded() -> None:
    """An asymmetric weight costs nothing as floats; its layer then computes with them."""
    model, x = PT2E(weight_zero_point=3).eval(), image()
    program = trtb.export(model, x, engine="reference", fallback="error")
    with torch.no_grad():
        torch.testing.assert_close(program(x), model(x), rtol=1e-4, atol=1e-4)
    found = products(network_of(model, x))
    assert [origins[1] for origins in found.values()] == ["", "CONSTANT FLOAT"]  # a convolution holds its own weight


# torchao -----------------------------------------------------------------------------------------------------------


class Residual(nn.Module):
    """A batch norm to fold, a residual sum, a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.second, self.head = nn.Conv2d(8, 8, 3, padding=1), nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.first(x)).relu()
        return self.head((x + self.second(x)).relu().mean((2, 3)))


def quantized_by_torchao(model: nn.Module, x: torch.Tensor) -> nn.Module:
    """`model` through PT2E: int8, symmetric, weights by channel."""
    pt2e = pytest.importorskip("torchao.quantization.pt2e")
    steps = importlib.import_module("torchao.quantization.pt2e.quantize_pt2e")
    quantizers = importlib.import_module("torchao.quantization.pt2e.quantizer")
    limits = {"dtype": torch.int8, "quant_min": -127, "quant_max": 127}
    activation = quantizers.QuantizationSpec(
        observer_or_fake_quant_ctr=pt2e.MinMaxObserver, qscheme=torch.per_tensor_symmetric, is_dynamic=False, **limits
    )
    weight = quantizers.QuantizationSpec(
        observer_or_fake_quant_ctr=pt2e.PerChannelMinMaxObserver,
        qscheme=torch.per_channel_symmetric,
        ch_axis=0,
        **limits,
    )

    class Everything(quantizers.Quantizer):  # type: ignore[misc, name-defined]
        def annotate(self, graph: torch.fx.GraphModule) -> torch.fx.GraphModule:
            for node in graph.graph.nodes:
                if node.target in (torch.ops.aten.conv2d.default, torch.ops.aten.linear.default):
                    node.meta["quantization_annotation"] = quantizers.QuantizationAnnotation(
                        input_qspec_map={node.args[0]: activation, node.args[1]: weight}, _annotated=True
                    )
            return graph

        def validate(self, graph: torch.fx.GraphModule) -> None:
            pass

    prepared = steps.prepare_pt2e(torch.export.export(model.eval(), (x,)).module(), Everything())
    with torch.no_grad():
        prepared(x)
    return steps.convert_pt2e(prepared)


def test_torchao() -> None:
    x = image()
    model = quantized_by_torchao(Residual(), x)
    assert (
        list(products(network_of(model, x)).values()) == [["DEQUANTIZE < QUANTIZE", "DEQUANTIZE < CONSTANT INT8"]] * 3
    )
    program = trtb.export(model, x, engine="reference", precision="fp16", fallback="error")
    built = trtb.export(model, x, targets=("sm_89",), precision="fp16", fallback="error")
    assert built.report.is_whole
    compiled = torch.compile(model, backend="torchtrt_bridge", options={"engine": "reference", "fallback": "error"})
    with torch.no_grad():
        torch.testing.assert_close(program(x), model(x), rtol=2e-2, atol=2e-2)
        torch.testing.assert_close(compiled(x), model(x), rtol=1e-4, atol=1e-4)
