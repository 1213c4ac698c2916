"""The calibration file: a rebuild needs no data, and no other model's file is taken."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import torchtrt_bridge as trtb
from tests.models import ConvNet, trained
from tests.quantize.nets import PLAIN, loader, quantized
from torchtrt_bridge.errors import CalibrationError


def net(seed: int = 3) -> nn.Module:
    torch.manual_seed(seed)
    return trained(ConvNet())


DATA = loader(4, 3, 8, 8)
X = torch.randn(4, 3, 8, 8)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "folder" / "calibration.json"


OPTIONS: dict[str, dict[str, Any]] = {
    "auto": {"table": False},
    "plain": PLAIN,
    "layers in floating point": {"table": False, "max_error": 1e-4, "sensitivity": True},
    "fp8": {"table": False, "dtype": "fp8"},
}


@pytest.mark.parametrize("options", OPTIONS)
def test_a_rebuild_needs_no_data(options: str, path: Path) -> None:
    first = trtb.quantize(net(), DATA, calibration=path, **OPTIONS[options])
    again = trtb.quantize(net(), calibration=path, **OPTIONS[options])
    torch.testing.assert_close(again(X), first(X), rtol=0, atol=0)
    after, before = again.quantization.to_dict(), first.quantization.to_dict()
    assert {**after, "notes": []} == {**before, "notes": []}


def test_a_file_that_has_it_all_leaves_the_loader_unread(path: Path) -> None:
    quantized(net(), DATA, calibration=path)

    def unread() -> Any:
        raise AssertionError("read")
        yield

    assert quantized(net(), unread(), calibration=path).quantization.quantized == 2


def test_another_method_takes_its_ranges_from_the_file(path: Path) -> None:
    quantized(net(), DATA, calibration=path, method="absmax")
    again = quantized(net(), None, calibration=path, method="mse")
    direct = quantized(net(), DATA, method="mse")
    torch.testing.assert_close(again(X), direct(X), rtol=0, atol=0)


def test_attention_switched_on_needs_the_loader(path: Path) -> None:
    """The model is the same, and its attention is decomposed in one of the two."""
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    data = [torch.randn(2, 4, 8) for _ in range(2)]
    for attention in (False, True, False):
        found = quantized(layer, data, calibration=path, attention=attention)
        assert (found.quantization.quantized > 4) is attention


def test_what_must_be_measured_anew_needs_the_loader(path: Path) -> None:
    quantized(net(), DATA, calibration=path)
    with pytest.raises(CalibrationError, match="does not have what these settings need"):
        trtb.quantize(net(), calibration=path, table=False)
    assert trtb.quantize(net(), DATA, calibration=path, table=False).quantization.tried
    assert trtb.quantize(net(), calibration=path, table=False).quantization.tried


def test_the_model_may_be_called_with_names(path: Path) -> None:
    class Two(nn.Linear):
        def forward(self, x: torch.Tensor, more: dict[str, torch.Tensor], flag: bool = False) -> torch.Tensor:
            return super().forward(x + more["y"] if flag else x)

    torch.manual_seed(0)
    model, batches = Two(8, 4), [{"x": x, "more": {"y": x * 2}, "flag": True} for x in loader(3, 8)]
    first = quantized(model, batches, calibration=path)
    again = quantized(model, None, calibration=path)
    torch.testing.assert_close(again(**batches[0]), first(**batches[0]), rtol=0, atol=0)


@pytest.mark.parametrize("change", ["weights", "graph"])
def test_another_model_s_file_is_refused(change: str, path: Path) -> None:
    quantized(net(), DATA, calibration=path)
    other = net(4) if change == "weights" else nn.Sequential(net(), nn.ReLU())
    with pytest.raises(CalibrationError, match=r"another graph or other weights.*Delete the file"):
        quantized(other, DATA, calibration=path)


BROKEN = {
    "no JSON": ("{", "cannot be read"),
    "another format": ('{"format": "something"}', "no calibration file of this version"),
    "a list": ("[]", "no calibration file"),
    "missing parts": ('{"format": "torchtrt_bridge calibration 1", "digest": "0"}', "is damaged"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_damaged_file_is_refused(kind: str, tmp_path: Path) -> None:
    content, message = BROKEN[kind]
    path = tmp_path / "calibration.json"
    path.write_text(content)
    with pytest.raises(CalibrationError, match=message):
        quantized(net(), DATA, calibration=path)
    assert path.read_text() == content


@pytest.mark.parametrize("part", ["statistics", "found", "example"])
def test_damaged_content_is_refused(part: str, path: Path) -> None:
    quantized(net(), DATA, calibration=path)
    content = json.loads(path.read_text())
    content[part] = {"x": {"absmax": 1}} if part == "statistics" else {"choice": {}} if part == "found" else 3
    path.write_text(json.dumps(content))
    with pytest.raises(CalibrationError, match="damaged"):
        quantized(net(), DATA, calibration=path)


def test_a_path_that_cannot_be_written_is_reported(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CalibrationError, match="cannot be written"):
        quantized(net(), DATA, calibration=tmp_path / "file" / "calibration.json")


def test_a_failure_leaves_the_old_file(path: Path) -> None:
    quantized(net(), DATA, calibration=path)
    before = path.read_bytes()
    broken = iter([DATA[0], torch.full((4, 3, 8, 8), float("nan"))])
    with pytest.raises(CalibrationError, match="NaN"):
        trtb.quantize(net(), broken, calibration=path, table=False)
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == [path.name]
