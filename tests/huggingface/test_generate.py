"""`generate` of transformers with a static cache, whose steps are compiled through its own hook."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch
import transformers
from transformers import CompileConfig

import torchtrt_bridge as trtb
from tests.huggingface.decoders import Prompt, accelerated, causal, generated, prompt
from tests.huggingface.models import VOCABULARY
from torchtrt_bridge.capture import transformers_classes
from torchtrt_bridge.entry import torch_compile
from torchtrt_bridge.entry.generation import Generate

UPDATE = "torchtrt_bridge.kv_cache_update.default"
LAYERS = 2
FAMILIES = ["gpt2", "llama", "mistral", "qwen2", "qwen3", "gemma", "phi", "gpt-neox", "opt", "bloom", "gptj"]
FAST = ("gpt2", "llama")


def compiled(model: Any, given: Prompt, options: Any = None, **settings: Any) -> Any:
    """Generate with a static cache, each step by engines."""
    options = options or {"engine": "reference", "fallback": "error"}
    config = CompileConfig(backend="torchtrt_bridge", options=options, mode=None)
    config._compile_all_devices = True
    return generated(model, given, cache_implementation="static", compile_config=config, **settings)


@pytest.fixture(autouse=True)
def _no_other_graphs() -> None:
    transformers.logging.set_verbosity_error()
    torch_compile._all_graphs.clear()


def engines() -> list[Any]:
    return [engine for graph in torch_compile._all_graphs for engine in graph.report.engines]


def assert_caches_are_updated(family: str = "") -> None:
    """Check that each engine updates the keys and values of each layer.

    The window of the small Mistral is full, so that transformers moves the whole cache.
    """
    assert engines()
    if family == "mistral":
        return
    assert [engine.nodes.get(UPDATE) for engine in engines()] == [2 * LAYERS] * len(engines())


def parametrized(families: list[str]) -> Any:
    return pytest.mark.parametrize(
        "family", [pytest.param(f, marks=[pytest.mark.full] * (f not in FAST)) for f in families]
    )


@parametrized(FAMILIES)
def test_the_tokens_are_those_of_the_model(family: str) -> None:
    model = causal(family)
    for batch in (3, 1):
        assert torch.equal(compiled(model, prompt(batch)), generated(model, prompt(batch)))
    assert_caches_are_updated(family)


SETTINGS: dict[str, dict[str, Any]] = {
    "sampling": {"do_sample": True, "temperature": 0.7, "top_k": 20, "top_p": 0.9, "repetition_penalty": 1.2},
    "beams": {"num_beams": 3},
    "several beams": {"num_beams": 4, "num_return_sequences": 2, "length_penalty": 0.5, "eos_token_id": [5, 9]},
    "sampled beams": {"num_beams": 3, "do_sample": True, "top_k": 20},
    "several": {"do_sample": True, "num_return_sequences": 2},
    "scores": {"return_dict_in_generate": True, "output_scores": True},
    "stop": {"eos_token_id": list(range(3, VOCABULARY, 5))},
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.full] * (name != "sampling")) for name in SETTINGS]
)
def test_ways_of_decoding(name: str) -> None:
    model, settings = causal("llama"), SETTINGS[name]
    actual, expected = compiled(model, prompt(3), **settings), generated(model, prompt(3), **settings)
    if name == "scores":
        torch.testing.assert_close(actual.scores, expected.scores, rtol=1e-4, atol=1e-5)
        actual, expected = actual.sequences, expected.sequences
    assert torch.equal(actual, expected)
    if "beams" not in name:  # transformers compiles no beam search
        assert_caches_are_updated()


@pytest.mark.full
def test_batches_of_several_sizes() -> None:
    """PyTorch's second graph takes any number of texts, and so do its caches."""
    model = causal("llama")
    for batch in (3, 6, 3, 4):
        found = compiled(model, prompt(batch), max_new_tokens=4)
        assert torch.equal(found, generated(model, prompt(batch), max_new_tokens=4))
    assert_caches_are_updated()


@pytest.mark.full
def test_a_second_call_of_the_same_length_builds_nothing() -> None:
    model = causal("llama")
    first = compiled(model, prompt(3))
    count = len(engines())
    assert torch.equal(compiled(model, prompt(3)), first)
    assert len(engines()) == count


