"""`release_weights`: what PyTorch holds beyond the user's model leaves the device once engines serve, and returns."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import torchtrt_bridge as trtb
from tests.models import ConvNet, WithUnsupported, image, trained
from torchtrt_bridge.errors import EngineLoadError
from torchtrt_bridge.runtime import Execution
from torchtrt_bridge.runtime.trial import Trial
from torchtrt_bridge.runtime.weights import SpareWeights, memory_of

NEAR = {"rtol": 2e-2, "atol": 2e-2}


def bytes_of(tensors: Any) -> int:
    """The memory behind tensors, each counted once."""
    return sum({memory_of(value): value.untyped_storage().nbytes() for value in tensors}.values())


def compiled(model: nn.Module, **options: Any) -> tuple[Any, Execution]:
    """A model whose engines have been tried, and its graph."""
    fast = trtb.compile(model, **{"engine": "reference", "precision": "fp16", "release_weights": True, **options})
    with torch.no_grad():
        fast(image())
    (graph,) = fast._torchtrt_bridge_backend.graphs
    assert graph.compiled is not None
    return fast, graph.compiled.run


def held(run: Execution, model: nn.Module | None = None) -> int:
    """What a graph holds on its device beyond the user's model."""
    own = {memory_of(value.detach()) for value in (*model.parameters(), *model.buffers())} if model else set()
    return bytes_of(value for value in run.module.buffers() if memory_of(value) not in own)


HALVED = 2 * (8 * 3 * 9 + 8 + 5 * 8 + 5)  # bytes of the folded convolution and the linear layer in fp16


@pytest.mark.parametrize(("release", "left"), [(False, HALVED), (True, 0)])
def test_what_is_held_beyond_the_model(release: bool, left: int) -> None:
    model = trained(ConvNet())
    _, run = compiled(model, release_weights=release)
    assert held(run, model) == left
    assert (run.weights.bytes_away if run.weights else 0) == HALVED - left


def test_the_model_itself_is_not_touched() -> None:
    """In fp32 without batch norm, all weights of the graph are the user's own."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 5)).eval()
    before = [(value, value.data_ptr(), value.clone()) for value in model.parameters()]
    _, run = compiled(model, precision="fp32")
    assert run.weights is not None
    assert run.weights.bytes_away == 0
    for value, address, content in before:
        assert value.data_ptr() == address
        assert torch.equal(value, content)
    assert [memory_of(value) for value in run.module.buffers()] == [memory_of(v.detach()) for v in model.parameters()]


def failing(engine: Any) -> None:
    """Let an engine that serves fail from now on."""

    def fail(inputs: Any) -> Any:
        raise RuntimeError("planted")

    engine.runner = fail


def test_they_come_back_when_an_engine_fails(caplog: pytest.LogCaptureFixture) -> None:
    model, x = trained(ConvNet()), image()
    fast, run = compiled(model)
    failing(run.engines[0])
    with torch.no_grad():
        for _ in range(2):
            torch.testing.assert_close(fast(x), model(x), **NEAR)
    assert "planted" in caplog.text
    assert held(run, model) == HALVED
    assert run.weights is not None
    assert run.weights.bytes_away == 0


def test_they_come_back_for_sizes_that_no_engine_serves() -> None:
    model = trained(ConvNet())
    fast, run = compiled(model, dynamic=True, max_dynamic_size=8)
    assert held(run, model) == 0
    with torch.no_grad():
        for size in (9, 7, 12):
            x = image(size=size)
            torch.testing.assert_close(fast(x), model(x), **NEAR)
    assert held(run, model) == HALVED
    assert run.engines[0].entry.serves


def test_all_engines_of_a_graph() -> None:
    model = trained(WithUnsupported())
    _, run = compiled(model)
    assert len(run.engines) == 2
    assert held(run, model) == 0


@pytest.mark.parametrize("broken", ["trt_0", "trt_1"])
def test_an_engine_that_is_not_trusted_keeps_its_weights(broken: str, monkeypatch: pytest.MonkeyPatch) -> None:
    is_right = Trial._is_right

    def wrong(trial: Any, results: Any) -> bool:
        is_first = results[0].dim() == 4
        if is_first == (broken == "trt_0"):
            trial.outcome.problem = "planted"
            return False
        return is_right(trial, results)

    monkeypatch.setattr(Trial, "_is_right", wrong)
    model, x = trained(WithUnsupported()), image()
    fast, run = compiled(model)
    sizes = {engine.entry.name: bytes_of(engine.pytorch.buffers()) > 0 for engine in run.engines}
    assert sizes == {"trt_0": broken == "trt_0", "trt_1": broken == "trt_1"}
    with torch.no_grad():
        torch.testing.assert_close(fast(x), fast(x))
    assert run.weights is not None
    assert run.weights.bytes_away > 0, "what it runs brings back nothing of the other's"


def test_changed_weights_are_released_too() -> None:
    model, x = trained(ConvNet()), image()
    fast, _ = compiled(model)
    with torch.no_grad():
        model.head.weight.mul_(2)
        for _ in range(3):
            torch.testing.assert_close(fast(x), model(x), **NEAR)
    (graph,) = fast._torchtrt_bridge_backend.graphs
    assert held(graph.compiled.run, model) == 0


# Programs ----------------------------------------------------------------------------------------------------------


def held_by(program: trtb.Program) -> int:
    return bytes_of([*program._run.module.buffers(), *program._exported.state_dict.values()])


def test_a_program_holds_nothing_on_the_device() -> None:
    model = trained(ConvNet())
    program = trtb.export(model, image(), engine="reference", release_weights=True)
    before = held_by(program)
    assert before > 0
    x = image()
    torch.testing.assert_close(program(x), model(x), rtol=1e-5, atol=1e-5)
    assert held_by(program) == 0
    torch.testing.assert_close(program(x), model(x), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(program.exported.module()(x), model(x), rtol=1e-5, atol=1e-5)
    assert held_by(program) == before


def test_a_released_program_is_saved_whole(tmp_path: Path) -> None:
    model, x = trained(ConvNet()), image()
    program = trtb.export(model, x, engine="reference", release_weights=True)
    program(x)
    trtb.save(program, tmp_path / "model.pt2")
    again = trtb.load(tmp_path / "model.pt2", release_weights=True)
    torch.testing.assert_close(again(x), model(x), rtol=1e-5, atol=1e-5)


class Counting(ConvNet):
    """A buffer of its is changed by each call."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return super().forward(x) + self.calls


