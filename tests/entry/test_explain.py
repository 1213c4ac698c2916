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
