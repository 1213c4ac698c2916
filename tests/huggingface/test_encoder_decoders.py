"""`generate` of accelerated encoder-decoders: the encoder once, then steps that read what the first one kept of it."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import pytest
import torch
from transformers import WhisperFeatureExtractor, WhisperTokenizer, pipeline

import torchtrt_bridge as trtb
from tests.huggingface.decoders import encoder_decoder
from tests.huggingface.models import VOCABULARY, spectrum, text, tiny

TOKENS = 24


@pytest.fixture(scope="module", params=["t5", pytest.param("bart", marks=pytest.mark.full)])
def pair(request: pytest.FixtureRequest) -> tuple[Any, Any]:
    model = encoder_decoder(request.param)
    return model, trtb.accelerate(copy.deepcopy(model), engine="reference", fallback="error")


def generated(model: Any, batch: int, length: int = 9, **settings: Any) -> Any:
    torch.manual_seed(0)
    settings = {"max_new_tokens": TOKENS, "do_sample": False, "num_beams": 1, "eos_token_id": None, **settings}
    return model.generate(**text(batch, length), pad_token_id=0, **settings)


SETTINGS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "sampling": {"do_sample": True, "top_k": 20, "temperature": 2.0},
    "ends": {"do_sample": True, "eos_token_id": list(range(3, VOCABULARY, 5))},
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.full] * (name != "greedy")) for name in SETTINGS]
)
def test_the_tokens_are_those_of_the_model(name: str, pair: tuple[Any, Any]) -> None:
    model, fast = pair
    for batch in (3, 1):
        expected = generated(model, batch, **SETTINGS[name])
        assert torch.equal(generated(fast, batch, **SETTINGS[name]), expected)
        assert name == "ends" or len(expected.unique()) > 3, "the model says one thing only"
    report = trtb.report(fast)
    assert report.is_whole
    assert not any("generate" in note for note in report.notes)


def test_another_length_of_either_text_builds_nothing(pair: tuple[Any, Any]) -> None:
    model, fast = pair
    generated(fast, 3)
    count = len(trtb.report(fast).engines)
    for length, new in ((20, TOKENS), (9, 2 * TOKENS), (31, 5)):
        found = generated(fast, 3, length, max_new_tokens=new)
        assert torch.equal(found, generated(model, 3, length, max_new_tokens=new))
    assert len(trtb.report(fast).engines) == count


@pytest.mark.full
def test_a_text_by_position_and_without_a_mask(pair: tuple[Any, Any]) -> None:
    model, fast = pair
    ids = text(1, 12)["input_ids"]
    settings: dict[str, Any] = {"max_new_tokens": 5, "do_sample": False, "num_beams": 1}
    assert torch.equal(fast.generate(ids, **settings), model.generate(ids, **settings))


OTHERS: dict[str, dict[str, Any]] = {
    "beams": {"num_beams": 3},
    "results": {"return_dict_in_generate": True, "output_scores": True},
    "source": {"encoder_repetition_penalty": 1.5},
}


@pytest.mark.full
@pytest.mark.parametrize("name", OTHERS)
def test_what_the_loop_leaves_to_transformers(name: str, pair: tuple[Any, Any]) -> None:
    model, fast = pair
    found, expected = generated(fast, 3, **OTHERS[name]), generated(model, 3, **OTHERS[name])
    if name == "results":
        assert found.encoder_hidden_states is expected.encoder_hidden_states is None
        torch.testing.assert_close(found.scores, expected.scores, rtol=1e-4, atol=1e-5)
        found, expected = found.sequences, expected.sequences
    assert torch.equal(found, expected)


def test_an_encoder_of_another_text_in_the_same_memory(pair: tuple[Any, Any]) -> None:
    """The second call has the caches of the first, whose keys of the encoder's text are not its own."""
    model, fast = pair
    for seed in (3, 4):
        given = {"input_ids": torch.randint(3, VOCABULARY, (2, 9), generator=torch.Generator().manual_seed(seed))}
        given["attention_mask"] = torch.ones_like(given["input_ids"])
        settings: dict[str, Any] = {"max_new_tokens": 12, "do_sample": False, "num_beams": 1, "eos_token_id": None}
        assert torch.equal(fast.generate(**given, **settings), model.generate(**given, **settings))


@pytest.mark.parametrize(
    ("settings", "is_slow"),
    [
        ({}, False),
        pytest.param({"begin_suppress_tokens": [44], "suppress_tokens": [7, 8]}, False, marks=pytest.mark.full),
        pytest.param({"no_repeat_ngram_size": 2}, True, marks=pytest.mark.full),
    ],
    ids=["greedy", "suppressed", "no repeats"],
)
def test_speech(settings: dict[str, Any], is_slow: bool) -> None:
    """Whisper has a `generate` of its own, which calls the usual one with processors of its own."""
    model = encoder_decoder("whisper")
    fast = trtb.accelerate(copy.deepcopy(model), engine="reference", fallback="error")
    for batch in (2, 1):
        given = {**spectrum(batch, 0), "max_new_tokens": 20, "num_beams": 1, "eos_token_id": None, **settings}
        expected = model.generate(**given)
        assert torch.equal(fast.generate(**given), expected)
        assert len(expected.unique()) > 1
    report = trtb.report(fast)
    assert report.in_torch == []
    assert any("generate" in note for note in report.notes) is is_slow


@pytest.mark.full
def test_speech_recognition_in_a_pipeline() -> None:
    model = dataclasses.replace(tiny("whisper-encoder"), part=None).build(
        "WhisperForConditionalGeneration", use_cache=True, max_source_positions=50, tie_word_embeddings=False
    )
    words = {f"w{number}": number for number in range(VOCABULARY - 3)}
    marks = ["<|endoftext|>", "<|startoftranscript|>", "<|notimestamps|>"]
    vocabulary = words | {mark: VOCABULARY - 3 + number for number, mark in enumerate(marks)}
    settings = model.generation_config
    settings.update(no_timestamps_token_id=VOCABULARY - 1, is_multilingual=False, decoder_start_token_id=0)
    settings.update(suppress_tokens=None, begin_suppress_tokens=None, forced_eos_token_id=None)
    parts = {
        "tokenizer": WhisperTokenizer(vocab=vocabulary, merges=[]),
        "feature_extractor": WhisperFeatureExtractor(feature_size=model.config.num_mel_bins, chunk_length=1),
    }
    given = {"max_new_tokens": 12, "num_beams": 1, "eos_token_id": None, **SETTINGS["sampling"]}
    sounds = [torch.rand(16000, generator=torch.Generator().manual_seed(seed)).numpy() for seed in range(2)]

    def said(pipe: Any) -> list[Any]:
        torch.manual_seed(0)
        return [pipe(sound, generate_kwargs=given) for sound in sounds]

    expected = said(pipeline("automatic-speech-recognition", copy.deepcopy(model), **parts))
    fast = trtb.accelerate(pipeline("automatic-speech-recognition", model, **parts), engine="reference")
    assert said(fast) == expected
    assert len(set(expected[0]["text"].split("w"))) > 3, "the model says one thing only"
    report = trtb.report(fast)
    assert report.is_whole
    assert not report.notes
