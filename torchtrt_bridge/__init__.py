"""Run PyTorch models on TensorRT: a `torch.compile` backend and a `torch.export` helper.

Importing this package imports neither torch nor TensorRT; each public name loads what it needs when it is used.
"""

from __future__ import annotations

import importlib
import sys
import types
from typing import TYPE_CHECKING, Any

from torchtrt_bridge.graph.version import __version__ as __version__

if TYPE_CHECKING:
    from torchtrt_bridge.entry.explain import explain
    from torchtrt_bridge.entry.export import export, load, save
    from torchtrt_bridge.entry.huggingface import accelerate, restore
    from torchtrt_bridge.entry.program import Program
    from torchtrt_bridge.entry.torch_compile import compile, report
    from torchtrt_bridge.errors import (
        BridgeError,
        BuildError,
        CalibrationError,
        CaptureError,
        EngineLoadError,
        LoweringError,
        OptionsError,
        ShapeRangeError,
        UnsupportedOpError,
    )
    from torchtrt_bridge.options import Options
    from torchtrt_bridge.quantize.api import quantize
    from torchtrt_bridge.quantize.config import QuantizeConfig
    from torchtrt_bridge.quantize.model import QuantizedModel
    from torchtrt_bridge.report.model import CompileReport

_HOMES = {
    "CompileReport": "report.model",
    "Options": "options",
    "Program": "entry.program",
    "QuantizeConfig": "quantize.config",
    "QuantizedModel": "quantize.model",
    "accelerate": "entry.huggingface",
    "compile": "entry.torch_compile",
    "explain": "entry.explain",
    "export": "entry.export",
    "load": "entry.export",
    "quantize": "quantize.api",
    "report": "entry.torch_compile",
    "restore": "entry.huggingface",
    "save": "entry.export",
}
_ERRORS = (
    "BridgeError",
    "BuildError",
    "CalibrationError",
    "CaptureError",
    "EngineLoadError",
    "LoweringError",
    "OptionsError",
    "ShapeRangeError",
    "UnsupportedOpError",
)

__all__ = [
    "BridgeError",
    "BuildError",
    "CalibrationError",
    "CaptureError",
    "CompileReport",
    "EngineLoadError",
    "LoweringError",
    "Options",
    "OptionsError",
    "Program",
    "QuantizeConfig",
    "QuantizedModel",
    "ShapeRangeError",
    "UnsupportedOpError",
    "accelerate",
    "compile",
    "explain",
    "export",
    "load",
    "quantize",
    "report",
    "restore",
    "save",
]


class _Package(types.ModuleType):
    """Module that keeps a public name when the import system would replace it by a folder of the same name."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _HOMES and isinstance(value, types.ModuleType)):
            super().__setattr__(name, value)

    def __reduce__(self) -> tuple[Any, ...]:
        """Reduce to an import, as cloudpickle does modules, which the functions that Ray or Dask send may refer to."""
        return importlib.import_module, (__name__,)


sys.modules[__name__].__class__ = _Package


def __getattr__(name: str) -> Any:
    home = "errors" if name in _ERRORS else _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
