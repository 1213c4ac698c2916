"""The profile of engines, by a profiler that is none: what runs, what a report then has, and why there is none."""

from __future__ import annotations

import copy
import dataclasses
import gc
import json
import pickle
import re
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

import torchtrt_bridge as trtb
from tests.runtime.fakes import FakeCopy, FakeRunner, module_of, right, x_of
from torchtrt_bridge import CompileReport, Options
from torchtrt_bridge.entry.torch_compile import backend_of
from torchtrt_bridge.errors import EngineLoadError
from torchtrt_bridge.graph.shapes import TensorSpec
from torchtrt_bridge.report.layers import NO_LINK, EngineLink, LayerTimes
from torchtrt_bridge.report.model import EngineEntry, merged
from torchtrt_bridge.runtime import EngineModule, runners
from torchtrt_bridge.runtime.layer_profile import WARM_UP, example_inputs
from torchtrt_bridge.runtime.runners import NoEngine
from torchtrt_bridge.trt.engine_program import program_steps

Layers = list[tuple[str, float]]


class TimedRunner(FakeRunner):
    """An engine whose layers take as long in each run as `runs` says, after a slow first run; else as in its last."""

    def __init__(self, *runs: Layers, plan: bytes = b"") -> None:
        super().__init__()
        self.runs = runs
        self.bytes = plan
        self.inputs: Sequence[torch.Tensor] = ()

    def plan(self) -> bytes:
        return self.bytes

    def time_layers(self, inputs: Sequence[torch.Tensor], runs: int) -> list[Layers]:
        self.inputs = inputs
        slow = [(name, milliseconds * 100) for name, milliseconds in self.runs[0]]
        rest = [*self.runs, *[self.runs[-1]] * runs]
        return [*[slow] * WARM_UP, *rest][:runs]


ONCE: Layers = [("__myl_AddMul_myl0_0", 0.1), ("__mye7_myl0_1", 0.0), ("_gemm_mha_v2_myl0_2", 0.3)]


def report_of(*modules: EngineModule) -> CompileReport:
    return CompileReport(Options(), [module.entry for module in modules], graphs=1)


def times_of(report: CompileReport, place: int = 0) -> LayerTimes:
    found = report.engines[place].layer_times
    assert found is not None
    return found


def test_layers_come_slowest_first_with_their_shares() -> None:
    module = module_of(TimedRunner(ONCE))
    report = report_of(module)
    assert report.profile() is report
    first, second = times_of(report).layers
    assert (first.name, first.milliseconds, first.share) == ("attention (_gemm_mha_v2)", 0.3, pytest.approx(0.75))
    assert (second.name, second.in_tensorrt) == ("add, multiply", "__myl_AddMul_myl0_0")
    assert times_of(report).milliseconds == pytest.approx(0.4)
    assert times_of(report).inputs == ["x: float32[2, 3]"]


def test_the_time_is_the_median_of_the_runs_after_the_first() -> None:
    module = module_of(TimedRunner(*([("a", milliseconds)] for milliseconds in (5.0, 1.0, 2.0, 50.0, 3.0))))
    (layer,) = times_of(report_of(module).profile(runs=5)).layers
    assert layer.milliseconds == 3.0


def test_what_runs_several_times_in_one_call_is_added() -> None:
    module = module_of(TimedRunner([("loop", 1.0), ("rest", 0.5), ("loop", 1.0)]))
    found = {layer.name: layer.milliseconds for layer in times_of(report_of(module).profile()).layers}
    assert found == {"loop": 2.0, "rest": 0.5}


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(64, 96), nn.Linear(96, 64)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.tanh(self.last(torch.nn.functional.gelu(self.first(x))))


def profiled_program() -> tuple[trtb.Program, LayerTimes]:
    """Return a program with an engine built here, as if it ran, and its profile."""
    program = trtb.export(Net().eval().half(), (torch.randn(32, 64).half(),), targets=("sm_89",), cache_dir="")
    (plan,) = program.plans.values()
    layers = [(f"{step.name}_myl0_{number}", 0.25) for number, step in enumerate(program_steps(plan))]
    (engine,) = program._run.engines
    engine.runner = TimedRunner(layers, plan=plan)
    return program, times_of(program.report.profile())


