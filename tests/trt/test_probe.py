"""Probes: one build gives an answer, the cache keeps it, and a temporary failure is not cached."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest

from torchtrt_bridge.options import Options
from torchtrt_bridge.trt import probe
from torchtrt_bridge.trt.library import TensorRTLibrary, load
from torchtrt_bridge.trt.probe import Probe, Support, supports

TARGETS = ("sm_89",)


@pytest.fixture(autouse=True)
def _nothing_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "_answers", {})
    monkeypatch.setattr(probe, "PROBES", dict(probe.PROBES))


@pytest.fixture
def rtx() -> TensorRTLibrary:
    return load("tensorrt_rtx")


@pytest.fixture
def options(tmp_path: Path) -> Options:
    return Options(targets=TARGETS, cache_dir=tmp_path / "cache")


@dataclasses.dataclass
class Counted:
    """Probe that counts its builds, and writes a network that TensorRT builds or refuses."""

    network: str = "buildable"
    asked: int = 0

    def __call__(self, trt: Any, network: Any) -> None:
        self.asked += 1
        tensor = network.add_input("x", trt.DataType.FLOAT, (2, 3))
        if self.network == "unbuildable":
            tensor = network.add_identity(tensor).get_output(0)
            other = network.add_input("y", trt.DataType.FLOAT, (5, 7))
            tensor = network.add_elementwise(tensor, other, trt.ElementWiseOperation.SUM).get_output(0)
        elif self.network == "unknown to Python":
            network.add_wormhole(tensor)
        network.mark_output(network.add_unary(tensor, trt.UnaryOperation.NEG).get_output(0))


def planted(monkeypatch: pytest.MonkeyPatch, network: str = "buildable", layer: str = "add_unary") -> Counted:
    counted = Counted(network)
    monkeypatch.setitem(probe.PROBES, "planted", Probe(layer, counted))
    return counted


def forget() -> None:
    """Forget all answers but those on disk, as in another process."""
    probe._answers.clear()


def files(options: Options) -> list[Path]:
    return sorted(path for path in Path(str(options.cache_dir)).glob("*") if path.suffix != ".lock")


# Answers -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("targets", [TARGETS, ("sm_75",), ("sm_86", "sm_120"), ()], ids=str)
def test_attention_is_built(targets: tuple[str, ...], rtx: TensorRTLibrary, options: Options) -> None:
    options = dataclasses.replace(options, targets=targets)
    assert supports("attention", rtx, options) == Support(True)


@pytest.mark.parametrize(
    ("network", "words"),
    [("unbuildable", "ELEMENTWISE|dimension"), ("unknown to Python", "AttributeError: .*add_wormhole")],
    ids=["refused by the builder", "refused by the bindings"],
)
def test_a_negative_answer_has_a_reason(
    network: str,
    words: str,
    rtx: TensorRTLibrary,
    options: Options,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    planted(monkeypatch, network)
    answer = supports("planted", rtx, options)
    assert not answer.yes
    assert re.search(words, answer.reason)
    assert f"{rtx} does not build planted" in caplog.text
    assert answer.reason in caplog.text


def test_an_attention_whose_mask_is_dropped_is_not_supported(
    rtx: TensorRTLibrary, options: Options, monkeypatch: Any
) -> None:
    """TensorRT logs that it drops a mask beside a causal one, and builds the network."""

    def write(trt: Any, network: Any) -> None:
        q, k, v = (network.add_input(name, trt.DataType.HALF, (1, 2, 16, 64)) for name in "qkv")
        layer = network.add_attention(q, k, v, trt.AttentionNormalizationOp.SOFTMAX, True)
        layer.decomposable = True
        layer.mask = network.add_input("mask", trt.DataType.BOOL, (1, 1, 16, 16))
        network.mark_output(layer.get_output(0))

    monkeypatch.setitem(probe.PROBES, "masked_causal", Probe("add_attention", write))
    answer = supports("masked_causal", rtx, options)
    assert not answer.yes
    assert "mask" in answer.reason.lower()


def test_a_layer_that_the_api_lacks(rtx: TensorRTLibrary, options: Options, monkeypatch: pytest.MonkeyPatch) -> None:
    counted = planted(monkeypatch, layer="add_wormhole")
    assert supports("planted", rtx, options) == Support(False, f"{rtx} has no add_wormhole")
    assert counted.asked == 0


@pytest.mark.parametrize("layer", ["add_unary", "add_wormhole"])
def test_the_reference_builds_nothing(layer: str, rtx: TensorRTLibrary, monkeypatch: pytest.MonkeyPatch) -> None:
    counted = planted(monkeypatch, "unbuildable", layer)
    assert supports("planted", rtx, Options(engine="reference")).yes == (layer == "add_unary")
    assert counted.asked == 0


def test_an_unknown_capability_is_an_error_of_this_package(rtx: TensorRTLibrary, options: Options) -> None:
    with pytest.raises(KeyError, match="teleport"):
        supports("teleport", rtx, options)


def test_a_second_probe_of_a_name_is_refused() -> None:
    def attention(trt: Any, network: Any) -> None: ...

    with pytest.raises(ValueError, match="attention has a probe already"):
        probe.probe(layer="add_attention")(attention)


# On disk -----------------------------------------------------------------------------------------------------------


def test_a_process_builds_a_probe_once(rtx: TensorRTLibrary, options: Options, monkeypatch: pytest.MonkeyPatch) -> None:
    counted = planted(monkeypatch)
    assert supports("planted", rtx, options) == supports("planted", rtx, options) == Support(True)
    assert counted.asked == 1


@pytest.mark.parametrize("network", ["buildable", "unbuildable"])
def test_the_next_process_reads_the_answer(
    network: str, rtx: TensorRTLibrary, options: Options, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted = planted(monkeypatch, network)
    first = supports("planted", rtx, options)
    forget()
    assert supports("planted", rtx, options) == first
    assert counted.asked == 1


def test_without_a_cache_nothing_is_written(
    rtx: TensorRTLibrary, options: Options, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted, options = planted(monkeypatch), dataclasses.replace(options, cache_dir="")
    supports("planted", rtx, options)
    supports("planted", rtx, options)
    assert counted.asked == 1
    forget()
    supports("planted", rtx, options)
    assert counted.asked == 2
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


@pytest.mark.parametrize("index", [0, 1], ids=["answer", "digest"])
@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b'{"yes": true}', b"null", b"\xff"], ids=repr)
def test_a_damaged_file_is_replaced_by_a_new_answer(
    index: int, damage: bytes, rtx: TensorRTLibrary, options: Options, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted = planted(monkeypatch)
    supports("planted", rtx, options)
    kept = files(options)
    assert len(kept) == 2
    kept[index].write_bytes(damage)
    forget()
    assert supports("planted", rtx, options) == Support(True)
    assert counted.asked == 2
    forget()
    assert supports("planted", rtx, options) == Support(True)
    assert counted.asked == 2


def test_the_file_is_json(rtx: TensorRTLibrary, options: Options, monkeypatch: pytest.MonkeyPatch) -> None:
    planted(monkeypatch)
    supports("planted", rtx, options)
    (answer,) = [path for path in files(options) if path.suffix == ".probe"]
    assert answer.name.startswith("planted-")
    assert json.loads(answer.read_text()) == {"yes": True, "reason": ""}


def test_each_target_has_its_own_answer(
    rtx: TensorRTLibrary, options: Options, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted = planted(monkeypatch)
    asked_for = [("sm_86",), ("sm_89",), ("sm_86", "sm_89"), ("sm_89", "sm_86")]
    answers = [supports("planted", rtx, dataclasses.replace(options, targets=targets)) for targets in asked_for]
    assert answers == [Support(True)] * 4
    assert counted.asked == 3


def test_each_version_has_its_own_answer(
    rtx: TensorRTLibrary, options: Options, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted = planted(monkeypatch)
    newer = TensorRTLibrary(rtx.name, rtx.trt)
    newer.version = "99.0"
    supports("planted", rtx, options)
    supports("planted", newer, options)
    assert counted.asked == 2


@pytest.mark.parametrize("reason", ["memory", "target", "exception"])
def test_a_temporary_failure_is_not_cached(
    reason: str, rtx: TensorRTLibrary, options: Options, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next process builds the probe again, as the failure says nothing about TensorRT."""
    counted = planted(monkeypatch)

    def fail(asked: Probe, library: TensorRTLibrary, options: Options, log: Any) -> None:
        log.logger.log(rtx.trt.ILogger.Severity.ERROR, "Error Code 2: OutOfMemory (Requested size was 4096 bytes.)")
        if reason == "exception":
            raise RuntimeError("planted")

    asked_for = dataclasses.replace(options, targets=("sm_42",)) if reason == "target" else options
    with monkeypatch.context() as context:
        if reason != "target":
            context.setattr(probe, "_build", fail)
        assert not supports("planted", rtx, asked_for).yes
    assert files(options) == []
    forget()
    assert supports("planted", rtx, options).yes
    assert counted.asked == 1


def test_a_cache_that_cannot_be_written_does_not_stop_a_probe(
    rtx: TensorRTLibrary, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted = planted(monkeypatch)
    (tmp_path / "file").write_text("")
    options = Options(targets=TARGETS, cache_dir=tmp_path / "file" / "cache")
    assert supports("planted", rtx, options) == Support(True)
    assert counted.asked == 1


def test_named_targets_need_no_gpu(rtx: TensorRTLibrary, options: Options, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden() -> str:
        raise AssertionError("the answer for named targets depends on no GPU")

    planted(monkeypatch)
    monkeypatch.setattr(probe, "current_target", forbidden)
    assert supports("planted", rtx, options) == Support(True)
