"""State: what a calibration found, as a JSON file, so that the same model is quantized again without data."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import torch

from torchtrt_bridge.cache import written_aside
from torchtrt_bridge.errors import CalibrationError
from torchtrt_bridge.quantize.batches import Call
from torchtrt_bridge.quantize.observe import Observed
from torchtrt_bridge.quantize.place import Choice
from torchtrt_bridge.quantize.search import Found
from torchtrt_bridge.quantize.statistics import Statistics

FORMAT = "torchtrt_bridge calibration 1"
PLAIN = (type(None), bool, int, float, str)


@dataclasses.dataclass
class State:
    """The content of a calibration file.

    digest: of the float graph and its weights. settings: of the settings that the choice was found for.
    example: the arguments that the graph was traced with, shapes and dtypes in place of tensors.
    """

    digest: str
    settings: str
    example: Any
    statistics: dict[str, Any]
    found: dict[str, Any]

    def observed(self, device: torch.device) -> Observed:
        return {name: Statistics.from_dict(content, device) for name, content in self.statistics.items()}

    def choice(self) -> Found:
        """The result of the search that was saved."""
        try:
            content = dict(self.found)
            choice = dict(content.pop("choice"))
            return Found(Choice(**{**choice, "kept": frozenset(choice["kept"])}), **content)
        except (KeyError, TypeError, ValueError) as error:
            raise CalibrationError(f"The calibration file's choice is damaged: {error!r}. Delete it.") from error

    def call(self, device: torch.device) -> Call:
        """Arguments of the saved shapes and dtypes, of zeros."""
        try:
            args, kwargs = _filled(self.example, device)
            return tuple(args), kwargs
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise CalibrationError(f"The calibration file's arguments are damaged: {error!r}. Delete it.") from error


def example_from(call: Call) -> Any:
    """A call as JSON has it; CalibrationError for arguments that it cannot express."""
    return [_described(list(call[0])), _described(call[1])]


def found_to_dict(found: Found) -> dict[str, Any]:
    content = dataclasses.asdict(found)
    content["choice"]["kept"] = sorted(found.choice.kept)
    return content


def write(state: State, path: Path) -> None:
    """Write the file whole or not at all."""
    content = {"format": FORMAT, **dataclasses.asdict(state)}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with written_aside(path) as aside:
            aside.write_text(json.dumps(content), encoding="utf-8")
    except OSError as error:
        raise CalibrationError(f"calibration={str(path)!r} cannot be written: {error}.") from error


def read(path: Path) -> State:
    """The content of a calibration file; CalibrationError for a damaged or foreign one."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CalibrationError(f"calibration={str(path)!r} cannot be read: {error}. Delete it to calibrate.") from error
    if not isinstance(content, dict) or content.pop("format", None) != FORMAT:
        raise CalibrationError(f"calibration={str(path)!r} is no calibration file of this version. Delete it.")
    try:
        return State(**content)
    except TypeError as error:
        raise CalibrationError(f"calibration={str(path)!r} is damaged: {error}. Delete it to calibrate.") from error


def check_model(state: State, digest: str, path: Path) -> None:
    """CalibrationError where the file belongs to another model."""
    if state.digest != digest:
        raise CalibrationError(
            f"calibration={str(path)!r} was made for another graph or other weights (digest {state.digest[:12]}, this "
            f"model has {digest[:12]}). Delete the file to calibrate anew, or name another."
        )


def _described(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return {"tensor": [list(value.shape), str(value.dtype).removeprefix("torch.")]}
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {"dict": {key: _described(item) for key, item in value.items()}}
    if type(value) in (list, tuple):
        return {type(value).__name__: [_described(item) for item in value]}
    if isinstance(value, PLAIN):
        return {"value": value}
    raise CalibrationError(
        f"calibration= keeps tensors, numbers, text, lists and dicts among the model's arguments, not "
        f"{type(value).__name__}. Leave calibration out, or wrap the model in one that takes tensors."
    )


def _filled(described: Any, device: torch.device) -> Any:
    if isinstance(described, list):
        return [_filled(item, device) for item in described]
    ((kind, content),) = described.items()
    if kind == "tensor":
        return torch.zeros(content[0], dtype=getattr(torch, content[1]), device=device)
    if kind == "dict":
        return {key: _filled(item, device) for key, item in content.items()}
    if kind in ("list", "tuple"):
        items = [_filled(item, device) for item in content]
        return items if kind == "list" else tuple(items)
    return content
