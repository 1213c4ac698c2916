"""Constant folding: constants are computed once, and nothing that depends on inputs or on chance."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from tests.passes.case import Called, assert_computes, aten, call, calls, constants, passed
from torchtrt_bridge.capture.export import export_program, graph_from_program
from torchtrt_bridge.options import Options
from torchtrt_bridge.passes import normalize
from torchtrt_bridge.passes.constant_folding import SMALL_BYTES, fold_constants


class Weighted(nn.Module):
    """A function of the input and of one weight."""

    def __init__(self, function: object, *shape: int) -> None:
        super().__init__()
        self.function = function
        self.weight = nn.Parameter(torch.randn(*shape))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.function(x, self.weight)  # type: ignore[operator, no-any-return]


@pytest.mark.parametrize(
    "function",
    [
        lambda x, w: x + w.exp(),
        lambda x, w: x + (w.t() @ w).softmax(0),
        lambda x, w: x + w.split(2)[1].sum(0),
        lambda x, w: x + torch.cat([w, w * 2]).mean(0),
        lambda x, w: x + w.var(0, correction=0) + w.max(0).values,
    ],
    ids=["one call", "a chain", "an item of several", "a join", "two chains"],
)
def test_what_depends_on_constants_only_is_folded(function: object) -> None:
    model, x = Weighted(function, 4, 4), torch.randn(4, 4)
    module = passed(model, x, fold_constants)
    assert set(calls(module)) == {aten.add.Tensor}
    assert_computes(module, model, x)


def test_created_tensors_are_folded() -> None:
    def model(x: torch.Tensor) -> torch.Tensor:
        return x + torch.arange(4, dtype=torch.float32) * torch.ones(4)

    x = torch.randn(4, 4)
    module = passed(model, x, fold_constants)
    assert calls(module) == [aten.add.Tensor]
    torch.testing.assert_close(constants(module)[0], torch.arange(4.0))
    assert_computes(module, model, x)


def test_weights_that_nothing_reads_any_more_are_dropped() -> None:
    model, x = Weighted(lambda x, w: x + w.sum(0), 4, 4), torch.randn(4)
    module = passed(model, x, fold_constants)
    assert [tuple(value.shape) for _, value in module.named_buffers()] == [(4,)]


def test_a_large_expansion_is_left_to_the_engine() -> None:
    rows = SMALL_BYTES // 4 // 1024 + 1
    model, x = Weighted(lambda x, w: x + w.repeat(rows, 1), 1, 1024), torch.randn(1)
    module = passed(model, x, fold_constants)
    assert aten.repeat.default in calls(module) or aten.expand.default in calls(module)
    assert sum(value.numel() for value in constants(module)) <= 1024
    assert_computes(module, model, x)


def test_a_large_constant_that_does_not_grow_is_folded() -> None:
    model = Weighted(lambda x, w: x + w.t() * 2, SMALL_BYTES // 4 // 1024 + 1, 1024)
    module = passed(model, torch.randn(1), fold_constants)
    assert calls(module) == [aten.add.Tensor]


class Noisy(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.weight = nn.Parameter(torch.rand(256))  # no two draws agree

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        noise = {
            "rand_like": torch.rand_like,
            "bernoulli": torch.bernoulli,
            "dropout": lambda w: nn.functional.dropout(w, 0.5, training=True),
            "randn": lambda w: torch.randn(256),
        }
        return x + noise[self.kind](self.weight)


@pytest.mark.parametrize("kind", ["rand_like", "bernoulli", "dropout", "randn"])
def test_random_numbers_are_drawn_at_each_call(kind: str) -> None:
    x = torch.zeros(256)
    module = passed(Noisy(kind), x, fold_constants)
    assert len(calls(module)) > 1
    assert not torch.equal(module(x)[0], module(x)[0])


class Counting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros(1))
        self.register_buffer("offset", torch.ones(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.count.add_(1)
        return x + self.count.exp() + self.offset.exp()


def test_buffers_that_the_model_changes_are_no_constants() -> None:
    captured = graph_from_program(export_program(Counting(), (torch.randn(1),)))
    module = fold_constants(captured.module, Options())
    assert captured.state == ("count",)
    assert calls(module).count(aten.exp.default) == 1
    x = torch.randn(1)
    result, count = module(x, torch.full((1,), 2.0))
    torch.testing.assert_close(result, x + torch.tensor(3.0).exp() + torch.tensor(1.0).exp())
    torch.testing.assert_close(count, torch.full((1,), 3.0))


def test_a_folded_constant_that_is_an_output() -> None:
    model, x = Weighted(lambda x, w: (x * 2, w.exp()), 3), torch.randn(3)
    module = passed(model, x, fold_constants)
    assert calls(module) == [aten.mul.Tensor]
    assert_computes(module, model, x)


def test_folding_twice_changes_nothing_more() -> None:
    model, x = Weighted(lambda x, w: x + w.exp(), 4), torch.randn(4)
    once, twice = passed(model, x, fold_constants), passed(model, x, fold_constants, fold_constants)
    assert calls(once) == calls(twice) == [aten.add.Tensor]
    assert_computes(twice, model, x)


def test_the_models_own_weights_are_not_touched() -> None:
    model, x = Weighted(lambda x, w: x + w.exp(), 4), torch.randn(4)
    before = model.weight.detach().clone()
    passed(model, x, normalize)
    assert torch.equal(model.weight, before)


def test_a_constant_keeps_its_source_line() -> None:
    module = passed(Weighted(lambda x, w: x + w.exp(), 4), torch.randn(4), fold_constants)
    (read,) = (node for node in module.graph.nodes if node.op == "get_attr")
    assert Path(__file__).name in read.meta["stack_trace"]


def test_checks_of_metadata_leave_no_trace() -> None:
    def model(x: torch.Tensor) -> torch.Tensor:
        return x.to(torch.float16).relu().to(torch.float32)

    x = torch.randn(4)
    module = passed(Called(model), x, normalize)
    assert aten._assert_tensor_metadata.default not in calls(module)
    assert call(module, aten.relu.default)
    assert_computes(module, model, x)
