"""Command line, called as a function and as a process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

import torchtrt_bridge as trtb
from torchtrt_bridge.cli.command import input_from_text, main, model_from_name
from torchtrt_bridge.errors import OptionsError

MODULE = """
from torch import nn

class Tiny(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))

    def forward(self, x):
        return self.layers(x)

def tiny():
    return Tiny()

def identity():
    return nn.Identity()

def nothing():
    return 3
"""


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return the name of a model in a user's module, which is alone in the current directory."""
    name = f"user_models_{abs(hash(tmp_path))}"
    (tmp_path / f"{name}.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return f"{name}:tiny"


def test_doctor_prints_every_check(capsys: pytest.CaptureFixture[str]) -> None:
    main(["doctor"])
    output = capsys.readouterr().out
    for name in ("python:", "torch:", "gpu:", "engine cache:"):
        assert name in output


def test_explain_prints_where_operators_would_run(tiny: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", tiny, "--input", "1x4", "--html", "report.html"]) == 0
    assert "3 of 3 nodes would run in TensorRT" in capsys.readouterr().out
    assert "would run in TensorRT" in Path("report.html").read_text()


def test_export_writes_a_program_with_a_dynamic_batch(tiny: str, capsys: pytest.CaptureFixture[str]) -> None:
    command = [
        "export",
        tiny,
        "-o",
        "tiny.pt2",
        "--input",
        "1x4",
        "--dynamic-batch",
        "1:8",
        "--targets",
        "sm_86,sm_89",
    ]
    assert main([*command, "--fallback", "error"]) == 0
    output = capsys.readouterr().out
    assert "3 of 3 nodes in TensorRT, 1 engine" in output
    assert "wrote tiny.pt2" in output
    program = trtb.load("tiny.pt2", fallback="pytorch")  # its engines need a GPU
    assert program(torch.ones(5, 4)).shape == (5, 2)


def test_an_export_without_an_engine_is_no_success(tiny: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", tiny.replace(":tiny", ":identity"), "-o", "t.pt2", "--input", "1x4"]) == 1
    assert "no engine was built" in capsys.readouterr().err
    assert not Path("t.pt2").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["explain", "resnet50"], "names no model"),
        (["explain", "no_such_module:model"], "No module named 'no_such_module'"),
        (["explain", "torchvision:resnet5"], "Did you mean 'resnet"),
        (["explain", "MODEL"], "Say what"),
        (["explain", "MODEL", "--input", "1xfour"], "write sizes with x between them"),
        (["explain", "MODEL", "--input", "1x4:int65"], "'int65' is not a dtype"),
        (
            ["explain", "MODEL", "--input", "1x4", "--html", "missing/plan.html"],
            "there is no directory missing",
        ),
        (["export", "MODEL", "--input", "1x4", "-o", "t.pt2", "--html", "."], "--html: . is a directory"),
        (["explain", "MODEL", "--input", "1x5"], "fails in PyTorch on --input 1x5"),
        (["export", "MODEL", "--input", "1x4", "-o", "tiny.onnx"], "must end in .pt2"),
        (["export", "MODEL", "--input", "1x4", "-o", "missing/tiny.pt2"], "there is no directory missing"),
        (["export", "MODEL", "--input", "1x4", "-o", "t.pt2", "--targets", "rtx4090"], "Write it as 'sm_89'"),
        (["export", "MODEL", "--input", "1x4", "-o", "t.pt2", "--dynamic-batch", "8"], "as 1:16"),
        (["export", "MODEL", "--input", "1x4", "-o", "t.pt2", "--targets", "sm_99"], "cannot build for sm_99"),
    ],
)
def test_errors_are_one_message_and_no_traceback(
    tiny: str, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([tiny if word == "MODEL" else word for word in arguments]) == 1
    captured = capsys.readouterr()
    assert message in captured.err
    assert "Traceback" not in captured.err
    assert captured.out == ""


def test_a_callable_must_return_a_module(tiny: str) -> None:
    with pytest.raises(OptionsError, match="returned a int"):
        model_from_name(tiny.replace(":tiny", ":nothing"))


def test_inputs_have_the_sizes_and_dtype_of_their_text() -> None:
    value = input_from_text("2x128:int64")
    assert (tuple(value.shape), value.dtype) == ((2, 128), torch.int64)
    assert input_from_text("1x3x8x8", batch=(1, 16)).shape == (2, 3, 8, 8)


@pytest.mark.full
def test_it_runs_as_a_module(tiny: str) -> None:
    command = [sys.executable, "-m", "torchtrt_bridge", "explain", tiny, "--input", "1x4"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert "3 of 3 nodes would run in TensorRT" in done.stdout
