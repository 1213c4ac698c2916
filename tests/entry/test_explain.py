"""An explanation leaves what Dynamo compiled before as it is, and what it will compile."""

from __future__ import annotations

import pytest
import torch
from torch import fx, nn

import torchtrt_bridge as trtb


class Counting:
    """Backend that runs graphs in PyTorch, and keeps the sizes of each graph that it was called for."""

    def __init__(self) -> None:
        self.sizes: list[list[object]] = []

    def __call__(self, module: fx.GraphModule, inputs: list[object]) -> fx.GraphModule:
        self.sizes.append([size for value in inputs if isinstance(value, torch.Tensor) for size in value.shape])
        return module


class Broken(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x * 2
        if y.sum() > 1e9:
            y = y + 1
        return y.relu()


def test_compiled_models_keep_their_graphs() -> None:
    backend = Counting()
    model = Broken().eval()
    fast = torch.compile(model, backend=backend)
    fast(torch.ones(2, 3))
    count = len(backend.sizes)
    trtb.explain(model, torch.ones(2, 3), engine="reference")
    fast(torch.ones(2, 3))
    assert len(backend.sizes) == count


@pytest.mark.full
@pytest.mark.parametrize("is_compiled_before", [True, False])
def test_many_explanations_leave_a_model_its_graphs(is_compiled_before: bool) -> None:
    """Dynamo leaves to PyTorch what comes after 8 graphs of a function."""
    model = Broken().eval()
    if is_compiled_before:
        torch.compile(model, backend="eager")(torch.ones(2, 30))
    reports = [trtb.explain(model, torch.ones(2, size), engine="reference") for size in range(2, 14)]
    assert [len(report.breaks) for report in reports] == [1] * 12
    assert {report.trt_nodes for report in reports} == {reports[0].trt_nodes}
    backend = Counting()
    torch.compile(model, backend=backend)(torch.ones(2, 20))
    assert len(backend.sizes) == 2


def test_sizes_of_an_explanation_do_not_make_those_of_a_model_dynamic() -> None:
    model = Broken().eval()
    trtb.explain(model, torch.ones(2, 3), engine="reference")
    backend = Counting()
    torch.compile(model, backend=backend)(torch.ones(5, 3))
    assert all(isinstance(size, int) for sizes in backend.sizes for size in sizes)


def test_a_model_without_operators_runs_in_pytorch() -> None:
    class Nothing(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x

    text = str(trtb.explain(Nothing(), torch.ones(2), engine="reference"))
    assert text.startswith("No engine: Dynamo captured no operator")


class Named(nn.Module):
    def forward(self, images: torch.Tensor, *more: torch.Tensor, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        return images * more[0] + batch["mask"].relu()


def names_of(report: trtb.CompileReport) -> set[str]:
    return {text.partition(":")[0] for entry in report.engines for text in entry.inputs}


def test_inputs_have_the_names_of_the_arguments() -> None:
    x = torch.ones(2, 3)
    explained = trtb.explain(Named().eval(), (x, x * 2), kwargs={"batch": {"mask": x + 1}}, engine="reference")
    assert names_of(explained) == {"images", "more[0]", "batch['mask']"}
    fast = trtb.compile(Named().eval(), engine="reference")
    with torch.no_grad():
        fast(x, x * 2, batch={"mask": x + 1})
    assert names_of(trtb.report(fast)) >= {"images", "batch['mask']"}


def test_operators_of_torch_ops_that_are_not_there_are_noted() -> None:
    names = ("aten.relu.default", "aten.exp.default")
    report = trtb.explain(Broken().eval(), torch.ones(2, 3), engine="reference", torch_ops=names)
    assert [node.op for node in report.in_torch] == ["aten.relu.default"]
    assert [note.partition(",")[0] for note in report.notes] == ["torch_ops names aten.exp.default"]
