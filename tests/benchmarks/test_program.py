"""The command that lists the steps of an engine."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import torchtrt_bridge as trtb
from benchmarks import program


def test_it_lists_the_steps_of_each_engine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64)).eval()
    path = tmp_path / "model.pt2"
    trtb.save(trtb.export(model, torch.randn(32, 64), precision="fp16", targets=("sm_86",)), path)
    monkeypatch.setattr(sys, "argv", ["program", str(path)])
    assert program.main() == 0
    shown = capsys.readouterr().out
    assert re.search(r"trt_0: \d+ steps", shown)
    assert "fully_connected" in shown
    assert "float32" in shown


def test_without_a_file_it_says_how_it_is_called(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["program"])
    assert program.main() == 2
    assert "python -m benchmarks.program FILE.pt2" in capsys.readouterr().err