def test_what_a_program_changes_stays() -> None:
    model, x = trained(Counting()), image()
    program = trtb.export(model, x, engine="reference", release_weights=True)
    results = [program(x) for _ in range(3)]
    torch.testing.assert_close(results[2] - results[0], torch.full_like(results[0], 2.0), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("transform", [torch.func.vmap, torch.func.jacrev])
def test_a_transform_brings_them_back(transform: Callable[..., Any]) -> None:
    model, x = trained(ConvNet()), image()
    program = trtb.export(model, x, engine="reference", release_weights=True)
    program(x)
    many = torch.stack([x, x]) if transform is torch.func.vmap else x
    torch.testing.assert_close(transform(program)(many), transform(model)(many), rtol=1e-4, atol=1e-4)


# The store itself --------------------------------------------------------------------------------------------------


def test_tensors_of_one_memory_share_one_again() -> None:
    weight = torch.randn(4, 6)
    content = weight.clone()
    first, second = {"a": weight, "t": weight.t()}, {"row": weight[1], "wide": weight[0, :1].expand(5)}
    weights = SpareWeights()
    weights.release([first, second], needed=())
    assert (first, second) == ({}, {})
    assert weights.bytes_away == 4 * 6 * 4
    with weights.loaded():
        torch.testing.assert_close([first["a"], first["t"]], [content, content.t()], rtol=0, atol=0)
        torch.testing.assert_close([second["row"], second["wide"]], [content[1], content[0, :1].expand(5)])
    assert first["t"].stride() == (1, 6)
    assert len({memory_of(value) for value in (*first.values(), *second.values())}) == 1


def test_what_is_needed_stays_with_all_its_views() -> None:
    weight, other = torch.randn(4), torch.randn(3)
    holder = {"a": weight, "b": weight[1:], "c": other}
    SpareWeights().release([holder], needed={memory_of(weight)})
    assert list(holder) == ["a", "b"]


def test_other_kinds_of_tensors_stay() -> None:
    holder = {"sparse": torch.eye(3).to_sparse(), "parameter": nn.Parameter(torch.ones(3))}
    SpareWeights().release([holder], needed=())
    assert list(holder) == ["sparse", "parameter"]


def test_a_capture_pins_them() -> None:
    """A CUDA graph of the user's reads the weights where they were when it was captured."""
    weights, holder = SpareWeights(), {"a": torch.ones(3)}
    with weights.loaded(is_captured=True):
        pass
    weights.release([holder], needed=())
    assert list(holder) == ["a"]


def test_a_capture_cannot_bring_them_back() -> None:
    weights, holder = SpareWeights(), {"a": torch.ones(3)}
    weights.release([holder], needed=())
    with pytest.raises(EngineLoadError, match="before the capture"), weights.loaded(is_captured=True):
        pass
    with weights.loaded():
        assert list(holder) == ["a"]


def test_they_do_not_leave_while_they_are_used() -> None:
    weights, holder = SpareWeights(), {"a": torch.ones(3)}
    thread = threading.Thread(target=weights.release, args=([holder], ()))
    with weights.loaded():
        thread.start()
        thread.join(0.2)
        assert list(holder) == ["a"]
    thread.join(30)
    assert holder == {}


def test_they_come_back_from_inference_mode_for_all() -> None:
    weights, holder = SpareWeights(), {"a": torch.ones(3)}
    weights.release([holder], needed=())
    with torch.inference_mode(), weights.loaded():
        pass
    assert not holder["a"].is_inference()
