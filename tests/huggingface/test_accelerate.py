"""`accelerate` and `restore`, and what `compile` makes of models that others call: same class, same weights."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch
from torch import nn

import torchtrt_bridge as trtb

transformers = pytest.importorskip("transformers")

STRICT: dict[str, Any] = {"engine": "reference", "fallback": "error"}
TINY = {
    "vocab_size": 30, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24,
    "max_position_embeddings": 64, "initializer_range": 0.5,
}  # fmt: skip


@pytest.fixture
def model() -> Any:
    return transformers.BertForSequenceClassification(transformers.BertConfig(**TINY, num_labels=3)).eval()


@pytest.fixture
def ids() -> torch.Tensor:
    return torch.tensor([[2, 5, 6, 7], [2, 8, 9, 10]])


def assert_near(found: Any, expected: Any) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def engines(target: Any) -> int:
    return len(trtb.report(target).engines)


class Words(nn.Module):
    """A language model of one's own: its `generate` calls the module."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(30, 8)
        self.head = nn.Linear(8, 30)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.embedding(ids).cumsum(1))

    @torch.no_grad()
    def generate(self, ids: torch.Tensor, count: int) -> torch.Tensor:
        for _ in range(count):
            ids = torch.cat([ids, self(ids)[:, -1:].argmax(-1)], 1)
        return ids


# compile -----------------------------------------------------------------------------------------------------


def test_a_compiled_model_is_of_its_class_and_has_its_weights(model: Any, ids: torch.Tensor) -> None:
    fast = trtb.compile(model, **STRICT)
    assert type(fast) is type(model)
    assert list(fast.state_dict()) == list(model.state_dict())
    assert all(a is b for a, b in zip(fast.parameters(), model.parameters(), strict=True))
    with torch.no_grad():
        before = fast(ids).logits
        model.classifier.weight.mul_(2)
        assert_near([fast(ids).logits for _ in range(3)], [model(ids).logits] * 3)
        assert not torch.equal(before, fast(ids).logits)


def test_the_model_itself_is_not_compiled(model: Any, ids: torch.Tensor) -> None:
    trtb.compile(model, **STRICT)
    with torch.no_grad():
        model(ids)
    assert trtb.report(model).graphs == 0


def test_generate_of_ones_own_reaches_the_engine(ids: torch.Tensor) -> None:
    model = Words()
    fast = trtb.compile(model, dynamic=True, **STRICT)
    assert torch.equal(fast.generate(ids, 5), model.generate(ids, 5))
    assert engines(fast) == 1
    assert trtb.report(fast).is_whole


@pytest.mark.full
def test_many_models_of_one_process_have_engines(ids: torch.Tensor) -> None:
    """Dynamo counts graphs by the outermost frame, which Hugging Face's models have in common."""
    configs = [transformers.BertConfig(**TINY), transformers.GPT2Config(
        vocab_size=30, n_embd=16, n_layer=1, n_head=2, use_cache=False, bos_token_id=1, eos_token_id=2
    )]  # fmt: skip
    models = [trtb.compile(transformers.AutoModel.from_config(config).eval(), **STRICT) for config in configs]
    with torch._dynamo.config.patch(recompile_limit=1), torch.no_grad():
        for model in models:
            model(ids)
    assert [engines(model) for model in models] == [1, 1]


# accelerate --------------------------------------------------------------------------------------------------


def test_accelerate_is_in_place_and_restore_undoes_it(model: Any, ids: torch.Tensor) -> None:
    with torch.no_grad():
        expected = model(ids).logits
        assert trtb.accelerate(model, **STRICT) is model
        assert_near(model(ids).logits, expected)
        assert engines(model) == 1
        assert trtb.restore(model) is model
        report = trtb.report(model)
        model(input_ids=ids, attention_mask=torch.ones_like(ids))
    assert trtb.report(model).graphs == report.graphs
    trtb.accelerate(model, **STRICT)


def test_copies_and_files_of_an_accelerated_model_are_plain(model: Any, ids: torch.Tensor) -> None:
    trtb.accelerate(model, **STRICT)
    with torch.no_grad():
        model(ids)
        twin = copy.deepcopy(model)
        twin.classifier.weight.zero_()
        twin.classifier.bias.fill_(7)
        assert twin(ids).logits.unique().tolist() == [7]
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    with torch.no_grad():
        assert_near(torch.load(file, weights_only=False)(ids).logits, model(ids).logits)


