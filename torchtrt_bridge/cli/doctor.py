"""Diagnosis of an installation: its packages, this GPU, and the commands that mend what is wrong."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import importlib.metadata
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

Status = Literal["ok", "warn", "fail"]

BACKEND = "torchtrt_bridge"
OLDEST_PYTHON = (3, 10)
OLDEST_TORCH = (2, 11)
LOW_DISK_BYTES = 2 * 10**9


@dataclasses.dataclass(frozen=True)
class Check:
    """Result of one check: the finding, and advice if something is wrong.

    status: ``"ok"``; ``"warn"``: something is missing, and the rest works; ``"fail"``: no engine can be built.
    """

    name: str
    status: Status
    found: str
    advice: str | None = None


@dataclasses.dataclass(frozen=True)
class Diagnosis:
    """Checks of an installation, in their order."""

    checks: tuple[Check, ...]

    @property
    def is_well(self) -> bool:
        """True if no check failed; warnings are allowed."""
        return all(check.status != "fail" for check in self.checks)

    def to_dict(self) -> dict[str, Any]:
        """Return the diagnosis as plain data."""
        return dataclasses.asdict(self) | {"is_well": self.is_well}

    def __getitem__(self, name: str) -> Check:
        return next(check for check in self.checks if check.name == name)

    def __str__(self) -> str:
        lines = []
        for check in self.checks:
            lines.append(f"{check.status:<4}  {check.name}: {check.found}")
            if check.advice:
                lines.append(f"      -> {check.advice}")
        return "\n".join(lines)


def diagnose(cache_dir: str | Path | None = None) -> Diagnosis:
    """Check everything that torchtrt_bridge needs; a missing or broken package raises no error.

    cache_dir: the engine cache to check; None means the per-user one.
    """
    checks: list[Check] = []
    for name, check in (
        ("python", _python),
        ("torch", _torch),
        ("gpu", _gpu),
        ("tensorrt", _tensorrt),
        ("torchvision", _torchvision),
        ("transformers", _transformers),
        ("torch_tensorrt", _torch_tensorrt),
        ("engine cache", lambda: _cache(cache_dir)),
        ("torch.compile backend", _entry_point),
    ):
        checks += _guarded(name, check)
    return Diagnosis(tuple(checks))


def _guarded(name: str, check: Callable[[], Iterator[Check]]) -> Iterator[Check]:
    try:
        yield from check()
    except Exception as error:
        yield Check(name, "fail", f"could not be looked at: {type(error).__name__}: {error}")


def _python() -> Iterator[Check]:
    found = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    if sys.version_info[:2] < OLDEST_PYTHON:
        yield Check("python", "fail", found, f"use Python {OLDEST_PYTHON[0]}.{OLDEST_PYTHON[1]} or newer")
    else:
        yield Check("python", "ok", found)


def _torch() -> Iterator[Check]:
    try:
        import torch
    except ImportError as error:
        yield Check("torch", "fail", f"does not import: {error}", _pip("torch>=2.11"))
        return
    build = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built without CUDA"
    found = f"{torch.__version__}, {build}"
    if _numbers(torch.__version__) < OLDEST_TORCH:
        yield Check("torch", "fail", found, _pip("torch>=2.11"))
    else:
        yield Check("torch", "ok", found)


def _gpu() -> Iterator[Check]:
    import torch

    from torchtrt_bridge.trt.library import current_target

    driver = driver_version()
    if torch.cuda.is_available():
        name, target = torch.cuda.get_device_name(), current_target()
        major, minor = torch.cuda.get_device_capability()
        found = f"{name}, compute capability {major}.{minor} ({target}), driver {driver or 'unknown'}"
        yield Check("gpu", "ok", found)
    elif driver is None:
        found = "none: engines build here for named GPUs, and do not run here"
        yield Check("gpu", "warn", found, "torchtrt-bridge export MODEL -o model.pt2 --targets sm_89,sm_120")
    elif torch.version.cuda is None:
        found = f"driver {driver} is here, but this PyTorch is built without CUDA"
        yield Check("gpu", "warn", found, "pip install --force-reinstall torch  (a build with CUDA)")
    else:
        hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
        why = f", and CUDA_VISIBLE_DEVICES={hidden!r}" if hidden is not None else ""
        found = f"driver {driver} is here, but PyTorch (CUDA {torch.version.cuda}) sees no GPU{why}"
        advice = "unset CUDA_VISIBLE_DEVICES" if hidden is not None else "update the driver; nvidia-smi shows it"
        yield Check("gpu", "warn", found, advice)


def driver_version() -> str | None:
    """Return the version of the NVIDIA driver; None without one."""
    command = shutil.which("nvidia-smi")
    if command is None:
        return None
    query = [command, "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.splitlines()[0] if answer else None


def _tensorrt() -> Iterator[Check]:
    from torchtrt_bridge.trt import library as libraries

    present = [name for name in libraries.LIBRARIES if libraries.installed(name)]
    if not present:
        yield Check("tensorrt", "fail", "neither TensorRT-RTX nor TensorRT is installed", _pip("tensorrt-rtx"))
        return
    checks = [check for name in present for check in _guarded(name, functools.partial(_library, name))]
    one_is_ok = any(check.status == "ok" for check in checks)
    for check in checks:
        # A library that refuses this GPU does no harm beside another that runs on it.
        is_unneeded = one_is_ok and check.status == "fail"
        yield dataclasses.replace(check, status="warn", advice=None) if is_unneeded else check


def _library(name: str) -> Iterator[Check]:
    from torchtrt_bridge.errors import EngineLoadError
    from torchtrt_bridge.trt import library as libraries

    package = name.replace("_", "-")
    try:
        library = libraries.load(name)
    except EngineLoadError as error:
        yield Check(package, "fail", str(error).partition(" Run: ")[0], str(error).partition(" Run: ")[2] or None)
        return
    target = libraries.current_target()
    if target is None:
        runs = "builds engines here" if library.is_rtx else "needs a GPU to build engines"
        status: Status = "ok" if library.is_rtx else "warn"
        yield Check(package, status, f"{library}, {runs}; it builds for {_built_for(library)}")
    elif library.refusal is None:
        yield Check(package, "ok", f"{library}, runs on this GPU; it builds for {_built_for(library)}")
    else:
        yield Check(package, "fail", f"refuses this GPU: {library.refusal}", _instead(library, target))


def _built_for(library: Any) -> str:
    """Return the compute capabilities that a TensorRT builds for, in words."""
    if not library.is_rtx:
        return "the GPU it runs on"
    return f"{', '.join(library.capabilities)}, or portably for Ampere and newer"


def _instead(library: Any, target: str) -> str:
    """Return the command that installs a TensorRT for a GPU that the installed one refuses."""
    from torchtrt_bridge.trt.library import RTX_BY_CAPABILITY

    if not library.is_rtx:
        return _pip("tensorrt-rtx")
    wanted = RTX_BY_CAPABILITY.get(target)
    return _pip(wanted) if wanted else f"{_pip('tensorrt')}  (TensorRT itself runs on more GPUs)"


def _torchvision() -> Iterator[Check]:
    yield _optional("torchvision", "vision", "the demo and torchvision: models")


def _transformers() -> Iterator[Check]:
    yield _optional("transformers", "huggingface", "Hugging Face pipelines")


def _optional(package: str, extra: str, purpose: str) -> Check:
    install = f'pip install "torchtrt_bridge[{extra}]"'
    try:
        version = importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return Check(package, "warn", f"not installed; {purpose} need it", install)
    try:
        importlib.import_module(package)
    except Exception as error:  # torchvision built for another torch raises RuntimeError or OSError
        reason = f"{type(error).__name__}: {error}"
        return Check(
            package,
            "warn",
            f"{version} does not import: {reason}",
            f"pip install --force-reinstall {package}",
        )
    return Check(package, "ok", version)


def _torch_tensorrt() -> Iterator[Check]:
    from torchtrt_bridge.interop import torch_tensorrt as interop
    from torchtrt_bridge.trt import library as libraries

    found = interop.find()
    if found == "not installed":
        install = 'pip install "torchtrt_bridge[torch-tensorrt]"'
        yield Check("torch_tensorrt", "ok", "not installed; operators without a converter run in PyTorch", install)
        return
    problem = found if isinstance(found, str) else interop.mismatch(found, libraries.choose("auto"))
    if isinstance(found, str) or problem is not None:
        yield Check("torch_tensorrt", "warn", f"{problem}; operators without a converter run in PyTorch")
    else:
        yield Check("torch_tensorrt", "ok", f"{found.version}, writes operators that have no converter here")


def _cache(directory: str | Path | None) -> Iterator[Check]:
    from torchtrt_bridge.cache import default_directory

    path = default_directory() if directory is None else Path(directory)
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        advice = 'name another directory: options={"cache_dir": "a directory you can write"}'
        yield Check(
            "engine cache",
            "warn",
            f"{path} cannot be written ({error}); engines are built anew each time",
            advice,
        )
        return
    sizes = [file.stat().st_size for file in path.glob("*.engine")]
    free = shutil.disk_usage(path).free
    found = f"{path}: {len(sizes)} engines, {sum(sizes) / 1e6:.0f} MB; {free / 1e9:.0f} GB free"
    if free < LOW_DISK_BYTES:
        yield Check("engine cache", "warn", found, "free some disk space, or name another cache_dir")
    else:
        yield Check("engine cache", "ok", found)


def _entry_point() -> Iterator[Check]:
    import torch

    if BACKEND in torch.compiler.list_backends():
        yield Check("torch.compile backend", "ok", f'torch.compile(model, backend="{BACKEND}") finds it')
    else:
        found = f'torch.compile(model, backend="{BACKEND}") does not find it: the package is not installed'
        advice = "pip install .  (in its source folder); torchtrt_bridge.compile(model) works without"
        yield Check("torch.compile backend", "warn", found, advice)


def _pip(requirement: str) -> str:
    return f'pip install "{requirement}"' if set(requirement) & set("<>[") else f"pip install {requirement}"


def _numbers(version: str) -> tuple[int, ...]:
    """Return the first two numbers of a version."""
    return tuple(int(part) for part in version.split("+")[0].split(".")[:2])
