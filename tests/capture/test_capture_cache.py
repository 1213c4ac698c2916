"""Captured graphs on disk: read in place of a capture, never for another model, right with other weights."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from tests.capture.cached import called, comparable, rewrite
from tests.entry.reference import assert_same
from tests.models import ConvNet, WithUnsupported, image, trained
from torchtrt_bridge.capture import graph_json as texts


class Block(nn.Module):
    """Attention under a mask, embeddings, a projection in three parts, and results by name."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(11, 16)
        self.norm = nn.LayerNorm(16)
        self.projection = nn.Linear(16, 48)
        self.register_buffer("scale", torch.tensor(0.5))

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> dict[str, torch.Tensor]:
        x = self.norm(self.table(ids))
        q, k, v = (part.unflatten(-1, (2, 8)).transpose(1, 2) for part in self.projection(x).chunk(3, -1))
        y = functional.scaled_dot_product_attention(q, k, v, mask[:, None, None].bool())
        best, where = y.max(-1)
        return {"values": functional.gelu(y.transpose(1, 2).flatten(2)) * self.scale, "best": best, "where": where}


class Counting(nn.Module):
    """Model that changes a buffer of its own, and writes by an index that it makes."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls.add_(1)
        y = x.sigmoid()
        y[torch.tensor([0, 2])] = self.calls[0] * x.new_tensor(float("inf")).reciprocal()
        return y


class Strided(nn.Module):
    """Model that reads by offsets memory of which it has a view."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.relu()[1:].as_strided((2, 4), (4, 1), 0).sin()


def text() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.arange(10).view(2, 5), torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])


MODELS: dict[str, tuple[Callable[[], nn.Module], Callable[[], tuple[torch.Tensor, ...]]]] = {
    "convolutions": (ConvNet, lambda: (image(),)),
    "a part in PyTorch": (WithUnsupported, lambda: (image(),)),
    "half precision": (lambda: ConvNet().half(), lambda: (image().half(),)),
    "attention": (Block, text),
    "a changed buffer": (Counting, lambda: (torch.randn(4),)),
    "a view of memory": (Strided, lambda: (torch.randn(5, 4),)),
    "transposed input": (lambda: nn.Linear(4, 3), lambda: (torch.randn(4, 2).t(),)),
}


@pytest.mark.parametrize("name", MODELS)
def test_a_cached_graph_gives_the_results_of_the_captured_one(name: str, captures: list[Any]) -> None:
    make, inputs = MODELS[name]
    model, args = trained(make()), inputs()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    captured, first = called(model, *args)
    assert len(captures) == 1
    model.load_state_dict(before)
    cached, second = called(model, *args)
    assert len(captures) == 1
    torch.testing.assert_close(cached, captured, rtol=0, atol=0, equal_nan=True)
    assert comparable(second) == comparable(first)
    assert second.error == first.error


def test_the_weights_are_those_of_the_call(captures: list[Any]) -> None:
    x = image()
    called(trained(ConvNet()), x)
    torch.manual_seed(5)
    other = trained(ConvNet())
    result, report = called(other, x)
    assert len(captures) == 1
    assert_same(result, other(x).detach())
    assert report.torch_nodes == 0


def test_a_changed_buffer_changes_in_a_cached_graph(captures: list[Any]) -> None:
    x = torch.randn(4)
    called(Counting().eval(), x)
    model = Counting().eval()
    for calls in (1.0, 2.0):
        called(model, x)
        assert model.calls.tolist() == [calls] * 3
    assert len(captures) == 1


def test_reasons_keep_their_source_lines(captures: list[Any]) -> None:
    reports = [called(trained(WithUnsupported()), image())[1] for _ in range(2)]
    assert len(captures) == 1
    sources = [entry.source for report in reports for entry in report.in_torch]
    assert len(sources) == 2
    assert all("torch.linalg.det(x)" in source for source in sources)


@pytest.mark.full
def test_another_process_reads_the_cached_graph(tmp_path: Path) -> None:
    script = f"""
import torch, torchtrt_bridge as trtb
from tests.models import ConvNet, image, trained
from torchtrt_bridge.capture import dynamo
own, seen = dynamo.capture, []
dynamo.capture = lambda *args: seen.append(1) or own(*args)
torch.manual_seed(0)
with torch.no_grad():
    result = trtb.compile(trained(ConvNet()), engine="reference", cache_dir={str(tmp_path)!r})(image())
print(len(seen), float(result.sum()))
"""
    run = [sys.executable, "-c", script]
    outputs = [subprocess.run(run, check=True, capture_output=True, text=True).stdout.split() for _ in range(2)]
    assert [captures for captures, _ in outputs] == ["1", "0"]
    assert outputs[0][1] == outputs[1][1]


