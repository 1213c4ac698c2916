"""Captured graphs of symbolic sizes on disk: read in place of a capture, as general as it, never for other inputs."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import fx, nn
from torch._dynamo import mark_dynamic
from torch.utils import _pytree as pytree

import torchtrt_bridge as trtb
from tests.capture.cached import called, comparable, rewrite
from tests.entry.reference import assert_same
from tests.huggingface.diffusion_models import unet
from tests.huggingface.models import text, tiny
from tests.models import ConvNet, image, trained
from torchtrt_bridge.capture import capture_cache, dynamo
from torchtrt_bridge.capture.capture_cache import load_or_capture
from torchtrt_bridge.engine.builder import Builder
from torchtrt_bridge.engine.engine_key import engine_key
from torchtrt_bridge.graph.torch_internals import tracing_disabled
from torchtrt_bridge.options import Options
from torchtrt_bridge.pipeline import compile_graph

OPTIONS: dict[str, Any] = {"engine": "reference", "fallback": "pytorch"}
SIZES = ((4, 8), (2, 6), (5, 9))


def dynamic(model: Any) -> Any:
    return trtb.compile(model, dynamic=True, **OPTIONS)


def accelerated(model: Any) -> Any:
    return trtb.accelerate(model, **OPTIONS)


def images(batch: int, size: int) -> dict[str, torch.Tensor]:
    return {"x": torch.linspace(-1, 1, batch * 3 * size * size).view(batch, 3, size, size)}


def marked(batch: int, size: int) -> dict[str, torch.Tensor]:
    """Return images of which the user says that there are 2 to 8."""
    given = images(batch, 8)
    mark_dynamic(given["x"], 0, min=2, max=8)
    return given


def latents(batch: int, size: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(batch * 100 + size)
    sample, states = (torch.randn(batch, *rest, generator=generator) for rest in ((4, 2 * size, 8), (size, 16)))
    return {"sample": sample, "timestep": torch.tensor(7), "encoder_hidden_states": states}


class Rows(nn.Module):
    """Model that counts with sizes: pairs of rows, rows up to a multiple of four, a mean over half as many."""

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        pairs = x.reshape(x.shape[0], x.shape[1] // 2, 2, 3).sum(2)
        padded = nn.functional.pad(x, (0, 0, 0, 4))[:, : (x.shape[1] + 3) // 4 * 4]
        return pairs.relu(), padded / (x.shape[1] / 2), torch.cat([pairs, x], 1)


def rows(batch: int, size: int) -> dict[str, torch.Tensor]:
    return {"x": torch.linspace(-1, 1, batch * 6 * size).view(batch, 2 * size, 3)}


Inputs = Callable[[int, int], dict[str, torch.Tensor]]
MODELS: dict[str, tuple[Callable[[], nn.Module], Inputs, Callable[[Any], Any]]] = {
    "encoder": (lambda: tiny("bert").build(num_hidden_layers=1), text, accelerated),
    "ranges": (lambda: trained(ConvNet()), marked, lambda model: trtb.compile(model, **OPTIONS)),
    "llama": (lambda: tiny("llama").build(num_hidden_layers=1), text, dynamic),
    "sizes": (Rows, rows, dynamic),
    "UNet": (lambda: unet(levels=1), latents, accelerated),
    "convolutions": (lambda: trained(ConvNet()), images, dynamic),
    "gpt2": (lambda: tiny("gpt2").build(n_layer=1), text, accelerated),
}


@pytest.fixture
def engine_keys(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the list of keys of the engines that are begun from now on."""
    keys: list[str] = []
    own = Builder.begin

    def begin(builder: Builder, module: fx.GraphModule, *rest: Any) -> Any:
        context = builder.context
        keys.append(engine_key(module, context.library, builder.options, context.ranges))
        return own(builder, module, *rest)

    monkeypatch.setattr(Builder, "begin", begin)
    return keys


