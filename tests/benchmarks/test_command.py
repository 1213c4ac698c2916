"""torchtrt-bridge bench, as it is called: real processes, tiny models, the reference interpreter."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.suite.command import jobs_of, parser
from torchtrt_bridge.cli.command import main

TINY = ["bench", "--device", "cpu", "--engine", "reference", "--tiny", "--models", "tiny-cnn"]
NO_GPU = pytest.mark.skipif(torch.cuda.is_available(), reason="says what it says without a GPU")


@pytest.fixture(autouse=True)
def _in_an_empty_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))  # for the command, installed or not
    (tmp_path / "temporary").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))  # a killed run leaves files there


def rows(path: str = "bench.json") -> dict[tuple[str, int], dict[str, Any]]:
    content = json.loads(Path(path).read_text())
    return {(row["contender"], row["batch"]): row for row in content["rows"]}


@pytest.mark.full
def test_contenders_are_measured_shown_and_not_measured_again(capsys: pytest.CaptureFixture[str]) -> None:
    command = [*TINY, "--batches", "1", "--contenders", "torchtrt_bridge,eager,torch_tensorrt"]
    assert main([*command, "--markdown"]) == 0
    found = rows()
    assert set(found) == {("torchtrt_bridge", 1), ("eager", 1), ("torch_tensorrt", 1)}
    assert found["torchtrt_bridge", 1]["error"] < 2e-3
    assert "torch_tensorrt" in found["torch_tensorrt", 1]["failed"]
    output = capsys.readouterr()
    assert "| tiny-cnn | 1 | fp16 |" in output.out
    assert "[1/1] tiny-cnn, batch 1, fp16, speed" in output.err
    before = Path("bench.json").read_text()
    assert main(command) == 0
    assert "1 of 1 are in bench.json already" in capsys.readouterr().err
    assert rows() == found
    assert Path("bench.json").read_text() == before
    assert main(["bench", "--show", "bench.json"]) == 0
    assert "Back to back: ms per call" in capsys.readouterr().out


def processes_naming(path: Path) -> list[int]:
    """Return the processes whose command line contains a path."""
    found = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if str(path) in file.read_text():
                found.append(int(file.parent.name))
    return found


def wait_until(holds: Callable[[], bool], patience: float = 60.0) -> bool:
    end = time.monotonic() + patience
    while not holds() and time.monotonic() < end:
        time.sleep(0.02)
    return holds()


@pytest.mark.full
def test_a_run_that_is_killed_ends_its_process_and_goes_on_where_it_was(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [*TINY, "--contenders", "eager", "--batches", "1,8"]
    killed = [sys.executable, "-m", "torchtrt_bridge", *command]
    with subprocess.Popen(killed, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:  # the first row is in the file when the second begins
            if line.startswith("[2/2]"):
                break
        workers = tmp_path / "temporary"  # the folder of their events
        assert wait_until(lambda: processes_naming(workers) != [])
        process.kill()
    assert wait_until(lambda: processes_naming(workers) == [])
    first = rows()
    assert set(first) == {("eager", 1)}
    assert main(command) == 0
    assert "1 of 2 are in bench.json already" in capsys.readouterr().err
    assert set(rows()) == {("eager", 1), ("eager", 8)}
    assert rows()["eager", 1] == first["eager", 1]


@pytest.mark.full
def test_the_start_is_measured_cold_and_warm() -> None:
    command = ["--kinds", "start", "--batches", "1", "--contenders", "torchtrt_bridge", "--output", "start.json"]
    assert main([*TINY, *command]) == 0
    row = rows("start.json")["torchtrt_bridge", 1]
    assert row["cold_seconds"] > 0
    assert row["warm_seconds"] > 0
    assert (row["cold_engines"], row["warm_engines"]) == (1, 1)


@pytest.mark.full
def test_a_build_needs_no_gpu_and_is_cached() -> None:
    command = ["--kinds", "build", "--models", "tiny-cnn", "--batches", "1", "--output", "build.json"]
    assert main(["bench", *command]) == 0
    row = rows("build.json")["torchtrt_bridge", 1]
    assert (row["cold_engines"], row["cold_built"], row["warm_built"]) == (1, 1, 0)
    assert row["cold_export_s"] > row["cold_build_s"] > 0


def test_with_no_time_left_it_says_how_to_go_on(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*TINY, "--deadline", "0"]) == 0
    assert "3 jobs were left for lack of time" in capsys.readouterr().err
    assert not Path("bench.json").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--models", "resnet5"], "there is no 'resnet5'. Did you mean 'resnet50'?"),
        (["--contenders", "inducto"], "Did you mean 'inductor'?"),
        (["--precisions", "fp15"], "Did you mean 'fp16'?"),
        (["--kinds", "spead"], "Did you mean 'speed'?"),
        (["--kinds", ""], "--kinds: name at least one of speed, start, build"),
        (["--batches", "1,x"], "as 1,8,32"),
        (["--batches", "0"], "as 1,8,32"),
        (["--calls", "0"], "must be 1 or more"),
        (["--output", "none/bench.json", "--kinds", "build"], "there is no directory none"),
        (["--device", "cpu"], "Add --engine reference"),
        pytest.param([], "no GPU is visible to PyTorch", marks=NO_GPU),
        (["--show", "none.json"], "none.json holds no results"),
        (["--plot", "none.json", "speed.png"], "none.json holds no results"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_mistake_is_one_message(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", *arguments]) == 1
    captured = capsys.readouterr()
    assert message in captured.err
    assert (captured.out, "Traceback" in captured.err) == ("", False)


def test_help_has_examples_models_and_contenders(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["bench", "--help"])
    output = capsys.readouterr().out
    assert "torchtrt-bridge bench --plot results.json speed.png" in output
    assert "llama-1b" in output
    assert "inductor-max-autotune" in output


def test_without_names_all_models_of_real_size_are_measured() -> None:
    jobs = jobs_of(parser("bench").parse_args(["--precisions", "fp16,bf16"]))
    assert len(jobs) == 11 * 3 * 2
    assert {job.calls for job in jobs} == {50}
    assert jobs[-1].model == "llama-1b"


@pytest.mark.full
def test_rows_compile_side_by_side() -> None:
    command = [*TINY, "--batches", "1,8", "--contenders", "eager", "--together", "2"]
    assert main(command) == 0
    assert all(row["ms"] > 0 and "device_held_mib" not in row for row in rows().values())
    assert set(rows()) == {("eager", 1), ("eager", 8)}


@pytest.mark.full
@pytest.mark.parametrize("script", ["first_result", "host_call", "kernels"])
def test_a_script_runs_without_a_gpu_too(script: str) -> None:
    command = [sys.executable, "-m", f"benchmarks.{script}", "--models", "tiny-cnn", "--out", "kept.json"]
    subprocess.run(command, env={**os.environ, "CUDA_VISIBLE_DEVICES": ""}, check=True)
    kept = json.loads(Path("kept.json").read_text())
    assert kept["command"] == f"python -m benchmarks.{script} --models tiny-cnn --out kept.json"
    assert {row["model"] for row in kept["rows"]} == {"tiny-cnn"}


def test_outside_a_checkout_the_command_says_where_the_suite_is(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("torchtrt_bridge.__file__", str(tmp_path / "site-packages" / "torchtrt_bridge" / "__init__.py"))
    assert main(["bench", "--show", "none.json"]) == 2
    assert "`python -m benchmarks`, in the top directory of a checkout" in capsys.readouterr().err
