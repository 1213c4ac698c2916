"""Engines follow weights that change, also where PyTorch does not count an edit."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

import torchtrt_bridge as trtb
from torchtrt_bridge.capture.unseen_edits import counters_of


def network() -> nn.Module:
    torch.manual_seed(0)
    layers = (nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(288, 10))
    return nn.Sequential(*layers).eval()


X = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def compiled(model: nn.Module, way: str = "compile") -> Any:
    options: dict[str, Any] = {"engine": "reference", "cache_dir": ""}
    if way == "compile":
        return trtb.compile(model, **options)
    return torch.compile(model, backend="torchtrt_bridge", options=options)


def assert_follows(fast: Any, model: nn.Module) -> None:
    """Assert that several calls give what the model does, and that engines compute them in the end."""
    for _ in range(3):
        with torch.inference_mode():
            torch.testing.assert_close(fast(X), model(X), rtol=1e-4, atol=1e-5)
    assert trtb.report(fast).is_whole


OPTIMIZERS: dict[str, Any] = {
    "SGD": lambda weights, **way: torch.optim.SGD(weights, lr=0.5, momentum=0.9, **way),
    "Adam": lambda weights, **way: torch.optim.Adam(weights, lr=0.1, **way),
    "AdamW": lambda weights, **way: torch.optim.AdamW(weights, lr=0.1, **way),
    "Adagrad": lambda weights, **way: torch.optim.Adagrad(weights, lr=0.5, **way),
}


@pytest.mark.parametrize("way", ["fused", "foreach"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_steps_of_optimizers_are_noticed(name: str, way: str) -> None:
    model = network()
    fast = compiled(model)
    optimizer = OPTIMIZERS[name](model.parameters(), **{way: True})
    for _ in range(2):
        assert_follows(fast, model)
        optimizer.zero_grad()
        model(X).square().sum().backward()
        optimizer.step()
    assert_follows(fast, model)


def test_a_fused_step_counts_for_what_it_has_edited_only() -> None:
    compiled(network())(X)
    model, other = network(), network()
    optimizer = torch.optim.SGD([*model.parameters(), *other.parameters()], lr=0.5, fused=True)
    versions = [weight._version for weight in other.parameters()]
    model(X).sum().backward()
    optimizer.step()
    assert [weight._version for weight in other.parameters()] == versions
    assert all(weight._version > 0 for weight in model.parameters() if weight.grad is not None)


@pytest.mark.parametrize("way", ["compile", "by name"])
def test_statistics_of_a_batch_norm_are_noticed(way: str) -> None:
    model = network()
    fast = compiled(model, way)
    assert_follows(fast, model)
    before = copy.deepcopy(model[1].running_mean)
    with torch.no_grad():
        model.train()
        model(X * 5 + 3)
        model.eval()
    assert not torch.equal(model[1].running_mean, before)
    assert_follows(fast, model)


def test_counters_are_those_of_the_layers_that_hold_the_statistics() -> None:
    norms = [nn.BatchNorm2d(3) for _ in range(3)]
    found = counters_of([norms[0].running_mean, norms[0].running_var, norms[2].running_var])
    assert {id(each) for each in found} == {id(norms[0].num_batches_tracked), id(norms[2].num_batches_tracked)}
    assert counters_of([torch.zeros(3)]) == []
    assert counters_of([]) == []