def in_a_process(name: str) -> tuple[list[Any], Any]:
    """Return the results of calls with several sizes, as in a process that has compiled nothing yet, and the report."""
    make, inputs, compiled = MODELS[name]
    torch._dynamo.reset()
    torch.manual_seed(0)
    fast = compiled(make().eval())
    with torch.no_grad():
        return [tensors_of(fast(**inputs(*sizes))) for sizes in SIZES], trtb.report(fast)


def tensors_of(result: Any) -> list[torch.Tensor]:
    values = result.to_tuple() if hasattr(result, "to_tuple") else result
    return [value for value in pytree.tree_leaves(values) if isinstance(value, torch.Tensor)]


@pytest.mark.parametrize("name", MODELS)
def test_a_cached_graph_is_as_general_as_the_captured_one(
    name: str, captures: list[Any], engine_keys: list[str]
) -> None:
    captured, first = in_a_process(name)
    keys = list(engine_keys)
    engine_keys.clear()
    cached, second = in_a_process(name)
    assert len(captures) == 1
    assert engine_keys == keys != []
    assert comparable(second) == comparable(first)
    assert second.torch_nodes == 0
    torch.testing.assert_close(cached, captured, rtol=0, atol=0)
    make, inputs, _ = MODELS[name]
    torch.manual_seed(0)
    model = make().eval()
    with torch.no_grad():
        assert_same(cached, [tensors_of(model(**inputs(*sizes))) for sizes in SIZES])


def test_a_later_process_builds_no_engine(captures: list[Any], tmp_path: Path) -> None:
    """TensorRT-RTX builds the engines, where there is no GPU too."""
    model, inputs = tiny("bert").build(num_hidden_layers=1), text(3, 7)
    options = Options.from_mapping({"cache_dir": str(tmp_path)})
    found: list[list[bool]] = []

    def backend(module: fx.GraphModule, args: list[Any]) -> Callable[..., Any]:
        weights, numbers = dynamo.weight_positions(module, args), dynamo.number_positions(module, args)
        captured, _ = load_or_capture(module, args, weights, numbers, options)
        with tracing_disabled():
            report = compile_graph(captured, options, run=False).report
        found.append([engine.from_cache for engine in report.engines])
        return module.forward

    for _ in range(2):
        torch._dynamo.reset()
        with torch.no_grad():
            torch.compile(model, backend=backend, dynamic=True)(**inputs)
    assert found == [[False], [True]]
    assert len(captures) == 1


@pytest.mark.full
def test_another_process_captures_nothing(tmp_path: Path) -> None:
    script = f"""
import torch, torchtrt_bridge as trtb
from tests.huggingface.models import text, tiny
from torchtrt_bridge.capture import dynamo
own, seen = dynamo.capture, []
dynamo.capture = lambda *args: seen.append(1) or own(*args)
model = tiny("bert").build(num_hidden_layers=1)
trtb.accelerate(model, engine="reference", cache_dir={str(tmp_path)!r})
with torch.no_grad():
    sums = [float(model(**text(*sizes)).last_hidden_state.sum()) for sizes in ((3, 7), (2, 12))]
print(len(seen), trtb.report(model).graphs, *sums)
"""
    run = [sys.executable, "-c", script]
    outputs = [subprocess.run(run, check=True, capture_output=True, text=True).stdout.split() for _ in range(2)]
    assert [output[:2] for output in outputs] == [["1", "1"], ["0", "1"]]
    assert outputs[0][2:] == outputs[1][2:]


def test_the_longest_size_is_an_option_of_the_build(captures: list[Any]) -> None:
    """A capture leaves a size without an end; the engine gets one."""
    for most in (64, 128):
        _, report = called(trained(ConvNet()), image(3, 8), dynamic=True, max_dynamic_size=most)
        assert f"3, 2..{most}, 2..{most}]" in report.engines[0].inputs[0]
    assert len(captures) == 1


