"""Reports as text."""

import dataclasses
from typing import Any

import pytest
import torch
from torch import nn

from tests.report import examples
from tests.report.examples import engine
from torchtrt_bridge import CompileReport, Options
from torchtrt_bridge.report import facts
from torchtrt_bridge.report.layers import LayerTimes
from torchtrt_bridge.report.model import TorchEntry, engine_entry, merged
from torchtrt_bridge.report.page import html_from_report
from torchtrt_bridge.report.render import text_from_report


@pytest.fixture
def report() -> CompileReport:
    options = Options(precision="fp16", targets=("sm_86", "sm_89"))
    stays = [
        TorchEntry(
            "aten.linalg_det.default",
            "det",
            "no converter",
            'model.py:12: y = torch.linalg.det(x) if a < b else "z"',
        ),
        TorchEntry("aten.linalg_det.default", "det_1", "no converter", "model.py:14"),
        TorchEntry("aten.cat.default", "cat", "inputs mix float16, float32", None),
    ]
    return CompileReport(options, [engine()], stays, ["gradients are needed: PyTorch runs it"], graphs=1)


def test_the_text_says_how_much_runs_where(report: CompileReport) -> None:
    text = text_from_report(report)
    assert text.splitlines()[0] == "102 of 105 nodes in TensorRT, 1 engine"
    assert text.splitlines()[1] == "precision fp16, targets sm_86, sm_89"
    assert max(map(len, text.splitlines())) <= 100
    for part in (
        "trt_0",
        "102",
        "fp16 101",
        "RTX",
        "0.52",
        "51.6",
        "1.4e-03",
        "runs in",
        "gradients are needed",
    ):
        assert part in text
    assert str(report) == text


def test_nodes_in_pytorch_are_grouped_with_one_source_line(report: CompileReport) -> None:
    text = text_from_report(report)
    assert text.count("linalg_det.default") == 1
    assert "model.py:12" in text
    assert "model.py:14" not in text
    assert "unknown" in text


def test_an_explanation_says_would_run() -> None:
    report = CompileReport(Options(), [engine(engine="not built", build_seconds=0.0, bytes=0)], graphs=1)
    text = text_from_report(report)
    assert text.startswith("102 of 102 nodes would run in TensorRT, 1 engine")
    assert "MB" not in text
    assert "x: float32[1, 3, 224, 224]" in text


def test_a_failed_engine_counts_for_pytorch_and_gives_its_reason(report: CompileReport) -> None:
    report.engines.append(engine("trt_1", state="no CUDA GPU is visible to PyTorch"))
    text = text_from_report(report)
    assert text.startswith("102 of 207 nodes in TensorRT, 1 engine")
    assert "trt_1 runs in PyTorch: no CUDA GPU is visible to PyTorch" in text


def test_an_empty_report_says_that_nothing_was_compiled() -> None:
    assert "Nothing was compiled yet" in text_from_report(CompileReport(Options()))


def test_its_repr_is_one_short_line(report: CompileReport) -> None:
    assert repr(report) == "<CompileReport: 102 of 105 nodes in TensorRT, 1 engine>"
    assert repr(CompileReport(Options())) == "<CompileReport: Nothing was compiled yet>"


@pytest.mark.parametrize("has_engine", [True, False])
def test_operators_of_torch_ops_that_no_graph_has_are_noted(report: CompileReport, has_engine: bool) -> None:
    options = Options(torch_ops=("aten.linalg_det.default", "aten.exp.default"))
    parts = [dataclasses.replace(report, options=options, notes=[], in_torch=report.in_torch[:1])] if has_engine else []
    notes = merged([*parts, CompileReport(options, graphs=1)]).notes
    assert [note.partition(";")[0] for note in notes] == (
        ["torch_ops names aten.exp.default, which no compiled graph has"] if has_engine else []
    )


def test_square_brackets_are_not_markup() -> None:
    report = CompileReport(Options(), notes=["[bold]input[/bold] float32[2, 3] is outside of [1, 8]"])
    assert "[bold]input[/bold] float32[2, 3]" in text_from_report(report)


