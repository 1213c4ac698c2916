"""Names of operators: which there are, and which a wrong one may mean."""

from __future__ import annotations

import pytest

from torchtrt_bridge.graph.operator_names import is_operator_name, similar_operator

KNOWN = ["aten.relu.default", "aten.softmax.int", "torchtrt_bridge.gru.default", "cond"]
WRONG = {
    "aten.softmax": "aten.softmax.int",
    "relu": "aten.relu.default",
    "aten.softmx.int": "aten.softmax.int",
    "aten.relu.nope": "aten.relu.default",
    "no.words.at.all": None,
    "": None,
    "__class__": None,
}


@pytest.mark.parametrize("name", KNOWN)
def test_a_name_of_an_operator(name: str) -> None:
    assert is_operator_name(name)


@pytest.mark.parametrize(("name", "meant"), WRONG.items())
def test_a_wrong_name(name: str, meant: str | None) -> None:
    assert not is_operator_name(name)
    assert similar_operator(name) == meant
