"""The quantized model: called, copied, exported and compiled as any module."""

from __future__ import annotations

import copy
import inspect
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import torchtrt_bridge as trtb
from tests.models import ConvNet, image, trained
from tests.quantize.nets import PLAIN, calls, loader, quantized, relative_error
from torchtrt_bridge.quantize.qdq import DEQUANTIZE, QUANTIZE


@pytest.fixture
def model() -> nn.Module:
    return trained(ConvNet())


@pytest.fixture
def found(model: nn.Module) -> trtb.QuantizedModel:
    return quantized(model, loader(4, 3, 8, 8))


def test_it_is_called_as_the_model_was(model: nn.Module, found: trtb.QuantizedModel) -> None:
    x = image()
    assert list(inspect.signature(found.forward).parameters) == ["x"]
    torch.testing.assert_close(found(x), found(x=x), rtol=0, atol=0)
    assert 0 < relative_error(found(x), model(x)) < 0.05
    assert not found.training


def test_the_user_s_model_stays_as_it_was(model: nn.Module) -> None:
    before, x = copy.deepcopy(model.state_dict()), image()
    expected = model(x)
    trtb.quantize(model, loader(4, 3, 8, 8), table=False)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    torch.testing.assert_close(model(x), expected, rtol=0, atol=0)


COPIES: dict[str, Callable[[Any], Any]] = {
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "pickle": lambda model: pickle.loads(pickle.dumps(model)),
}


@pytest.mark.parametrize("way", COPIES)
def test_a_copy_computes_and_reports_the_same(found: trtb.QuantizedModel, way: str) -> None:
    twin, x = COPIES[way](found), image()
    torch.testing.assert_close(twin(x), found(x), rtol=0, atol=0)
    assert str(twin.quantization) == str(found.quantization)
    assert type(twin).__name__ == "ConvNet"
    assert not twin.training
    assert {name: value.dtype for name, value in twin.state_dict().items()} == {
        name: value.dtype for name, value in found.state_dict().items()
    }
    assert [len(calls(twin, op)) for op in (QUANTIZE, DEQUANTIZE)] == [2, 4]
    assert not hasattr(twin, "config")


def test_its_weights_are_in_its_state(found: trtb.QuantizedModel) -> None:
    state = found.state_dict()
    assert {value.dtype for value in state.values()} == {torch.int8, torch.float32}
    assert sum(value.dtype == torch.int8 for value in state.values()) == 2


@pytest.mark.parametrize("dynamic", [False, True])
def test_export_keeps_the_nodes(found: trtb.QuantizedModel, dynamic: bool) -> None:
    shapes = {"x": {0: torch.export.Dim("batch", min=1, max=16)}} if dynamic else None
    program = torch.export.export(found, (image(),), dynamic_shapes=shapes).run_decompositions()
    assert len(calls(program.graph_module, QUANTIZE)) == len(calls(found, QUANTIZE)) == 2
    assert len(calls(program.graph_module, DEQUANTIZE)) == len(calls(found, DEQUANTIZE)) == 4
    x = image(5) if dynamic else image()
    torch.testing.assert_close(program.module()(x), found(x), rtol=1e-5, atol=1e-6)


def test_export_keeps_the_user_s_source_lines(found: trtb.QuantizedModel) -> None:
    program = torch.export.export(found, (image(),))
    (convolution,) = calls(program.graph_module, torch.ops.aten.convolution.default)
    assert "tests/models.py" in convolution.meta["stack_trace"]


def test_it_survives_a_file(found: trtb.QuantizedModel) -> None:
    x, file = image(), io.BytesIO()
    torch.export.save(torch.export.export(found, (x,)), file)
    file.seek(0)
    torch.testing.assert_close(torch.export.load(file).module()(x), found(x), rtol=1e-5, atol=1e-6)


def test_dynamo_takes_it_whole(found: trtb.QuantizedModel) -> None:
    x = image()
    compiled = torch.compile(found, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), found(x), rtol=0, atol=0)


def test_a_quantized_model_is_quantized_no_further(found: trtb.QuantizedModel) -> None:
    with pytest.raises(trtb.CalibrationError, match=r"Nothing of .* can be quantized"):
        trtb.quantize(found, loader(4, 3, 8, 8), **PLAIN)


def test_the_table_is_printed(model: nn.Module, capsys: pytest.CaptureFixture[str]) -> None:
    found = trtb.quantize(model, loader(4, 3, 8, 8))
    printed = capsys.readouterr().out
    assert printed.strip() == str(found.quantization).strip()
    assert "2 of 2 layers in int8" in printed
    assert all(word in printed for word in ("conv", "head", "convolution", "linear", "input scale"))


def test_the_report_is_plain_data(found: trtb.QuantizedModel) -> None:
    content = found.quantization.to_dict()
    assert content["quantized"] == 2
    assert [layer["name"] for layer in content["layers"]] == ["conv", "head"]


def test_progress_is_shown_where_it_is_asked_for(
    model: nn.Module, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich draws on terminals only
    trtb.quantize(model, loader(4, 3, 8, 8), progress=True, **PLAIN)
    assert "calibrating" in capsys.readouterr().err


def test_the_public_name_is_the_function() -> None:
    import torchtrt_bridge.graph.ops

    assert torchtrt_bridge.quantize is trtb.quantize
    assert inspect.isfunction(trtb.quantize)
