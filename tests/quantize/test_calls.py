"""Calls of a quantized model: values that are fixed in its graph are not exchanged for others silently."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import torchtrt_bridge as trtb
from tests.quantize.nets import quantized, relative_error
from torchtrt_bridge.errors import CalibrationError, ShapeRangeError


class Base(nn.Module):
    """A linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)


class Optional(Base):
    """Arguments that may be left out."""

    def forward(
        self, x: torch.Tensor, factor: torch.Tensor | None = None, bias: torch.Tensor | None = None
    ) -> torch.Tensor:
        y = self.linear(x) if factor is None else self.linear(x) * factor
        return y if bias is None else y + bias


class Switched(Base):
    """Arguments that are no tensors."""

    def forward(self, x: torch.Tensor, scale: float = 1.0, flag: bool = True) -> torch.Tensor:
        return self.linear(x) * scale if flag else -self.linear(x)


class Mean(Base):
    """A size becomes a number of the graph."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x).sum(1) / x.shape[1]


class LargeBatches(Base):
    """A branch by the batch size."""

    most = 4

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x) * 2 if x.shape[0] > self.most else self.linear(x)


class NotOfOne(LargeBatches):
    """A branch where `torch.export` sees none: it takes one for a constant, and two for any size."""

    most = 1


def draw(*shape: int, count: int = 3) -> list[torch.Tensor]:
    return [torch.randn(shape) for _ in range(count)]


WAYS: dict[str, Callable[[Any], Any]] = {
    "itself": lambda model: model,
    "copied": copy.copy,
    "deeply copied": copy.deepcopy,
    "pickled": lambda model: pickle.loads(pickle.dumps(model)),
    "compiled": lambda model: trtb.compile(model, engine="reference"),
}


@pytest.mark.parametrize("way", WAYS)
def test_an_argument_behind_one_that_was_left_out(way: str) -> None:
    model, (x, bias) = Optional(), draw(4, 8, count=2)
    found = WAYS[way](
        quantized(model, [{"x": x, "bias": bias} for x, bias in zip(draw(4, 8), draw(4, 8), strict=True)])
    )
    assert relative_error(found(x, bias=bias), model(x, bias=bias)) < 0.05
    with pytest.raises(TypeError, match="'bias' must be given by its name"):
        found(x, bias)


@pytest.mark.first(6)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("wrong", [{"scale": 3.0}, {"flag": False}, {"scale": 1}, {"scale": torch.ones(())}])
def test_an_argument_that_is_no_tensor(way: str, wrong: dict[str, Any]) -> None:
    model, given, (x,) = Switched(), {"scale": 1.0, "flag": True}, draw(4, 8, count=1)
    found = WAYS[way](quantized(model, draw(4, 8), forward=lambda model, batch: model(batch, **given)))
    assert relative_error(found(x, **given), model(x, **given)) < 0.05
    (name,) = wrong
    with pytest.raises(ShapeRangeError, match=rf"Argument {name} is .*, and calibration gave {given[name]}"):
        found(x, **given | wrong)


@pytest.mark.parametrize("way", WAYS)
def test_a_size_that_is_part_of_the_graph(way: str) -> None:
    model = Mean()
    found = WAYS[way](quantized(model, draw(4, 5, 8)))
    for batch in (1, 2, 7):
        (x,) = draw(batch, 5, 8, count=1)
        assert relative_error(found(x), model(x)) < 0.05
    with pytest.raises(ShapeRangeError, match="x has size 9 in dimension 1, and the quantized graph is for 5"):
        found(*draw(4, 9, 8, count=1))


def test_a_size_that_is_free_where_the_user_says_so() -> None:
    model = Mean()
    shapes = {"x": {0: torch.export.Dim.AUTO, 1: torch.export.Dim.AUTO}}
    found = quantized(model, draw(4, 5, 8), dynamic_shapes=shapes)
    (x,) = draw(4, 9, 8, count=1)
    assert relative_error(found(x), model(x)) < 0.05


def test_a_branch_by_the_batch_size() -> None:
    found = quantized(LargeBatches(), draw(8, 8))
    with pytest.raises(ShapeRangeError, match="size 2 in dimension 0, and the quantized graph is for 5 or more"):
        found(*draw(2, 8, count=1))


def test_a_branch_for_a_batch_of_one() -> None:
    model = NotOfOne()
    found = quantized(model, [*draw(8, 8), *draw(1, 8)])
    assert "Batches of another size were left out: 3, 4, 5." in found.quantization.notes
    (x,) = draw(2, 8, count=1)
    assert relative_error(found(x), model(x)) < 0.05
    with pytest.raises(ShapeRangeError, match="size 1 in dimension 0, and the quantized graph is for 2 or more"):
        found(x[:1])


def test_a_loader_of_single_samples_for_a_model_that_branches() -> None:
    with pytest.raises(CalibrationError, match="A batch of one goes another way through NotOfOne than larger ones"):
        quantized(NotOfOne(), draw(1, 8))


@pytest.mark.parametrize("convert", [nn.Module.half, nn.Module.bfloat16, lambda m: m.to("cpu", torch.float64)])
def test_its_dtype_stays(convert: Callable[[Any], Any]) -> None:
    found, (x,) = quantized(Optional(), draw(4, 8)), draw(4, 8, count=1)
    with pytest.raises(CalibrationError, match=r"stays in torch.float32.*precision='fp16'"):
        convert(found)
    assert torch.equal(found(x), found.to("cpu").float()(x))


def test_it_shares_no_memory_with_the_model() -> None:
    """Later changes of the model do not reach the quantized one, nor the other way round."""
    model = nn.Sequential(nn.Embedding(20, 8), nn.Linear(8, 8), nn.Linear(8, 4))
    ids = torch.arange(20).view(4, 5)
    found = quantized(model, [ids, ids.flip(0)], skip=("1",))
    memory = {value.untyped_storage().data_ptr() for value in model.parameters()}
    assert not memory & {value.untyped_storage().data_ptr() for value in found.buffers()}
    expected, before = found(ids), copy.deepcopy(model.state_dict())
    with torch.no_grad():
        for value in model.parameters():
            value.zero_()
    assert torch.equal(found(ids), expected)
    model.load_state_dict(before)
    assert len(found.state_dict()) == len(list(found.buffers()))
