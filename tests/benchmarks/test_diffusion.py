"""The benchmark of diffusion pipelines, in its tiny version on the CPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("diffusers", reason="the extra diffusers brings it")

ROOT = Path(__file__).parent.parent.parent


@pytest.mark.full
def test_each_way_is_timed(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.diffusion", "--tiny", "--results", str(tmp_path)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    subprocess.run(command, check=True, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, timeout=600)
    found = json.loads((tmp_path / "diffusion_host.json").read_text())
    assert found["is_whole"]
    assert list(found["ways"]) == ["accelerated", "eager"]
    assert all(seconds > 0 for way in found["ways"].values() for seconds in way["image_s"].values())
    assert found["ways"]["accelerated"]["error"] < 1e-5
