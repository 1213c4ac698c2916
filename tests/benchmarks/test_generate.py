"""The benchmark of `generate`, in its tiny version on the CPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("transformers", reason="the extra huggingface brings it")

ROOT = Path(__file__).parent.parent.parent


def results_of(folder: Path, *options: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.generate", "gpt2", "--tiny", "--results", str(folder), *options]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    subprocess.run(command, check=True, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, timeout=600)
    (file,) = folder.glob("generate_*_host.json")
    result: dict[str, Any] = json.loads(file.read_text())
    assert result["command"] == " ".join(["python -m benchmarks.generate gpt2 --tiny", *options])
    found: dict[str, Any] = result["models"]["gpt2"]
    return found


@pytest.mark.full
def test_each_way_is_timed(tmp_path: Path) -> None:
    found = results_of(tmp_path, "--ways", "accelerated,eager,int8,int4", "--batches", "2")
    assert list(found["batch 2"]) == ["accelerated", "eager", "int8", "int4"]
    assert all(way["tokens_per_s"] > 0 for way in found["batch 2"].values())
    assert list(found["reports"]) == ["accelerated", "int8", "int4"]
    assert all(report["engines"] and not report["notes"] for report in found["reports"].values())


@pytest.mark.full
def test_first_calls_are_those_of_new_processes(tmp_path: Path) -> None:
    found = results_of(tmp_path, "--start")
    assert list(found) == ["empty", "filled"]
    assert found["filled"]["first_call_s"] < found["empty"]["first_call_s"]
