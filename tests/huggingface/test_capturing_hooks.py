"""Hooks of transformers for hidden states: each layer has one, whichever model was called or compiled first."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import torchtrt_bridge as trtb
from tests.huggingface.models import text, tiny
from torchtrt_bridge.graph.torch_internals import forward_hooks

MORE = [("bert", "BertForSequenceClassification"), ("llama", None), ("vit", None)]
MODELS = [("bert", None), *[pytest.param(*model, marks=pytest.mark.full) for model in MORE]]
models = pytest.mark.parametrize(("family", "name"), MODELS)


def inputs_of(family: str) -> dict[str, Any]:
    return tiny(family).inputs(2, 11) if family == "vit" else text(2, 11)


def hidden_states(model: Any, inputs: dict[str, Any]) -> Any:
    with torch.no_grad():
        return model(**inputs, output_hidden_states=True).hidden_states


def hooks_of(model: torch.nn.Module) -> list[int]:
    return [len(forward_hooks(module)) for module in model.modules()]


@pytest.mark.first(1)
@models
@pytest.mark.parametrize("calls", ["none", "model", "part"])
def test_hidden_states_come_once(family: str, name: str | None, calls: str) -> None:
    model, inputs = tiny(family).build(name), inputs_of(family)
    if calls == "model":
        hidden_states(model, inputs)
    if calls == "part":
        hidden_states(getattr(model, model.base_model_prefix, model), inputs)
    fast = trtb.compile(model, engine="reference", fullgraph=True)
    expected = hidden_states(tiny(family).build(name), inputs)
    for found in (hidden_states(fast, inputs), hidden_states(model, inputs), hidden_states(fast, inputs)):
        assert len(found) == model.config.num_hidden_layers + 1
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert trtb.report(fast).is_whole


@models
def test_a_model_that_was_called_is_not_changed(family: str, name: str | None) -> None:
    model, inputs = tiny(family).build(name), inputs_of(family)
    hidden_states(model, inputs)
    before = hooks_of(model)
    for _ in range(2):
        hidden_states(trtb.compile(model, engine="reference"), inputs)
    assert hooks_of(model) == before
