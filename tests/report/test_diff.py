"""The difference between two reports."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.report import examples
from tests.report.examples import engine, node, timed
from torchtrt_bridge import CompileReport, Options
from torchtrt_bridge.report.model import GraphBreak

Change = Callable[[CompileReport], object]


def rows(text: str) -> list[str]:
    """Return the rows of a difference, with single spaces."""
    return [" ".join(line.split()) for line in text.splitlines()[4:]]


def test_a_report_does_not_differ_from_itself() -> None:
    assert examples.broken().diff(examples.broken()).startswith("No difference")


def changed(name: str, value: object) -> Change:
    """Return the change of a field of the first engine."""
    return lambda report: setattr(report.engines[0], name, value)


CASES: list[tuple[Change, list[str]]] = [
    (lambda report: report.versions.update(PyTorch="2.0"), ["PyTorch {PyTorch} 2.0"]),
    (lambda report: report.gpus.append("NVIDIA L4"), ["GPU - NVIDIA L4"]),
    (lambda report: setattr(report, "options", Options(precision="bf16")), ["option precision 'fp16' 'bf16'"]),
    (lambda report: setattr(report, "error", 2e-3), ["error to the model itself - 2.0e-03"]),
    (changed("error", 2e-3), ["trt_0: error 1.4e-03 2.0e-03"]),
    (changed("milliseconds", {"engine": 0.1, "PyTorch": 0.5}), ["trt_0: ms of the engine 0.2 0.1 (-50 %)"]),
    (changed("milliseconds", {"engine": 0.205, "PyTorch": 0.49}), []),
    (changed("milliseconds", {}), ["trt_0: ms of the engine 0.2 -", "trt_0: ms of PyTorch 0.5 -"]),
    (changed("bytes", 10_000_000), ["trt_0: MB 51.6 10.0"]),
    (changed("dtypes", {"float32": 102}), ["trt_0: dtypes fp16 101, fp32 1 fp32 102"]),
    (changed("products", {"int8": 3}), ["trt_0: products in - int8 (3)"]),
    (changed("sources", {}), []),
    (
        changed("choice", "PyTorch"),
        ["nodes in TensorRT 102 of 207 0 of 207", "engines that run 1 0", "trt_0: runs in engine PyTorch"],
    ),
    (
        lambda report: report.engines.append(engine("trt_2")),
        ["nodes in TensorRT 102 of 207 204 of 309", "engines that run 1 2", "trt_2 - 102 nodes, runs in engine"],
    ),
    (
        lambda report: report.in_torch.append(node("det_2")),
        ["nodes in TensorRT 102 of 207 102 of 208", "in PyTorch: aten.linalg_det.default: no converter 2 3"],
    ),
    (lambda report: report.in_float.append(node("x", "f", "why")), ["not quantized: f: why - 1"]),
    (lambda report: report.note("a remark"), ["note: a remark - yes"]),
    (
        lambda report: report.breaks.append(GraphBreak("branching", "m.py:3: if x:", "this line")),
        ["graph breaks 0 1", "graph break: m.py:3: if x: - branching"],
    ),
]


@pytest.mark.parametrize(("change", "expected"), CASES)
def test_what_changed_is_listed(change: Change, expected: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    before, after = examples.mixed(), examples.mixed()
    change(after)
    text = before.diff(after)
    assert rows(text) == [row.format_map(before.versions) for row in expected]
    count = f"{len(expected)} difference{'s' if len(expected) > 1 else ''}"
    assert text.splitlines()[0].startswith(count if expected else "No difference")


def test_the_other_way_round_has_before_and_after_exchanged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    slow, fast = examples.whole(), examples.whole()
    fast.engines = [timed("trt_0", 0.105, 0.5)]
    assert rows(slow.diff(fast)) == ["trt_0: ms of the engine 0.21 0.105 (-50 %)"]
    assert rows(fast.diff(slow)) == ["trt_0: ms of the engine 0.105 0.21 (+100 %)"]


@pytest.mark.parametrize(("columns", "most_lines"), [(60, 10), (80, 6), (100, 4), (160, 3)])
def test_a_graph_break_takes_few_lines(columns: int, most_lines: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    before, after = examples.whole(), examples.whole()
    reason = (
        "Data-dependent branching: Detected data-dependent branching (e.g. `if my_tensor.sum() > 0:`). Dynamo does not "
        "support tracing dynamic control flow"
    )
    after.add_break(GraphBreak(reason, "/home/me/work/net/model.py:12: if x.amax() > 6:", "this line"))
    text = before.diff(after)
    lines = text[text.index("graph break: ") :].splitlines()
    assert len(lines) <= most_lines, text
    assert "net/model.py:12" in "".join(line.split("  ")[0] for line in lines)
    assert "/home/me" not in text


@pytest.mark.parametrize("columns", [20, 40, 60, 100])
def test_a_difference_fits_the_terminal(columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    text = examples.broken().diff(examples.hostile())
    assert max(map(len, text.splitlines())) <= max(40, columns)
    assert "…" not in text