def test_nodes_and_lines_of_a_real_engine() -> None:
    program, found = profiled_program()
    nodes = {name: op for layer in found.layers for name, op in layer.nodes.items()}
    assert {"linear": "aten.linear.default", "linear_1": "aten.linear.default"}.items() <= nodes.items()
    layer = next(layer for layer in found.layers if "linear_1" in layer.nodes)
    assert layer.name.startswith("linear_1")
    assert any("return torch.tanh(self.last(" in line for line in layer.sources)
    assert sum(layer.share for layer in found.layers) == pytest.approx(1)
    assert "linear_1" in str(program.report)


# What runs -----------------------------------------------------------------------------------------------------------


SPECS = [
    TensorSpec("x", torch.float16, ((1, 4), (3, 3)), (9, 3), ("s0", 3)),
    TensorSpec("ids", torch.int64, ((2, 8),), (5,), ("s1",)),
    TensorSpec("mask", torch.bool, (), (), ()),
]


def test_inputs_are_made_for_the_engine() -> None:
    state = torch.get_rng_state()
    x, ids, mask = example_inputs(SPECS, torch.device("cpu"))
    assert torch.equal(torch.get_rng_state(), state)
    assert (x.dtype, x.shape) == (torch.float16, (4, 3))  # the size that the engine is tuned for, within its range
    assert 0.1 < float(x.float().std()) < 10
    assert torch.equal(ids, torch.zeros(5, dtype=torch.int64))
    assert torch.equal(mask, torch.zeros((), dtype=torch.bool))


def test_inputs_have_the_names_of_the_report() -> None:
    module = module_of(TimedRunner(ONCE))
    module.entry.inputs = ["images: float32[1..4, 3]"]
    assert times_of(report_of(module).profile()).inputs == ["images: float32[2, 3]"]


class Profiled(FakeCopy):
    """Engine and contexts of a copy of `x` to `y`, whose contexts report two layers to their profiler."""

    def __init__(self) -> None:
        super().__init__()
        self.contexts: list[Any] = []
        self.trt.IProfiler = object

    def serialize(self) -> bytearray:
        return bytearray(b"a plan")

    def profiler(self, report: Callable[[str, float], object]) -> Any:
        return report

    def create_execution_context(self, runtime_config: Any) -> Any:
        self.contexts.append(Context())
        return self.contexts[-1]


class Context:
    """A context with a profiler or without."""

    profiler: Any = None
    runs = 0
    shape: tuple[int, ...] = ()

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.shape = shape
        return True

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self.shape

    def set_tensor_address(self, name: str, address: int) -> None:
        assert address

    def execute_async_v3(self, stream: int) -> bool:
        self.runs += 1
        if self.profiler is not None:
            self.profiler("first", 0.5)
            self.profiler("second", 0.25)
        return True


@pytest.fixture
def runner(monkeypatch: pytest.MonkeyPatch) -> runners.GpuRunner:
    """Return a runner on a GPU whose calls are captured, so that kernels keep their order."""
    cpu = torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "current_device", lambda: None)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: SimpleNamespace(cuda_stream=0))
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(runners, "torch_dtype_from_trt", lambda dtype: dtype)
    monkeypatch.setattr(runners, "may_overlap", lambda device: True)
    monkeypatch.setattr(runners, "OrderedQueue", lambda device: Captured())
    monkeypatch.setattr(runners.torch, "device", lambda *_: cpu)
    return runners.GpuRunner(b"", Profiled())  # type: ignore[arg-type]


class Captured:
    """Captures a call, in which no profiler may be."""

    def __call__(self, queue: Callable[[int], bool]) -> bool:
        assert queue.__self__.profiler is None  # type: ignore[attr-defined]
        return queue(0)


def test_the_profiler_has_a_context_of_its_own(runner: runners.GpuRunner) -> None:
    library: Any = runner._library
    runner.prepare()
    found = runner.time_layers([torch.randn(2, 3)], 3)
    assert found == [[("first", 0.5), ("second", 0.25)]] * 3
    prepared, profiled = library.contexts
    assert (prepared.profiler, prepared.runs) == (None, 0)
    assert profiled.runs == 3
    runner([torch.randn(2, 3)])
    assert prepared.runs == 2  # what was prepared computes the first call, once before it is captured
    assert len(library.contexts) == 2
    assert runner.plan() == b"a plan"