def test_no_cache_keeps_none(captures: list[Any], tmp_path: Path) -> None:
    for _ in range(2):
        called(trained(ConvNet()), image(), cache_dir="")
    assert len(captures) == 2
    assert list(tmp_path.rglob("*.graph")) == []


class WithConstant(nn.Module):
    """Model with a tensor that is neither a parameter nor a buffer."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.constant = torch.arange(float(size))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.relu() + self.constant


def test_tensors_that_are_attributes_are_inputs_of_the_graph(captures: list[Any]) -> None:
    x = torch.randn(5)
    for factor in (1.0, 3.0):
        model = WithConstant(5).eval()
        model.constant *= factor
        assert_same(called(model, x)[0], model(x))
    assert len(captures) == 1


def test_a_graph_with_a_large_constant_is_not_cached(
    captures: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def model(x: torch.Tensor) -> torch.Tensor:
        return x.relu() + torch.tensor([1.0, 2.0, 3.0])

    monkeypatch.setattr(texts, "MOST_BYTES", 11)
    for _ in range(2):
        assert_same(called(model, torch.ones(3))[0], torch.tensor([2.0, 3.0, 4.0]))
    assert len(captures) == 2
    assert list(tmp_path.rglob("*.graph")) == []


# Damage to a cached graph that its digest does not show.
DAMAGE: dict[str, Callable[[dict[str, Any]], Any]] = {
    "no nodes": lambda content: content.pop("nodes"),
    "an unknown operator": lambda content: content["nodes"].__setitem__(
        -2, [*content["nodes"][-2][:3], "aten.no.such", [], {}]
    ),
    "an unknown weight": lambda content: content["constants"].update({next(iter(content["constants"])): "weight_99"}),
    "no list": lambda content: content.clear(),
    "more outputs": lambda content: content.update(outputs=2),
    "no outputs": lambda content: content.update(outputs=0),
    "outputs of another type": lambda content: content.update(outputs="1"),
    "a mutation without an output": lambda content: content.update(mutations=[0]),
    "a mutation of no input": lambda content: content.update(outputs=0, mutations=[7]),
    "a mutation by name": lambda content: content.update(outputs=0, mutations=["x"]),
    "a state that is no input": lambda content: content.update(state=["weight_0"]),
    "a state of no weight": lambda content: content.update(state=["weight_99"]),
    "an input more": lambda content: content["nodes"].insert(
        0, ["placeholder", "more", 0, "more", {"tuple": []}, {"dict": {}}, 1]
    ),
    "deep": lambda content: content.update(nodes=deep(450)),
}


def deep(levels: int) -> list[Any]:
    """Return lists in lists."""
    nested: list[Any] = []
    for _ in range(levels):
        nested = [nested]
    return nested


@pytest.mark.first(4)
@pytest.mark.parametrize("damage", DAMAGE)
def test_a_graph_that_cannot_be_read_is_captured_again(
    damage: str, captures: list[Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model, x = trained(ConvNet()), image()
    called(model, x)
    rewrite(tmp_path, DAMAGE[damage])
    result, _ = called(model, x)
    assert "a captured graph in the cache is not as it was written" in caplog.text
    assert_same(result, model(x).detach())
    assert len(captures) == 2
    called(model, x)
    assert len(captures) == 2  # the entry was written again


def test_the_accuracy_check_of_the_graph_finds_a_wrong_one(captures: list[Any], tmp_path: Path) -> None:
    model, x = trained(ConvNet()), image()
    called(model, x)

    def with_tanh(content: dict[str, Any]) -> None:
        (node,) = (node for node in content["nodes"] if node[3] == "aten.relu.default")
        node[3] = "aten.tanh.default"

    rewrite(tmp_path, with_tanh)
    result, report = called(model, x)
    assert len(captures) == 1
    assert_same(result, model(x).detach())
    assert "its results are not the model's own" in report.notes[0]
