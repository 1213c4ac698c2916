"""Signature of a program: the arguments that it takes, their nesting, and the errors of others."""

from __future__ import annotations

import math
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.export import Dim

import torchtrt_bridge as trtb


def exported(model: Any, args: Any, **options: Any) -> trtb.Program:
    return trtb.export(model, args, engine="reference", **options)


def loaded(program: trtb.Program, folder: Path) -> trtb.Program:
    trtb.save(program, folder / "model.pt2")
    return trtb.load(folder / "model.pt2", device="cpu")


# Numbers, words and None ---------------------------------------------------------------------------------------


class Chosen(nn.Module):
    """Model that takes arguments that are not tensors, too."""

    def forward(
        self, x: torch.Tensor, y: Any = None, scale: Any = 2.0, flag: Any = True, mode: Any = "up"
    ) -> torch.Tensor:
        result = x.relu() * scale if mode == "up" else x.relu() / scale
        result = result if y is None else result + y
        return result if flag else -result


X = torch.arange(1.0, 4.0)
SETTINGS: dict[str, Any] = {"scale": 3.0, "flag": True, "mode": "up"}


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"scale": 4.0}, r"Argument scale is the float 4\.0; the program was exported with the float 3\.0"),
        ({"scale": 3}, "Argument scale is the int 3; the program was exported with the float"),
        ({"scale": X * 7}, r"Argument scale is float32\[3\]; the program was exported with the float 3\.0"),
        ({"scale": None}, "Argument scale is None"),
        ({"flag": False}, "Argument flag is False; the program was exported with True"),
        ({"flag": 1}, "Argument flag is the int 1; the program was exported with True"),
        ({"mode": "down"}, "Argument mode is the str 'down'; the program was exported with the str 'up'"),
        ({"y": X}, r"Argument y is float32\[3\]; the program was exported with None"),
    ],
)
@pytest.mark.parametrize("is_loaded", [False, True], ids=["exported", "loaded"])
def test_another_constant_is_refused(changed: dict[str, Any], words: str, is_loaded: bool, tmp_path: Path) -> None:
    program = exported(Chosen().eval(), (X, None), kwargs=SETTINGS)
    if is_loaded:
        program = loaded(program, tmp_path)
    torch.testing.assert_close(program(X, None, **SETTINGS), X * 3)
    call = {"y": None, **SETTINGS, **changed}
    with pytest.raises(trtb.ShapeRangeError, match=words):
        program(X, call.pop("y"), **call)


def test_none_for_a_tensor_is_refused() -> None:
    program = exported(Chosen().eval(), (X, X))
    with pytest.raises(trtb.ShapeRangeError, match=r"Argument y is None; the program was exported for float32\[3\]"):
        program(X, None)


@pytest.mark.parametrize(("value", "other"), [(math.inf, 1.0), (0.0, -0.0), (2.0, 2)], ids=str)
def test_constants_differ_by_type_and_value(value: float, other: float) -> None:
    program = exported(Chosen().eval(), X, kwargs={"scale": value})
    torch.testing.assert_close(program(X, scale=value), X * value, equal_nan=True)
    with pytest.raises(trtb.ShapeRangeError, match="Argument scale"):
        program(X, scale=other)


# Forms ---------------------------------------------------------------------------------------------------------


def nested(x: torch.Tensor, pair: dict[str, Any], *, scale: torch.Tensor) -> torch.Tensor:
    return x.relu() - pair["a"] * scale + pair["b"][0]


PAIR = {"a": X + 1, "b": [X * 2]}
SCALE = torch.tensor(3.0)


@pytest.mark.parametrize(
    "call",
    [
        lambda p: p(X, PAIR, scale=SCALE),
        lambda p: p(X, {"b": [X * 2], "a": X + 1}, scale=SCALE),
        lambda p: p(X, OrderedDict(b=[X * 2], a=X + 1), scale=SCALE),
        lambda p: p(X, scale=SCALE, pair=PAIR),
        lambda p: p(pair=PAIR, scale=SCALE, x=X),
    ],
    ids=["as exported", "other order", "OrderedDict", "by name", "all by name"],
)
@pytest.mark.parametrize("is_loaded", [False, True], ids=["exported", "loaded"])
def test_the_form_of_a_call(call: Any, is_loaded: bool, tmp_path: Path) -> None:
    program = exported(nested, (X, PAIR), kwargs={"scale": SCALE})
    if is_loaded:
        program = loaded(program, tmp_path)
    torch.testing.assert_close(call(program), nested(X, PAIR, scale=SCALE))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda p: p(X, PAIR), "takes x, pair by position and scale by name, .* this call gives x, pair by position"),
        (lambda p: p(X, PAIR, SCALE), "this call gives 3 arguments by position"),
        (lambda p: p(X, scale=SCALE, x=X), "this call gives x by position and scale, x by name"),
        (lambda p: p(pair=PAIR, scale=SCALE), "this call gives pair, scale by name"),
        (lambda p: p(X, {"a": X}, scale=SCALE), r"pair is nested as {'a': \*}; .* for {'a': \*, 'b': \[\*\]}"),
        (lambda p: p(X, {"a": X, "b": (X,)}, scale=SCALE), r"pair is nested as {'a': \*, 'b': \(\*\)}"),
        (lambda p: p(X, X, scale=SCALE), r"Argument pair is nested as \*; the program was exported for {'a'"),
        (lambda p: p([X, X], PAIR, scale=SCALE), r"Argument x is a list; the program was exported for float32\[3\]"),
    ],
)
def test_the_form_of_a_call_that_does_not_fit(call: Any, words: str) -> None:
    program = exported(nested, (X, PAIR), kwargs={"scale": SCALE})
    with pytest.raises(trtb.ShapeRangeError, match=words):
        call(program)


