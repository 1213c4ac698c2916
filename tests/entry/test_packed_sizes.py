"""The length of the longest sequence depends on data: where it decides something, PyTorch runs the line."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

import torchtrt_bridge as trtb
from tests.entry.reference import REFERENCE, assert_same
from tests.packed import LENGTH, LENGTHS, OfPacked, pack, pad, sequences


@pytest.fixture(autouse=True)
def _no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


def output_of(m: OfPacked, x: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    return pad(m.layer(pack(x, lengths))[0], total_length=None)[0]


def squeezed(m: OfPacked, x: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    return output_of(m, x, lengths).squeeze(1)


def squeezed_in_place(m: OfPacked, x: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    return output_of(m, x, lengths).exp().squeeze_(-2)


def added_to_the_input(m: OfPacked, x: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    return x.repeat(1, 1, 4) + output_of(m, x, lengths)


def branches(m: OfPacked, x: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    y = output_of(m, x, lengths)
    return y.exp() if y.shape[1] > 4 else y.sin()


def step_by_step(m: OfPacked, x: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    y = output_of(m, x, lengths)
    return torch.stack([y[:, step].exp() for step in range(y.shape[1])])


def broken(m: OfPacked, x: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    packed = pack(x, lengths)
    torch._dynamo.graph_break()
    return pad(m.layer(packed)[0], total_length=None)[0]


@pytest.mark.first(6)
@pytest.mark.parametrize("function", [squeezed, squeezed_in_place, added_to_the_input, branches, step_by_step, broken])
def test_what_depends_on_the_longest_sequence_is_pytorchs(function: Callable[..., Any]) -> None:
    original = OfPacked(function).eval()
    fast = trtb.compile(original, **REFERENCE)
    every = [lengths for lengths in LENGTHS if function is not added_to_the_input or lengths.max() in (1, LENGTH)]
    for lengths in every:
        x = sequences(lengths)
        result, expected = fast(x, lengths), original(x, lengths)
        assert result.shape == expected.shape
        assert_same(result, expected)
    assert trtb.report(fast).breaks


def test_an_export_whose_sizes_decide_says_what_to_do() -> None:
    with pytest.raises(trtb.CaptureError, match="a size in it, depends on data"):
        trtb.export(OfPacked(squeezed).eval(), (sequences(), LENGTHS[0]), **REFERENCE)


def test_a_pytorch_with_other_names_breaks_the_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(owner: type, name: str, replacement: Any) -> Any:
        raise AttributeError(f"{owner.__name__} has no {name}")

    monkeypatch.setattr("torchtrt_bridge.graph.dynamo_internals._in_this_thread", missing)
    original = OfPacked(output_of).eval()
    fast = trtb.compile(original, **REFERENCE)
    x, lengths = sequences(LENGTHS[0]), LENGTHS[0]
    assert_same(fast(x, lengths), original(x, lengths))
    assert trtb.report(fast).breaks
