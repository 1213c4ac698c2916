"""Numbers and sizes that are known only at run time: what makes or reads them stays in PyTorch, between engines."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import torchtrt_bridge as trtb

torchvision = pytest.importorskip("torchvision")


class Model(nn.Module):
    """A layer, and one function of its results."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function
        self.layer = nn.Linear(8, 8)
        self.register_buffer("table", torch.randn(16, 8))
        self.register_buffer("cache", torch.zeros(3, 16, 8))

    def forward(self, x: torch.Tensor, *others: torch.Tensor) -> Any:
        return self.function(self, self.layer(x).relu(), *others)


def masked(model: Model, x: torch.Tensor) -> Any:
    return (x[x > 0.2].exp() * 2).sin()


def rows_masked(model: Model, x: torch.Tensor) -> Any:
    return model.layer(x[x.sum(1) > 0]).exp()


def nonzero(model: Model, x: torch.Tensor) -> Any:
    return x.nonzero().float().exp().sin(), x.tanh()


def where(model: Model, x: torch.Tensor) -> Any:
    rows, columns = torch.where(x > 0.3)
    return x[rows, columns].exp().sin()


def unique(model: Model, x: torch.Tensor) -> Any:
    return torch.unique(x.round()).exp().sin()


def repeated(model: Model, x: torch.Tensor) -> Any:
    return x.repeat_interleave((x.sum(1) > 0).long() + 1, dim=0).exp().sin()


def boxes_kept(model: Model, x: torch.Tensor) -> Any:
    boxes = torch.cat([x[:, :2], x[:, :2] + 1], 1)
    return x[torchvision.ops.nms(boxes, x[:, 0], 0.5)].exp().sin()


def one_box_kept(model: Model, x: torch.Tensor) -> Any:
    boxes = torch.cat([x[:, :2] * 0, x[:, :2] * 0 + 1], 1)
    return x[torchvision.ops.nms(boxes, x[:, 0], 0.5)].exp().sin()


def counted(model: Model, x: torch.Tensor) -> Any:
    return torch.bincount(x.long().flatten()).float().exp()


def item(model: Model, x: torch.Tensor) -> Any:
    return x.exp() * x.max().item()


def int_item(model: Model, x: torch.Tensor) -> Any:
    return x.exp() * int((x > 0).sum().item())


def item_as_size(model: Model, x: torch.Tensor) -> Any:
    count = (x > 0).sum().item()
    torch._check(count >= 0)
    torch._check(count <= 24)
    return x.new_zeros(count) + x.exp().sum()


def row_of_buffer(model: Model, x: torch.Tensor, at: torch.Tensor) -> Any:
    return x.exp() + model.table[at].sin()


def rows_of_argument(model: Model, x: torch.Tensor, at: torch.Tensor) -> Any:
    return x.exp().sin()[..., None][at, 1:3, ..., 0].exp()


def part_of_buffer(model: Model, x: torch.Tensor, at: torch.Tensor) -> Any:
    return x.exp() + model.table[at : at + 1].sin()


def part_by_items(model: Model, x: torch.Tensor, at: torch.Tensor) -> Any:
    return x.exp() + model.table[at.item() - 1 : at.item()].sin()


def part_of_argument(model: Model, x: torch.Tensor, at: torch.Tensor) -> Any:
    return x.exp()[..., at - 1 : at + 2, None].sin()


def part_from_the_end(model: Model, x: torch.Tensor, at: torch.Tensor) -> Any:
    return x.exp()[:, at : at + 2] + model.table[: x.shape[0], at : at + 2]


def beginning(model: Model, x: torch.Tensor, at: torch.Tensor) -> Any:
    return x.exp()[:, :at].sin()


def part_of_cache(model: Model, x: torch.Tensor, at: torch.Tensor) -> Any:
    model.cache[:, at : at + 1] = x[:, None].exp()
    return model.cache.exp().sum(1)


def cache_of_model(model: Model, x: torch.Tensor, at: torch.Tensor) -> Any:
    model.cache[:, at] = x.exp()
    return model.cache.exp().sum(1)


def cache_of_caller(model: Model, x: torch.Tensor, at: torch.Tensor, cache: torch.Tensor) -> Any:
    cache[:, at] = x.exp()
    return cache.exp().sum(1)


# The function, its further arguments, and an operator that stays in PyTorch.
CASES: list[tuple[Callable[..., Any], tuple[torch.Tensor, ...], str]] = [
    (masked, (), "aten.index.Tensor"),
    (rows_masked, (), "aten.index.Tensor"),
    (nonzero, (), "aten.nonzero.default"),
    (where, (), "aten.nonzero.default"),
    (unique, (), "aten._unique2.default"),
    (repeated, (), "aten.repeat_interleave.Tensor"),
    (boxes_kept, (), "torchvision.nms.default"),
    (one_box_kept, (), "torchvision.nms.default"),
    (counted, (), "aten.bincount.default"),
    (item, (), "aten.mul.Tensor"),
    (int_item, (), "aten.mul.Tensor"),
    (item_as_size, (), "aten.full.default"),
    (row_of_buffer, (torch.tensor(2),), "aten.select.int"),
    (rows_of_argument, (torch.tensor(-1),), "aten.select.int"),
    (part_of_buffer, (torch.tensor(2),), "aten.slice.Tensor"),
    (part_by_items, (torch.tensor(2),), "aten.slice.Tensor"),
    (part_of_argument, (torch.tensor(2),), "aten.slice.Tensor"),
    (part_from_the_end, (torch.tensor(-3),), "aten.slice.Tensor"),
    (beginning, (torch.tensor(2),), "aten.slice.Tensor"),
    (part_of_cache, (torch.tensor(2),), "aten.slice_scatter.default"),
    (cache_of_model, (torch.tensor(2),), "aten.select_scatter.default"),
    (cache_of_caller, (torch.tensor(2), torch.zeros(3, 16, 8)), "aten.select_scatter.default"),
]
each_case = pytest.mark.parametrize(
    ("function", "others", "operator"), CASES, ids=[function.__name__ for function, *_ in CASES]
)