def test_an_accelerated_model_can_be_explained_and_exported(model: Any, ids: torch.Tensor) -> None:
    with torch.no_grad():
        expected = model(ids).logits
    trtb.accelerate(model, **STRICT)
    assert trtb.explain(model, ids).trt_nodes > 0
    program = trtb.export(model, ids, **STRICT)
    assert_near(program(ids).logits, expected)


@pytest.mark.full
def test_text_models_take_every_length_and_images_one_size(model: Any, ids: torch.Tensor) -> None:
    vision = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24, image_size=16, patch_size=8
    )
    sees = trtb.accelerate(transformers.ViTModel(vision).eval(), **STRICT)
    trtb.accelerate(model, **STRICT)
    with torch.no_grad():
        model(ids)
        sees(torch.randn(2, 3, 16, 16))
    assert [".." in str(trtb.report(target).engines[0].inputs) for target in (model, sees)] == [True, False]


@pytest.mark.full
def test_the_encoder_that_generate_calls_is_compiled_too(ids: torch.Tensor) -> None:
    config = transformers.T5Config(
        vocab_size=30, d_model=16, d_kv=8, d_ff=24, num_layers=1, num_heads=2, decoder_start_token_id=0, pad_token_id=0
    )
    model = transformers.T5ForConditionalGeneration(config).eval()
    options = {"use_cache": False, "max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False}
    expected = model.generate(ids, **options)
    assert torch.equal(trtb.accelerate(model, **STRICT).generate(ids, **options), expected)
    assert trtb.report(model).is_whole
    assert engines(model) == 3  # the encoder, the first token, those after it
    trtb.restore(model)
    assert model.encoder._compiled_call_impl is None


def test_a_model_in_a_pipeline(model: Any, ids: torch.Tensor) -> None:
    tokenizer = transformers.BertTokenizer(vocab={"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "film": 4})
    pipe = transformers.pipeline("text-classification", model=model, tokenizer=tokenizer, device="cpu")
    expected = pipe("film")
    assert trtb.accelerate(pipe, **STRICT) is pipe
    assert pipe("film")[0]["score"] == pytest.approx(expected[0]["score"], rel=1e-4)
    assert trtb.report(pipe).is_whole
    assert trtb.report(trtb.restore(pipe)).graphs == 1  # found by its weights
    pipe("film film film")
    assert trtb.report(pipe).graphs == 1


@pytest.mark.parametrize("begin", [trtb.accelerate, trtb.compile])
def test_a_model_in_training_mode_is_told_so(
    begin: Any, model: Any, ids: torch.Tensor, caplog: pytest.LogCaptureFixture
) -> None:
    fast = begin(model.train(), engine="reference")
    with torch.inference_mode():
        fast(ids)
    assert "call model.eval() first" in caplog.text
    assert "call model.eval() first" in trtb.report(fast).notes[0]
    model.eval()
    fast.eval()
    assert not any("model.eval()" in note for note in trtb.report(fast).notes)


# What it refuses ---------------------------------------------------------------------------------------------


def test_twice(model: Any) -> None:
    trtb.accelerate(model)
    with pytest.raises(trtb.OptionsError, match=r"compiled already by torchtrt_bridge; restore\(\)"):
        trtb.accelerate(model)


def test_a_model_compiled_by_others(model: Any) -> None:
    model.compile(backend="eager")
    with pytest.raises(trtb.OptionsError, match="by its own compile"):
        trtb.accelerate(model)
    with pytest.raises(trtb.OptionsError, match="not accelerated"):
        trtb.restore(model)


@pytest.mark.parametrize(
    ("wrap", "message"),
    [
        (lambda model: torch.compile(model, backend="eager"), r"the result of torch\.compile"),
        (lambda model: nn.Sequential(nn.Identity(), model), r"not Sequential.*get_submodule\('1'\)"),
        (lambda model: nn.Linear(2, 2), r"not Linear.*compile\(\) takes any module"),
        (lambda model: "bert-base-uncased", "a Hugging Face pipeline or model, not str"),
    ],
    ids=["compiled", "around", "module", "name"],
)
def test_what_cannot_be_accelerated(wrap: Any, message: str, model: Any) -> None:
    with pytest.raises(trtb.OptionsError, match=message):
        trtb.accelerate(wrap(model))


def test_an_unknown_option_leaves_the_model_alone(model: Any) -> None:
    with pytest.raises(trtb.OptionsError, match="Did you mean 'precision'"):
        trtb.accelerate(model, precison="fp16")
    assert model._compiled_call_impl is None
