"""The benchmark of forms of large layers, on the CPU."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import forms
from tests.lower.networks import network_of


def test_the_command_times_both_forms(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["forms", "--tiny", "--results", str(tmp_path)])
    assert forms.main() == 0
    found = json.loads((tmp_path / "forms_host.json").read_text())
    row = found["milliseconds"]["tiny-cnn:2"]
    assert row["as captured"] > 0
    assert row["in other forms"] > 0
    assert max(row["error as captured"], row["error in other forms"]) < 1e-5
    assert found["tensorrt"].startswith(("TensorRT", "the reference"))


def test_layers_are_as_captured_within_its_context_only() -> None:
    x, model = torch.zeros(1, 3, 32, 32).half(), torch.nn.Conv2d(3, 8, 7, stride=2).eval().half()
    other = network_of(model, x).layers
    with forms.as_captured():
        assert network_of(model, x).layers < other
    assert network_of(model, x).layers == other
