"""What a report says of a model as a whole: stages in the order of the data, source lines, places of graph breaks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import torchtrt_bridge as trtb
from torchtrt_bridge.graph.version import __version__
from torchtrt_bridge.report.model import CompileReport, Stage


class Net(nn.Module):
    """A determinant, which TensorRT does not have, between two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.first(x).relu()
        z = torch.linalg.det(y.reshape(-1, 2, 2))
        return self.last(y * z[:, None])


class Broken(nn.Module):
    """Two graph breaks, of which the first is in front of all operators."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.out = Net(), nn.Linear(2, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        print("", end="")
        y = self.net(x)
        if y.sum() > 1e9:
            y = y + 1
        return self.out(y).relu()


@pytest.fixture(autouse=True)
def _no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


X = torch.ones(3, 4)


def by_name(model: nn.Module, **options: Any) -> Any:
    return torch.compile(model, backend="torchtrt_bridge", options=options)


def compiled(model: nn.Module) -> CompileReport:
    fast = trtb.compile(model, engine="reference")
    fast(X)
    return trtb.report(fast)


def named(model: nn.Module) -> CompileReport:
    fast = by_name(model, engine="reference")
    fast(X)
    return trtb.report(fast)


def explained(model: nn.Module) -> CompileReport:
    return trtb.explain(model, X, engine="reference")


def exported(model: nn.Module) -> CompileReport:
    return trtb.export(model, X, engine="reference").report


Report = Callable[[nn.Module], CompileReport]
ENTRIES: list[Report] = [compiled, named, explained, exported]


def kinds(report: CompileReport) -> list[str | list[str]]:
    """Return the name of each engine, and the operators of what is between them, in the order of the stages."""
    return [stage.name or [entry.op for entry in stage.in_torch] for stage in report.stages]


@pytest.mark.parametrize("report_of", ENTRIES)
def test_stages_are_in_the_order_of_the_data(report_of: Report) -> None:
    report = report_of(Net().eval())
    first, between, last = kinds(report)
    assert [first, last] == ["trt_0", "trt_1"]
    assert "aten._linalg_det.default" in between
    assert [entry for stage in report.stages for entry in stage.in_torch] == report.in_torch


@pytest.mark.parametrize("report_of", ENTRIES)
def test_engines_know_the_lines_that_they_compute(report_of: Report) -> None:
    report = report_of(Net().eval())
    first, last = ({line.partition(": ")[2]: n for line, n in entry.sources.items()} for entry in report.engines)
    assert "y = self.first(x).relu()" in first
    assert "return self.last(y * z[:, None])" in last
    assert all(line.startswith(f"{__file__}:") for entry in report.engines for line in entry.sources)
    assert [sum(entry.sources.values()) for entry in report.engines] == [e.node_count for e in report.engines]


@pytest.mark.parametrize("report_of", ENTRIES)
def test_a_report_names_model_versions_and_date(report_of: Report) -> None:
    report = report_of(Net().eval())
    assert report.model == "Net"
    assert report.versions["PyTorch"] == torch.__version__
    assert report.versions["torchtrt_bridge"] == __version__
    assert any(name.startswith("TensorRT") for name in report.versions)
    assert report.created[:2] == "20"
    assert report.gpus == []


@pytest.mark.parametrize("report_of", [compiled, named, explained])
def test_graph_breaks_have_their_places(report_of: Report) -> None:
    report = report_of(Broken().eval())
    places = {found.source.partition(": ")[2]: found.after for found in report.breaks}
    assert places == {'print("", end="")': 0, "if y.sum() > 1e9:": 1}
    assert report.graphs == 2
    assert [(stage.graph, stage.name) for stage in report.stages] == [
        (0, "graph_0.trt_0"),
        (0, ""),
        (0, "graph_0.trt_1"),
        (1, "graph_1.trt_0"),
    ]


def test_two_models_at_once_have_breaks_of_their_own_places() -> None:
    first, second = (trtb.compile(Broken().eval(), engine="reference") for _ in range(2))
    for fast in (first, second):
        fast(X)
    assert [found.after for found in trtb.report(second).breaks] == [0, 1]
    assert [found.after for found in trtb.report(first).breaks] == [0, 1]


def test_a_loaded_program_knows_its_stages_and_lines(tmp_path: Path) -> None:
    program = trtb.export(Net().eval(), X, engine="reference")
    trtb.save(program, tmp_path / "net.pt2")
    loaded = trtb.load(tmp_path / "net.pt2").report
    assert kinds(loaded) == kinds(program.report)
    assert [entry.sources for entry in loaded.engines] == [entry.sources for entry in program.report.engines]
    assert loaded.versions == program.report.versions
    assert str(Path(__file__)) not in program.manifest.to_json().partition('"in_torch"')[0]


def test_a_graph_that_pytorch_runs_is_one_stage_with_the_reason() -> None:
    fast = trtb.compile(Broken().eval())  # its tensors are on the CPU
    fast(X)
    stages = trtb.report(fast).stages
    assert [stage.graph for stage in stages] == [0, 1]
    assert all("its tensors are on cpu" in stage.reason for stage in stages)


def test_subgraphs_for_inductor_are_stages(monkeypatch: pytest.MonkeyPatch) -> None:
    """A module that is left as it is stands for the code of inductor, which needs a compiler of C++."""
    monkeypatch.setattr("torchtrt_bridge.runtime.inductor.compile_with_inductor", lambda module, *_: module)
    fast = trtb.compile(Net().eval(), engine="reference", inductor="fallback")
    fast(X)
    first, between, last = trtb.report(fast).stages
    assert [first.name, between.name, last.name] == ["trt_0", "torch_0", "trt_1"]
    assert "aten._linalg_det.default" in [entry.op for entry in between.in_torch]
    assert between.choice == "inductor"


def test_a_quantized_model_brings_the_table_of_its_layers() -> None:
    quantized = trtb.quantize(Net().eval(), [(X,)], table=False, progress=False)
    for report in (compiled(quantized), explained(quantized), exported(quantized)):
        assert report.model == "Net"
        assert report.quantization is not None
        assert report.quantization["layers"] == quantized.quantization.to_dict()["layers"]
        assert report.to_dict()["quantization"] == report.quantization
    assert compiled(Net().eval()).quantization is None


def test_stages_are_part_of_the_data() -> None:
    content = compiled(Net().eval()).to_dict()
    assert [stage["name"] for stage in content["stages"]] == ["trt_0", "", "trt_1"]
    assert "_linalg_det" in content["stages"][1]["in_torch"]
    assert Stage(0).in_torch == []


@pytest.mark.gpu
def test_a_report_of_a_gpu_has_its_name_and_times(tmp_path: Path) -> None:
    fast = trtb.compile(Net().eval().cuda())
    for _ in range(3):
        fast(X.cuda())
    report = trtb.report(fast)
    assert report.gpus == [torch.cuda.get_device_name()]
    assert [set(entry.milliseconds) >= {"engine", "PyTorch"} for entry in report.engines] == [True, True]
    report.save(tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert torch.cuda.get_device_name() in text
    assert "times as fast as PyTorch" in text


def test_a_function_is_named_too() -> None:
    def halved(x: torch.Tensor) -> torch.Tensor:
        return x / 2 + 1

    assert trtb.explain(halved, X, engine="reference").model == "halved"
    assert trtb.export(halved, X, engine="reference").report.model == "halved"
