"""Archives of programs: their paths, their contents, and the errors of files that cannot be read."""

from __future__ import annotations

import errno
import io
import os
import stat
import subprocess
import sys
import textwrap
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import nn
from torch.nn.attention.flex_attention import flex_attention

import torchtrt_bridge as trtb
from tests.models import ConvNet, image, trained
from torchtrt_bridge.entry import archive
from torchtrt_bridge.runtime.trial import TriedModule


@pytest.fixture
def program() -> trtb.Program:
    return trtb.export(trained(ConvNet()), (image(),), targets=("sm_86",))


def test_wrong_file_names(program: trtb.Program, tmp_path: Path) -> None:
    with pytest.raises(trtb.OptionsError, match=r"\.pt2"):
        trtb.save(program, tmp_path / "model.engine")
    with pytest.raises(trtb.OptionsError, match="what export"):
        trtb.save(ConvNet(), tmp_path / "model.pt2")  # type: ignore[arg-type]
    with pytest.raises(trtb.EngineLoadError, match="no file"):
        trtb.load(tmp_path / "missing.pt2")
    with pytest.raises(trtb.OptionsError, match="precision was settled by export"):
        trtb.load(tmp_path / "missing.pt2", precision="fp16")


def test_wrong_folders(program: trtb.Program, tmp_path: Path) -> None:
    with pytest.raises(trtb.OptionsError, match=r"save\(\) takes the path of a \.pt2 file, not a BytesIO"):
        trtb.save(program, io.BytesIO())  # type: ignore[arg-type]
    with pytest.raises(trtb.OptionsError, match=r"load\(\) takes the path of a \.pt2 file, not a BytesIO"):
        trtb.load(io.BytesIO())  # type: ignore[arg-type]
    with pytest.raises(trtb.OptionsError, match=rf"no folder {tmp_path / 'missing'} to write model\.pt2 into"):
        trtb.save(program, tmp_path / "missing" / "model.pt2")
    with pytest.raises(trtb.EngineLoadError, match=f"{tmp_path} is a folder"):
        trtb.load(tmp_path)


READS_SOME_RESULTS: list[Any] = [
    pytest.param(lambda x: torch.max(x + 1, 1)[0] * 2, id="max"),
    pytest.param(lambda x: torch.topk(x + 1, 2)[0] * 2, id="topk"),
    pytest.param(lambda x: (x + 1).split(2, 1)[2] * 2, id="split"),
    pytest.param(lambda x: (x + 1).unbind(1)[3] * 2, id="unbind"),
    pytest.param(nn.GRU(6, 8), id="gru"),
]


@pytest.mark.parametrize("model", READS_SOME_RESULTS)
def test_a_loaded_subgraph_returns_what_the_exported_one_does(model: Any, tmp_path: Path) -> None:
    program = trtb.export(model, torch.randn(5, 6), engine="reference")
    trtb.save(program, tmp_path / "model.pt2")
    found, expected = (results_of_subgraph(each) for each in (trtb.load(tmp_path / "model.pt2"), program))
    assert found == expected


def results_of_subgraph(program: trtb.Program) -> list[torch.Size]:
    """Return the shapes of what the only subgraph of a program returns, a list in place of a tuple of tensors."""
    (subgraph,) = (module for module in program._run.module.modules() if isinstance(module, TriedModule))
    (results,) = subgraph.pytorch.graph.output_node().args
    return [node.meta["val"].shape for node in results]


class Halves(NamedTuple):
    """Class that is not registered with PyTorch under a name for files."""

    left: torch.Tensor
    right: torch.Tensor


def test_a_class_that_cannot_be_written(tmp_path: Path) -> None:
    program = trtb.export(lambda x: Halves(x.relu(), x * 2), torch.ones(3), engine="reference")
    torch.testing.assert_close(program(torch.ones(3)).right, torch.full((3,), 2.0))
    with pytest.raises(trtb.OptionsError, match=r"(?s)namedtuple class .*Halves.*Register the class"):
        trtb.save(program, tmp_path / "model.pt2")
    assert os.listdir(tmp_path) == []