# Engines that have no times ------------------------------------------------------------------------------------------


def lost() -> EngineModule:
    """Return a subgraph that inductor computes, as it was faster."""
    module = module_of(TimedRunner(ONCE))
    module.runner, module.choice, module.state = None, "inductor", "serving"
    return module


WITHOUT: dict[str, tuple[Callable[[], EngineModule], str]] = {
    "failed": (lambda: module_of(NoEngine("no TensorRT here")), "PyTorch runs it: no TensorRT here"),
    "lost": (lost, "inductor runs it, which was faster in the trial"),
    "reference": (lambda: module_of(FakeRunner()), "the reference interpreter computes it, which has no kernels"),
    "for another machine": (lambda: module_of(None), "its engine is built for other machines"),
}


@pytest.mark.parametrize("name", WITHOUT)
def test_one_without_times_has_the_reason_beside_the_times_of_others(name: str) -> None:
    make, problem = WITHOUT[name]
    without, timed = make(), module_of(TimedRunner(ONCE))
    timed.entry.name = "trt_1"
    report = report_of(without, timed).profile()
    assert times_of(report).problem.startswith(problem)
    assert times_of(report).layers == []
    assert len(times_of(report, 1).layers) == 2
    assert f"Layers of trt_0: not timed: {problem}" in " ".join(str(report).split())


@pytest.mark.parametrize("name", WITHOUT)
def test_none_with_times_is_an_error_with_the_reasons(name: str) -> None:
    make, problem = WITHOUT[name]
    report = report_of(module := make())
    with pytest.raises(EngineLoadError, match=r"and there is none here: trt_0: ") as raised:
        report.profile()
    assert problem in str(raised.value)
    assert report.engines[0].layer_times is None
    assert module.entry.layer_times is None


FAILURES = {
    "too little memory: CUDA out of memory": torch.OutOfMemoryError("CUDA out of memory"),
    "it failed: TensorRT could not run the engine": EngineLoadError("TensorRT could not run the engine"),
}


@pytest.mark.parametrize("problem", FAILURES)
def test_one_that_fails_has_the_error(problem: str) -> None:
    class Failing(TimedRunner):
        def time_layers(self, inputs: Sequence[torch.Tensor], runs: int) -> list[Layers]:
            raise FAILURES[problem]

    modules = [module_of(Failing(ONCE)), module_of(TimedRunner(ONCE))]
    assert times_of(report_of(*modules).profile()).problem == problem


def test_what_is_not_compiled_has_no_engine() -> None:
    with pytest.raises(EngineLoadError, match="and there is none here: no engine"):
        CompileReport(Options()).profile()


def test_an_explanation_and_the_reference_have_none() -> None:
    model, x = Net().eval(), torch.randn(2, 64)
    with pytest.raises(EngineLoadError, match=re.escape(NO_LINK)):
        trtb.explain(model, x).profile()
    fast = trtb.compile(model, engine="reference")
    with torch.inference_mode():
        fast(x)
        with pytest.raises(EngineLoadError, match="trt_0: the reference interpreter computes it"):
            trtb.report(fast).profile()


# The report and its engines ------------------------------------------------------------------------------------------


def test_reports_that_are_merged_named_and_copied_lead_to_the_engines() -> None:
    modules = [module_of(TimedRunner(ONCE)), module_of(TimedRunner(ONCE[:1]))]
    whole = merged([report_of(module) for module in modules])
    assert [entry.name for entry in whole.engines] == ["graph_0.trt_0", "graph_1.trt_0"]
    whole.engines = [dataclasses.replace(entry.within("unet"), device="cuda:1") for entry in whole.engines]
    counts = [len(entry.layer_times.layers) for entry in whole.profile().engines if entry.layer_times]
    assert counts == [2, 1]
    assert report_of(modules[0]).engines[0].layer_times == times_of(whole)  # and further reports have them


