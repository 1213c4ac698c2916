"""Models by their names, and the calls that commands make of them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.export import Dim

import torchtrt_bridge as trtb
from torchtrt_bridge.cli.arguments import request_from
from torchtrt_bridge.cli.calls import ModelCall, call_from
from torchtrt_bridge.cli.command import _parser, main
from torchtrt_bridge.errors import OptionsError


def called(*arguments: str) -> ModelCall:
    return call_from(request_from(_parser().parse_args(["explain", *arguments])))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder with the configuration of a small model of transformers', without weights."""
    from transformers import BertConfig

    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    BertConfig(**sizes, vocab_size=50).save_pretrained(tmp_path / "bert")
    return tmp_path / "bert"


def test_a_model_of_timm_has_its_own_size() -> None:
    pytest.importorskip("timm")
    found = called("timm:mobilenetv3_small_050")
    assert [tuple(value.shape) for value in found.inputs] == [(1, 3, 224, 224)]
    assert not found.module.training


def test_a_folder_without_weights_gets_random_ones(folder: Path) -> None:
    found = called(f"hf:{folder}")
    assert [(tuple(value.shape), value.dtype) for value in found.inputs] == [((1, 128), torch.int64)]
    assert found.module.config.hidden_size == 16


def test_a_folder_with_weights_gives_these(folder: Path) -> None:
    from transformers import AutoConfig, AutoModel

    saved = AutoModel.from_config(AutoConfig.from_pretrained(folder))
    saved.save_pretrained(folder)
    found = called(f"hf:{folder}", "--input", "1x8:int64").module.state_dict()
    assert all(torch.equal(value, found[name]) for name, value in saved.state_dict().items())


@pytest.mark.parametrize("name", ["bert", "BertConfig"])
def test_a_configuration_gives_a_model(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import AutoModel, BertConfig

    wanted = []
    monkeypatch.setattr(AutoModel, "from_config", lambda config: wanted.append(config) or nn.Linear(4, 2))
    called(f"hf:{name}", "--input", "1x4")
    assert [type(config) for config in wanted] == [BertConfig]


class Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 2)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return self.linear(x) * y.relu()


def saved(path: Path, how: str, is_dynamic: bool = True) -> str:
    model, inputs = Pair().eval(), (torch.randn(2, 4), torch.randn(2, 2))
    size = Dim("n", min=1, max=6)
    shapes = ({0: size}, {0: size}) if is_dynamic else None
    if how == "torch":
        torch.export.save(torch.export.export(model, inputs, dynamic_shapes=shapes), path)
    else:
        trtb.save(trtb.export(model, inputs, dynamic_shapes=shapes, targets=("sm_86",)), path)
    return str(path)


@pytest.mark.parametrize("how", ["torch", "trtb"])
def test_a_program_is_a_model_with_inputs_of_its_own(tmp_path: Path, how: str) -> None:
    found = called(saved(tmp_path / "pair.pt2", how))
    assert [tuple(value.shape) for value in found.inputs] == [(2, 4), (2, 2)]


def test_export_of_a_program_keeps_its_ranges(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["export", saved(tmp_path / "pair.pt2", "torch"), "-o", "built.pt2", "--targets", "sm_89"]) == 0
    assert "Traceback" not in capsys.readouterr().err
    program = trtb.load("built.pt2")
    assert "sm_89" in str(program.report)
    assert program(torch.ones(6, 4), torch.ones(6, 2)).shape == (6, 2)
    with pytest.raises(trtb.ShapeRangeError):
        program(torch.ones(7, 4), torch.ones(7, 2))


READ = """
from pathlib import Path
import sys
from torchtrt_bridge.cli.models import program_from_file
program_from_file(Path(sys.argv[1]))
"""


@pytest.mark.full
def test_a_program_of_transformers_is_read_by_a_process_that_has_not_imported_it(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "bert.pt2"
    found = called(f"hf:{folder}", "--input", "1x8:int64")
    trtb.save(trtb.export(found.module, found.args, targets=("sm_86",)), path)
    done = subprocess.run([sys.executable, "-c", READ, str(path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


class Named(nn.Module):
    def forward(self, x: torch.Tensor, *, mask: torch.Tensor) -> torch.Tensor:
        return (x.relu() * mask).sum(-1)


@pytest.mark.parametrize(("batch", "most"), [([], 6), (["--dynamic-batch", "1:5"], 5)])
def test_a_program_with_arguments_by_name_keeps_its_ranges(
    batch: list[str], most: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    size = Dim("n", min=1, max=6)
    args, kwargs = (torch.ones(2, 4),), {"mask": torch.ones(2, 4)}
    shapes = {"x": {0: size}, "mask": {0: size}}
    torch.export.save(torch.export.export(Named().eval(), args, kwargs, dynamic_shapes=shapes), "named.pt2")
    assert main(["export", "named.pt2", "-o", "built.pt2", "--targets", "sm_86", *batch]) == 0
    program = trtb.load("built.pt2")
    assert program(torch.ones(most, 4), mask=torch.ones(most, 4)).shape == (most,)
    with pytest.raises(trtb.ShapeRangeError):
        program(torch.ones(most + 1, 4), mask=torch.ones(most + 1, 4))


def test_inputs_of_a_program_may_be_said(tmp_path: Path) -> None:
    found = called(saved(tmp_path / "pair.pt2", "torch"), "--input", "5x4", "--input", "5x2")
    assert [tuple(value.shape) for value in found.inputs] == [(5, 4), (5, 2)]


def test_a_file_that_holds_no_program(tmp_path: Path) -> None:
    path = tmp_path / "text.pt2"
    path.write_text("text")
    with pytest.raises(OptionsError, match="is no exported program"):
        called(str(path))


def test_a_damaged_program_of_ours_is_not_read_without_the_checks(tmp_path: Path) -> None:
    path = Path(saved(tmp_path / "pair.pt2", "trtb"))
    content = path.read_bytes()
    path.write_bytes(content.replace(b'"sm_86"', b'"sm_99"'))
    assert path.read_bytes() != content
    with pytest.raises(trtb.EngineLoadError):
        called(str(path))
