"""Quantize, from the command to a program."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import torchtrt_bridge as trtb
from torchtrt_bridge.cli.command import main

MODULE = """
import torch
from torch import nn

def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3), nn.Flatten(), nn.Linear(64, 2))

batches = [(torch.randn(4, 3, 8, 8), torch.zeros(4, dtype=torch.int64)) for _ in range(3)]

def loader():
    print("loading data")
    yield from batches

def failing():
    yield batches[0]
    raise OSError("the disk is gone")

def raising():
    raise OSError("no such data")

seen = []

def score(model):
    seen.append(type(model).__name__)
    return 1.0 if len(seen) == 1 else 0.0

def broken_score(model):
    raise ValueError("no labels")

number = 3
"""


@pytest.fixture
def user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return the name of the user's module, which is alone in the current directory."""
    name = f"user_data_{abs(hash(tmp_path))}"
    (tmp_path / f"{name}.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return name


def command(user: str, *arguments: str) -> list[str]:
    words = [f"{user}{word}" if word.startswith(":") else word for word in arguments]
    return ["quantize", f"{user}:model", "-o", "q.pt2", "--targets", "sm_86", *words]


@pytest.mark.parametrize("data", [":loader", ":batches"])
def test_it_prints_the_table_and_writes_a_program(user: str, data: str, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--method", "absmax", "--skip", "4", "--precision", "fp16", "--dynamic-batch", "1:8"]
    assert main(command(user, "--data", data, *options)) == 0
    output = capsys.readouterr().out
    assert "2 of 3 layers in int8" in output
    assert "wrote q.pt2" in output
    assert "loading data" not in output
    program = trtb.load("q.pt2")
    assert program(torch.ones(7, 3, 8, 8)).shape == (7, 2)
    assert any("quantize" in str(node.target) for node in program.exported.graph.nodes)


def test_a_drop_of_the_score_keeps_layers_in_floating_point(user: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The score is 0 for whatever is quantized, so that nothing may be."""
    criterion = ["--evaluate", ":score", "--max-drop", "0.1", "--method", "absmax"]
    main(command(user, "--data", ":batches", *criterion))
    assert "0 of 3 layers in int8" in capsys.readouterr().out


def test_a_calibration_file_needs_no_data(user: str, capsys: pytest.CaptureFixture[str]) -> None:
    kept = ["--calibration", "ranges.json", "--method", "absmax"]
    assert main(command(user, "--data", ":loader", *kept)) == 0
    assert json.loads(Path("ranges.json").read_text())
    first = capsys.readouterr().out.partition("layers in")[0]
    assert main(command(user, "--input", "4x3x8x8", *kept)) == 0
    assert capsys.readouterr().out.partition("layers in")[0] == first


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--data package.module:loader is needed"),
        (["--data", "loader"], "write package.module:name"),
        (["--data", ":none"], "has no attribute 'none'"),
        (["--data", ":number"], "which gives no batches"),
        (["--data", ":raising"], "OSError: no such data"),
        (["--data", ":failing"], "failed at batch 1: OSError: the disk is gone"),
        (["--data", ":loader", "--max-drop", "0.1"], "--evaluate package.module:function gives it"),
        (["--data", ":loader", "--max-drop", "-1", "--evaluate", ":score"], "max_drop=-1.0"),
        (["--data", ":loader", "--evaluate", ":number"], "--evaluate"),
        (["--data", ":loader", "--evaluate", ":broken_score"], "ValueError: no labels"),
        (["--data", ":loader", "--method", "mean"], "method='mean' is not a choice"),
        (["--data", ":loader", "--dtype", "int9"], "dtype='int9' is not a choice"),
        (["--data", ":loader", "--num-batches", "0"], "num_batches=0"),
        (["--data", ":loader", "--calibration", "none/ranges.json"], "there is no directory none"),
    ],
)
def test_errors_are_one_message(
    user: str, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command(user, *arguments)) == 1
    captured = capsys.readouterr()
    assert message in captured.err
    assert "Traceback" not in captured.err
    assert captured.out == ""
    assert not Path("q.pt2").exists()
