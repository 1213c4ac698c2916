"""Both entry points for the tests of Hugging Face models, and the comparison of their results with eager's.

The reference interpreter computes; `fallback="error"` raises where PyTorch would have to.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch.utils import _pytree as pytree

import torchtrt_bridge as trtb
from tests.compare import assert_matches

OPTIONS: dict[str, Any] = {"engine": "reference", "fallback": "error"}


def compiled(model: torch.nn.Module, inputs: dict[str, Any]) -> Any:
    """Return `model`, compiled for the sizes of its first call.

    It runs once before: to collect hidden states, transformers hooks a model on its first call, which breaks the
    graph, and whose hooks a twin made earlier would set a second time.
    """
    with torch.no_grad():
        model(**inputs)
    return trtb.compile(model, dynamic=False, **OPTIONS)


def exported(model: torch.nn.Module, inputs: dict[str, Any]) -> Any:
    """Return `model`, exported for the sizes of `inputs`."""
    return trtb.export(model, (), kwargs=inputs, **OPTIONS)


def assert_serves(fast: Any, model: torch.nn.Module, inputs: dict[str, Any]) -> Any:
    """Return the result of `fast`, which must be what `model` gives, in the same types."""
    with torch.no_grad():
        result, expected = fast(**inputs), model(**inputs)
    assert type(result) is type(expected)
    assert pytree.tree_structure(result) == pytree.tree_structure(expected)
    assert_matches(pytree.tree_leaves(result), pytree.tree_leaves(expected), lambda: _in_float64(model, inputs))
    return result


def _in_float64(model: torch.nn.Module, inputs: dict[str, Any]) -> list[Any]:
    doubles = pytree.tree_map_only(torch.Tensor, lambda v: v.double() if v.is_floating_point() else v, inputs)
    with torch.no_grad():
        return pytree.tree_leaves(copy.deepcopy(model).double()(**doubles))


def assert_one_engine(fast: Any) -> None:
    """Check that one graph was captured, and that one engine computes all of it."""
    report = trtb.report(fast)
    assert report.is_whole
    assert report.graphs == 1
    assert len(report.engines) == 1