class Flexible(nn.Module):
    """A layer, and attention whose graphs and block mask `torch.export` does not write."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> Any:
        heads = self.layer(x).view(1, 1, 4, 8)
        return flex_attention(heads, heads, heads, score_mod=lambda score, b, h, query, key: score + (query - key))


def test_an_operator_that_cannot_be_written(tmp_path: Path) -> None:
    program = trtb.export(Flexible().eval(), torch.randn(4, 8), engine="reference")
    path = tmp_path / "model.pt2"
    path.write_bytes(b"old")
    with pytest.raises(trtb.OptionsError, match=r"cannot write flex_attention .*test_archive.py:\d+.*in this process"):
        trtb.save(program, path)
    assert path.read_bytes() == b"old"


def test_whatever_the_writer_raises_is_named(
    program: trtb.Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def save(*_: Any) -> None:
        raise KeyError("planted")

    monkeypatch.setattr(torch.export, "save", save)
    with pytest.raises(trtb.OptionsError, match="cannot write this program: KeyError: 'planted'"):
        trtb.save(program, tmp_path / "model.pt2")


def test_a_file_that_save_did_not_write(tmp_path: Path) -> None:
    torch.export.save(torch.export.export(nn.ReLU(), (torch.randn(3),)), tmp_path / "plain.pt2")
    with pytest.raises(trtb.EngineLoadError, match=r"torch\.export\.load reads it"):
        trtb.load(tmp_path / "plain.pt2")


@pytest.mark.parametrize("damage", ["truncated", "flipped", "text"])
def test_a_damaged_file(program: trtb.Program, tmp_path: Path, damage: str) -> None:
    path = tmp_path / "model.pt2"
    trtb.save(program, path)
    content = bytearray(path.read_bytes())
    if damage == "truncated":
        content = content[: len(content) // 2]
    elif damage == "flipped":
        with zipfile.ZipFile(path) as file:
            largest = max(file.infolist(), key=lambda entry: entry.file_size)
        content[largest.header_offset + largest.file_size // 2] ^= 0xFF
    else:
        content = bytearray(b"not a program")
    path.write_bytes(content)
    with pytest.raises(trtb.EngineLoadError, match=r"damaged|not a readable"):
        trtb.load(path)


def test_a_failed_save_leaves_the_old_file(
    program: trtb.Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "model.pt2"
    path.write_bytes(b"old")

    def fail(*_: Any, **__: Any) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(archive.torch.export, "save", fail)
    with pytest.raises(OSError, match="disk full"):
        trtb.save(program, path)
    assert path.read_bytes() == b"old"
    assert not [name for name in os.listdir(tmp_path) if name.startswith(".model")]


FULL_DISK = """
    import resource, signal, sys, torch, torchtrt_bridge as trtb
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    program = trtb.export(torch.nn.Linear(256, 256).eval(), torch.ones(1, 256), engine="reference")
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), resource.RLIM_INFINITY))
    try:
        trtb.save(program, sys.argv[1])
    except OSError as error:
        print("refused", error.errno)
"""


@pytest.mark.full
@pytest.mark.parametrize("size", [0, 100, 100_000, 263_000])
def test_a_full_disk_is_an_error_and_leaves_the_old_file(size: int, tmp_path: Path) -> None:
    """A writer that is stopped at the start, among the weights, and at the end of the file."""
    path = tmp_path / "model.pt2"
    path.write_bytes(b"old")
    command = [sys.executable, "-c", textwrap.dedent(FULL_DISK), str(path), str(size)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert (result.returncode, result.stdout) == (0, f"refused {errno.EFBIG}\n"), result.stderr
    assert [(file.name, file.read_bytes()) for file in tmp_path.iterdir()] == [("model.pt2", b"old")]


def test_two_saves_are_equal(program: trtb.Program, tmp_path: Path) -> None:
    for name in ("one.pt2", "two.pt2"):
        trtb.save(program, tmp_path / name)
    assert (tmp_path / "one.pt2").read_bytes() == (tmp_path / "two.pt2").read_bytes()


def test_the_mode_and_the_link_that_are_there_are_kept(program: trtb.Program, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    path, target = tmp_path / "model.pt2", tmp_path / "folder" / "model.pt2"
    target.touch(mode=0o640)
    target.chmod(0o640)
    path.symlink_to(Path("folder") / "model.pt2")
    trtb.save(program, path)
    assert path.is_symlink()
    assert stat.S_IMODE(target.stat().st_mode) == 0o640
    assert trtb.load(target, device="cpu").report.engines


@pytest.mark.parametrize(("umask", "mode"), [(0o077, 0o600), (0o022, 0o644)])
def test_a_new_file_follows_the_umask(program: trtb.Program, tmp_path: Path, umask: int, mode: int) -> None:
    before = os.umask(umask)
    try:
        trtb.save(program, tmp_path / "model.pt2")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "model.pt2").stat().st_mode) == mode


def test_the_file_holds_no_pickle(program: trtb.Program, tmp_path: Path) -> None:
    trtb.save(program, tmp_path / "model.pt2")
    with zipfile.ZipFile(tmp_path / "model.pt2") as file:
        samples = [name for name in file.namelist() if name.endswith("sample_inputs/model.pt")]
        assert [file.read(name) for name in samples] == [b""]
