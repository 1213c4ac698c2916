"""Files that an earlier version wrote: pickles of quantized models, and calibration files.

Those in tests/data are of commit df35f7c, before the files of `quantize` were regrouped, written with PyTorch 2.14.1.
"""

from __future__ import annotations

import gzip
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import torchtrt_bridge as trtb
from torchtrt_bridge.errors import ShapeRangeError

DATA = Path(__file__).parents[1] / "data"


class Scaled(nn.Module):
    """The model of these files."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 4)

    def forward(self, x: torch.Tensor, scale: float = 1.0) -> torch.Tensor:
        return self.second(torch.relu(self.first(x))) * scale


@pytest.fixture(scope="module")
def content() -> dict[str, Any]:
    """A quantized model, the weights that it was made of, an input, its output, and the sensitivities of its layers."""
    loaded: dict[str, Any] = pickle.loads((DATA / "quantized_model_df35f7c.pickle").read_bytes())
    return loaded


def test_a_pickled_model_loads_and_computes(content: dict[str, Any]) -> None:
    model = content["model"]
    assert isinstance(model, trtb.QuantizedModel)
    torch.testing.assert_close(model(content["x"], scale=2.0), content["expected"])
    with pytest.raises(ShapeRangeError, match=r"Argument scale is 3\.0, and calibration gave 2\.0"):
        model(content["x"], scale=3.0)


def test_the_report_of_a_pickled_model_is_whole(content: dict[str, Any]) -> None:
    report = content["model"].quantization
    assert {layer.name: layer.sensitivity for layer in report.layers} == content["errors"]
    assert {layer.name: layer.alone for layer in report.layers} == content["errors"]
    assert [layer["name"] for layer in report.to_dict()["layers"]] == ["first", "second"]
    assert "error alone" in str(report)


def test_a_pickled_model_is_pickled_again(content: dict[str, Any]) -> None:
    again = pickle.loads(pickle.dumps(content["model"]))
    torch.testing.assert_close(again(content["x"], scale=2.0), content["expected"])
    assert str(again.quantization) == str(content["model"].quantization)


def scaled(content: dict[str, Any]) -> nn.Module:
    model = Scaled()
    model.load_state_dict(content["state"])
    return model.eval()


def test_a_calibration_file_is_read(content: dict[str, Any], tmp_path: Path) -> None:
    """The ranges, the choice and the sensitivities come from the file: there is no loader."""
    path, fresh = tmp_path / "calibration.json", tmp_path / "fresh.json"
    saved = json.loads(gzip.decompress((DATA / "calibration_df35f7c.json.gz").read_bytes()))
    batch = {"x": torch.zeros(4, 8), "scale": 2.0}
    trtb.quantize(scaled(content), [batch], method="absmax", calibration=fresh, table=False)
    written = json.loads(fresh.read_text())
    assert written.keys() == saved.keys()
    # Another version of PyTorch may name the nodes of the graph otherwise, which the digest is of.
    path.write_text(json.dumps(saved | {"digest": written["digest"]}))
    found = trtb.quantize(scaled(content), sensitivity=True, calibration=path, table=False)
    torch.testing.assert_close(found(content["x"], scale=2.0), content["expected"])
    assert {layer.name: layer.sensitivity for layer in found.quantization.layers} == content["errors"]


def test_a_calibration_file_is_written_as_before(content: dict[str, Any], tmp_path: Path) -> None:
    saved = json.loads(gzip.decompress((DATA / "calibration_df35f7c.json.gz").read_bytes()))
    torch.manual_seed(0)
    Scaled()
    batches = [{"x": torch.randn(4, 8), "scale": 2.0} for _ in range(6)]
    path = tmp_path / "calibration.json"
    trtb.quantize(scaled(content), batches, sensitivity=True, calibration=path, table=False)
    written = json.loads(path.read_text())
    assert written["found"]["choice"] == saved["found"]["choice"]
    assert written["found"].keys() == saved["found"].keys()
    assert written["settings"] == saved["settings"]
    for name, statistics in saved["statistics"].items():
        assert written["statistics"][name]["absmax"] == pytest.approx(statistics["absmax"], rel=1e-5)
