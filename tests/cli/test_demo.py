"""Demo, on a small model."""

from pathlib import Path

import pytest
import torch
from torchvision import models

from torchtrt_bridge.cli.command import main


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    torch.manual_seed(1)
    torch.save(models.resnet18().state_dict(), tmp_path / "resnet18.pth")
    return tmp_path / "resnet18.pth"


def test_it_prints_one_table_and_keeps_the_program(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["demo", "--model", "resnet18", "--targets", "sm_86", "--output", str(tmp_path / "out")]
    assert main(command) == 0
    output = capsys.readouterr().out
    assert "class names below mean nothing" in output
    assert output.count("51 of 51") == 1
    assert output.count("10 of 10") == 2
    assert "Written to" in output
    assert "built it for sm_86" in output.partition("Written to")[2]
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == ["report.html", "resnet18.pt2"]


@pytest.mark.full
def test_it_takes_a_file_of_weights(weights: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--model", "resnet18", "--targets", "sm_86", "--weights", str(weights)]) == 0
    assert "mean nothing" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "resnet5"], "no classification model 'resnet5'"),
        (["--targets", "h100"], "'sm_89'"),
        (["--model", "resnet18", "--weights", "missing.pth"], "FileNotFoundError"),
        (["--model", "squeezenet1_1", "--weights", "WEIGHTS"], "holds no weights of this model"),
    ],
)
def test_errors_are_one_message(
    weights: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["demo", *(str(weights) if word == "WEIGHTS" else word for word in arguments)]) == 1
    assert message in capsys.readouterr().err
