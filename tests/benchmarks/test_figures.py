"""Statistics, and the distance from the fp32 results."""

from __future__ import annotations

import math

import pytest
import torch

from benchmarks.suite import figures
from benchmarks.suite.figures import geometric_mean, interquartile_range, median, relative_error


@pytest.mark.parametrize(
    ("values", "middle", "spread"),
    [
        ([3.0], 3.0, 0.0),
        ([1.0, 2.0], 1.5, 0.5),
        ([5.0, 1.0, 3.0, 2.0, 4.0], 3.0, 2.0),
        ([1.0, 1.0, 1.0, 1.0, 100.0], 1.0, 0.0),
    ],
    ids=["one", "two", "unordered", "an outlier"],
)
def test_median_and_interquartile_range(values: list[float], middle: float, spread: float) -> None:
    assert median(values) == pytest.approx(middle)
    assert interquartile_range(values) == pytest.approx(spread)


@pytest.mark.parametrize(("values", "mean"), [([2.0, 0.5], 1.0), ([4.0], 4.0), ([1.0, 10.0, 100.0], 10.0)])
def test_geometric_mean(values: list[float], mean: float) -> None:
    assert geometric_mean(values) == pytest.approx(mean)


@pytest.mark.parametrize("values", [[], [1.0, 0.0], [2.0, -1.0]])
def test_a_geometric_mean_is_of_positive_numbers(values: list[float]) -> None:
    with pytest.raises(ValueError, match="positive numbers"):
        geometric_mean(values)


def test_the_error_is_the_worst_output_s() -> None:
    good, bad = torch.tensor([3.0, 4.0]), torch.tensor([0.0, 10.0])
    results = [good, bad + torch.tensor([0.0, 1.0])]
    assert relative_error(results, [good, bad]) == pytest.approx(0.1)
    assert relative_error([good, bad], [good, bad]) == 0.0


@pytest.mark.parametrize("chunk", [1, 7, 64])
def test_the_error_does_not_depend_on_the_chunks(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = torch.randn(8, 8)
    results = (expected + 0.01 * torch.randn(8, 8)).half()
    whole = float((results.double() - expected.double()).norm() / expected.double().norm())
    monkeypatch.setattr(figures, "CHUNK", chunk)
    assert relative_error([results.t()], [expected.t()]) == pytest.approx(whole)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_result_that_is_not_finite_has_an_infinite_error(value: float) -> None:
    assert relative_error([torch.tensor([1.0, value])], [torch.ones(2)]) == math.inf


@pytest.mark.parametrize(
    "results", [[torch.ones(3)], [torch.ones(2), torch.ones(2)], []], ids=["shape", "more", "none"]
)
def test_other_outputs_are_no_error_but_a_mistake(results: list[torch.Tensor]) -> None:
    with pytest.raises(ValueError, match="shapes"):
        relative_error(results, [torch.ones(2)])
