"""Dynamic batch size and length: the number of engines, the sizes they take, and what runs all others."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch._dynamo import mark_dynamic
from torch.export import Dim

import torchtrt_bridge as trtb
from tests.huggingface.models import text, tiny
from tests.huggingface.serving import OPTIONS, assert_one_engine, assert_serves

REFERENCE = {"engine": "reference"}
LONGEST = 64  # positions that the model knows; PyTorch finds that out by itself
MORE_SHAPES = [(2 + n % 4, 5 + 2 * n) for n in range(10)]


@pytest.fixture
def model() -> torch.nn.Module:
    return tiny("bert").build(num_hidden_layers=1)


def marked(batch: int, length: int) -> dict[str, torch.Tensor]:
    """Text for whose sizes the user gives ranges."""
    inputs = text(batch, length)
    for value in inputs.values():
        mark_dynamic(value, 0, min=2, max=8)
        mark_dynamic(value, 1, min=4, max=32)
    return inputs


def served_shapes(fast: Any) -> list[str]:
    """Return what the first input of each engine may be."""
    return [engine.inputs[0].partition(": ")[2] for engine in trtb.report(fast).engines]


def assert_serves_all(fast: Any, model: torch.nn.Module, shapes: list[tuple[int, int]]) -> None:
    for shape in shapes:
        assert_serves(fast, model, text(*shape))


# torch.compile -----------------------------------------------------------------------------------------------


def test_sizes_that_change_get_one_dynamic_engine(model: torch.nn.Module) -> None:
    fast = trtb.compile(model, **OPTIONS)
    assert_serves(fast, model, text(2, 11))
    assert served_shapes(fast) == ["int64[2, 11]"]
    assert_serves(fast, model, text(3, 14))
    assert served_shapes(fast) == ["int64[2, 11]", f"int64[2..4096, 2..{LONGEST}]"]
    assert_serves_all(fast, model, MORE_SHAPES)
    assert len(trtb.report(fast).engines) == trtb.report(fast).graphs == 2


@pytest.mark.full
def test_dynamic_from_the_start(model: torch.nn.Module) -> None:
    fast = trtb.compile(model, dynamic=True, **OPTIONS)
    assert_serves_all(fast, model, MORE_SHAPES)
    assert_one_engine(fast)


def test_marked_ranges_are_the_engines(model: torch.nn.Module) -> None:
    fast = trtb.compile(model, **OPTIONS)
    assert_serves(fast, model, marked(2, 11))
    assert served_shapes(fast) == ["int64[2..8, 4..32]"]
    assert_serves_all(fast, model, [(2, 4), (8, 32), (5, 17)])
    assert_one_engine(fast)


@pytest.mark.full
def test_outside_marked_ranges_there_is_another_engine(model: torch.nn.Module) -> None:
    fast = trtb.compile(model, **OPTIONS)
    assert_serves(fast, model, marked(2, 11))
    assert_serves(fast, model, text(9, 33))
    assert served_shapes(fast) == ["int64[2..8, 4..32]", f"int64[2..4096, 2..{LONGEST}]"]


@pytest.mark.full
def test_a_batch_of_one_has_its_own_engine(model: torch.nn.Module) -> None:
    """PyTorch takes a size of 1 for a constant, as it broadcasts."""
    fast = trtb.compile(model, dynamic=True, **OPTIONS)
    assert_serves_all(fast, model, [(2, 11), (1, 9), (1, 12)])
    assert served_shapes(fast) == [f"int64[2..4096, 2..{LONGEST}]", f"int64[1, 2..{LONGEST}]"]


def test_above_max_dynamic_size_pytorch_serves(model: torch.nn.Module, caplog: pytest.LogCaptureFixture) -> None:
    fast = trtb.compile(model, dynamic=True, max_dynamic_size=6, **REFERENCE)
    assert_serves_all(fast, model, [(2, 11), (7, 11), (8, 12), (7, 11)])
    assert served_shapes(fast) == [f"int64[2..6, 2..{LONGEST}]"]
    (message,) = [record.message for record in caplog.records if "PyTorch runs such calls" in record.message]
    assert f"is int64[7, 11], the engine serves int64[2..6, 2..{LONGEST}]" in message
    assert "max_dynamic_size" in message


@pytest.mark.full
def test_above_max_dynamic_size_error_raises(model: torch.nn.Module) -> None:
    fast = trtb.compile(model, dynamic=True, max_dynamic_size=6, **OPTIONS)
    with torch.no_grad(), pytest.raises(trtb.ShapeRangeError, match=r"\[7, 11\], .*\[2\.\.6, .*mark_dynamic"):
        fast(**text(7, 11))


# torch.export ------------------------------------------------------------------------------------------------


def exported(model: torch.nn.Module, batch: Any, length: Any, **options: Any) -> trtb.Program:
    inputs = text(2, 11)
    shapes = {name: {0: batch, 1: length} for name in inputs}
    return trtb.export(model, (), kwargs=inputs, dynamic_shapes=shapes, **options)


def test_exported_ranges_are_the_engines(model: torch.nn.Module) -> None:
    program = exported(model, Dim("batch", min=1, max=8), Dim("length", min=4, max=32), **OPTIONS)
    assert served_shapes(program) == ["int64[1..8, 4..32]"]
    assert_serves_all(program, model, [(1, 4), (8, 32), (5, 17)])
    assert_one_engine(program)


@pytest.mark.first(2)
@pytest.mark.parametrize("shape", [(9, 11), (2, 3), (2, 33)])
@pytest.mark.parametrize("fallback", ["pytorch", "error"])
def test_outside_the_exported_range_is_an_error(shape: tuple[int, int], fallback: str, program: Any) -> None:
    """The graph may hold for no other sizes: PyTorch traced it for this range."""
    batch, length = shape
    with pytest.raises(
        trtb.ShapeRangeError,
        match=rf"input_ids is int64\[{batch}, {length}\]; the program was exported for int64\[1\.\.8, 4\.\.32\]",
    ):
        program[fallback](**text(*shape))


@pytest.fixture(scope="module")
def program() -> dict[str, trtb.Program]:
    """Programs by how they fall back."""
    model, ranges = tiny("bert").build(num_hidden_layers=1), (Dim("batch", min=1, max=8), Dim("length", min=4, max=32))
    return {fallback: exported(model, *ranges, fallback=fallback, **REFERENCE) for fallback in ("pytorch", "error")}


@pytest.mark.full
def test_an_exported_range_without_end(model: torch.nn.Module, caplog: pytest.LogCaptureFixture) -> None:
    """The graph holds for all sizes, the engine up to `max_dynamic_size`."""
    program = exported(model, Dim("batch"), Dim("length", max=32), max_dynamic_size=6, **REFERENCE)
    assert served_shapes(program) == ["int64[0..6, 0..32]"]
    assert_serves_all(program, model, [(6, 12), (7, 12)])
    assert "is int64[7, 12], the engine serves int64[0..6, 0..32]; PyTorch runs such calls" in caplog.text
