"""The file of results."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.suite.results import Results, keep_rows
from torchtrt_bridge.errors import OptionsError

ENVIRONMENT = {"gpu": "H100", "torch": "2.11.0"}


def row(contender: str, **figures: Any) -> dict[str, Any]:
    return {"model": "m", "batch": 1, "precision": "fp16", "kind": "speed", "contender": contender, **figures}


def test_rows_come_back_and_replace_their_like(tmp_path: Path) -> None:
    results = Results.open(tmp_path / "bench.json", ENVIRONMENT)
    results.runs.append({"date": "2026-01-01", "command": "torchtrt-bridge bench"})
    results.add([row("a", ms=1.0), row("b", ms=2.0)])
    results.add([row("a", ms=3.0)])
    again = Results.open(tmp_path / "bench.json", dict(ENVIRONMENT))
    assert again.rows == [row("a", ms=3.0), row("b", ms=2.0)]
    assert again.get(("m", 1, "fp16", "speed", "b")) == row("b", ms=2.0)
    assert again.runs == results.runs


def test_the_file_is_json_with_a_line_for_each_row(tmp_path: Path) -> None:
    results = Results.open(tmp_path / "bench.json", ENVIRONMENT)
    results.add([row("a", times_ms=[1.0, 2.0]), row("b", failed='"no"')])
    text = (tmp_path / "bench.json").read_text()
    assert set(json.loads(text)) == {"environment", "runs", "rows"}
    assert sum('"contender"' in line for line in text.splitlines()) == 2


def test_another_environment_is_refused_and_the_file_stays(tmp_path: Path) -> None:
    path = tmp_path / "bench.json"
    Results.open(path, ENVIRONMENT).add([row("a", ms=1.0)])
    before = path.read_text()
    with pytest.raises(OptionsError, match=r"torch was '2.11.0' and is '2.12.0'; triton was None and is '3'"):
        Results.open(path, {**ENVIRONMENT, "torch": "2.12.0", "triton": "3"})
    assert path.read_text() == before


def test_a_write_that_fails_leaves_the_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "bench.json"
    results = Results.open(path, ENVIRONMENT)
    results.add([row("a", ms=1.0)])
    with pytest.raises(ValueError, match="Out of range"):
        results.add([row("b", ms=float("nan"))])
    assert [path] == list(tmp_path.iterdir())
    assert [found["contender"] for found in Results.read(path).rows] == ["a"]


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"environment": {}, "runs": [], "rows": [{"model": "m"}]}'])
def test_a_file_that_holds_no_results_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "bench.json"
    path.write_text(text)
    with pytest.raises(OptionsError, match=r"bench\.json holds no results of the benchmark"):
        Results.read(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(OptionsError, match=r"none\.json holds no results.*No such file"):
        Results.read(tmp_path / "none.json")


def test_rows_of_a_script_are_kept_with_its_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/somewhere/benchmarks/kernels.py", "--models", "a b"])
    keep_rows(tmp_path / "kept.json", "cpu", [{"model": "a b", "ms": 1.5}])
    kept = json.loads((tmp_path / "kept.json").read_text())
    assert kept["command"] == "python -m benchmarks.kernels --models 'a b'"
    assert kept["rows"] == [{"model": "a b", "ms": 1.5}]
    assert kept["environment"]["torch"] == torch.__version__
