"""Reasons why `torch.export` cannot capture a model, each apart, with what to do about it."""

from __future__ import annotations

import dataclasses
import re
import sys
import sysconfig
import traceback
from pathlib import Path
from typing import Any

import torch
from torch import fx
from torch.nn.utils import rnn

from torchtrt_bridge.graph.export_internals import is_refused
from torchtrt_bridge.graph.nodes import shown_file
from torchtrt_bridge.graph.torch_internals import is_constraint_violation, is_data_dependent

# Lines of PyTorch's messages for those who look for a fault in PyTorch.
_NOISE = (
    "The error above occurred when calling torch.export",
    "For more information, run with",
    "For extended logs",
    "For more debugging help",
    "For C++ stack trace",
    "If you suspect the guard",
    "Caused by:",
    "consider using data-dependent friendly APIs",
)
_UNKNOWN_CLASS = re.compile(r"(?:Found|Unsupported input type) <class '([\w.<>]+)'>")
# torch 2.11 has no other words for a returned dataclass, which is unhashable as it compares by its fields.
_UNHASHABLE = re.compile(r"unhashable type: '(\w+)'")
_POINTER = re.compile(r" For more information(, run with| about this error, see:).*")
# Files whose lines are not those of the model: PyTorch's, this package's, Python's own, and code that was made.
_OTHERS = (str(Path(torch.__file__).parent), str(Path(__file__).parents[1]), "<")
_PYTHON, _INSTALLED = sysconfig.get_path("stdlib"), sysconfig.get_path("purelib")
# Files whose functions take packed sequences: PyTorch's, and this package's, which stands for it in a trace.
_OF_SEQUENCES = ("rnn.py", "packed_sequences.py")
_NO_VALUES = ("data pointer", ".numpy()", "tolist()")

COMPILE = "torch.compile(model, backend='torchtrt_bridge') leaves such lines to PyTorch and compiles the rest"


PACKED = (
    "Give pack_padded_sequence the lengths in a tensor on the CPU, and pad_packed_sequence no total_length below the "
    f"size of the padded batch; else {COMPILE}"
)


class AssumptionError(RuntimeError):
    """Assumption of `torch.export` about a size that depends on data, which the example inputs contradict."""


def is_failed_assertion(error: BaseException) -> bool:
    """Return whether an assertion that `torch.export` put into a graph does not hold for the tensors of a call."""
    return isinstance(error, RuntimeError) and str(error).startswith("Runtime assertion failed for expression")


def capture_failure(model: Any, error: Exception) -> str:
    """Return the message of CaptureError for what `torch.export` raised for `model`: reason, line and advice."""
    reason, advice = _reason_and_advice(error)
    source = _source(error)
    where = f", at {source!r}" if source else ""
    if isinstance(model, fx.GraphModule) and advice == COMPILE:  # torch.compile has it already
        advice = ""
    separator = "\n" if "\n" in reason else ". "
    text = separator.join(part.rstrip(".") for part in (reason, advice) if part)
    return f"torch.export could not capture {type(model).__name__} as one graph{where}: {text}."


def _reason_and_advice(error: Exception) -> tuple[str, str]:
    text = _without_noise(str(error))
    unknown = _UNKNOWN_CLASS.search(text)
    if unknown:
        return f"PyTorch does not know which tensors {unknown[1]} holds", _registration(unknown[1])
    unhashable = _UNHASHABLE.search(text)
    if unhashable and _source(error) is None:
        return f"PyTorch does not know which tensors {unhashable[1]} holds", _call_for_dataclass(unhashable[1])
    if is_constraint_violation(error) or type(error).__name__ == "ConstraintViolationError":
        return text, "Give dynamic_shapes ranges that the model and the example inputs allow"
    if isinstance(error, AssumptionError):
        return (
            f"a size in it depends on data, and the example inputs contradict what is assumed of it ({text})",
            COMPILE,
        )
    if _packs_sequences(error):
        return "it packs sequences, whose sizes depend on the values of their lengths", PACKED
    if is_data_dependent(error):
        return "its control flow, or a size in it, depends on data", COMPILE
    if any(part in text for part in _NO_VALUES):
        return "it reads the values of a tensor outside of PyTorch's operators", COMPILE
    name = "" if type(error).__name__ in ("RuntimeError", "UserError") and text else type(error).__name__
    return ": ".join(part for part in (name, text) if part), ""


def _packs_sequences(error: Exception) -> bool:
    """Return whether a trace ended at packed sequences, as it knows no values of lengths."""
    if not (is_data_dependent(error) or is_refused(error)):
        return False
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    names = (rnn.pack_padded_sequence.__code__, rnn.pack_sequence.__code__, rnn.pad_packed_sequence.__code__)
    return any(
        frame.f_code in names or any(isinstance(value, rnn.PackedSequence) for value in frame.f_locals.values())
        for frame in frames
        if Path(frame.f_code.co_filename).name in _OF_SEQUENCES
    )


def _without_noise(text: str) -> str:
    lines = [_POINTER.sub("", line).rstrip() for line in text.splitlines()]
    return "\n".join(line for line in lines if line and not line.strip().startswith(_NOISE))


def _source(error: Exception) -> str | None:
    """Return `file:line: code` of the innermost frame of the model's code in a traceback; None if there is none."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if _is_of_model(frame.filename)]
    if not frames:
        return None
    return f"{shown_file(frames[-1].filename)}:{frames[-1].lineno}: {(frames[-1].line or '').strip()}"


def _is_of_model(file: str) -> bool:
    is_python = file.startswith(_PYTHON) and not (file.startswith(_INSTALLED) or "site-packages" in file)
    return not (is_python or file.startswith(_OTHERS))


def _registration(name: str) -> str:
    """Return the advice to register a class, with the exact call."""
    module, _, qualified = name.rpartition(".")
    found: Any = sys.modules.get(module)
    for part in qualified.split("."):
        found = getattr(found, part, None)
    if dataclasses.is_dataclass(found):
        return _call_for_dataclass(qualified)
    return f"Register it first: torch.utils._pytree.register_pytree_node({qualified}, flatten, unflatten)"


def _call_for_dataclass(name: str) -> str:
    return f"Register it first: torch.export.register_dataclass({name})"
