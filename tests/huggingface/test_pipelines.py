"""Pipelines and `generate` of compiled models: the answers of PyTorch, computed by engines."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import torchtrt_bridge as trtb

transformers = pytest.importorskip("transformers")

STRICT: dict[str, Any] = {"engine": "reference", "fallback": "error"}
WORDS = [
    "[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "film", "was", "good", "bad", "long", "very", "and", "a",
    "story", "of", "two", "cities",
]  # fmt: skip
TEXTS = ["good", "the film was good and long", "a very bad story", "bad film", "the story of two cities was very long"]
TINY = {
    "vocab_size": len(WORDS), "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
    "intermediate_size": 24, "max_position_embeddings": 64, "initializer_range": 0.5,
}  # fmt: skip


@pytest.fixture
def tokenizer() -> Any:
    return transformers.BertTokenizer(vocab={word: number for number, word in enumerate(WORDS)})


def classifier() -> nn.Module:
    return transformers.BertForSequenceClassification(transformers.BertConfig(**TINY, num_labels=3)).eval()


def language_model() -> nn.Module:
    config = transformers.GPT2Config(
        vocab_size=len(WORDS), n_embd=16, n_layer=1, n_head=2, n_positions=64, initializer_range=0.5,
        bos_token_id=2, eos_token_id=3, pad_token_id=0,
    )  # fmt: skip
    return transformers.GPT2LMHeadModel(config).eval()


def compiled(model: nn.Module, **options: Any) -> Any:
    return trtb.compile(model, dynamic=True, **(STRICT | options))


def accelerated(model: nn.Module, **options: Any) -> Any:
    return trtb.accelerate(copy.deepcopy(model), **(STRICT | options))


either_way = pytest.mark.parametrize("fast", [pytest.param(compiled, marks=pytest.mark.full), accelerated])
one_way = pytest.mark.parametrize("fast", [compiled, pytest.param(accelerated, marks=pytest.mark.full)])


def pipeline(task: str, model: nn.Module, tokenizer: Any) -> Any:
    return transformers.pipeline(task, model=model, tokenizer=tokenizer, device="cpu")


def assert_near(found: Any, expected: Any) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


# Pipelines ---------------------------------------------------------------------------------------------------


@either_way
def test_text_classification(fast: Callable[..., Any], tokenizer: Any, engine_calls: list[list[int]]) -> None:
    model = classifier()
    pipe = pipeline("text-classification", fast(model), tokenizer)
    found, expected = pipe(TEXTS, top_k=None), pipeline("text-classification", model, tokenizer)(TEXTS, top_k=None)
    assert [[one["label"] for one in of] for of in found] == [[one["label"] for one in of] for of in expected]
    assert_near([[one["score"] for one in of] for of in found], [[one["score"] for one in of] for of in expected])
    assert len(trtb.report(pipe).engines) == 1
    assert trtb.report(pipe).is_whole
    assert engine_calls == [[1, 3], [1, 8], [1, 6], [1, 4], [1, 10]]


@pytest.mark.full
@one_way
def test_feature_extraction_of_padded_batches(
    fast: Callable[..., Any], tokenizer: Any, engine_calls: list[list[int]]
) -> None:
    model = transformers.BertModel(transformers.BertConfig(**TINY)).eval()
    pipe = pipeline("feature-extraction", fast(model), tokenizer)
    found = pipe(TEXTS * 3, batch_size=4, return_tensors=True)
    assert_near(found, pipeline("feature-extraction", model, tokenizer)(TEXTS * 3, batch_size=4, return_tensors=True))
    assert len(trtb.report(pipe).engines) == 1
    assert [batch for batch, _ in engine_calls] == [4, 4, 4, 3]


def encodings(tokenizer: Any) -> list[Any]:
    """As a tokenizer gives them: in another order than the model's forward has them."""
    return [tokenizer(TEXTS[at : at + 2], padding=True, return_tensors="pt") for at in range(4)]


