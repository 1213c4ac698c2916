"""The check of an engine's first results: rounding passes, and every kind of wrong answer is caught."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
import torch

from torchtrt_bridge.runtime.tolerance import BOUNDS, TF32_BOUND, compare, error_bound, holds_nan, relative_distance

FP32 = BOUNDS[torch.float32]


def expected_of(*shape: int) -> torch.Tensor:
    return torch.randn(*(shape or (8, 16)), generator=torch.Generator().manual_seed(3))


def with_value(tensor: torch.Tensor, value: float) -> torch.Tensor:
    changed = tensor.clone()
    changed[3, 5] = value
    return changed


WRONG: dict[str, tuple[Callable[[torch.Tensor], torch.Tensor], str]] = {
    "swapped rows": (lambda x: x[[1, 0, *range(2, 8)]], "relative L2"),
    "shifted columns": (lambda x: x.roll(1, 1), "relative L2"),
    "one column is garbage": (lambda x: torch.cat([x[:, :1] + 3, x[:, 1:]], 1), "relative L2"),
    "one NaN": (lambda x: with_value(x, float("nan")), "not finite"),
    "one infinity": (lambda x: with_value(x, float("inf")), "not finite"),
    "one wrong element": (lambda x: with_value(x, 100.0), "relative L2"),
    "zeros": (torch.zeros_like, "relative L2"),
    "scaled by one per cent": (lambda x: x * 1.01, "relative L2"),
    "negated": (torch.neg, "relative L2"),
    "offset": (lambda x: x + 0.1, "relative L2"),
    "fp16 instead of fp32": (lambda x: x.half(), "float16"),
    "float64": (lambda x: x.double(), "float64"),
    "fewer rows": (lambda x: x[:-1], r"\[7, 16\]"),
    "transposed": (lambda x: x.t().contiguous(), r"\[16, 8\]"),
    "flat": (lambda x: x.flatten(), r"\[128\]"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_answers_are_caught(name: str) -> None:
    change, words = WRONG[name]
    expected = expected_of()
    comparison = compare([change(expected)], [expected], FP32)
    assert comparison.problem is not None
    assert re.search(words, comparison.problem)


def test_the_right_answer_passes() -> None:
    expected = expected_of()
    assert compare([expected.clone()], [expected], FP32) == compare([expected], [expected], 0.0)
    assert compare([expected.clone()], [expected], 0.0).problem is None


def test_complex_numbers_are_compared_as_their_parts() -> None:
    expected = torch.view_as_complex(expected_of(4, 4, 2))
    assert compare([expected.conj()], [expected.conj().resolve_conj()], 0.0).problem is None
    assert compare([expected * (1 + 1e-5)], [expected], FP32).problem is None
    problem = compare([expected.conj()], [expected], FP32).problem
    assert problem is not None
    assert "relative L2" in problem
    expected[0, 0] = complex(0, float("nan"))
    assert holds_nan([expected])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_rounding_passes(dtype: torch.dtype) -> None:
    expected = expected_of()
    comparison = compare([expected.to(dtype).float()], [expected], error_bound([dtype], tf32=False))
    assert comparison.problem is None
    assert 0 < comparison.error < 1e-2


def test_rounding_of_fp32_sums_passes() -> None:
    a, b = expected_of(64, 512), expected_of(512, 64)
    expected = a @ b
    other = (a.double() @ b.double()).float()
    assert compare([other], [expected], FP32).problem is None


@pytest.mark.parametrize(
    ("scale", "hinted"), [(1 + 1e-3, True), (1 + 1e-1, False)], ids=["size of tf32", "larger than that"]
)
def test_tf32_is_hinted_at_where_it_may_be_the_cause(scale: float, hinted: bool) -> None:
    expected = expected_of()
    problem = compare([expected * scale], [expected], FP32).problem
    assert problem is not None
    assert ("tf32=True" in problem) is hinted


@pytest.mark.parametrize(
    ("dtypes", "tf32", "bound"),
    [
        ([torch.float32], False, BOUNDS[torch.float32]),
        ([torch.float32], True, TF32_BOUND),
        ([torch.float32, torch.float16], False, BOUNDS[torch.float16]),
        ([torch.bfloat16, torch.float16], False, BOUNDS[torch.bfloat16]),
        ([torch.int8, torch.float16, torch.float32], False, BOUNDS[torch.int8]),
        ([torch.int8, torch.bfloat16], False, BOUNDS[torch.bfloat16]),
        ([torch.int8, torch.float8_e4m3fn], True, BOUNDS[torch.float8_e4m3fn]),
        ([torch.int64, torch.bool], False, BOUNDS[torch.float32]),
        ([torch.int64, torch.bool], True, TF32_BOUND),
        ([], False, BOUNDS[torch.float32]),
    ],
)
def test_the_largest_bound_of_the_dtypes_is_the_engines(dtypes: list[torch.dtype], tf32: bool, bound: float) -> None:
    assert error_bound(dtypes, tf32) == bound


@pytest.mark.parametrize(
    ("differing", "caught"), [(0, False), (1, False), (2, True), (100, True)], ids=["none", "a tie", "two", "all"]
)
@pytest.mark.parametrize("dtype", [torch.int64, torch.bool], ids=str)
def test_integers(differing: int, caught: bool, dtype: torch.dtype) -> None:
    expected = torch.zeros(100, dtype=dtype)
    result = expected.clone()
    result[:differing] = 1
    problem = compare([result], [expected], FP32).problem
    assert (problem is not None) is caught
    assert problem is None or f"differs in {differing} of 100" in problem


def test_the_share_of_integers_that_may_differ_is_the_callers() -> None:
    results, expected = torch.arange(10), torch.arange(10).flip(0)
    comparison = compare([results], [expected], FP32, most=1.0)
    assert (comparison.problem, comparison.share) == (None, 1.0)
    assert compare([results], [expected], FP32, most=0.9).problem is not None


def test_a_single_wrong_integer_is_caught() -> None:
    assert compare([torch.tensor([3])], [torch.tensor([4])], FP32).problem is not None


def test_infinities_in_the_same_places_pass() -> None:
    expected = with_value(expected_of(), float("inf"))
    comparison = compare([expected.clone()], [expected], FP32)
    assert comparison.problem is None
    assert comparison.error == 0.0


@pytest.mark.parametrize("value", [float("-inf"), float("nan")])
def test_another_infinity_is_caught(value: float) -> None:
    expected = with_value(expected_of(), float("inf"))
    assert compare([with_value(expected, value)], [expected], FP32).problem is not None


def test_infinities_do_not_hide_other_errors() -> None:
    expected = with_value(expected_of(), float("inf"))
    assert compare([expected * 1.01], [expected], FP32).problem is not None


def test_every_output_counts() -> None:
    expected = [expected_of(), torch.arange(8), expected_of(4, 4)]
    wrong = [expected[0], expected[1], expected[2] * 1.01]
    comparison = compare(wrong, expected, FP32)
    assert comparison.problem is not None
    assert comparison.error == pytest.approx(0.01, rel=1e-3)


def test_a_small_wrong_output_is_not_hidden_by_a_large_right_one() -> None:
    expected = [expected_of() * 1e6, expected_of(4, 4) * 1e-6]
    assert compare([expected[0], -expected[1]], expected, FP32).problem is not None


@pytest.mark.parametrize(
    ("actual", "expected", "distance"),
    [
        (torch.zeros(3), torch.zeros(3), 0.0),
        (torch.zeros(0), torch.zeros(0), 0.0),
        (torch.tensor([3.0, 4.0]), torch.tensor([0.0, 4.0]), 0.75),
        (torch.tensor([60000.0]).half(), torch.tensor([-60000.0]).half(), 2.0),
    ],
    ids=["zeros", "empty", "three of four", "beyond fp16"],
)
def test_relative_distance(actual: torch.Tensor, expected: torch.Tensor, distance: float) -> None:
    assert relative_distance(actual, expected) == pytest.approx(distance)


def test_noise_where_zeros_are_expected_is_caught() -> None:
    assert compare([torch.full((4,), 1e-3)], [torch.zeros(4)], FP32).problem is not None
