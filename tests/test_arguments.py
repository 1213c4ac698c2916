"""Example inputs in each form that users have them in."""

from __future__ import annotations

from collections import UserDict
from typing import Any

import pytest
import torch
from torch import nn

import torchtrt_bridge as trtb
from torchtrt_bridge.arguments import arguments_from

X, Y = torch.ones(2), torch.zeros(2)


class Named(nn.Module):
    """Parameters as a model of transformers has them."""

    def forward(self, x: torch.Tensor, y: torch.Tensor | None = None, **more: Any) -> torch.Tensor:
        return x - (0 if y is None else y) + 0 * sum(more.values())


class OfOneMapping(nn.Module):
    """A mapping is its argument."""

    def forward(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        return batch["x"] - batch["y"]


FORMS: dict[str, tuple[nn.Module, Any, Any, Any]] = {
    "one tensor": (Named(), X, None, ((X,), {})),
    "a tuple": (Named(), (X, Y), None, ((X, Y), {})),
    "by keyword": (Named(), (), {"x": X}, ((), {"x": X})),
    "a mapping of parameters": (Named(), {"y": Y, "x": X}, None, ((), {"y": Y, "x": X})),
    "as a tokenizer gives it, and more": (Named(), UserDict(x=X), {"y": Y}, ((), {"x": X, "y": Y})),
    "a mapping that is the argument": (OfOneMapping(), {"x": X, "y": Y}, None, (({"x": X, "y": Y},), {})),
    "one by a parameter's name": (OfOneMapping(), {"batch": {"x": X}}, None, ((), {"batch": {"x": X}})),
    "an empty one": (OfOneMapping(), {}, None, (({},), {})),
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_arguments_of_each_form(form: str) -> None:
    model, given, kwargs, expected = FORMS[form]
    assert arguments_from(model, given, kwargs) == expected


def test_a_function_has_parameters_too() -> None:
    assert arguments_from(lambda x, y: x - y, {"y": Y, "x": X}, None) == ((), {"y": Y, "x": X})
    assert arguments_from(torch.add, {"x": X}, None) == (({"x": X},), {})


@pytest.mark.parametrize("model", [Named(), OfOneMapping()])
def test_mappings_are_exported_and_explained(model: nn.Module) -> None:
    batch = {"y": torch.randn(3), "x": torch.randn(3)}
    program = trtb.export(model.eval(), batch, engine="reference")
    found = program(**batch) if isinstance(model, Named) else program(batch)
    torch.testing.assert_close(found, batch["x"] - batch["y"])
    assert trtb.explain(model, batch, engine="reference").is_whole