@pytest.mark.parametrize(
    "fast", [None, *[pytest.param(way, marks=pytest.mark.full) for way in (compiled, accelerated)]]
)
def test_a_quantized_model_goes_into_a_pipeline(
    fast: Callable[..., Any] | None, tokenizer: Any, engine_calls: list[list[int]], caplog: pytest.LogCaptureFixture
) -> None:
    model = classifier()
    quantized = trtb.quantize(model, encodings(tokenizer), method="absmax", max_error=0.1, table=False)
    pipe = pipeline("text-classification", fast(quantized) if fast else quantized, tokenizer)
    assert pipe.model.quantization.quantized > 0
    expected = pipeline("text-classification", model, tokenizer)(TEXTS, top_k=None)
    for found, wanted in zip(pipe(TEXTS, top_k=None), expected, strict=True):
        scores = {one["label"]: one["score"] for one in wanted}
        assert {one["label"]: one["score"] for one in found} == pytest.approx(scores, abs=0.05)
    assert "not supported" not in caplog.text
    assert len(engine_calls) == (len(TEXTS) if fast else 0)


@pytest.mark.full
def test_a_quantized_decoder_generates_in_a_pipeline(tokenizer: Any) -> None:
    model = language_model()
    quantized = trtb.quantize(model, encodings(tokenizer), method="absmax", max_error=None, table=False)
    pipe = pipeline("text-generation", copy.deepcopy(quantized), tokenizer)
    expected = pipe(TEXTS[0], max_new_tokens=6, do_sample=False)
    trtb.accelerate(pipe, **STRICT)
    assert pipe(TEXTS[0], max_new_tokens=6, do_sample=False) == expected
    quantization = trtb.report(pipe).quantization
    assert quantization is not None
    assert quantization["quantized"] > 0


@pytest.mark.full
def test_a_quantized_model_that_was_pickled_gives_what_it_gave(tokenizer: Any) -> None:
    batches = encodings(tokenizer)
    model = trtb.quantize(classifier(), batches, method="absmax", table=False)
    twin = pickle.loads(pickle.dumps(model))
    for batch in batches:
        found, expected = twin(**batch), model(**batch)
        assert type(found) is type(expected)
        assert torch.equal(found.logits, expected.logits)
    assert twin.config.num_labels == 3


@pytest.mark.full
@one_way
def test_text_generation(fast: Callable[..., Any], tokenizer: Any, engine_calls: list[list[int]]) -> None:
    model, options = (
        language_model(),
        {"use_cache": False, "max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False},
    )
    pipe = pipeline("text-generation", fast(model), tokenizer)
    assert pipe(TEXTS, **options) == pipeline("text-generation", model, tokenizer)(TEXTS, **options)
    assert len(trtb.report(pipe).engines) == 1
    assert trtb.report(pipe).is_whole
    assert len(engine_calls) == 5 * len(TEXTS)


@one_way
def test_generation_with_a_cache_of_keys_and_values(fast: Callable[..., Any]) -> None:
    model, ids = language_model(), torch.tensor([[2, 5, 6, 7], [2, 8, 9, 10]])
    found = fast(model, fallback="pytorch").generate(ids, max_new_tokens=6, do_sample=False)
    assert torch.equal(found, model.generate(ids, max_new_tokens=6, do_sample=False))


@pytest.mark.full
def test_lengths_make_two_engines_where_pytorch_finds_them_out(tokenizer: Any) -> None:
    pipe = pipeline("text-classification", trtb.compile(classifier(), **STRICT), tokenizer)
    pipe(TEXTS)
    assert [".." in str(engine.inputs) for engine in trtb.report(pipe).engines] == [False, True]
    assert trtb.report(pipe).graphs == 2


@pytest.mark.gpu
def test_text_classification_on_a_gpu(tokenizer: Any) -> None:
    model = classifier().cuda()
    plain = transformers.pipeline("text-classification", model=model, tokenizer=tokenizer)
    expected = plain(TEXTS, top_k=None, batch_size=2)
    fast = trtb.compile(model, precision="fp16", max_dynamic_size=64)
    pipe = transformers.pipeline("text-classification", model=fast, tokenizer=tokenizer)
    found = pipe(TEXTS, top_k=None, batch_size=2)
    assert [one[0]["label"] for one in found] == [one[0]["label"] for one in expected]
    scores, wanted = [of[0]["score"] for of in found], [of[0]["score"] for of in expected]
    torch.testing.assert_close(scores, wanted, rtol=1e-2, atol=1e-2)  # fp16
    assert all(engine.is_ready and engine.error is not None for engine in trtb.report(pipe).engines)
    assert trtb.report(pipe).is_whole