@pytest.mark.parametrize("columns", [40, 60, 80, 140])
def test_the_text_fits_the_terminal(report: CompileReport, columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    report.engines = [engine("graph_10.trt_0", milliseconds={"engine": 0.123, "PyTorch": 0.5}, device="cuda:1")]
    text = text_from_report(report)
    assert max(map(len, text.splitlines())) <= columns
    for part in ("graph_10.trt_0", "51.6", "0.52", "0.123", "1.7.1.116", "PyTorch ms", "engine", "cuda:1", "fp32"):
        assert part in text
    assert "…" not in text


def test_engines_of_several_graphs_have_names_of_their_own(report: CompileReport) -> None:
    other = CompileReport(report.options, [engine(), engine("trt_1")], graphs=1)
    names = [entry.name for entry in merged([report, other, CompileReport(report.options)]).engines]
    assert names == ["graph_0.trt_0", "graph_1.trt_0", "graph_1.trt_1"]
    assert [entry.name for entry in merged([CompileReport(report.options), report]).engines] == ["trt_0"]


def test_an_engine_on_another_gpu_says_which() -> None:
    report = CompileReport(Options(), [engine(device="cuda:1"), engine("trt_1")], graphs=1)
    text = text_from_report(report)
    assert text.count("cuda:1") == 1


def test_dtypes_are_counted_once_for_each_node() -> None:
    class Split(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            first, second, third = x.split(2, -1)
            return first * second + third + x.shape[0]

    shapes = ({0: torch.export.Dim("n", min=2, max=8)},)
    graph = torch.export.export(Split(), (torch.randn(4, 6),), dynamic_shapes=shapes).run_decompositions()
    entry = engine_entry("trt_0", graph.graph_module)
    assert sum(entry.dtypes.values()) == entry.node_count
    assert entry.dtypes["size"] >= 1


def test_an_uncompiled_report_claims_no_precision() -> None:
    assert "precision" not in text_from_report(CompileReport(Options()))


def test_it_is_text_in_a_notebook_too(report: CompileReport, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)
    assert "102 of 105 nodes in TensorRT, 1 engine" in text_from_report(report)


def test_layers_that_are_not_quantized_are_listed_with_their_reason(report: CompileReport) -> None:
    report.in_float = [
        TorchEntry("aten.linear.default", "linear", "TensorRT does not build it", "model.py:7: x = f(x)")
    ]
    report.engines[0].products = {"int8": 3, "float16": 2}
    text = text_from_report(report)
    for part in ("Not quantized", "TensorRT does not build it", "model.py:7", "int8 (3), float16 (2)"):
        assert part in text


def test_the_slowest_layers_of_each_engine_are_listed() -> None:
    text = text_from_report(examples.profiled())
    words = " ".join(text.split())
    assert "Layers of trt_0: 24 layers, 0.3 ms together, for input_ids: int64[8, 128]; attention_mask: bool" in words
    assert "Layers of trt_1: not timed: PyTorch runs it: no CUDA GPU is visible to PyTorch" in words
    rows = text.partition("Slowest layers of trt_0\n")[2].partition("Layers of trt_1")[0].splitlines()
    assert rows[0].split() == ["layer", "ms", "share", "source", "line"]
    assert rows[2].split()[:6] == ["linear_0", "+", "add_0", "0.024", "8", "%"]
    assert sum(" %" in row for row in rows) == 10
    assert "bert/net.py:8: x = self.part(x)" in words
    assert "bert/net.py:9: x = self.part(x) and 1 more" in words
    assert "Slowest layers" not in text_from_report(examples.mixed())


def test_an_engine_that_was_dropped_since_has_no_slow_layers() -> None:
    report = examples.profiled()
    report.engines[0].state = "it failed at run time"
    assert "Slowest layers" not in text_from_report(report)


EXAMPLES = [
    examples.whole,
    examples.mixed,
    examples.broken,
    examples.quantized,
    examples.profiled,
    examples.hostile,
    examples.large,
]


@pytest.mark.parametrize("columns", [20, 40, 60, 72, 100, 200])
@pytest.mark.parametrize("example", EXAMPLES)
def test_every_report_fits_and_begins_with_its_summary(example, columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    report = example()
    text = text_from_report(report)
    assert max(map(len, text.splitlines())) <= max(40, columns)
    assert " ".join(text.split()).startswith(f"{report.trt_nodes} of {report.trt_nodes + report.torch_nodes} ")


@pytest.mark.parametrize(
    ("precision", "dtypes", "expected"),
    [
        ("fp32", {"float16": 464, "int64": 49}, "fp16, the model's own"),
        ("fp32", {"bfloat16": 4}, "bf16, the model's own"),
        ("fp32", {"float32": 3, "float16": 4}, "fp32"),
        ("fp32", {"int64": 4}, "fp32"),
        ("fp16", {"float16": 4}, "fp16"),
    ],
)
def test_the_precision_is_that_of_a_model_in_half_precision(
    precision: Any, dtypes: dict[str, int], expected: str
) -> None:
    report = CompileReport(Options(precision=precision), [engine(dtypes=dtypes)], graphs=1)
    assert text_from_report(report).splitlines()[1] == f"precision {expected}"
    assert f"<dd>{expected.replace(chr(39), '&#39;')}</dd>" in html_from_report(report)


@pytest.mark.parametrize(("count", "rest"), [(3, ""), (4, " and 1 more input"), (40, " and 37 more inputs")])
def test_of_many_inputs_of_a_timed_engine_three_are_listed(count: int, rest: str) -> None:
    times = LayerTimes(inputs=[f"x{index}: float16[1, 8]" for index in range(count)])
    shown = "x0: float16[1, 8]; x1: float16[1, 8]; x2: float16[1, 8]"
    assert facts.layers_text(times).endswith(f" ms together, for {shown}{rest}")
