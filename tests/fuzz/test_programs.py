"""Random programs through `trtb.compile`, computed by the reference interpreter: results are eager's.

Values, dtypes, shapes, strides and shared memory are compared, and that inputs are as eager leaves them.
"""

from __future__ import annotations

import copy

import pytest
import torch

import torchtrt_bridge as trtb
from tests.compare import assert_matches
from tests.fuzz.programs import Program, inputs_of, program_of, storages

PROGRAMS, AT_ONCE = 1000, 20
ROWS, OTHER_ROWS = 4, 6
NEAR = 3e-2  # relative L2 distance in half precision

KINDS = {"static fp32": 0, "dynamic fp32": 1, "static fp16": 2, "dynamic fp16": 3}


@pytest.mark.parametrize("kind", KINDS)
def test_a_program(kind: str) -> None:
    check(kind, 0)


@pytest.mark.full
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("first", range(1, PROGRAMS // len(KINDS), AT_ONCE))
def test_programs(kind: str, first: int) -> None:
    for number in range(first, min(first + AT_ONCE, PROGRAMS // len(KINDS))):
        check(kind, number)


def check(kind: str, number: int) -> None:
    """Compile one program and compare its calls, for two sizes where it is dynamic, and a second time for each."""
    seed = number * len(KINDS) + KINDS[kind]
    is_dynamic, is_half = kind.startswith("dynamic"), kind.endswith("fp16")
    sizes = (ROWS, OTHER_ROWS) if is_dynamic else (ROWS,)
    program = program_of(seed, exact=not is_half, sizes=sizes)
    torch._dynamo.reset()
    fast = trtb.compile(
        program, dynamic=is_dynamic, precision="fp16" if is_half else "fp32", engine="reference", trial="off",
        cache_dir="", torch_tensorrt="off",
    )  # fmt: skip
    for rows in (*sizes, *sizes):
        with torch.no_grad():
            compare(program, fast, inputs_of(seed, rows), is_half, f"seed {seed}, {kind}, {rows} rows: {program}")


def compare(program: Program, fast: object, inputs: tuple[torch.Tensor, ...], is_half: bool, what: str) -> None:
    """Compare a compiled program with eager PyTorch on copies of these inputs."""
    given, eager = copy.deepcopy(inputs), copy.deepcopy(inputs)
    results, expected = fast(*given), program(*eager)  # type: ignore[operator]
    for index, (result, wanted) in enumerate(zip(results, expected, strict=True)):
        where = f"output {index} of {what}"
        assert (result.dtype, result.shape) == (wanted.dtype, wanted.shape), where
        assert result.stride() == wanted.stride(), where
        if is_half:
            distance = torch.linalg.vector_norm((result - wanted).double())
            assert float(distance) <= NEAR * max(float(torch.linalg.vector_norm(wanted.double())), 1.0), where
        else:
            try:
                assert_matches([result], [wanted])
            except AssertionError as error:
                raise AssertionError(f"{where}: {error}") from None
    assert _shared(results, given) == _shared(expected, eager), f"shared memory of {what}"
    assert all(torch.equal(a, b) for a, b in zip(given, eager, strict=True)), f"inputs of {what}"


def _shared(results: tuple[torch.Tensor, ...], inputs: tuple[torch.Tensor, ...]) -> list[int]:
    """Which of the results and inputs have one memory: the first place of each memory, for each result."""
    places = storages([*inputs, *results])
    return [places.index(place) for place in places[len(inputs) :]]
