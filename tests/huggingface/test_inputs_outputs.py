"""Inputs and outputs of Hugging Face models as they come, through both entry points."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch

import torchtrt_bridge as trtb
from tests.huggingface.models import VOCABULARY, text, tiny, typed_text
from tests.huggingface.serving import OPTIONS, assert_one_engine, assert_serves, compiled, exported

entries = pytest.mark.parametrize("entry", [compiled, exported], ids=["compile", "export"])
exports = pytest.mark.parametrize("entry", [pytest.param(compiled, marks=pytest.mark.full), exported])
Inputs = dict[str, Any]


def ids() -> Inputs:
    return {"input_ids": text(2, 11)["input_ids"]}


def left_padded() -> Inputs:
    return {name: value.flip(1) for name, value in text(2, 11).items()}


def embedded() -> Inputs:
    return {"inputs_embeds": torch.randn(2, 11, 32), "attention_mask": text(2, 11)["attention_mask"]}


def labelled_sentences() -> Inputs:
    return {**text(2, 11), "labels": torch.tensor([1, 0])}


def labelled_tokens() -> Inputs:
    """The labels of padding are -100, which the loss leaves out."""
    inputs = text(2, 11)
    return {**inputs, "labels": inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)}


def positioned() -> Inputs:
    return {**ids(), "position_ids": torch.arange(3, 14).expand(2, -1)}


def plus(make: Callable[[], Inputs], **more: Any) -> Callable[[], Inputs]:
    return lambda: {**make(), **more}


@dataclasses.dataclass(frozen=True)
class Call:
    """A model of the table, or another class of its family, how it is configured and what it is called with."""

    name: str
    family: str
    inputs: Callable[[], Inputs]
    model: str | None = None
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.family}-{self.name}"


EAGER = {"_attn_implementation": "eager"}
CALLS = [
    Call("no-mask", "bert", ids),
    Call("no-mask", "gpt2", ids),
    Call("no-mask", "llama", ids),
    Call("mask", "bert", lambda: text(2, 11)),
    Call("token-types", "bert", lambda: typed_text(2, 11)),
    Call("left-padding", "bert", left_padded),
    Call("left-padding", "gpt2", left_padded),
    Call("left-padding", "llama", left_padded),
    Call("embeddings", "bert", embedded),
    Call("embeddings", "gpt2", embedded),
    Call("positions", "llama", positioned),
    Call("tuple", "bert", plus(ids, return_dict=False)),
    Call("tuple", "gpt2", plus(ids, return_dict=False)),
    Call("hidden-states", "bert", plus(ids, output_hidden_states=True)),
    Call("hidden-states", "llama", plus(ids, output_hidden_states=True)),
    Call("attentions", "bert", plus(lambda: text(2, 11), output_attentions=True), settings=EAGER),
    Call("attentions", "gpt2", plus(lambda: text(2, 11), output_attentions=True), settings=EAGER),
    Call("no-labels", "bert", lambda: text(2, 11), "BertForSequenceClassification"),
    Call("labels", "bert", labelled_sentences, "BertForSequenceClassification"),
    Call("labels", "llama", labelled_tokens),
    Call("tokens", "bert", ids, "BertForTokenClassification"),
    Call("answers", "bert", ids, "BertForQuestionAnswering"),
    Call("words", "bert", ids, "BertForMaskedLM"),
]


FAST = {"bert-mask", "bert-left-padding", "bert-hidden-states", "bert-labels"}


@entries
@pytest.mark.parametrize(
    "call", [pytest.param(c, id=str(c), marks=[pytest.mark.full] * (str(c) not in FAST)) for c in CALLS]
)
def test_call(call: Call, entry: Any) -> None:
    model, inputs = tiny(call.family).build(call.model, num_hidden_layers=1, **call.settings), call.inputs()
    fast = entry(model, inputs)
    assert_serves(fast, model, inputs)
    assert_one_engine(fast)


@pytest.mark.full
def test_positional_arguments_compiled() -> None:
    model, inputs = tiny("bert").build(num_hidden_layers=1), tuple(text(2, 11).values())
    with torch.no_grad():
        result, expected = trtb.compile(model, **OPTIONS)(*inputs), model(*inputs)
    torch.testing.assert_close(result.last_hidden_state, expected.last_hidden_state)


def test_positional_arguments_exported() -> None:
    model, inputs = tiny("bert").build(num_hidden_layers=1), tuple(text(2, 11).values())
    program = trtb.export(model, inputs, **OPTIONS)
    with torch.no_grad():
        expected = model(*inputs)
    torch.testing.assert_close(program(*inputs).last_hidden_state, expected.last_hidden_state)


@pytest.mark.full
def test_a_loss_that_transformers_warns_of() -> None:
    """Dynamo breaks the graph at the warning that GPT-2 has no loss of its own: an engine on each side."""
    model, inputs = tiny("gpt2").build(num_hidden_layers=1), labelled_tokens()
    assert float(assert_serves(exported(model, inputs), model, inputs).loss) > 0

    fast = trtb.compile(model, dynamic=False, **{**OPTIONS, "fallback": "pytorch"})
    assert float(assert_serves(fast, model, inputs).loss) > 0
    report = trtb.report(fast)
    assert report.torch_nodes == 0
    assert len(report.engines) == report.graphs == 2
    assert ["warning_once" in found.source for found in report.breaks] == [True]


def test_the_same_model_with_and_without_labels() -> None:
    model = tiny("bert").build("BertForSequenceClassification", num_hidden_layers=1)
    fast = compiled(model, text(2, 11))
    assert assert_serves(fast, model, text(2, 11)).loss is None
    assert float(assert_serves(fast, model, labelled_sentences()).loss) > 0
    assert assert_serves(fast, model, text(2, 11)).loss is None
    report = trtb.report(fast)
    assert report.is_whole
    assert len(report.engines) == report.graphs == 2


@pytest.mark.full
@entries
def test_eager_and_sdpa_attention_agree(entry: Any) -> None:
    inputs = text(2, 11)
    models = [tiny("bert").build(num_hidden_layers=1, _attn_implementation=kind) for kind in ("eager", "sdpa")]
    eager, sdpa = [assert_serves(entry(model, inputs), model, inputs) for model in models]
    torch.testing.assert_close(eager.last_hidden_state, sdpa.last_hidden_state)


@exports
def test_padding_changes_nothing(entry: Any) -> None:
    """A sentence in a padded batch has the states that it has alone."""
    model, inputs = tiny("bert").build(num_hidden_layers=1), text(2, 11)
    together = assert_serves(entry(model, inputs), model, inputs).last_hidden_state
    length = int(inputs["attention_mask"][1].sum())
    alone = {name: value[1:, :length] for name, value in inputs.items()}
    assert length < 11
    states = assert_serves(entry(model, alone), model, alone).last_hidden_state
    torch.testing.assert_close(states[0], together[1, :length])


def test_a_program_refuses_ids_of_another_type() -> None:
    model, inputs = tiny("bert").build(num_hidden_layers=1), ids()
    program = exported(model, inputs)
    with pytest.raises(trtb.ShapeRangeError, match=r"input_ids is int32\[2, 11\].*int64\[2, 11\]"):
        program(input_ids=inputs["input_ids"].int())


# Weights with two names --------------------------------------------------------------------------------------


def test_tied_weights_are_kept_once() -> None:
    model, inputs = tiny("gpt2").build(num_hidden_layers=1), ids()
    assert model.lm_head.weight is model.transformer.wte.weight
    program = exported(model, inputs)
    embeddings = [v for v in program.exported.state_dict.values() if v.shape == (VOCABULARY, 32)]
    assert len({value.data_ptr() for value in embeddings}) == 1
    assert_serves(program, model, inputs)


def test_a_change_of_tied_weights_is_noticed() -> None:
    model, inputs = tiny("gpt2").build(num_hidden_layers=1), ids()
    fast = compiled(model, inputs)
    before = assert_serves(fast, model, inputs).logits
    with torch.no_grad():
        model.transformer.wte.weight.mul_(1.5)
    assert not torch.allclose(assert_serves(fast, model, inputs).logits, before, atol=1e-2)


@pytest.mark.full
def test_shared_layers_are_kept_once() -> None:
    model, inputs = tiny("albert").build(num_hidden_layers=6), typed_text(2, 11)
    program = exported(model, inputs)
    assert_serves(program, model, inputs)
    kept = {value.data_ptr(): value.numel() for value in program.exported.state_dict.values()}
    assert sum(kept.values()) <= sum(value.numel() for value in (*model.parameters(), *model.buffers()))


@pytest.mark.full
def test_the_original_gives_its_hidden_states_once_after_the_compiled_one_did() -> None:
    model = tiny("bert").build()
    fast = trtb.compile(model, engine="reference")
    with torch.no_grad():
        of_compiled = fast(**ids(), output_hidden_states=True).hidden_states
        own = model(**ids(), output_hidden_states=True).hidden_states
    assert len(own) == len(of_compiled) == model.config.num_hidden_layers + 1


# The cache of keys and values ----------------------------------------------------------------------------------


@pytest.mark.first(1)
@pytest.mark.parametrize("name", ["gpt2", "llama", "t5-decoder"])
def test_the_cache_is_left_out(name: str, caplog: pytest.LogCaptureFixture) -> None:
    model, inputs = tiny(name).build(use_cache=True), tiny(name).inputs(2, 11)
    program = exported(model, inputs)
    assert model.config.use_cache
    assert f"{type(model).__name__} is captured with use_cache=False" in caplog.text
    with torch.no_grad():
        result, expected = program(**inputs), model(**inputs, use_cache=False)
    assert list(result.keys()) == list(expected.keys())
    assert float((result[0] - expected[0]).norm()) < 1e-5 * float(expected[0].norm())


def test_a_model_without_a_cache_says_nothing_of_it(caplog: pytest.LogCaptureFixture) -> None:
    exported(tiny("bert").build(use_cache=True), ids())
    assert "use_cache" not in caplog.text
