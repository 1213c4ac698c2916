"""Nodes that stay in PyTorch between engines, where inductor may compile them: right, reported, never in the way."""

from __future__ import annotations

import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import torchtrt_bridge as trtb
from tests.models import WithUnsupported, image, trained
from torchtrt_bridge.graph import recurrent
from torchtrt_bridge.report.model import Stage
from torchtrt_bridge.runtime import TorchSubgraph, inductor

GRU = recurrent.own.gru.default
OPTIONS: dict[str, Any] = {"engine": "reference", "inductor": "fallback"}


class Between(nn.Module):
    """A layer, operators that the tests leave to PyTorch, and another layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 6)
        self.last = nn.Linear(6, 6)
        self.register_buffer("shift", torch.randn(6))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.first(x).cos() * x.cos() * self.shift)


LEFT = {**OPTIONS, "torch_ops": ("aten.cos.default", "aten.mul.Tensor")}


def called(model: nn.Module, x: torch.Tensor, times: int = 3, **options: Any) -> Any:
    fast = trtb.compile(model, **options)
    with torch.no_grad():
        expected = model(x)
        torch.testing.assert_close([fast(x) for _ in range(times)], [expected] * times, rtol=1e-4, atol=1e-5)
    return fast


def torch_subgraphs_of(fast: Any) -> list[TorchSubgraph]:
    (graph,) = fast._torchtrt_bridge_backend.graphs
    return list(graph.compiled.run.torch_subgraphs)


@pytest.mark.first(1)
@pytest.mark.parametrize("wanted", ["fallback", "compete", "max-autotune"])
def test_inductor_compiles_what_stays_between_engines(wanted: str) -> None:
    fast = called(Between().eval(), torch.randn(4, 6), **{**LEFT, "inductor": wanted})
    report = trtb.report(fast)
    assert report.notes == ["torch_0 (4 of the nodes in PyTorch) is compiled by inductor"]
    assert [entry.serves for entry in report.engines] == [True, True]
    assert sorted({entry.op for entry in report.in_torch}) == ["aten.cos.default", "aten.mul.Tensor"]
    assert [part.is_settled for part in torch_subgraphs_of(fast)] == [True]
    assert "is compiled by inductor" in str(report)


def test_constants_go_with_their_nodes() -> None:
    fast = called(Between().eval(), torch.randn(4, 6), **LEFT)
    (part,) = torch_subgraphs_of(fast)
    assert [tuple(value.shape) for value in part.pytorch.buffers()] == [(6,)]


class Recurrent(nn.Module):
    """A recurrent layer that the tests leave to PyTorch, between linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 6), nn.Linear(4, 6)
        self.layer = nn.GRU(6, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y, _ = self.layer(self.first(x))
        result: torch.Tensor = self.last(y.relu())
        return result


def test_a_recurrent_layer_is_one_call_for_inductor(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would write out PyTorch's own operator step by step, and compile that for minutes."""
    taken: list[Any] = []
    compile_module = inductor.compiled_by_inductor

    def noting(module: Any, *args: Any) -> Any:
        taken.append([str(node.target) for node in module.graph.find_nodes(op="call_function", target=GRU)])
        return compile_module(module, *args)

    monkeypatch.setattr(inductor, "compiled_by_inductor", noting)
    left = {**OPTIONS, "torch_ops": (str(GRU), "aten.relu.default")}
    fast = called(Recurrent().eval(), torch.randn(50, 2, 6), **left)
    (subgraph,) = torch_subgraphs_of(fast)
    assert taken == [[str(GRU)]]
    assert "is compiled by inductor" in str(trtb.report(fast))
    assert subgraph.choice == "inductor"


def test_without_inductor_nothing_is_cut_out() -> None:
    fast = called(Between().eval(), torch.randn(4, 6), **{**LEFT, "inductor": "off"})
    assert torch_subgraphs_of(fast) == []
    assert trtb.report(fast).notes == []


def test_an_operator_without_a_converter() -> None:
    fast = called(trained(WithUnsupported()), image(), **OPTIONS)
    assert trtb.report(fast).notes == ["torch_0 (1 of the nodes in PyTorch) is compiled by inductor"]


def test_sizes_that_are_not_static_stay_as_they_are() -> None:
    fast = called(Between().eval(), torch.randn(4, 6), **LEFT, dynamic=True)
    assert torch_subgraphs_of(fast) == []


class Random(nn.Module):
    """Random numbers between two layers; the operator before them is left to PyTorch too."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(6, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(x.sin() + torch.rand_like(x))


def test_random_numbers_are_pytorchs_own() -> None:
    model, x = Random().eval(), torch.randn(4, 6)
    fast = trtb.compile(model, **LEFT)
    with torch.no_grad():
        fast(x)
        torch.manual_seed(3)
        result = fast(x)
        torch.manual_seed(3)
        torch.testing.assert_close(result, model(x))
    assert torch_subgraphs_of(fast) == []


class Viewing(nn.Module):
    """One result is a view of the input, another of a result."""

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        y = x.cos()
        return x.view(-1), y, y.view(-1), (x * 2).sigmoid()


def test_views_stay_views() -> None:
    x = torch.randn(4, 6)
    fast = trtb.compile(Viewing(), **LEFT)
    for _ in range(3):
        of_input, whole, of_whole, _ = fast(x)
        assert of_input.data_ptr() == x.data_ptr()
        whole.zero_()
        assert of_whole.abs().sum() == 0
    assert len(torch_subgraphs_of(fast)) == 1


def failing(*_: Any) -> Any:
    raise NotImplementedError("planted\nand more lines")


def wrong(*_: Any) -> Any:
    return lambda *inputs: (inputs[0] * 0,)


def raising(*_: Any) -> Any:
    def run(*inputs: torch.Tensor) -> Any:
        raise RuntimeError("planted")

    return run


@pytest.mark.parametrize(
    ("compiler", "words"),
    [(failing, "inductor failed: NotImplementedError: planted"), (wrong, "are wrong"), (raising, "failed: planted")],
)
def test_pytorch_stays_where_inductor_fails(
    compiler: Any, words: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(inductor, "compiled_by_inductor", compiler)
    fast = called(Between().eval(), torch.randn(4, 6), **LEFT)
    (note,) = trtb.report(fast).notes
    assert note.startswith("torch_0 (4 of the nodes in PyTorch) is not: ")
    assert words in note
    assert note.count("\n") == 0
    assert caplog.text.count("not compiled by inductor") == (compiler is failing)
    assert [entry.serves for entry in trtb.report(fast).engines] == [True, True]


def slow(module: Any, *_: Any) -> Any:
    def run(*values: torch.Tensor) -> Any:
        torch.linalg.inv(torch.eye(400))
        return module(*values)

    return run


@pytest.mark.parametrize(("trial", "stays"), [("check+time", True), ("check", False), ("off", False)])
def test_pytorch_stays_where_inductor_is_slower(trial: str, stays: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = []

    def noted(*given: Any) -> Any:
        run = slow(*given)
        compiled.append(weakref.ref(run))
        return run

    monkeypatch.setattr(inductor, "compiled_by_inductor", noted)
    report = trtb.CompileReport(trtb.Options(trial=trial), stages=[Stage(0, "torch_0")])  # type: ignore[arg-type]
    part, x = TorchSubgraph("torch_0", torch.fx.symbolic_trace(lambda x: (x.cos(),)), report), torch.randn(3)
    torch.testing.assert_close([part(x)[0], part(x)[0]], [x.cos()] * 2)
    (note,) = report.notes
    assert ("is not: inductor takes" in note) is stays
    (stage,) = report.stages
    assert stage.choice == ("PyTorch" if stays else "inductor")
    assert list(stage.milliseconds) == (["inductor", "PyTorch"] if trial == "check+time" else [])
    assert [run() is None for run in compiled] == [stays]


def test_a_tensor_that_lies_otherwise_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Inductor's code takes the strides of its inputs for granted."""
    asked: list[tuple[int, ...]] = []

    def noting(module: Any, *_: Any) -> Any:
        def run(*values: torch.Tensor) -> Any:
            asked.append(values[0].stride())
            return module(*values)

        return run

    monkeypatch.setattr(inductor, "compiled_by_inductor", noting)
    report = trtb.CompileReport(trtb.Options(trial="off"))
    part, x = TorchSubgraph("torch_0", torch.fx.symbolic_trace(lambda x: (x.cos(),)), report), torch.randn(3, 4)
    values = [x, x.t().contiguous().t(), x]
    torch.testing.assert_close([part(value)[0] for value in [x, *values]], [x.cos()] * 4)
    assert asked == [(4, 1), (4, 1)]


def test_values_that_are_no_check(caplog: pytest.LogCaptureFixture) -> None:
    report = trtb.CompileReport(trtb.Options())
    part = TorchSubgraph("torch_0", torch.fx.symbolic_trace(lambda x: (x.cos(),)), report)
    part(torch.full((3,), float("nan")))
    assert not part.is_settled


def test_a_loaded_program(tmp_path: Path) -> None:
    model, x = Between().eval(), torch.randn(4, 6)
    program = trtb.export(model, x, **{**LEFT, "inductor": "off"})
    trtb.save(program, tmp_path / "model.pt2")
    again = trtb.load(tmp_path / "model.pt2", inductor="fallback")
    torch.testing.assert_close([again(x), again(x)], [model(x)] * 2)
    assert again.report.notes == ["torch_0 (4 of the nodes in PyTorch) is compiled by inductor"]
    torch.testing.assert_close(torch.func.vmap(again)(torch.stack([x, x])), torch.stack([model(x)] * 2))
