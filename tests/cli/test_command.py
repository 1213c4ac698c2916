"""Command line, called as a function and as a process."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import torchtrt_bridge as trtb
from torchtrt_bridge.cli.arguments import input_from_text
from torchtrt_bridge.cli.calls import tensor_from
from torchtrt_bridge.cli.command import main
from torchtrt_bridge.cli.models import model_from_name
from torchtrt_bridge.errors import OptionsError
from torchtrt_bridge.options import DECLARATIONS
from torchtrt_bridge.report.model import CompileReport

MODULE = """
import torch
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

def broken():
    raise RuntimeError("no weights here")

def leaving():
    raise SystemExit(3)

def talking():
    print("hello from the callable")
    return Tiny()

number = 3

class Undecided(nn.Module):
    def forward(self, x):
        return torch.special.airy_ai(x.relu())

class Chatty(Tiny):
    def forward(self, x):
        print("hello from forward")
        return self.layers(x)
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


def test_doctor_prints_its_checks_as_data(capsys: pytest.CaptureFixture[str]) -> None:
    status = main(["doctor", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert found["is_well"] is (status == 0)
    checks = {check["name"]: check for check in found["checks"]}
    assert checks["python"]["status"] == "ok"
    assert checks["torch"]["found"].startswith(torch.__version__)
    assert checks["python"].keys() == {"name", "status", "found", "advice"}


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


def named(tiny: str, word: str) -> str:
    """Return the argument that a word in capitals stands for: the name of something in the user's module."""
    words = {"MODEL": "tiny", "BROKEN": "broken", "LEAVING": "leaving", "NUMBER": "number"}
    first, colon, rest = word.partition(":")
    return tiny.replace(":tiny", f":{words[first]}") + (f".{rest}" if colon else "") if first in words else word


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
        (["explain", "MODEL", "--input", "1x4", "--option", "precison=fp16"], "Did you mean 'precision'?"),
        (["explain", "MODEL", "--input", "1x4", "--option", "precision=fp15"], "Did you mean 'fp1"),
        (["explain", "MODEL", "--input", "1x4", "--option", "precision"], "Write NAME=VALUE"),
        (["explain", "MODEL", "--input", "1x4", "--option", "tf32=yes"], "Known: true, false"),
        (["explain", "MODEL", "--input", "1x4", "--option", "min_subgraph_nodes=0"], "1 or more"),
        (["explain", "MODEL", "--input", "1x4", "--option", "min_subgraph_nodes=two"], "is not an integer"),
        (
            ["explain", "MODEL", "--input", "1x4", "--precision", "fp16", "--option", "precision=bf16"],
            "precision is given twice",
        ),
        (["explain", "MODEL", "--input", "1x4", "--require-coverage", "95"], "from 0 to 1"),
        (["explain", "missing.pt2"], "no such file"),
        (["explain", "MODEL:more"], "has no attribute"),
        (["explain", "BROKEN", "--input", "1x4"], "RuntimeError: no weights here"),
        (["explain", "LEAVING", "--input", "1x4"], "SystemExit: 3"),
        (["explain", "NUMBER", "--input", "1x4"], "is a int, not a callable"),
        (["explain", "timm:resnet17"], "Did you mean 'resnet"),
        (["explain", "hf:bertt"], "Models are not downloaded"),
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
    assert main([named(tiny, word) for word in arguments]) == 1
    captured = capsys.readouterr()
    assert message in captured.err
    assert "Traceback" not in captured.err
    assert captured.out == ""


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["--require-coverage", "1"], 1, "1 of 2 nodes (0.5) would run"),
        (["--require-coverage", "0.5"], 0, ""),
        (["--fallback", "error"], 1, "PyTorch runs aten.special_airy_ai.default (no converter"),
        (["--require-coverage", "0.1", "--option", "torch_ops=aten.relu.default"], 1, "0 of 2 nodes"),
    ],
    ids=["too little", "enough", "error", "none"],
)
def test_coverage_may_be_required(
    tiny: str, arguments: list[str], status: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["explain", tiny.replace(":tiny", ":Undecided"), "--input", "4", *arguments]) == status
    captured = capsys.readouterr()
    assert message in captured.err
    assert "nodes would run in TensorRT" in captured.out


