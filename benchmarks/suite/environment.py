"""The environment of a measurement: the GPU, the driver and the versions."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from pathlib import Path
from typing import Any

import torchtrt_bridge

PACKAGES = ("torchvision", "transformers", "triton", "torch-tensorrt", "torch-tensorrt-rtx")


def environment(device: str, engine: str) -> dict[str, Any]:
    """Return all that must be equal for rows to be comparable."""
    import torch

    from torchtrt_bridge.cli.doctor import driver_version

    on_gpu = device == "cuda" and torch.cuda.is_available()
    return {
        "gpu": torch.cuda.get_device_name() if on_gpu else None,
        "driver": driver_version() if on_gpu else None,
        "device": device,
        "cpu": f"{_processor()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads",
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "cuda": torch.version.cuda,
        **{package: _version(package) for package in PACKAGES},
        "tensorrt": _tensorrt(engine),
        "torchtrt_bridge": torchtrt_bridge.__version__,
        "tf32": False,
    }


def _version(package: str) -> str | None:
    """Return the version of a package; None if it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _tensorrt(engine: str) -> str:
    if engine == "reference":
        return "reference interpreter"
    from torchtrt_bridge.errors import BridgeError
    from torchtrt_bridge.trt import library as libraries

    try:
        return str(libraries.choose(engine))
    except BridgeError as error:
        return f"none: {error}"


def _processor() -> str:
    """Return the name of the processor where Linux gives it, else its architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())
