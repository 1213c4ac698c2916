"""Build of an engine: options, profiles and progress reach TensorRT, and an error has TensorRT's own message."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from torchtrt_bridge.engine import build
from torchtrt_bridge.engine.build import engine_from_network
from torchtrt_bridge.errors import BuildError
from torchtrt_bridge.graph.shapes import TensorSpec
from torchtrt_bridge.lower.network import Network
from torchtrt_bridge.options import Options
from torchtrt_bridge.trt import library as library
from torchtrt_bridge.trt.library import TensorRTLibrary

OPTIONS = Options(engine="tensorrt_rtx", cache_dir="", targets=("sm_89",))


@pytest.fixture
def rtx() -> TensorRTLibrary:
    return library.load("tensorrt_rtx")


def spec(name: str, ranges: tuple[tuple[int, int], ...], example: tuple[int, ...]) -> TensorSpec:
    sizes = tuple(low if low == high else f"s{i}" for i, (low, high) in enumerate(ranges))
    return TensorSpec(name, torch.float32, ranges, example, sizes)


X = spec("x", ((1, 8), (4, 4)), (3, 4))


def network_of(rtx: TensorRTLibrary, write: Callable[[Any, Any, Any], Any], *inputs: TensorSpec) -> Network:
    """Return a network whose output `write` makes from the TensorRT module, the definition and the inputs."""
    log = rtx.new_log()
    builder = rtx.new_builder(log)
    definition = rtx.new_network(builder)
    tensors = [
        definition.add_input(s.name, rtx.trt.float32, tuple(-1 if low != high else low for low, high in s.ranges))
        for s in inputs
    ]
    definition.mark_output(write(rtx.trt, definition, tensors))
    return Network(definition, builder, log, list(inputs), [], frozenset(), {}, None)


def negated(trt: Any, definition: Any, tensors: list[Any]) -> Any:
    return definition.add_unary(tensors[0], trt.UnaryOperation.NEG).get_output(0)


def deep(trt: Any, definition: Any, tensors: list[Any]) -> Any:
    """Add several layers, so that the build has several steps."""
    value = tensors[0]
    for kind in (trt.ActivationType.RELU, trt.ActivationType.SIGMOID, trt.ActivationType.TANH):
        value = definition.add_activation(value, kind).get_output(0)
        value = definition.add_softmax(value).get_output(0)
    return value


def test_an_engine_is_bytes(rtx: TensorRTLibrary) -> None:
    plan = engine_from_network(network_of(rtx, negated, X), rtx, OPTIONS)
    assert isinstance(plan, bytes)
    assert len(plan) > 1000


@pytest.mark.parametrize("most", [0, 2**30], ids=["through a file", "in memory"])
def test_an_engine_of_any_size_is_complete(most: int, rtx: TensorRTLibrary, monkeypatch: pytest.MonkeyPatch) -> None:
    static = spec("x", ((3, 3), (4, 4)), (3, 4))
    network = network_of(rtx, negated, static)
    expected = network.builder.build_serialized_network(network.definition, network.builder.create_builder_config())
    monkeypatch.setattr(build, "MOST_IN_MEMORY", most)
    plan = engine_from_network(network_of(rtx, negated, static), rtx, dataclasses.replace(OPTIONS, targets=()))
    assert len(plan) == len(bytes(expected))
    assert plan[:16] == bytes(expected)[:16]


def test_without_disk_space_the_engine_is_built_in_memory(
    rtx: TensorRTLibrary, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(build, "MOST_IN_MEMORY", 1)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
    plan = engine_from_network(network_of(rtx, negated, X), rtx, OPTIONS)
    assert len(plan) > 1000


def test_progress_is_reported_and_grows(rtx: TensorRTLibrary) -> None:
    fractions: list[float] = []
    engine_from_network(network_of(rtx, deep, X), rtx, OPTIONS, lambda fraction: fractions.append(fraction) or True)
    assert fractions
    assert fractions == sorted(fractions)
    assert all(0 < fraction <= 1 for fraction in fractions)


def test_a_build_can_be_cancelled(rtx: TensorRTLibrary) -> None:
    fractions: list[float] = []
    with pytest.raises(BuildError, match="could not build the engine"):
        engine_from_network(network_of(rtx, deep, X), rtx, OPTIONS, lambda fraction: bool(fractions.append(fraction)))
    assert fractions


def mixed_types(trt: Any, definition: Any, tensors: list[Any]) -> Any:
    """Add fp32 and fp16, which a strongly typed network may not."""
    half = definition.add_cast(tensors[0], trt.float16).get_output(0)
    return definition.add_elementwise(tensors[0], half, trt.ElementWiseOperation.SUM).get_output(0)


def test_the_error_of_an_invalid_network_is_tensorrts_own(rtx: TensorRTLibrary) -> None:
    with pytest.raises(BuildError, match=r"(?i)TensorRT.* could not build the engine: .*(type|Half|Float)"):
        engine_from_network(network_of(rtx, mixed_types, X), rtx, OPTIONS)


def test_an_earlier_error_is_not_reported_as_the_cause(rtx: TensorRTLibrary) -> None:
    network = network_of(rtx, mixed_types, X)
    network.log.logger.log(rtx.trt.ILogger.Severity.ERROR, "something long past")
    with pytest.raises(BuildError) as caught:
        engine_from_network(network, rtx, OPTIONS)
    assert "long past" not in str(caught.value)


def test_an_unknown_target_fails(rtx: TensorRTLibrary) -> None:
    with pytest.raises(BuildError, match="cannot build for sm_42"):
        engine_from_network(network_of(rtx, negated, X), rtx, dataclasses.replace(OPTIONS, targets=("sm_42",)))


# What reaches TensorRT ---------------------------------------------------------------------------------------


class Recorder:
    """Builder that forwards every call, keeps its configurations, and builds nothing."""

    def __init__(self, builder: Any) -> None:
        self._builder = builder
        self.configs: list[Any] = []
        self.profiles: list[Any] = []

    def create_builder_config(self) -> Any:
        self.configs.append(self._builder.create_builder_config())
        return self.configs[-1]

    def create_optimization_profile(self) -> Any:
        self.profiles.append(self._builder.create_optimization_profile())
        return self.profiles[-1]

    def build_serialized_network_to_stream(self, definition: Any, config: Any, writer: Any) -> bool:
        return bool(writer.write(b"plan"))


def recorded(rtx: TensorRTLibrary, *inputs: TensorSpec, **options: Any) -> Recorder:
    network = network_of(rtx, negated, *inputs)
    network.builder = recorder = Recorder(network.builder)
    engine_from_network(network, rtx, dataclasses.replace(OPTIONS, **options))
    return recorder


def test_static_inputs_need_no_profile(rtx: TensorRTLibrary) -> None:
    recorder = recorded(rtx, spec("x", ((3, 3), (4, 4)), (3, 4)))
    assert recorder.profiles == []
    assert recorder.configs[0].num_optimization_profiles == 0


@pytest.mark.parametrize(
    ("ranges", "example", "shapes"),
    [
        (((1, 8), (4, 4)), (3, 4), [(1, 4), (3, 4), (8, 4)]),
        (((2, 9), (5, 7)), (2, 7), [(2, 5), (2, 7), (9, 7)]),
        (((2, 8), (4, 4)), (1, 4), [(2, 4), (2, 4), (8, 4)]),
        (((2, 8), (4, 4)), (50, 4), [(2, 4), (8, 4), (8, 4)]),
    ],
    ids=["within", "at its ends", "example below", "example above"],
)
def test_the_profile_is_the_ranges_tuned_for_the_example(
    ranges: Any, example: Any, shapes: list[tuple[int, ...]], rtx: TensorRTLibrary
) -> None:
    recorder = recorded(rtx, spec("x", ranges, example))
    (profile,) = recorder.profiles
    assert [tuple(shape) for shape in profile.get_shape("x")] == shapes
    assert recorder.configs[0].num_optimization_profiles == 1


def test_each_dynamic_input_has_its_own_ranges(rtx: TensorRTLibrary) -> None:
    recorder = recorded(rtx, X, spec("y", ((4, 4),), (4,)), spec("z", ((2, 6),), (5,)))
    (profile,) = recorder.profiles
    assert [tuple(shape) for shape in profile.get_shape("z")] == [(2,), (5,), (6,)]
    assert [tuple(shape) for shape in profile.get_shape("x")] == [(1, 4), (3, 4), (8, 4)]


@pytest.mark.parametrize("tf32", [True, False])
def test_tf32(tf32: bool, rtx: TensorRTLibrary) -> None:
    (config,) = recorded(rtx, X, tf32=tf32).configs
    assert config.get_flag(rtx.trt.BuilderFlag.TF32) is tf32


@pytest.mark.parametrize("level", [0, 5])
def test_optimization_level(level: int, rtx: TensorRTLibrary) -> None:
    (config,) = recorded(rtx, X, optimization_level=level).configs
    assert config.builder_optimization_level == level


def test_workspace(rtx: TensorRTLibrary) -> None:
    (config,) = recorded(rtx, X, workspace_bytes=1 << 24).configs
    assert config.get_memory_pool_limit(rtx.trt.MemoryPoolType.WORKSPACE) == 1 << 24
