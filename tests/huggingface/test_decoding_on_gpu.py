"""The decoding loop on a GPU: its steps come from CUDA graphs, and its tokens are those of plain steps."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

import torchtrt_bridge as trtb
from tests.huggingface.decoders import ENCODER_DECODERS, Tokens, causal, encoder_decoder, generated, prompt
from tests.huggingface.models import VOCABULARY, spectrum, text

pytestmark = pytest.mark.gpu

OPTIONS: dict[str, Any] = {"precision": "fp32", "tf32": True, "trial": "check", "fallback": "error"}
SETTINGS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "sampling": {"do_sample": True, "temperature": 0.7, "top_k": 20, "top_p": 0.9, "min_p": 0.01},
    "penalty": {"repetition_penalty": 1.3},
    "several": {"do_sample": True, "num_return_sequences": 2},
    "stop": {"do_sample": True, "eos_token_id": list(range(3, VOCABULARY, 9))},
    "criterion": {"stopping_criteria": [lambda ids, scores: ids[:, -1] % 7 == 3]},
    "scores": {"return_dict_in_generate": True, "output_scores": True, "output_logits": True},
}


def pair(family: str = "llama") -> tuple[Any, Any]:
    """Return two accelerated twins: one captures its steps, one queues them call by call."""
    model = causal(family).cuda()
    replayed = trtb.accelerate(copy.deepcopy(model), **OPTIONS)
    return replayed, trtb.accelerate(model, **OPTIONS, cuda_graphs="off")


def graphs(model: Any) -> list[Any]:
    return [graph for texts in model.generate.decoder._texts.values() for graph in texts.graphs.values()]


@pytest.mark.parametrize("name", SETTINGS)
def test_replayed_steps_give_the_tokens_of_plain_ones(name: str) -> None:
    replayed, plain = pair()
    for batch in (3, 1, 3):
        expected = generated(plain, prompt(batch, "cuda"), max_new_tokens=40, **SETTINGS[name])
        found = generated(replayed, prompt(batch, "cuda"), max_new_tokens=40, **SETTINGS[name])
        if name == "scores":
            torch.testing.assert_close(found.scores, expected.scores, rtol=1e-2, atol=1e-2)
            torch.testing.assert_close(found.logits, expected.logits, rtol=1e-2, atol=1e-2)
            found, expected = found.sequences, expected.sequences
        assert torch.equal(found, expected)
        assert torch.equal(torch.rand(2, device="cuda"), _next_number(plain, batch, name))
    if name not in ("stop", "criterion", "scores"):  # the first may stop too early, the last gives its cache away
        assert [graph.checks for graph in graphs(replayed)] == [0, 0]
    assert graphs(plain) == []
    assert trtb.report(replayed).notes == []


def _next_number(plain: Any, batch: int, name: str) -> torch.Tensor:
    """Return the next random numbers after the same call without CUDA graphs."""
    generated(plain, prompt(batch, "cuda"), max_new_tokens=40, **SETTINGS[name])
    return torch.rand(2, device="cuda")


def test_beams() -> None:
    """transformers searches them, one engine computes each step, in the memory of the cache."""
    replayed, plain = pair()
    settings: dict[str, Any] = {"num_beams": 3, "num_return_sequences": 2, "max_new_tokens": 40}
    for batch in (2, 1, 2):
        expected = generated(plain, prompt(batch, "cuda"), **settings)
        assert torch.equal(generated(replayed, prompt(batch, "cuda"), **settings), expected)
    (note,) = trtb.report(replayed).notes
    assert "beams" in note


def test_a_streamer_gets_each_token_once() -> None:
    replayed, _ = pair("gpt2")
    for settings in ({}, SETTINGS["stop"]):
        streamer = Tokens()
        ids = generated(replayed, prompt(1, "cuda"), max_new_tokens=40, streamer=streamer, **settings)
        assert streamer.tokens == ids[0].tolist()
        assert streamer.ended == 1


@pytest.mark.parametrize("family", ENCODER_DECODERS)
def test_steps_that_read_an_encoder(family: str) -> None:
    model = encoder_decoder(family).cuda()
    replayed = trtb.accelerate(copy.deepcopy(model), **OPTIONS)
    plain = trtb.accelerate(model, **OPTIONS, cuda_graphs="off")
    for batch, length in ((3, 9), (1, 12), (3, 20)):
        given = spectrum(batch, length) if family == "whisper" else text(batch, length)
        given = {name: value.cuda() for name, value in given.items()}
        settings = {"max_new_tokens": 24, "num_beams": 1, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
        assert torch.equal(replayed.generate(**given, **settings), plain.generate(**given, **settings))
    assert [graph.checks for graph in graphs(replayed)] == [0, 0]
    assert graphs(plain) == []
    assert trtb.report(replayed).notes == []


def test_new_weights_are_followed() -> None:
    model, given = causal("gpt2").cuda(), prompt(3, "cuda")
    fast = trtb.accelerate(model, **{**OPTIONS, "fallback": "pytorch"})
    before = generated(fast, given, max_new_tokens=40)
    assert graphs(fast)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight), alpha=0.1)
    twin = causal("gpt2").cuda()
    twin.load_state_dict(model.state_dict())
    expected = generated(trtb.accelerate(twin, **OPTIONS, cuda_graphs="off"), given, max_new_tokens=40)
    assert not torch.equal(before, expected)
    for _ in range(2):
        assert torch.equal(generated(fast, given, max_new_tokens=40), expected)
