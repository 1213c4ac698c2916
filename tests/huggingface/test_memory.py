"""The host memory that the build of a large model takes, in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# TensorRT writes an engine in parts of 64 MiB, of which two are in memory at a time.
FIXED_BYTES = 128 * 2**20


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the peak of a process's memory is read from /proc")
@pytest.mark.parametrize("road", ["export", "compile"])
def test_a_build_takes_little_more_than_the_weights(road: str) -> None:
    sizes = ["1024", "16", "8192"]  # 268 million parameters
    command = [sys.executable, "-m", "tests.huggingface.memory", road, *sizes]
    output = subprocess.run(command, check=True, cwd=ROOT, stdout=subprocess.PIPE, text=True).stdout
    taken = json.loads(output.splitlines()[-1])
    assert taken["weights"] > 500 * 2**20
    assert taken["before_build"] < 1.3 * taken["weights"]
    assert taken["in_all"] < 2.5 * taken["weights"] + FIXED_BYTES
