"""Example inputs in each form that users may give."""

from __future__ import annotations

from collections import UserDict
from typing import Any

import pytest
import torch
from torch import fx, nn

import torchtrt_bridge as trtb
from torchtrt_bridge.capture.arguments import arguments_from, in_order
from torchtrt_bridge.errors import CaptureError

X, Y = torch.ones(2), torch.zeros(2)


class Named(nn.Module):
    """Model with parameters like one of transformers."""

    def forward(self, x: torch.Tensor, y: torch.Tensor | None = None, **more: Any) -> torch.Tensor:
        return x - (0 if y is None else y) + 0 * sum(more.values())


class OfOneMapping(nn.Module):
    """Model whose argument is a mapping."""

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


class Differences(nn.Module):
    """Model whose arguments differ only by their order."""

    def forward(self, a: torch.Tensor, b: Any = 2.0, c: Any = 3.0) -> torch.Tensor:
        return a - b * 10 + c * 100


TRACED = fx.symbolic_trace(Differences()).eval()
GIVEN = {name: torch.randn(3) for name in "abc"}


def test_keywords_in_the_order_of_the_parameters() -> None:
    assert list(in_order(Differences(), (), {"c": 1, "a": 2})) == ["a", "c"]
    assert list(in_order(Named(), (), {"w": 1, "y": 2, "v": 3, "x": 4})) == ["x", "y", "w", "v"]
    assert in_order(TRACED, (X,), {"c": 1}) == {"b": 2.0, "c": 1}


@pytest.mark.parametrize("model", [Differences().eval(), TRACED], ids=["module", "graph module"])
@pytest.mark.parametrize("names", ["abc", "cba", "bca", "ca"])
def test_keywords_reach_the_parameters_of_their_names(model: nn.Module, names: str) -> None:
    """`torch.export` hands those of a graph module to its parameters by position."""
    given = {name: GIVEN[name] for name in names}
    program = trtb.export(model, given, engine="reference")
    called = given | ({"b": 2.0} if model is TRACED and "b" not in given else {})
    torch.testing.assert_close(program(**called), model(**given))


def test_an_argument_that_is_missing() -> None:
    with pytest.raises(CaptureError, match="missing a required argument: 'a'"):
        trtb.export(TRACED, {"b": X}, engine="reference")
