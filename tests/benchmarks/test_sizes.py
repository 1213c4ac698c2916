"""The benchmark of engines for single sizes, with tiny models on the CPU."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.pages import ROOT


@pytest.mark.full
def test_it_says_what_computes_the_sizes(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.sizes", "--tiny", "--results", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "sizes_host.json").read_text())
    assert [(row["model"], row["batch"]) for row in found["milliseconds"]] == [
        *(("tiny-cnn", batch) for batch in (1, 8)),
        *(("tiny-bert", batch) for batch in (1, 8)),
    ]
    assert all(row["choices"] == ["engine"] for row in found["milliseconds"])
