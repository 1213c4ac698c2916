"""The decoding loop of accelerated models, whose steps the reference interpreter computes."""

from __future__ import annotations

import copy
import threading
from typing import Any

import pytest
import torch
from transformers import MistralConfig, MistralForCausalLM
from transformers.generation.logits_process import LogitsProcessor

import torchtrt_bridge as trtb
from tests.huggingface.decoders import Tokens, accelerated, generated, prompt
from tests.huggingface.models import VOCABULARY

ENDS = list(range(3, VOCABULARY, 5))


def odd(ids: torch.Tensor, scores: Any) -> torch.Tensor:
    """Stop a text at an odd token."""
    return ids[:, -1] % 2 == 1


class NoSeven(LogitsProcessor):
    """Never choose token 7, nor the last one again."""

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        scores = scores.scatter(1, input_ids[:, -1:], float("-inf"))
        scores[:, 7] = float("-inf")
        return scores


@pytest.fixture(scope="module")
def pair() -> tuple[Any, Any]:
    return accelerated("llama")


# What the loop of this package computes.
FAST: dict[str, dict[str, Any]] = {
    "min-p": {"do_sample": True, "min_p": 0.05, "epsilon_cutoff": 0.001},
    "penalty": {"repetition_penalty": 1.5},
    "ends": {"do_sample": True, "eos_token_id": ENDS},
    "criterion": {"stopping_criteria": [odd]},
    "criterion and ends": {"stopping_criteria": [odd], "eos_token_id": ENDS, "do_sample": True},
    "no token": {"max_new_tokens": 1},
}

# What it leaves to the loop of transformers, and a word of the reason.
SLOW: dict[str, tuple[dict[str, Any], str]] = {
    "processor": ({"logits_processor": [NoSeven()]}, "NoSeven"),
    "no repeats": ({"no_repeat_ngram_size": 2}, "NoRepeatNGram"),
    "hidden states": ({"return_dict_in_generate": True, "output_hidden_states": True}, "hidden states"),
}


@pytest.mark.first(2)
@pytest.mark.parametrize("name", FAST)
def test_the_tokens_are_those_of_the_model(name: str, pair: tuple[Any, Any]) -> None:
    model, fast = pair
    for batch in (3, 1):
        assert torch.equal(generated(fast, prompt(batch), **FAST[name]), generated(model, prompt(batch), **FAST[name]))
    assert not any("generate" in note for note in trtb.report(fast).notes)


@pytest.mark.parametrize("name", SLOW)
def test_the_report_says_what_transformers_computes(name: str) -> None:
    (model, fast), (settings, reason) = accelerated("llama"), SLOW[name]
    if name == "hidden states":
        trtb.accelerate(trtb.restore(fast), engine="reference")
    found, expected = generated(fast, prompt(3), **settings), generated(model, prompt(3), **settings)
    if name == "hidden states":
        found, expected = found.sequences, expected.sequences
    assert torch.equal(found, expected)
    assert any(reason in note for note in trtb.report(fast).notes)


def test_a_streamer_gets_each_token_once(pair: tuple[Any, Any]) -> None:
    _, fast = pair
    for settings in ({}, {"do_sample": True, "eos_token_id": ENDS}):
        streamer = Tokens()
        ids = generated(fast, prompt(1), streamer=streamer, **settings)
        assert streamer.tokens == ids[0].tolist()
        assert streamer.ended == 1


def test_a_streamer_that_fails_leaves_the_model_as_it_was(pair: tuple[Any, Any]) -> None:
    class Failing(Tokens):
        def put(self, value: torch.Tensor) -> None:
            super().put(value)
            if len(self.tokens) > 10:
                raise KeyboardInterrupt

    model, fast = pair
    with pytest.raises(KeyboardInterrupt):
        generated(fast, prompt(1), streamer=Failing())
    assert torch.equal(generated(fast, prompt(1)), generated(model, prompt(1)))


def test_a_cache_that_is_returned_is_the_callers(pair: tuple[Any, Any]) -> None:
    """It holds all tokens but the last, and no later call writes to it."""
    _, fast = pair
    result = generated(fast, prompt(3), return_dict_in_generate=True)
    cache = result.get("cache", result.get("past_key_values"))
    assert int(cache.get_seq_length()) == result.sequences.shape[1] - 1
    before = [layer.keys.clone() for layer in cache.layers]
    generated(fast, prompt(3))
    assert all(torch.equal(layer.keys, keys) for layer, keys in zip(cache.layers, before, strict=True))


@pytest.mark.full
def test_threads_that_generate_at_once(pair: tuple[Any, Any]) -> None:
    model, fast = pair
    expected = generated(model, prompt(3))
    found: list[Any] = []
    threads = [
        threading.Thread(
            target=lambda: found.append(fast.generate(**vars(prompt(3)), max_new_tokens=24, pad_token_id=0))
        )
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [torch.equal(each, expected) for each in found] == [True] * 3


def test_probabilities_that_are_no_numbers(pair: tuple[Any, Any]) -> None:
    model, _ = pair
    fast = copy.deepcopy(model)
    with torch.no_grad():
        fast.lm_head.weight[5] = float("nan")
    trtb.accelerate(fast, engine="reference")
    with pytest.raises(RuntimeError, match="inf, nan"):
        generated(fast, prompt(1), do_sample=True)


@pytest.mark.full
def test_texts_that_do_not_fill_a_window() -> None:
    """Layers with a window count on the host; as long as none is full they need not."""
    config = MistralConfig(
        vocab_size=VOCABULARY, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=512, sliding_window=64,
    )  # fmt: skip
    torch.manual_seed(0)
    model = MistralForCausalLM(config).eval()
    fast = trtb.accelerate(copy.deepcopy(model), engine="reference", fallback="error")
    assert torch.equal(generated(fast, prompt(3)), generated(model, prompt(3)))
    assert trtb.report(fast).notes == []
    assert torch.equal(generated(fast, prompt(1), max_new_tokens=70), generated(model, prompt(1), max_new_tokens=70))
    assert any("window" in note for note in trtb.report(fast).notes)
