"""Diagnosis of installations that differ from this machine."""

from __future__ import annotations

import importlib.metadata
import types
from pathlib import Path
from typing import Any

import pytest
import torch

from torchtrt_bridge.cli import doctor
from torchtrt_bridge.cli.doctor import diagnose
from torchtrt_bridge.errors import EngineLoadError
from torchtrt_bridge.interop import torch_tensorrt as interop
from torchtrt_bridge.interop.torch_tensorrt import PeerLibrary
from torchtrt_bridge.trt import library as libraries

REFUSAL = "TensorRT-RTX 1.7.1.116: The engine cannot run on this GPU, which has compute capability 9.0."


class FakeLibrary:
    def __init__(self, name: str, refusal: str | None) -> None:
        self.trt = types.SimpleNamespace()
        self.capabilities = ["sm_86", "sm_120"]
        self.is_rtx = name == "tensorrt_rtx"
        self.refusal = refusal

    def __str__(self) -> str:
        return "TensorRT-RTX 1.7.1.116" if self.is_rtx else "TensorRT 10.15"


def install(monkeypatch: pytest.MonkeyPatch, **refusals: str | None) -> None:
    """Pretend that these libraries are installed, each with its reason to refuse the GPU."""
    monkeypatch.setattr(libraries, "installed", lambda name: name in refusals)
    monkeypatch.setattr(libraries, "load", lambda name: FakeLibrary(name, refusals[name]))


def plug_in(monkeypatch: pytest.MonkeyPatch, major: int, minor: int) -> None:
    """Pretend that there is a GPU."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA Test Card")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (major, minor))
    monkeypatch.setattr(doctor, "driver_version", lambda: "580.95")


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(doctor, "driver_version", lambda: None)


def test_this_machine_is_checked(tmp_path: Path) -> None:
    diagnosis = diagnose(tmp_path)
    assert diagnosis["python"].status == "ok"
    assert diagnosis["torch"].found.startswith(torch.__version__)
    assert diagnosis["engine cache"].found.startswith(f"{tmp_path}: 0 engines")
    assert str(diagnosis).count("\n") >= len(diagnosis.checks) - 1


def test_without_any_tensorrt(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    install(monkeypatch)
    diagnosis = diagnose(tmp_path)
    assert diagnosis["tensorrt"].status == "fail"
    assert diagnosis["tensorrt"].advice == "pip install tensorrt-rtx"
    assert not diagnosis.is_well


def test_without_a_gpu_rtx_builds_for_others(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    install(monkeypatch, tensorrt_rtx=None)
    diagnosis = diagnose(tmp_path)
    assert diagnosis["gpu"].status == "warn"
    assert "--targets" in str(diagnosis["gpu"].advice)
    assert "sm_86, sm_120, or portably" in diagnosis["tensorrt-rtx"].found
    assert diagnosis.is_well


def test_rtx_that_refuses_compute_capability_9(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    plug_in(monkeypatch, 9, 0)
    install(monkeypatch, tensorrt_rtx=REFUSAL)
    check = diagnose(tmp_path)["tensorrt-rtx"]
    assert check.status == "fail"
    assert "compute capability 9.0" in check.found
    assert check.advice == 'pip install "tensorrt-rtx>=1.6,<1.7"'


def test_rtx_that_refuses_another_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    plug_in(monkeypatch, 7, 0)
    install(monkeypatch, tensorrt_rtx="TensorRT-RTX 1.7.1.116: no")
    assert str(diagnose(tmp_path)["tensorrt-rtx"].advice).startswith("pip install tensorrt")


def test_a_refusal_is_a_warning_beside_a_tensorrt_that_runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    plug_in(monkeypatch, 9, 0)
    install(monkeypatch, tensorrt_rtx=REFUSAL, tensorrt=None)
    diagnosis = diagnose(tmp_path)
    assert diagnosis["gpu"].found == "NVIDIA Test Card, compute capability 9.0 (sm_90), driver 580.95"
    assert diagnosis["tensorrt-rtx"].status == "warn"
    assert diagnosis["tensorrt"].status == "ok"
    assert diagnosis.is_well


def test_a_tensorrt_that_does_not_import(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def load(name: str) -> None:
        raise EngineLoadError("tensorrt-rtx is installed but does not import: x. Run: pip install --force-reinstall y")

    install(monkeypatch, tensorrt_rtx=None)
    monkeypatch.setattr(libraries, "load", load)
    check = diagnose(tmp_path)["tensorrt-rtx"]
    assert (check.status, check.advice) == ("fail", "pip install --force-reinstall y")


def test_without_torchvision(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    version = importlib.metadata.version

    def missing(name: str) -> str:
        if name == "torchvision":
            raise importlib.metadata.PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    check = diagnose(tmp_path)["torchvision"]
    assert (check.status, check.advice) == ("warn", 'pip install "torchtrt_bridge[vision]"')


@pytest.mark.parametrize(
    ("found", "status", "words"),
    [
        ("not installed", "ok", "not installed"),
        ("installed, but does not import: OSError: no", "warn", "does not import: OSError: no"),
        (PeerLibrary("2.11.0", int, {}, dict, dict), "ok", "2.11.0, writes operators that have no converter here"),
        (
            PeerLibrary("2.11.0", str, {}, dict, dict),
            "warn",
            "networks of another TensorRT than TensorRT-RTX 1.7.1.116",
        ),
    ],
    ids=["none", "broken", "well", "another TensorRT"],
)
def test_torch_tensorrt(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, found: Any, status: str, words: str) -> None:
    library = FakeLibrary("tensorrt_rtx", None)
    library.trt.INetworkDefinition = int
    monkeypatch.setattr(libraries, "choose", lambda engine: library)
    monkeypatch.setattr(interop, "find", lambda: found)
    check = diagnose(tmp_path)["torch_tensorrt"]
    assert check.status == status
    assert words in check.found


def test_a_driver_that_pytorch_cannot_use(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(doctor, "driver_version", lambda: "580.95")
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    check = diagnose(tmp_path)["gpu"]
    assert check.status == "warn"
    assert check.advice == "unset CUDA_VISIBLE_DEVICES"


def test_a_cache_that_cannot_be_written(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    check = diagnose(blocked / "engines")["engine cache"]
    assert check.status == "warn"
    assert "cannot be written" in check.found
    assert "cache_dir" in str(check.advice)


def test_a_package_that_is_not_installed_is_reported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(torch._dynamo, "list_backends", lambda exclude: ["inductor"])
    check = diagnose(tmp_path)["torch.compile backend"]
    assert check.status == "warn"
    assert "torchtrt_bridge.compile" in str(check.advice)


def test_a_check_that_breaks_is_a_failed_check(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def broken() -> str:
        raise OSError("libcuda is broken")

    monkeypatch.setattr(doctor, "driver_version", broken)
    check = diagnose(tmp_path)["gpu"]
    assert (check.status, check.found) == ("fail", "could not be looked at: OSError: libcuda is broken")
