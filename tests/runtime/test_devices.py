"""The GPU that an engine is for: that of the tensors in its subgraph, whichever is the current one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import fx, nn

import torchtrt_bridge as trtb
from torchtrt_bridge.graph.nodes import gpu_of
from torchtrt_bridge.options import Options
from torchtrt_bridge.runtime.engine_module import computing_device

CURRENT = torch.device("cuda", 0)


def graph_on(*devices: str) -> fx.GraphModule:
    """A graph with an input on each of these devices."""
    graph = fx.Graph()
    for index, device in enumerate(devices):
        with torch.device("meta"):
            node = graph.placeholder(f"x{index}")
        node.meta["val"] = OnDevice(torch.device(device))
    graph.output(())
    return fx.GraphModule(nn.Module(), graph)


class OnDevice(torch.Tensor):
    """A tensor that says it is on a device, which need not be there."""

    _device: torch.device

    def __new__(cls, device: torch.device) -> OnDevice:
        value = torch.empty(1).as_subclass(cls)
        value._device = device
        return value

    @property
    def device(self) -> torch.device:
        return self._device


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)


@pytest.mark.usefixtures("two_gpus")
@pytest.mark.parametrize(
    ("devices", "expected"),
    [(["cuda:1"], "cuda:1"), (["cpu", "cuda:1"], "cuda:1"), (["cpu"], "cuda:0"), ([], "cuda:0")],
    ids=["another than the current one", "beside the CPU", "the current one for the CPU", "no tensor"],
)
def test_an_engine_is_for_the_gpu_of_its_tensors(devices: list[str], expected: str) -> None:
    assert computing_device(graph_on(*devices), Options()) == torch.device(expected)


@pytest.mark.usefixtures("two_gpus")
def test_the_reference_interpreter_is_on_the_cpu() -> None:
    assert computing_device(graph_on("cuda:1"), Options(engine="reference")) == torch.device("cpu")


def test_a_graph_on_the_cpu_is_on_no_gpu() -> None:
    assert gpu_of(graph_on("cpu")) is None


@pytest.mark.usefixtures("two_gpus")
@pytest.mark.parametrize(
    ("device", "words"),
    [("cuda:2", "PyTorch sees 2 GPUs here"), ("gpu", "Expected one of")],
    ids=["no such GPU", "no device"],
)
def test_a_program_is_loaded_onto_a_device_that_is_there(device: str, words: str, program: Path) -> None:
    with pytest.raises(trtb.OptionsError, match=words):
        trtb.load(program, device=device)


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("program") / "linear.pt2"
    trtb.save(trtb.export(nn.Linear(4, 4).eval(), torch.randn(2, 4), engine="reference"), path)
    return path
