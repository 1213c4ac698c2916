"""Probes of quantized layers: the answers of the installed TensorRT-RTX, by target."""

from __future__ import annotations

import pytest

from torchtrt_bridge.options import Options
from torchtrt_bridge.trt import probe
from torchtrt_bridge.trt.library import load
from torchtrt_bridge.trt.probe import supports

KINDS = ("convolution", "transposed_convolution", "linear", "attention", "values")


@pytest.fixture(autouse=True)
def _nothing_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "_answers", {})


@pytest.mark.parametrize("target", ["sm_86", "sm_89", "sm_120"])
@pytest.mark.parametrize("capability", [f"int8_{kind}" for kind in KINDS] + ["int4_linear"])
def test_integers_are_built_from_ampere_on(capability: str, target: str) -> None:
    assert supports(capability, load("tensorrt_rtx"), Options(targets=(target,))).reason == ""


@pytest.mark.parametrize(("target", "is_built"), [("sm_86", False), ("sm_89", True), ("sm_120", True)])
@pytest.mark.parametrize("kind", KINDS)
def test_fp8_is_built_from_ada_on(kind: str, target: str, is_built: bool) -> None:
    answer = supports(f"fp8_{kind}", load("tensorrt_rtx"), Options(targets=(target,)))
    assert answer.yes == is_built
    assert is_built or "fp8" in answer.reason


def test_one_target_without_it_is_enough_for_a_negative_answer() -> None:
    assert not supports("fp8_linear", load("tensorrt_rtx"), Options(targets=("sm_86", "sm_89"))).yes


def test_4_bits_are_not_built_for_turing() -> None:
    answer = supports("int4_linear", load("tensorrt_rtx"), Options(targets=("sm_75",)))
    assert not answer.yes
    assert "int4" in answer.reason
