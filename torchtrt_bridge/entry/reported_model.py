"""The model as its report names it, with what `quantize` did to it."""

from __future__ import annotations

import sys
from typing import Any

from torch import nn

from torchtrt_bridge.report.model import CompileReport


def describe_model(report: CompileReport, model: Any) -> None:
    """Have a report say of which model it is; `model` may be a result of `torch.compile`, or None."""
    model = getattr(model, "_orig_mod", model)
    report.model = _name(model)
    quantize = sys.modules.get("torchtrt_bridge.quantize.model")  # not imported for models that nobody quantized
    quantization = getattr(model, "quantization", None)
    if quantize is not None and isinstance(quantization, quantize.QuantizationReport):
        report.quantization = quantization.to_dict()


def _name(model: Any) -> str:
    """Return the name of a module's class or of a function; empty for None."""
    if model is None:
        return ""
    named = type(model) if isinstance(model, nn.Module) or not hasattr(model, "__name__") else model
    return str(named.__name__)
