"""The profile of real engines: times that add up to a call, nodes for most of them, and nothing changed by it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import torchtrt_bridge as trtb
from tests.gpu import assert_near
from tests.huggingface.decoders import causal, generated, prompt
from torchtrt_bridge.entry.torch_compile import backend_of
from torchtrt_bridge.report.layers import LayerTimes

pytestmark = pytest.mark.gpu

# The profiler keeps layers apart, which a call replayed from a CUDA graph does not; a call also copies its inputs.
FACTOR = 3.0
OPTIONS: dict[str, Any] = {"precision": "fp16", "trial": "check"}


class Blocks(nn.Module):
    """Convolutions with a residual each, as in ResNet."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 128, 7, stride=2, padding=3)
        self.blocks = nn.ModuleList(nn.Conv2d(128, 128, 3, padding=1) for _ in range(6))
        self.head = nn.Linear(128, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.first(x))
        for block in self.blocks:
            x = torch.relu(x + block(x))
        return self.head(x.mean((2, 3)))  # type: ignore[no-any-return]


def convolutions() -> tuple[nn.Module, dict[str, torch.Tensor]]:
    return Blocks(), {"x": torch.randn(16, 3, 128, 128, device="cuda")}


def bert() -> tuple[nn.Module, dict[str, torch.Tensor]]:
    transformers = pytest.importorskip("transformers")
    model = transformers.BertModel(transformers.BertConfig(num_hidden_layers=4))
    return model, {"input_ids": torch.randint(5, 30000, (16, 128), device="cuda")}


MODELS = {"convolutions": convolutions, "BERT": bert}


def compiled(name: str, **options: Any) -> tuple[Any, dict[str, torch.Tensor]]:
    torch.manual_seed(0)
    model, inputs = MODELS[name]()
    fast = trtb.compile(model.eval().requires_grad_(False).cuda(), **OPTIONS, **options)
    for _ in range(4):
        fast(**inputs)
    return fast, inputs


def times_of(report: trtb.CompileReport) -> LayerTimes:
    (entry,) = report.engines
    assert entry.serves, str(report)
    assert entry.layer_times is not None
    assert entry.layer_times.problem == ""
    return entry.layer_times


def milliseconds_of(fast: Any, inputs: dict[str, torch.Tensor], calls: int = 50) -> float:
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    begin.record()
    for _ in range(calls):
        fast(**inputs)
    end.record()
    torch.cuda.synchronize()
    return begin.elapsed_time(end) / calls


def value_of(result: Any) -> torch.Tensor:
    found: torch.Tensor = result if isinstance(result, torch.Tensor) else result.last_hidden_state
    return found


@pytest.mark.parametrize("name", MODELS)
@torch.inference_mode()
def test_layers_add_up_to_a_call_and_most_have_nodes(name: str) -> None:
    fast, inputs = compiled(name)
    report = trtb.report(fast)
    found = times_of(report.profile())
    call = milliseconds_of(fast, inputs)
    assert call / FACTOR < found.milliseconds < call * FACTOR, (found.milliseconds, call)
    assert sum(layer.share for layer in found.layers) == pytest.approx(1)
    assert [layer.milliseconds for layer in found.layers] == sorted(
        (x.milliseconds for x in found.layers), reverse=True
    )
    named = sum(layer.share for layer in found.layers if layer.nodes)
    assert named > 0.7, "\n".join(f"{x.milliseconds:.4f} {x.name} {x.in_tensorrt}" for x in found.layers)
    assert sum(layer.share for layer in found.layers if layer.sources) > 0.7
    assert f"Slowest layers of {report.engines[0].name}" in str(report)


@torch.inference_mode()
def test_the_slow_layers_of_bert_are_found() -> None:
    fast, _ = compiled("BERT")
    found = times_of(trtb.report(fast).profile())
    nodes = {node: operator for layer in found.layers for node, operator in layer.nodes.items()}
    operators = list(nodes.values())
    assert operators.count("aten.linear.default") == 4 * 6 + 1
    assert operators.count("aten.scaled_dot_product_attention.default") == 4
    assert any("linear" in name for name in found.layers[0].nodes)
    lines = [line for layer in found.layers for line in layer.sources]
    assert any("modeling_bert.py" in line for line in lines)


@pytest.mark.parametrize("name", MODELS)
@torch.inference_mode()
def test_nothing_is_changed_by_it(name: str) -> None:
    fast, inputs = compiled(name)
    expected = fast(**inputs)
    backend = backend_of(fast)
    assert backend is not None
    (graph,) = backend.graphs
    assert graph.compiled is not None
    run = graph.compiled.run
    pairs, generation = run.thread_state.graphs.pairs(), run.generation.count
    states = torch.get_rng_state(), torch.cuda.get_rng_state()
    first = times_of(trtb.report(fast).profile())
    assert all(map(torch.equal, states, (torch.get_rng_state(), torch.cuda.get_rng_state())))
    for _ in range(4):
        assert_near(value_of(fast(**inputs)), value_of(expected))
    assert run.thread_state.graphs.pairs() == pairs
    assert run.generation.count == generation
    assert trtb.report(fast).notes == []
    second = times_of(trtb.report(fast).profile())
    assert {layer.in_tensorrt for layer in second.layers} == {layer.in_tensorrt for layer in first.layers}


@torch.inference_mode()
def test_an_engine_from_the_cache_has_the_same_names(tmp_path: Path) -> None:
    names = []
    for _ in range(2):
        fast, _ = compiled("BERT", cache_dir=tmp_path)
        report = trtb.report(fast).profile()
        names.append({layer.name for layer in times_of(report).layers})
        torch.compiler.reset()
    assert report.engines[0].from_cache
    assert names[0] == names[1]


@torch.inference_mode()
def test_a_loaded_program_is_timed_before_its_first_call(tmp_path: Path) -> None:
    model, inputs = convolutions()
    program = trtb.export(model.eval().cuda(), tuple(inputs.values()), **OPTIONS)
    trtb.save(program, tmp_path / "blocks.pt2")
    loaded = trtb.load(tmp_path / "blocks.pt2")
    found = times_of(loaded.report.profile())
    nodes = {node for layer in found.layers for node in layer.nodes}
    assert {"convolution", "convolution_1", "convolution_6", "linear"} <= nodes
    assert_near(loaded(**inputs), model(**inputs))


@torch.inference_mode()
def test_the_cache_of_a_decoder_stays_as_it_is() -> None:
    options: dict[str, Any] = {"precision": "fp32", "tf32": True, "trial": "check", "fallback": "error"}
    fast = trtb.accelerate(causal("llama").cuda(), **options)
    expected = generated(fast, prompt(3, "cuda"), max_new_tokens=24)
    report = trtb.report(fast).profile()
    timed = [entry.layer_times for entry in report.engines if entry.layer_times is not None]
    assert timed
    assert all(times.layers for times in timed), str(report)
    assert torch.equal(generated(fast, prompt(3, "cuda"), max_new_tokens=24), expected)


@torch.inference_mode()
def test_an_engine_for_many_sizes_is_timed_at_the_size_of_the_example() -> None:
    model = Blocks().eval().requires_grad_(False).cuda()
    fast = trtb.compile(model, dynamic=True, **OPTIONS)
    x = torch.randn(4, 3, 96, 80, device="cuda")
    fast(x)
    found = times_of(trtb.report(fast).profile())
    (text,) = found.inputs
    assert text.endswith("float32[4, 3, 96, 80]")
    assert_near(fast(x), model(x))
