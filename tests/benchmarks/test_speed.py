"""Contenders side by side in one process: turns, errors, failures; and the time to a first result."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from filelock import FileLock, Timeout
from torch import nn

import torchtrt_bridge as trtb
from benchmarks.suite import contenders, once, speed, worker
from benchmarks.suite.clock import interquartile_range
from benchmarks.suite.contenders import CONTENDERS, Contender
from benchmarks.suite.job import Event, Job, Row
from benchmarks.suite.models import SUITE, build
from benchmarks.suite.speed import converted, engine_replay, relative_error
from torchtrt_bridge.entry.torch_compile import Backend
from torchtrt_bridge.runtime import trial

JOB = Job(
    "speed", "tiny-cnn", 2, "fp32", ("eager",), device="cpu", engine="reference", calls=4, rounds=2, turn_seconds=0.01
)
Compile = Callable[[nn.Module, Job], Any]


@pytest.fixture(autouse=True)
def _settings_as_they_were() -> Iterator[None]:
    """Restore the settings of PyTorch that a measurement makes for its process."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    with torch._dynamo.config.patch(recompile_limit=8, fail_on_recompile_limit_hit=False):
        yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


@pytest.fixture
def add(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Return a function that puts contenders of the test in the table."""

    def put(**added: Compile) -> None:
        table = {name: Contender(compile_, name, "peer") for name, compile_ in added.items()}
        monkeypatch.setattr(speed, "CONTENDERS", {**CONTENDERS, **table})

    return put


def measured(*names: str, **changes: Any) -> tuple[dict[str, Row], list[Event]]:
    events = list(speed.measure(dataclasses.replace(JOB, contenders=names, **changes)))
    return {name: row for name, row in events if name is not None and isinstance(row, dict)}, events


def turns_in(events: list[Event]) -> list[Event]:
    return [(name, step) for name, step in events if isinstance(step, str) and step.startswith("round")]


@pytest.mark.full
@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_a_row_has_times_and_the_error_against_fp32(precision: str) -> None:
    row = measured("eager", precision=precision)[0]["eager"]
    assert row["ms"] > 0
    assert row["latency_ms"] > 0
    assert (len(row["times_ms"]), row["rounds"]) == (2, 2)
    assert 3 <= row["calls"] <= 4
    bounds = {"fp32": (0.0, 1e-6), "fp16": (1e-5, 2e-3), "bf16": (1e-4, 2e-2)}
    low, high = bounds[precision]
    assert low <= row["error"] <= high


@pytest.mark.full
@pytest.mark.parametrize("name", ["torchtrt_bridge", "torchtrt_bridge-export"])
def test_the_report_of_torchtrt_bridge_is_in_its_row(name: str) -> None:
    rows = measured(name, "eager", cache_dir="")[0]
    assert (rows[name]["engines"], rows[name]["torch_nodes"], rows[name]["choices"]) == (1, 0, ["engine"])
    assert rows[name]["trt_nodes"] > 0
    assert rows[name]["problems"] == []
    assert "engines" not in rows["eager"]


@pytest.mark.full
def test_contenders_take_turns() -> None:
    _, events = measured("eager", "torchtrt_bridge", cache_dir="")
    names = ["eager", "torchtrt_bridge"]
    assert turns_in(events) == [(name, f"round {index} of 2") for index in (1, 2) for name in names]


@pytest.mark.full
def test_a_wrong_contender_shows_by_its_error(add: Callable[..., None]) -> None:
    add(wrong=lambda model, job: lambda x: model(x) * 1.1)
    assert measured("wrong")[0]["wrong"]["error"] == pytest.approx(0.1, rel=1e-3)


@pytest.mark.full
def test_results_that_are_not_finite_are_a_problem(add: Callable[..., None]) -> None:
    add(broken=lambda model, job: lambda x: model(x) * float("nan"))
    row = measured("broken")[0]["broken"]
    assert (row["error"], row["problems"]) == (None, ["its results are not finite"])


def refuses(model: nn.Module, job: Job) -> Any:
    raise RuntimeError("no\nsuch backend")


def gives_other_shapes(model: nn.Module, job: Job) -> Any:
    return lambda x: model(x)[:1]


@pytest.mark.full
@pytest.mark.parametrize(
    ("compile_", "reason"),
    [(refuses, "RuntimeError: no such backend"), (gives_other_shapes, "ValueError: the results have the shapes")],
)
def test_a_failing_contender_is_a_row_and_the_others_go_on(
    compile_: Compile, reason: str, add: Callable[..., None]
) -> None:
    add(failing=compile_)
    rows = measured("failing", "eager")[0]
    assert rows["failing"]["failed"].startswith(reason)
    assert rows["eager"]["ms"] > 0


@pytest.mark.full
def test_one_that_fails_in_its_turn_is_taken_out(add: Callable[..., None]) -> None:
    def fails_later(model: nn.Module, job: Job) -> Any:
        calls = iter(range(20))

        def run(x: torch.Tensor) -> Any:
            next(calls)
            return model(x)

        return run

    add(failing=fails_later)
    rows, events = measured("failing", "eager", rounds=3)
    assert rows["failing"] == {"failed": "StopIteration: "}
    assert rows["eager"]["rounds"] == 3
    assert sum(name == "failing" for name, _ in turns_in(events)) <= 2


@pytest.mark.full
def test_a_missing_torch_tensorrt_is_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch_tensorrt", None)
    rows = measured("torch_tensorrt", "eager")[0]
    assert "torch_tensorrt" in rows["torch_tensorrt"]["failed"]
    assert "ms" in rows["eager"]


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in CONTENDERS if name.startswith("inductor")])
def test_inductor_runs_in_each_mode(name: str) -> None:
    assert measured(name)[0][name]["error"] < 1e-5


@pytest.mark.gpu
def test_contenders_on_a_gpu_give_times_errors_and_memory(tmp_path: Path) -> None:
    names = ("torchtrt_bridge", "eager", "inductor", "inductor-reduce-overhead")
    changes = {"device": "cuda", "engine": "auto", "precision": "fp16", "cache_dir": str(tmp_path)}
    rows = measured(*names, **changes)[0]
    assert {name: row.get("failed") for name, row in rows.items()} == dict.fromkeys(names)
    assert all(row["ms"] > 0 and row["error"] < 5e-3 for row in rows.values())
    assert all(row["device_held_mib"] is not None and row["device_peak_mib"] is not None for row in rows.values())
    assert rows["torchtrt_bridge"]["engines"] == 1


# Figures -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "spread"),
    [([3.0], 0.0), ([1.0, 2.0], 0.5), ([5.0, 1.0, 3.0, 2.0, 4.0], 2.0), ([1.0, 1.0, 1.0, 1.0, 100.0], 0.0)],
    ids=["one", "two", "unordered", "an outlier"],
)
def test_interquartile_range(values: list[float], spread: float) -> None:
    assert interquartile_range(values) == pytest.approx(spread)


def test_the_error_is_the_worst_output_s() -> None:
    good, bad = torch.tensor([3.0, 4.0]), torch.tensor([0.0, 10.0])
    results = [good, bad + torch.tensor([0.0, 1.0])]
    assert relative_error(results, [good, bad]) == pytest.approx(0.1)
    assert relative_error([good, bad], [good, bad]) == 0.0


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("index", [0, 1])
def test_a_result_that_is_not_finite_has_an_error_that_is_not_finite(value: float, index: int) -> None:
    results = [torch.ones(2), torch.ones(2)]
    results[index] = torch.tensor([1.0, value])
    assert not math.isfinite(relative_error(results, [torch.full((2,), 2.0), torch.full((2,), 2.0)]))


@pytest.mark.parametrize(
    "results", [[torch.ones(3)], [torch.ones(2), torch.ones(2)], []], ids=["shape", "more", "none"]
)
def test_outputs_of_other_shapes_are_a_mistake(results: list[torch.Tensor]) -> None:
    with pytest.raises(ValueError, match="shapes"):
        relative_error(results, [torch.ones(2)])


# How contenders take the model -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "dtype", "is_last"),
    [
        ("eager", torch.float16, True),
        ("inductor-reduce-overhead", torch.float16, True),
        ("torchtrt_bridge", torch.float16, False),
        ("torchtrt_bridge-cast", torch.float32, False),
    ],
)
def test_models_and_inputs_are_converted(name: str, dtype: torch.dtype, is_last: bool) -> None:
    original = build(SUITE["tiny-cnn"])
    job = dataclasses.replace(JOB, precision="fp16")
    model, taken = converted(name, job, original, SUITE["tiny-cnn"].inputs(2))
    assert (taken["x"].dtype, next(model.parameters()).dtype) == (dtype, dtype)
    assert taken["x"].is_contiguous(memory_format=torch.channels_last) == is_last
    assert next(original.parameters()).dtype == torch.float32
    assert not next(model.parameters()).is_inference()


def test_token_ids_stay_whole_numbers() -> None:
    job = dataclasses.replace(JOB, model="tiny-bert", precision="bf16")
    _, taken = converted("eager", job, build(SUITE["tiny-bert"]), SUITE["tiny-bert"].inputs(2))
    assert {value.dtype for value in taken.values()} == {torch.int64}


@pytest.mark.full
@pytest.mark.parametrize("name", [name for name in CONTENDERS if name.startswith("torchtrt_bridge")])
def test_our_contenders_options_are_ones_that_exist(name: str) -> None:
    model = build(SUITE["tiny-cnn"])
    compiled = CONTENDERS[name].compile(model, dataclasses.replace(JOB, precision="fp16"))
    if name == "torchtrt_bridge-export":
        compiled(**SUITE["tiny-cnn"].inputs(1))  # the inputs that it is exported with
    assert trtb.report(compiled).options.engine == "reference"


def test_a_contender_that_left_the_table_is_still_named() -> None:
    assert (contenders.family("gone"), contenders.title("gone")) == ("peer", "gone")


# The engine alone, and the start -----------------------------------------------------------------------------------


def nothing() -> None:
    """Stand in for the replay of a CUDA graph."""


@pytest.mark.parametrize(("recorded", "found"), [(1, nothing), (0, None), (2, None)], ids=["one", "none", "several"])
def test_the_replay_is_that_of_the_only_cuda_graph(recorded: int, found: Any) -> None:
    graphs = SimpleNamespace(captured=lambda: [SimpleNamespace(replay=nothing)] * recorded)
    run = SimpleNamespace(thread_state=SimpleNamespace(graphs=graphs))
    graph = SimpleNamespace(compiled=SimpleNamespace(run=run))
    backend = Backend(trtb.Options())
    backend.graphs = [graph, SimpleNamespace(compiled=None)]  # type: ignore[list-item]
    assert engine_replay(SimpleNamespace(_torchtrt_bridge_backend=backend)) is found


@pytest.mark.full
def test_the_engine_alone_is_timed_beside_the_call(monkeypatch: pytest.MonkeyPatch) -> None:
    replayed: list[int] = []
    monkeypatch.setattr(speed, "engine_replay", lambda run: lambda: replayed.append(1))
    row = measured("eager")[0]["eager"]
    assert row["replay_ms"] > 0
    assert len(replayed) == row["calls"] * row["rounds"]


@pytest.mark.full
def test_the_start_of_a_contender_is_timed() -> None:
    row = once.first_result(dataclasses.replace(JOB, kind="start", contenders=("torchtrt_bridge",)))
    assert 0 < row["trace_seconds"] < row["seconds"]
    assert row["host_peak_mib"] >= row["host_before_mib"] * 0.9
    assert (row["engines"], row["device_peak_mib"]) == (1, None)


@pytest.mark.full
def test_a_failing_start_is_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch_tensorrt", None)
    job = dataclasses.replace(JOB, kind="start", contenders=("torch_tensorrt",))
    *_, (name, row) = worker.MEASURES["start"](job)
    assert name == "torch_tensorrt"
    assert isinstance(row, dict)
    assert "torch_tensorrt" in row["failed"]


# One process at a time on the GPU ----------------------------------------------------------------------------------


def test_a_trial_runs_in_the_context_that_processes_side_by_side_replace(monkeypatch: pytest.MonkeyPatch) -> None:
    entered: list[int] = []

    @contextlib.contextmanager
    def note() -> Iterator[None]:
        entered.append(1)
        yield

    monkeypatch.setattr(trial, "exclusive", note)
    compiled = trtb.compile(build(SUITE["tiny-cnn"]), engine="reference", cache_dir="")
    with torch.inference_mode():
        compiled(**SUITE["tiny-cnn"].inputs(1))
    assert entered == [1]
    assert engine_replay(compiled) is None  # nothing is replayed on a CPU
    assert engine_replay(build(SUITE["tiny-cnn"])) is None


def test_trials_and_kernel_timings_hold_the_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._inductor.runtime.benchmarking import benchmarker

    other = FileLock(tmp_path / "gpu.lock", is_singleton=False)
    monkeypatch.setattr(trial, "exclusive", trial.exclusive)
    monkeypatch.setattr(type(benchmarker), "benchmark_gpu", lambda *args: is_taken(other))
    assert not benchmarker.benchmark_gpu()
    worker.share_gpu(tmp_path / "gpu.lock")
    assert benchmarker.benchmark_gpu()
    with trial.exclusive():
        assert is_taken(other)
    assert not is_taken(other)


def is_taken(lock: FileLock) -> bool:
    try:
        with lock.acquire(timeout=0):
            return False
    except Timeout:
        return True
