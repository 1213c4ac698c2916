"""The calibration file: the results of a calibration as JSON, so that a model is quantized again without data."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from torchtrt_bridge.cache import written_aside
from torchtrt_bridge.errors import CalibrationError
from torchtrt_bridge.graph.json_fields import faults_of
from torchtrt_bridge.quantize.calls import ForwardCall
from torchtrt_bridge.quantize.qdq import Choice
from torchtrt_bridge.quantize.search import SearchResult
from torchtrt_bridge.quantize.statistics import Observed, Statistics

FORMAT = "torchtrt_bridge calibration 1"

# By field of `Choice` and `SearchResult`: the name that files of this format have for it.
FILE_NAMES = {"float_layers": "kept", "sensitivity": "alone"}
FIELDS = {name: field for field, name in FILE_NAMES.items()}
MOST_ELEMENTS = 2**32  # of an argument; a larger shape is not that of a batch
PLAIN = (type(None), bool, int, float, str)


@dataclasses.dataclass
class CalibrationFile:
    """The content of a calibration file.

    digest: of the float graph and its weights. settings: of the settings that the choice was found for.
    example: the arguments that the graph was traced with, shapes and dtypes in place of tensors.
    found: the result of the search.
    """

    digest: str
    settings: str
    example: Any
    statistics: dict[str, dict[str, Any]]
    found: dict[str, Any]

    @classmethod
    def of(
        cls, digest: str, settings: str, example: ForwardCall, observed: Observed, found: SearchResult
    ) -> CalibrationFile:
        """Describe the results of a calibration; CalibrationError for arguments that JSON cannot express."""
        statistics = {name: each.to_dict() for name, each in observed.items()}
        described = [_described(list(example[0])), _described(example[1])]
        return cls(digest, settings, described, statistics, _dict_from(found))

    def observed(self, device: torch.device) -> Observed:
        """Return the statistics that were saved."""
        return {name: Statistics.from_dict(content, device) for name, content in self.statistics.items()}

    def search_result(self) -> SearchResult:
        """Return the result of the search that was saved."""
        content = _renamed(self.found, FIELDS)
        choice = content.pop("choice", None)
        choice = _renamed(choice, FIELDS) if isinstance(choice, dict) else choice
        fault = next(faults_of(choice, Choice, "it"), None)
        fault = fault or next(faults_of({**content, "choice": Choice("absmax")}, SearchResult, "the search"), None)
        if fault is not None:
            raise CalibrationError(f"The calibration file's choice is damaged: {fault}. Delete it.")
        return SearchResult(Choice(**{**choice, "float_layers": frozenset(choice["float_layers"])}), **content)

    def call(self, device: torch.device) -> ForwardCall:
        """Return arguments of the saved shapes and dtypes, of zeros."""
        try:
            args, kwargs = _filled(self.example, device)
            if not (isinstance(args, list) and isinstance(kwargs, dict)):
                raise ValueError("no list and dict of arguments")
            return tuple(args), kwargs
        except (AttributeError, KeyError, TypeError, ValueError, RuntimeError) as error:  # RecursionError too
            raise CalibrationError(f"The calibration file's arguments are damaged: {error!r}. Delete it.") from error

    def check_model(self, digest: str, path: Path) -> None:
        """Raise CalibrationError where the file belongs to another model."""
        if self.digest != digest:
            raise CalibrationError(
                f"calibration={str(path)!r} was made for another graph or other weights (digest {self.digest[:12]}, "
                f"this model has {digest[:12]}). Delete the file to calibrate anew, or name another."
            )

    def write(self, path: Path) -> None:
        """Write the file whole or not at all."""
        content = {"format": FORMAT, **dataclasses.asdict(self)}
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with written_aside(path, mode=None) as aside:
                aside.write_text(json.dumps(content), encoding="utf-8")
        except OSError as error:
            raise CalibrationError(f"calibration={str(path)!r} cannot be written: {error}.") from error


def read(path: Path) -> CalibrationFile:
    """Read a calibration file; CalibrationError for a damaged one or another kind of file."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CalibrationError(f"calibration={str(path)!r} cannot be read: {error}. Delete it to calibrate.") from error
    if not isinstance(content, dict) or content.pop("format", None) != FORMAT:
        raise CalibrationError(f"calibration={str(path)!r} is no calibration file of this version. Delete it.")
    fault = next(faults_of(content, CalibrationFile, "the file"), None)
    if fault is not None:
        raise CalibrationError(f"calibration={str(path)!r} is damaged: {fault}. Delete it to calibrate.")
    return CalibrationFile(**content)


def _dict_from(found: SearchResult) -> dict[str, Any]:
    content = _renamed(dataclasses.asdict(found), FILE_NAMES)
    content["choice"] = _renamed(content["choice"], FILE_NAMES)
    content["choice"]["kept"] = sorted(found.choice.float_layers)
    return content


def _renamed(content: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    return {names.get(name, name): value for name, value in dict(content).items()}


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
        shape, dtype = content
        return _zeros(shape, dtype, device)
    if kind == "dict":
        return {key: _filled(item, device) for key, item in content.items()}
    if kind in ("list", "tuple"):
        items = [_filled(item, device) for item in content]
        return items if kind == "list" else tuple(items)
    return content


def _zeros(shape: list[int], dtype: str, device: torch.device) -> torch.Tensor:
    if not all(type(size) is int and size >= 0 for size in shape) or math.prod(shape) > MOST_ELEMENTS:
        raise ValueError(f"a tensor of shape {shape}")
    return torch.zeros(shape, dtype=getattr(torch, dtype), device=device)
