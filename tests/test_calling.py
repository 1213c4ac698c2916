"""The arguments of a program's call: which it takes, in which form, and what it says to others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import torchtrt_bridge as trtb


def exported(model: Any, args: Any, **options: Any) -> trtb.Program:
    return trtb.export(model, args, engine="reference", **options)


def loaded(program: trtb.Program, folder: Path) -> trtb.Program:
    trtb.save(program, folder / "model.pt2")
    return trtb.load(folder / "model.pt2", device="cpu")


# Numbers, words and None ---------------------------------------------------------------------------------------


class Chosen(nn.Module):
    """Takes what is no tensor, too."""

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


@pytest.mark.parametrize(("value", "other"), [(float("nan"), 1.0), (0.0, -0.0)], ids=str)
def test_constants_are_told_apart_by_what_they_are(value: float, other: float) -> None:
    program = exported(Chosen().eval(), X, kwargs={"scale": value})
    torch.testing.assert_close(program(X, scale=value), X * value, equal_nan=True)
    with pytest.raises(trtb.ShapeRangeError, match="Argument scale"):
        program(X, scale=other)
