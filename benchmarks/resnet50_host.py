"""What building ResNet-50 costs on the CPU: seconds of each stage, memory, and a second process."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torchvision import models

TARGET = "sm_89"
MIB = 2**20


def resnet50() -> nn.Module:
    torch.manual_seed(0)
    return models.resnet50(weights=None).eval().requires_grad_(False)


def host_rows() -> list[dict[str, Any]]:
    """Every measurement in a process of its own; the last finds the engine that the one before it cached."""
    rows = []
    with tempfile.TemporaryDirectory(prefix="torchtrt_bridge-") as cache:
        for title, measurement in (
            ("stages", "stages"),
            ("export, empty cache", "export"),
            ("export, second process", "export"),
        ):
            row: dict[str, Any] = {"measurement": title}
            try:
                command = [sys.executable, __file__, measurement, cache]
                done = subprocess.run(command, capture_output=True, text=True, timeout=900, check=True)
                row |= json.loads(done.stdout.splitlines()[-1])
            except subprocess.CalledProcessError as error:
                row["failed"] = error.stderr.strip().splitlines()[-1][:300]
            except (subprocess.TimeoutExpired, ValueError, IndexError) as error:
                row["failed"] = f"{type(error).__name__}: {error}"
            rows.append(row)
    return rows


def measure_stages(cache: str) -> dict[str, Any]:
    """Seconds of each stage in a fresh process, imports included; then once more with all imported.

    CPU seconds, of all threads, tell what other work on the machine does not.
    """
    started = time.process_time()
    first = stage_seconds(resnet50())
    cpu = time.process_time() - started
    again = stage_seconds(resnet50())
    rows = {f"{stage}_s": seconds for stage, seconds in first.items()}
    rows["without_build_s"] = sum(first.values()) - first["build"]
    rows["without_build_again_s"] = sum(again.values()) - again["build"]
    return rows | {"all_cpu_s": cpu}


def stage_seconds(model: nn.Module) -> dict[str, float]:
    from torchtrt_bridge.capture import export_program, graph_from_program
    from torchtrt_bridge.engine import flavour as flavours
    from torchtrt_bridge.engine.build import engine_from_network
    from torchtrt_bridge.lower.network import network_from_graph
    from torchtrt_bridge.normalize import normalize
    from torchtrt_bridge.options import Options
    from torchtrt_bridge.partition import fuse, propose

    options = Options(precision="fp16", targets=(TARGET,))
    seconds: dict[str, float] = {}
    with timed(seconds, "capture"):
        captured = graph_from_program(export_program(model, (torch.randn(1, 3, 224, 224),)))
    with timed(seconds, "normalize"):
        module = normalize(captured.module, options)
    with timed(seconds, "partition"):
        subgraphs = fuse(module, propose(module, options).subgraphs)
    flavour = flavours.choose("auto")
    with timed(seconds, "lower"):
        networks = [network_from_graph(subgraph, flavour, {}) for subgraph in subgraphs.values()]
    with timed(seconds, "build"):
        for network in networks:
            engine_from_network(network, flavour, options)
    return seconds


@contextlib.contextmanager
def timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    started = time.perf_counter()
    yield
    seconds[stage] = time.perf_counter() - started


def measure_export(cache: str) -> dict[str, Any]:
    """Seconds of a whole export, and its memory above that of the loaded model, libraries included."""
    model = resnet50()
    weights = sum(tensor.nbytes for tensor in model.state_dict().values())
    before = memory_bytes("VmRSS")
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    started, started_cpu = time.perf_counter(), time.process_time()
    import torchtrt_bridge as trtb
    from torchtrt_bridge.engine import flavour as flavours

    flavours.choose("auto")
    libraries = memory_bytes("VmRSS") - before
    images = torch.randn(1, 3, 224, 224)
    program = trtb.export(model, images, precision="fp16", targets=(TARGET,), cache_dir=cache)
    seconds, cpu = time.perf_counter() - started, time.process_time() - started_cpu
    peak = memory_bytes("VmHWM") - before
    return {
        "export_s": seconds,
        "export_cpu_s": cpu,
        "weights_mib": weights / MIB,
        "tensorrt_libraries_mib": libraries / MIB,
        "peak_mib": peak / MIB,
        "peak_by_weights": peak / weights,
        "engines": len(program.report.engines),
        "built": sum(not entry.from_cache and entry.is_ready for entry in program.report.engines),
    }


def memory_bytes(field: str) -> int:
    """VmRSS (now) or VmHWM (the peak) of this process, as Linux counts them."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


MEASUREMENTS: dict[str, Callable[[str], dict[str, Any]]] = {
    "stages": measure_stages,
    "export": measure_export,
}


if __name__ == "__main__":
    print(json.dumps(MEASUREMENTS[sys.argv[1]](sys.argv[2])))