def test_an_entry_that_describes_another_engine_leads_to_its_own_module() -> None:
    module, other = module_of(TimedRunner(ONCE)), module_of(TimedRunner(ONCE[:1]))
    report_of(module).profile()
    module.entry.copy_from(other.entry)
    assert module.entry.layer_times is None
    assert len(times_of(report_of(module).profile()).layers) == 2


def test_engines_for_single_sizes_are_timed_too() -> None:
    dynamic, static = lost(), module_of(TimedRunner(ONCE))
    static.entry.name = "trt_0 for 2x3"
    dynamic.entry.static_engines = [static.entry]
    report = report_of(dynamic).profile()
    assert times_of(report).problem.startswith("inductor runs it")
    assert len(times_of(CompileReport(Options(), report.engines[0].static_engines)).layers) == 2
    assert "Slowest layers of trt_0 for 2x3" in str(report)


def test_a_report_keeps_no_engine_alive() -> None:
    report = report_of(module_of(TimedRunner(ONCE)))
    gc.collect()
    with pytest.raises(EngineLoadError, match=re.escape(NO_LINK)):
        report.profile()


def test_a_compiled_model_goes_though_its_report_stays() -> None:
    fast = trtb.compile(Net().eval(), engine="reference")
    with torch.inference_mode():
        fast(torch.randn(2, 64))
    report = trtb.report(fast)
    backend: Any = backend_of(fast)
    for graph in backend.graphs:
        graph.compiled = None
    del fast, backend, graph
    torch.compiler.reset()
    gc.collect()
    assert report.engines[0].link.time_layers(1).problem == NO_LINK


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda report: pickle.loads(pickle.dumps(report))])
def test_a_copy_has_the_times_and_no_engine(copied: Callable[[CompileReport], CompileReport]) -> None:
    module = module_of(TimedRunner(ONCE))
    report = report_of(module).profile()
    other = copied(report)
    assert other == report
    assert times_of(other).layers == times_of(report).layers
    with pytest.raises(EngineLoadError, match=re.escape(NO_LINK)):
        other.profile()


def test_the_data_has_times_and_no_link() -> None:
    module = module_of(TimedRunner(ONCE))
    report = report_of(module)
    before = report.to_dict()
    assert before["engines"][0]["layer_times"] is None
    module.entry.static_engines = [EngineEntry("trt_0 for 2x3", {}, [], [], {}, link=EngineLink(module))]
    report.profile()
    (engine,) = json.loads(json.dumps(report.to_dict()))["engines"]
    assert set(engine) == {f.name for f in dataclasses.fields(EngineEntry)} - {"link"}
    assert engine["layer_times"]["layers"][0] == {
        "name": "attention (_gemm_mha_v2)", "nodes": {}, "kind": "attention (_gemm_mha_v2)", "sources": [],
        "milliseconds": 0.3, "share": pytest.approx(0.75), "in_tensorrt": "_gemm_mha_v2_myl0_2",
    }  # fmt: skip
    assert "link" not in engine["static_engines"][0]


def test_entries_are_equal_whatever_they_lead_to() -> None:
    first, second = module_of(TimedRunner(ONCE)), module_of(TimedRunner(ONCE))
    assert first.entry == second.entry
    report_of(first).profile()
    assert first.entry != second.entry
    first.entry.forget_trial()
    assert first.entry == second.entry


def test_a_profile_changes_nothing_of_what_computes() -> None:
    runner = TimedRunner(ONCE)
    module = module_of(runner)
    x = x_of()
    module(x)
    state, generation = module.state, module.generation.count
    report_of(module).profile()
    assert (module.state, module.generation.count, module.runner) == (state, generation, runner)
    torch.testing.assert_close(module(x)[0], right(x))


def test_a_saved_program_is_read_though_it_was_profiled(tmp_path: Any) -> None:
    program, found = profiled_program()
    trtb.save(program, tmp_path / "net.pt2")
    loaded = trtb.load(tmp_path / "net.pt2")
    assert loaded.report.engines[0].layer_times is None
    (engine,) = loaded._run.engines
    (plan,) = program.plans.values()
    engine.runner = TimedRunner([(layer.in_tensorrt, layer.milliseconds) for layer in found.layers], plan=plan)
    loaded.report.profile()
    names = {name for layer in times_of(loaded.report).layers for name in layer.nodes}
    assert {"linear", "linear_1"} <= names
