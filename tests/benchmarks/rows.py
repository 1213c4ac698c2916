"""Rows as a measurement gives them, with figures that are easy to check; they were not measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.suite.results import Results

ENVIRONMENT = {
    "gpu": "NVIDIA Example",
    "driver": "1.2",
    "cpu": "a processor",
    "torch": "2.11.0",
    "tensorrt": "TensorRT-RTX 1.6",
    "transformers": "5.17.0",
}
MARKS = {"date": "2026-01-02", "source": "abc"}


def row(contender: str, model: str = "resnet50", batch: int = 1, kind: str = "speed", **figures: Any) -> dict[str, Any]:
    place = {"model": model, "batch": batch, "precision": "fp16", "kind": kind, "contender": contender}
    return {**place, **figures, **MARKS}


def timed(contender: str, ms: float, model: str = "resnet50", batch: int = 1, **figures: Any) -> dict[str, Any]:
    return row(contender, model, batch, ms=ms, ms_iqr=ms / 20, latency_ms=ms * 2, error=1e-3, **figures)


def side_by_side(model: str, batch: int, bridge: float, eager: float, *inductor: float) -> list[dict[str, Any]]:
    """Return one row of each contender, with these milliseconds per call."""
    modes = ("inductor", "inductor-reduce-overhead", "inductor-max-autotune")
    report = {"engines": 1, "trt_nodes": 20, "torch_nodes": 0, "build_s": 0.5, "replay_ms": bridge * 0.9}
    return [
        timed("torchtrt_bridge", bridge, model, batch, **report, problems=[]),
        timed("eager", eager, model, batch),
        *(timed(mode, ms, model, batch) for mode, ms in zip(modes, inductor, strict=False)),
    ]


def results(path: Path, rows: list[dict[str, Any]]) -> Results:
    kept = Results(path, ENVIRONMENT)
    kept.add(rows)
    return kept