def assert_same(actual: Callable[..., Any], model: nn.Module, x: torch.Tensor, *others: torch.Tensor) -> None:
    """Assert that results are those of `model`, and what is written to the arguments too."""
    arguments, expected_arguments = copy.deepcopy((x, *others)), copy.deepcopy((x, *others))
    with torch.no_grad():
        torch.testing.assert_close(actual(*arguments), model(*expected_arguments), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(arguments, expected_arguments, rtol=1e-4, atol=1e-5)


@pytest.mark.first(12)
@each_case
def test_exported(function: Callable[..., Any], others: tuple[torch.Tensor, ...], operator: str) -> None:
    model, x = Model(function).eval(), torch.randn(3, 8)
    reference = copy.deepcopy(model)
    program = trtb.export(model, (x, *others), engine="reference")
    for _ in range(2):
        assert_same(program, reference, x, *others)
        assert_same(program, reference, torch.randn(3, 8), *others)
    report = program.report
    assert report.engines
    assert all(engine.is_ready for engine in report.engines), str(report)
    assert operator in {entry.op for entry in report.in_torch}
    assert all(entry.reason for entry in report.in_torch)


@pytest.mark.first(8)
@each_case
@pytest.mark.parametrize("dynamic", [None, pytest.param(True, marks=pytest.mark.full)], ids=["static", "dynamic"])
def test_compiled(
    dynamic: bool | None, function: Callable[..., Any], others: tuple[torch.Tensor, ...], operator: str
) -> None:
    model, x = Model(function).eval(), torch.randn(3, 8)
    fast = trtb.compile(copy.deepcopy(model), engine="reference", dynamic=dynamic)
    for _ in range(2):
        assert_same(fast, model, x, *others)
        assert_same(fast, model, torch.randn(3, 8), *others)
    report = trtb.report(fast)
    assert report.engines
    assert not [note for note in report.notes if "whole graph" in note]


def test_engines_before_and_behind() -> None:
    program = trtb.export(Model(masked).eval(), torch.randn(3, 8), engine="reference")
    first, second = program.report.engines
    assert "aten.linear.default" in first.nodes
    assert "aten.exp.default" in second.nodes
    (entry,) = program.report.in_torch
    assert entry.reason == "a boolean mask: the result's size depends on the data"


def test_a_number_that_pytorch_computes_is_the_reason() -> None:
    program = trtb.export(Model(item).eval(), torch.randn(3, 8), engine="reference")
    reasons = {entry.op: entry.reason for entry in program.report.in_torch}
    assert reasons["aten.mul.Tensor"] == "it reads _local_scalar_dense, a number that PyTorch computes"


@pytest.mark.parametrize("at", [0, 15, -2])
def test_a_part_of_a_known_length_is_anywhere(at: int) -> None:
    model, x = Model(part_of_buffer).eval(), torch.randn(3, 8)
    program = trtb.export(model, (x, torch.tensor(2)), engine="reference")
    assert_same(program, model, x, torch.tensor(at))


@pytest.mark.parametrize("at", [16, -1, -17])
def test_a_part_that_pytorch_cuts_short_raises(at: int) -> None:
    model, x = Model(part_of_buffer).eval(), torch.randn(3, 8)
    program = trtb.export(model, (x, torch.tensor(2)), engine="reference")
    with pytest.raises(trtb.ShapeRangeError, match="not what the program was exported for"):
        program(x, torch.tensor(at))


def test_a_size_that_the_example_contradicts_is_no_program() -> None:
    """`torch.export` takes the part for one of three rows, as `x` has."""
    model, x = Model(lambda m, x, at: x.exp() + m.table[at : at * 2 - 1].sin()).eval(), torch.randn(3, 8)
    with pytest.raises(trtb.CaptureError, match=r"depends on data.* torch\.compile"):
        trtb.export(model, (x, torch.tensor(2)), engine="reference")


def test_no_element_at_all() -> None:
    model = Model(masked).eval()
    with torch.no_grad():
        model.layer.bias.fill_(-1.0)
    program = trtb.export(model, torch.randn(3, 8), engine="reference")
    assert program(torch.zeros(3, 8)).shape == (0,)


@pytest.mark.parametrize("function", [masked, item, cache_of_model])
def test_saved_and_loaded(function: Callable[..., Any], tmp_path: Path) -> None:
    others = (torch.tensor(2),) if function is cache_of_model else ()
    model, x = Model(function).eval(), torch.randn(3, 8)
    reference = copy.deepcopy(model)
    trtb.save(trtb.export(model, (x, *others), engine="reference"), tmp_path / "model.pt2")
    program = trtb.load(tmp_path / "model.pt2", device="cpu")
    assert program.report.engines
    assert_same(program, reference, x, *others)
    assert_same(program, reference, torch.randn(3, 8), *others)
