"""Bench of the user's own model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import torchtrt_bridge as trtb
from torchtrt_bridge.cli import bench as module
from torchtrt_bridge.cli.arguments import Request
from torchtrt_bridge.cli.bench import Contender, largest_error, take_turns
from torchtrt_bridge.cli.bench_results import Row, print_results, results
from torchtrt_bridge.cli.calls import ModelCall
from torchtrt_bridge.cli.command import main

MODULE = """
import torch
from torch import nn

def tiny():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
"""
QUICK = ["--rounds", "2", "--calls", "2"]
TRY = ["--engine", "reference", *QUICK]


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return the name of a model in a user's module, which is alone in the current directory."""
    name = f"user_bench_{abs(hash(tmp_path))}"
    (tmp_path / f"{name}.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return f"{name}:tiny"


@pytest.fixture
def no_inductor(monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*args: Any) -> None:
        raise RuntimeError("no compiler here")

    monkeypatch.setattr(module, "_inductor", failing)


def rows_of(path: str) -> dict[str, Any]:
    return {row["name"]: row for row in json.loads(Path(path).read_text())["rows"]}


@pytest.mark.usefixtures("no_inductor")
def test_it_times_the_contenders_and_says_why_one_is_left_out(tiny: str, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["bench", tiny, "--input", "2x4", "--precision", "bf16", *TRY, "--json", "found.json"]
    assert main(command) == 0
    captured = capsys.readouterr()
    assert "its times mean nothing" in captured.out
    assert "inductor: RuntimeError: no compiler here" in captured.out
    assert "timing, round 2 of 2" in captured.err
    assert "nodes in TensorRT: 5 of 5" in captured.out  # three and two casts
    rows = rows_of("found.json")
    assert {name: len(row["milliseconds"]) for name, row in rows.items()} == {
        "eager": 2,
        "inductor": 0,
        "torchtrt_bridge": 2,
    }
    assert 0 < rows["eager"]["error"] < 0.02  # bf16
    assert 0 < rows["torchtrt_bridge"]["error"] < 0.02
    content = json.loads(Path("found.json").read_text())
    assert content["times_mean_nothing"] is True
    assert content["inputs"] == ["2x4:float32"]
    assert content["options"] == {"precision": "bf16", "engine": "reference"}


@pytest.mark.usefixtures("no_inductor")
def test_the_page_is_written_though_no_layer_can_be_timed(tiny: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", tiny, "--input", "2x4", *TRY, "--html", "found.html"]) == 0
    captured = capsys.readouterr()
    assert "timing the layers of its engines" in captured.err
    assert captured.out.endswith("wrote found.html\n")
    page = Path("found.html").read_text(encoding="utf-8")
    assert "3 of 3 nodes in TensorRT" in page
    assert "Slowest layers" not in page


@pytest.mark.full
def test_inductor_takes_part(tiny: str) -> None:
    assert main(["bench", tiny, "--input", "2x4", *TRY, "--json", "found.json"]) == 0
    row = rows_of("found.json")["inductor"]
    assert row["failure"] is None
    assert row["error"] < 1e-5


@pytest.mark.usefixtures("no_inductor")
def test_a_program_is_timed_too(tiny: str) -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU()).eval()
    torch.export.save(torch.export.export(model, (torch.randn(2, 4),)), "program.pt2")
    assert main(["bench", "program.pt2", *TRY, "--precision", "fp16", "--json", "found.json"]) == 0
    rows = rows_of("found.json")
    assert rows["eager"]["error"] == 0  # in its own dtype
    assert 0 < rows["torchtrt_bridge"]["error"] < 1e-2


@pytest.mark.usefixtures("no_inductor")
def test_a_failure_of_the_bridge_is_no_success(
    tiny: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def failing(*args: Any, **options: Any) -> None:
        raise trtb.BuildError("no engine")

    monkeypatch.setattr(trtb, "compile", failing)
    assert main(["bench", tiny, "--input", "2x4", *TRY]) == 1
    assert "torchtrt_bridge: BuildError: no engine" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--input", "2x4"], "TensorRT runs on no CPU"),
        (["--input", "2x4", "--rounds", "0"], "must be 1 or more"),
        (["--input", "2x4", *TRY, "--json", "none/found.json"], "there is no directory none"),
        (["--input", "2x4", *TRY, "--option", "engin=auto"], "Did you mean 'engine'"),
        ([*TRY], "Say what"),
    ],
)
def test_errors_are_one_message(
    tiny: str,
    arguments: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(["bench", tiny, *arguments]) == 1
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.out == ""


@pytest.mark.usefixtures("no_inductor")
def test_ctrl_c_writes_nothing(tiny: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*args: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Contender, "take_turn", interrupted)
    before = torch.backends.cudnn.allow_tf32
    assert main(["bench", tiny, "--input", "2x4", *TRY, "--json", "found.json"]) == 130
    assert not list(Path().glob("*.json"))
    assert torch.backends.cudnn.allow_tf32 == before


def call() -> ModelCall:
    return ModelCall(nn.Identity(), (torch.ones(1, 2),), {}, None, "")


def test_contenders_have_their_turns_in_rounds() -> None:
    order: list[str] = []
    contenders = [Contender(name, lambda x, name=name: order.append(name), call(), "cpu") for name in "ab"]
    take_turns(contenders, 2, 1)
    assert "".join(order) == "aabb" * 2  # a call to see how long it takes, and one that counts
    assert [len(contender.times) for contender in contenders] == [2, 2]


def test_a_contender_that_fails_in_its_turn_keeps_no_time() -> None:
    def failing(x: torch.Tensor) -> None:
        raise ValueError("out of memory\nand more")

    contender = Contender("a", failing, call(), "cpu")
    contender.times = [1.0]
    (found,) = take_turns([contender], 2, 1)
    assert found.row() == Row("a", failure="ValueError: out of memory")


def test_the_error_is_that_of_the_worst_output() -> None:
    one = torch.ones(4)
    assert largest_error([one, one * 1.5], [one, one]) == pytest.approx(0.5)
    assert largest_error([one, one * float("nan")], [one, one]) != 0
    with pytest.raises(ValueError, match="not those of PyTorch"):
        largest_error([one], [torch.ones(3)])


def test_the_table_has_the_ratio_to_eager_on_a_gpu(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [Row("eager", (4.0, 5.0, 6.0), 0.1, 0.0), Row("torchtrt_bridge", (2.0,), 9.0, 1e-3)]
    content = results(Request("a:b", (), None, {}), call(), rows, None, "cpu")
    print_results(content | {"times_mean_nothing": False}, rows)
    output = capsys.readouterr().out
    assert "2.50x" in output
    assert "4 - 6" in output
    print_results(content, rows)
    assert "2.50x" not in capsys.readouterr().out


@pytest.mark.gpu
@pytest.mark.parametrize("is_program", [False, True])
def test_on_a_gpu(tiny: str, is_program: bool) -> None:
    name = [tiny, "--input", "2x4"]
    if is_program:
        model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)).eval().cuda()
        trtb.save(trtb.export(model, (torch.randn(2, 4, device="cuda"),), tf32=True), "program.pt2")
        name = ["program.pt2"]
    else:
        name += ["--option", "tf32=true"]  # TensorRT-RTX 1.6 rounds to it in any case
    files = ["--json", "found.json", "--html", "found.html"]
    assert main(["bench", *name, *QUICK, "--option", "trial=check", *files]) == 0
    assert "Slowest layers" in Path("found.html").read_text(encoding="utf-8")
    content = json.loads(Path("found.json").read_text())
    assert content["times_mean_nothing"] is False
    assert content["nodes_in_tensorrt"] == "3 of 3"
    assert all(row["median_ms"] > 0 and row["error"] < 1e-3 for row in content["rows"])
