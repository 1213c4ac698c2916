"""Quantized models with `generate`: of the class that they were, in PyTorch and accelerated."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor

import torchtrt_bridge as trtb
from tests.huggingface.decoders import causal, encoder_decoder, generated, prompt
from tests.huggingface.models import tiny
from torchtrt_bridge.quantize.decoder import QuantizedLinear

SETTINGS: dict[str, Any] = {"max_error": None, "smooth": None, "correct_bias": False, "table": False, "progress": False}


def batches(count: int = 3) -> list[dict[str, Tensor]]:
    return [vars(prompt(2 + number)) for number in range(count)]


def quantized(model: Any, dtype: str, data: Any = None, **settings: Any) -> Any:
    block = {"block_size": 16} if dtype == "int4" else {"method": "absmax"}
    return trtb.quantize(model, data or batches(), dtype=dtype, **block, **(SETTINGS | settings))


def relative(actual: Tensor, expected: Tensor) -> float:
    return float((actual - expected).detach().norm() / expected.detach().norm())


@pytest.mark.first(2)
@pytest.mark.parametrize(
    ("family", "dtype"), [("gpt2", "int4"), ("llama", "int8"), ("llama", "int4"), ("gpt2", "fp8"), ("gpt_neox", "int8")]
)
def test_the_accelerated_tokens_are_those_of_the_rounded_model(family: str, dtype: str) -> None:
    model = causal(family.replace("_", "-"))
    found = quantized(model, dtype)
    assert type(found) is type(model)
    fast = trtb.accelerate(copy.deepcopy(found), engine="reference", fallback="error")
    for batch in (3, 1):
        assert torch.equal(generated(fast, prompt(batch)), generated(found, prompt(batch)))
    report = trtb.report(fast)
    assert report.is_whole
    assert report.quantization is not None
    assert report.quantization["quantized"] > 4
    assert not report.notes


@pytest.mark.full
@pytest.mark.parametrize("family", ["t5", "bart"])
def test_an_encoder_decoder_generates(family: str) -> None:
    model = encoder_decoder(family)
    data = [each | {"decoder_input_ids": each["input_ids"]} for each in batches()]
    found = quantized(model, "int8", data)
    fast = trtb.accelerate(copy.deepcopy(found), engine="reference")
    assert torch.equal(generated(fast, prompt(3)), generated(found, prompt(3)))
    assert any(isinstance(part, QuantizedLinear) for part in found.get_encoder().modules())


@pytest.mark.full
def test_layers_that_are_no_linear_ones_keep_floating_point() -> None:
    model, inputs = encoder_decoder("whisper"), tiny("whisper-encoder").inputs(2, 11)
    data = [inputs | {"decoder_input_ids": torch.full((2, 3), 5)}] * 2
    found = quantized(model, "int8", data)
    (reason,) = {layer.reason for layer in found.quantization.layers if layer.op == "convolution"}
    assert reason.startswith("of models with generate, linear layers are quantized")
    assert any(isinstance(part, QuantizedLinear) for part in found.modules())


@pytest.mark.parametrize("dtype", ["int8", pytest.param("int4", marks=pytest.mark.full)])
def test_the_results_are_near_and_the_model_is_not_changed(dtype: str) -> None:
    model = causal("llama")
    before = copy.deepcopy(model.state_dict())
    found = quantized(model, dtype, smooth=0.5 if dtype == "int8" else None)
    given = vars(prompt(3))
    with torch.no_grad():
        error = relative(found(**given).logits, model(**given).logits)
    assert 1e-4 < error < 2 * found.quantization.error < 0.2
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not {v.data_ptr() for v in model.state_dict().values()} & {v.data_ptr() for v in found.state_dict().values()}


def test_smoothed_inputs_are_divided_in_the_layer_and_norms_keep_their_weights() -> None:
    model = causal("gpt2")
    found = quantized(model, "int8", smooth=0.8)
    layer, norm = found.transformer.h[0].attn.c_attn, found.transformer.h[0].ln_1
    assert isinstance(layer, QuantizedLinear)
    assert layer.factors is not None
    assert torch.equal(norm.weight, model.transformer.h[0].ln_1.weight)
    own = model.transformer.h[0].attn.c_attn
    x = torch.randn(4, own.weight.shape[0], generator=torch.Generator().manual_seed(0))
    assert relative(layer(x), own(x)) < 0.05


def test_nothing_is_said_of_a_cache_that_is_there(caplog: pytest.LogCaptureFixture) -> None:
    model = causal("gpt2")
    found = quantized(model, "int8")
    assert "use_cache" not in caplog.text
    assert model.config.use_cache
    assert found.config.use_cache


def test_what_is_skipped_stays_as_it_is() -> None:
    model = causal("gpt2")
    found = quantized(model, "int8", skip=("lm_head", "transformer.h.0"))
    assert type(found.lm_head) is torch.nn.Linear
    assert found.lm_head.weight is found.transformer.wte.weight
    assert not any(isinstance(part, QuantizedLinear) for part in found.transformer.h[0].modules())
    assert isinstance(found.transformer.h[1].mlp.c_fc, QuantizedLinear)


def test_a_copy_of_it_and_a_pickled_one_give_the_same() -> None:
    found = quantized(causal("gpt2"), "int8")
    expected = generated(found, prompt(2))
    for twin in (copy.deepcopy(found), pickle.loads(pickle.dumps(found))):
        assert torch.equal(generated(twin, prompt(2)), expected)
        assert twin.quantization.quantized == found.quantization.quantized


def test_other_dtypes_and_settings_are_refused() -> None:
    model = causal("gpt2")
    with pytest.raises(trtb.CalibrationError, match=r"A quantized model stays in torch\.float32"):
        quantized(model, "int8").half()
    with pytest.raises(trtb.OptionsError, match="equalize=True moves scales between layers"):
        quantized(model, "int8", equalize=True)
    with pytest.raises(trtb.CalibrationError, match="can be quantized"):
        quantized(quantized(model, "int8"), "int8")