@pytest.mark.gpu
@pytest.mark.parametrize("family", FAMILIES)
def test_on_a_gpu(family: str) -> None:
    """The logits of each step are near the model's, and no cache is copied."""
    model = causal(family).cuda()
    options = {"precision": "fp32", "tf32": True, "trial": "check", "fallback": "error"}
    settings = {"return_dict_in_generate": True, "output_logits": True, "max_new_tokens": 12}
    expected = generated(model, prompt(3, "cuda"), cache_implementation="static", disable_compile=True, **settings)
    for _ in range(2):
        actual = compiled(model, prompt(3, "cuda"), options, **settings)
        for step, wanted in zip(actual.logits, expected.logits, strict=True):
            assert float((step - wanted).norm() / wanted.norm()) < 1e-2
            if not torch.equal(step.argmax(-1), wanted.argmax(-1)):
                break  # near a tie: what follows are other texts
    assert_caches_are_updated(family)
    assert all(engine.is_ready for engine in engines())


# accelerate ---------------------------------------------------------------------------------------------------------


@parametrized(FAMILIES)
def test_an_accelerated_model_gives_the_tokens_of_the_model(family: str) -> None:
    model, fast = accelerated(family)
    for batch in (3, 1):
        assert torch.equal(generated(fast, prompt(batch)), generated(model, prompt(batch)))
    assert_caches_are_updated(family)
    count = len(engines())
    assert torch.equal(generated(fast, prompt(3), max_new_tokens=40), generated(model, prompt(3), max_new_tokens=40)), (
        "another number of tokens"
    )
    assert len(engines()) == count


@pytest.mark.full
@pytest.mark.parametrize("name", SETTINGS)
def test_an_accelerated_model_decodes_in_all_ways(name: str) -> None:
    (model, fast), settings = accelerated("llama"), SETTINGS[name]
    settings = {"max_new_tokens": 12, **settings}
    actual, expected = generated(fast, prompt(3), **settings), generated(model, prompt(3), **settings)
    if name == "scores":
        torch.testing.assert_close(actual.scores, expected.scores, rtol=1e-4, atol=1e-5)
        actual, expected = actual.sequences, expected.sequences
    assert torch.equal(actual, expected)


def test_beams_are_moved_in_the_memory_of_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    model, fast = accelerated("llama")
    places: list[Any] = []
    move = transformers_classes._move_beams

    def noting(cache: Any, beams: torch.Tensor) -> None:
        move(cache, beams)
        places.append([(layer.keys.data_ptr(), layer.values.data_ptr()) for layer in cache.layers])

    monkeypatch.setattr(transformers_classes, "_move_beams", noting)
    settings: dict[str, Any] = {"num_beams": 3, "max_new_tokens": 6}
    assert torch.equal(generated(fast, prompt(3), **settings), generated(model, prompt(3), **settings))
    assert len(places) >= 5
    assert all(place == places[0] for place in places)
    assert_caches_are_updated()
    assert any("beams" in note for note in trtb.report(fast).notes)


@pytest.mark.full
def test_the_caller_may_choose_another_cache() -> None:
    model, fast = accelerated("gpt2")
    for choice in ({"use_cache": False}, {"cache_implementation": "dynamic"}):
        given = {"use_cache": True, "max_new_tokens": 3, "do_sample": False, **choice}
        expected = model.generate(prompt(2).input_ids, **given)
        trtb.accelerate(trtb.restore(fast), engine="reference")
        assert torch.equal(fast.generate(prompt(2).input_ids, **given), expected)
    assert not any(UPDATE in engine.nodes for engine in engines())


def test_copies_and_pickles_generate_as_their_class_does() -> None:
    _, fast = accelerated("gpt2")
    assert isinstance(fast.generate, Generate)
    file = io.BytesIO()
    torch.save(fast, file)
    file.seek(0)
    for twin in (copy.deepcopy(fast), torch.load(file, weights_only=False), trtb.restore(fast)):
        assert not isinstance(twin.generate, Generate)
        assert twin.generate.__self__ is twin


def test_an_error_within_leaves_the_model_as_it_was() -> None:
    model, fast = accelerated("gpt2")

    def stop(*args: Any, **kwargs: Any) -> Any:
        raise KeyError("a criterion of the user's")

    with pytest.raises(KeyError, match="criterion"):
        generated(fast, prompt(2), stopping_criteria=[stop])
    assert torch.equal(generated(fast, prompt(2)), generated(model, prompt(2)))