@pytest.mark.parametrize("arguments", [["--require-coverage", "0"], ["--fallback", "error"]])
def test_a_graph_that_cannot_be_looked_at_is_no_success(
    tiny: str, arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def failing(*args: object) -> None:
        raise ValueError("a pass broke")

    monkeypatch.setattr(importlib.import_module("torchtrt_bridge.entry.explain"), "normalize", failing)
    assert main(["explain", tiny, "--input", "1x4", *arguments]) == 1
    error = capsys.readouterr().err
    assert "PyTorch runs a graph whose nodes are not counted" in error
    assert "ValueError: a pass broke" in error


@pytest.mark.parametrize("made_by", ["talking", "Chatty"])
def test_what_the_user_prints_is_not_in_the_results(
    tiny: str, made_by: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["explain", tiny.replace(":tiny", f":{made_by}"), "--input", "1x4"]) == 0
    captured = capsys.readouterr()
    assert not any(line.startswith("hello") for line in captured.out.splitlines())
    assert any(line.startswith("hello") for line in captured.err.splitlines())


def test_it_says_what_it_does_before_it_does_it(
    tiny: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen = []

    def explain(*args: object, **options: object) -> CompileReport:
        seen.append(capsys.readouterr().err)
        return CompileReport(trtb.Options())

    monkeypatch.setattr(trtb, "explain", explain)
    assert main(["explain", tiny, "--input", "1x4"]) == 0
    assert "finding out where its operators would run ..." in seen[0]


def test_ctrl_c_leaves_nothing_behind(
    tiny: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("torchtrt_bridge.entry.archive._checked_records", interrupted)
    assert main(["export", tiny, "--input", "1x4", "-o", "t.pt2"]) == 130
    assert capsys.readouterr().err.endswith("torchtrt-bridge export: interrupted\n")
    assert [path.name for path in Path().iterdir() if path.suffix != ".py" and path.is_file()] == []


def test_ctrl_c_while_a_page_is_written(tiny: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*args: object) -> str:
        raise KeyboardInterrupt

    Path("report.html").write_text("of before")
    monkeypatch.setattr(importlib.import_module("torchtrt_bridge.report.page"), "html_from_report", interrupted)
    assert main(["explain", tiny, "--input", "1x4", "--html", "report.html"]) == 130
    assert [path.name for path in Path().glob("*.html")] == ["report.html"]
    assert Path("report.html").read_text() == "of before"


def test_ctrl_c_ends_the_suite(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(*args: object, **options: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr("benchmarks.suite.command.main", interrupted)
    assert main(["bench", "--tiny"]) == 130
    assert capsys.readouterr().err.endswith("torchtrt-bridge bench: interrupted\n")


SYNTAX = """
import sys
from torchtrt_bridge.cli.command import main
for arguments in (
    ["explain", "a:b", "--input", "1xtwo"],
    ["explain", "a:b", "--option", "tf32=maybe"],
    ["explain", "a"],
    ["export", "a:b", "-o", "a.pt2", "--dynamic-batch", "3"],
    ["export", "a:b", "-o", "none/a.pt2"],
    ["export", "a:b", "-o", "a.pt2", "--targets", "a100"],
):
    assert main(arguments) == 1, arguments
assert "torch" not in sys.modules
"""


def test_syntax_is_checked_before_pytorch_is_imported() -> None:
    done = subprocess.run([sys.executable, "-c", SYNTAX], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("command", [["explain"], ["export"], ["quantize"], ["bench", "a:b"]], ids=" ".join)
def test_help_lists_every_option(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([*command, "--help"])
    assert ended.value.code == 0
    output = capsys.readouterr().out
    assert [name for name in DECLARATIONS if f"  {name}=" not in output] == []


def test_a_callable_must_return_a_module(tiny: str) -> None:
    with pytest.raises(OptionsError, match="returned a int"):
        model_from_name(tiny.replace(":tiny", ":nothing"))


def test_inputs_have_the_sizes_and_dtype_of_their_text() -> None:
    value = tensor_from(input_from_text("2x128:int64"))
    assert (tuple(value.shape), value.dtype) == ((2, 128), torch.int64)
    assert tensor_from(input_from_text("1x3x8x8"), batch=(1, 16)).shape == (2, 3, 8, 8)


@pytest.mark.full
def test_it_runs_as_a_module(tiny: str) -> None:
    command = [sys.executable, "-m", "torchtrt_bridge", "explain", tiny, "--input", "1x4"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert "3 of 3 nodes would run in TensorRT" in done.stdout