def test_the_number_of_variadic_arguments_is_part_of_the_export() -> None:
    program = exported(lambda *xs: xs[0].relu() - xs[1], (X, X + 1))
    torch.testing.assert_close(program(X, X + 2), torch.full((3,), -2.0))
    with pytest.raises(trtb.ShapeRangeError, match="takes xs_0, xs_1 by position"):
        program(X, X, X)


# Sizes ---------------------------------------------------------------------------------------------------------

N = Dim("n", min=2, max=9)


@pytest.mark.parametrize(
    ("sizes", "dims", "fitting", "other", "words"),
    [
        ((4, 4), (N, N), (5, 5), (5, 4), "Dimension 0 of x has size 5, so that dimension 0 of y must have 5, not 4"),
        ((4, 8), (N, 2 * N), (3, 6), (3, 8), "Dimension 0 of x has size 3, so that dimension 0 of y must have 6"),
        ((8, 8), (2 * N, 2 * N), (6, 6), (5, 5), r"Dimension 0 of x has size 5, which is no 2\*"),
        ((5, 9), (N + 1, 2 * N + 1), (3, 5), (4, 5), "dimension 0 of y must have 7, not 5"),
    ],
)
@pytest.mark.parametrize("is_loaded", [False, True], ids=["exported", "loaded"])
def test_sizes_that_share_a_dim(
    sizes: Any, dims: Any, fitting: Any, other: Any, words: str, is_loaded: bool, tmp_path: Path
) -> None:
    shapes = ({0: dims[0]}, {0: dims[1]})
    program = exported(
        lambda x, y: x.relu().sum() + y, tuple(torch.ones(size) for size in sizes), dynamic_shapes=shapes
    )
    if is_loaded:
        program = loaded(program, tmp_path)
    torch.testing.assert_close(program(*map(torch.ones, fitting)), torch.ones(fitting[1]) + fitting[0])
    with pytest.raises(trtb.ShapeRangeError, match=words):
        program(*map(torch.ones, other))


class Nested(nn.Module):
    """Model whose first argument has a name that the graph cannot use, and whose second is a list."""

    def forward(self, input: torch.Tensor, pair: Any, scale: Any = 2.0, *, mask: torch.Tensor) -> torch.Tensor:
        return input.relu() * scale + pair[0].sum() + pair[1].sum() + mask


@pytest.mark.parametrize("is_loaded", [False, True], ids=["exported", "loaded"])
def test_the_tensors_that_a_program_takes_have_names(is_loaded: bool, tmp_path: Path) -> None:
    ids = torch.ones(3, dtype=torch.int64)
    shapes = {"input": {0: N}, "pair": [None, None], "scale": None, "mask": {0: N}}
    arguments = (torch.ones(4), [torch.ones(2, 2), ids], 3.0)
    program = exported(Nested(), arguments, kwargs={"mask": torch.ones(4)}, dynamic_shapes=shapes)
    if is_loaded:
        program = loaded(program, tmp_path)
    assert {name: str(spec) for name, spec in program.inputs.items()} == {
        "input": "float32[2..9]", "pair_0": "float32[2, 2]", "pair_1": "int64[3]", "mask": "float32[2..9]",
    }  # fmt: skip
    assert [program.inputs["input"].accepts(torch.ones(size)) for size in (1, 2, 9, 10)] == [False, True, True, False]
    program(input=torch.ones(9), pair=arguments[1], scale=3.0, mask=torch.ones(9))


# Memory --------------------------------------------------------------------------------------------------------


def flattened(x: torch.Tensor) -> torch.Tensor:
    return x.view(-1).relu()


def flattened_and_changed(x: torch.Tensor) -> torch.Tensor:
    result = flattened(x)
    x.mul_(2)
    return result


@pytest.mark.parametrize("model", [flattened, flattened_and_changed])
@pytest.mark.parametrize("other", ["channels last", "transposed"])
def test_an_input_may_have_other_strides_than_in_the_export(model: Any, other: str) -> None:
    x = torch.randn(2, 3, 4, 4)
    program = exported(model, x.clone())
    given = x.clone(memory_format=torch.channels_last) if other == "channels last" else x.mT.contiguous().mT
    assert not given.is_contiguous()
    strides, changed = given.stride(), x.clone()
    torch.testing.assert_close(program(given), model(changed))
    torch.testing.assert_close(given, changed)
    assert given.stride() == strides