def together(x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return x.sin(), y.cos() * 2


def batches(first: int, second: int, most: int = 64) -> tuple[torch.Tensor, torch.Tensor]:
    pair = torch.randn(first, 4), torch.randn(second, 4)
    for each in pair:
        mark_dynamic(each, 0, min=2, max=most)
    return pair


OTHERS: dict[str, Callable[[], tuple[torch.Tensor, torch.Tensor]]] = {
    "range": lambda: batches(3, 3, most=32),
    "another free dimension": lambda: (batches(3, 3)[0], torch.randn(3, 4)),
    "sizes that differ": lambda: batches(3, 5),
}


@pytest.mark.first(3)
@pytest.mark.parametrize("name", OTHERS)
def test_other_sizes_are_captured(name: str, captures: list[Any]) -> None:
    called(together, *batches(3, 3))
    called(together, *batches(3, 3))
    assert len(captures) == 1
    args = OTHERS[name]()
    assert_same(called(together, *args)[0], together(*args))
    assert len(captures) == 2


def test_ints_among_the_results_are_those_of_the_call(captures: list[Any]) -> None:
    def counting(x: torch.Tensor, count: int) -> tuple[torch.Tensor, int]:
        return x.sin(), x.shape[0] * count

    for count in (5, 5, 7):
        result, _ = called(counting, torch.ones(3, 4), count, dynamic=True)
        assert result[1] == 3 * count
    assert len(captures) == 2


def test_a_text_that_cannot_be_read_is_not_kept(
    captures: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: Any) -> Any:
        raise TypeError("this expression takes other arguments")

    monkeypatch.setattr(capture_cache, "graph_from_text", fail)
    for _ in range(2):
        assert_same(called(together, *(args := batches(3, 5)))[0], together(*args))
    assert len(captures) == 2
    assert list(tmp_path.rglob("*.graph")) == []


def test_a_text_that_reads_as_another_is_not_kept(
    captures: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = iter(["one", "other"])
    own = capture_cache.text_from_graph
    monkeypatch.setattr(capture_cache, "text_from_graph", lambda *args: own(*args) + " " * len(next(texts)))
    args = batches(3, 5)
    assert_same(called(together, *args)[0], together(*args))
    assert len(captures) == 1
    assert list(tmp_path.rglob("*.graph")) == []


def expressions(content: dict[str, Any]) -> list[Any]:
    found: list[Any] = content["sizes"]["rows"]
    return found


def change_each_symbol(content: dict[str, Any], field: int, number: int) -> None:
    """Let a field of each symbol, of its size in the example, the smallest and the largest, be another number."""
    expressions(content).append(number)
    for row in content["sizes"]["symbols"]:
        row[field] = len(expressions(content)) - 1


# Damage to a cached graph of symbolic sizes that its digest does not show.
DAMAGE: dict[str, Callable[[dict[str, Any]], Any]] = {
    "no sizes": lambda content: content.update(sizes=None),
    "no table": lambda content: content["sizes"].pop("rows"),
    "a row less": lambda content: expressions(content).pop(),
    "an unknown class": lambda content: expressions(content).append(["sympify", 0]),
    "another size in the example": lambda content: change_each_symbol(content, 1, 77),
    "a size beyond its range": lambda content: change_each_symbol(content, 3, 2),
    "no ranges": lambda content: content["sizes"]["ranges"].clear(),
    "settings that PyTorch has not": lambda content: content["sizes"]["settings"].update(unheard_of=True),
    "an axiom of one part": lambda content: content["sizes"]["axioms"].append([0]),
}


@pytest.mark.first(9)
@pytest.mark.parametrize("damage", DAMAGE)
def test_sizes_that_cannot_be_read_are_captured_again(
    damage: str, captures: list[Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model, given = Rows(), rows(3, 8)["x"]
    called(model, given, dynamic=True)
    rewrite(tmp_path, DAMAGE[damage])
    result, _ = called(model, given, dynamic=True)
    assert "a captured graph in the cache is not as it was written" in caplog.text
    assert_same(result, model(given))
    assert len(captures) == 2
    called(model, given, dynamic=True)
    assert len(captures) == 2  # the entry was written again
