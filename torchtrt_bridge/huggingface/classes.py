"""Which objects are transformers' own. Nothing imports it here: where there is such an object, it is loaded."""

from __future__ import annotations

import sys
from typing import Any


def is_model(target: Any) -> bool:
    """Whether this is a `transformers.PreTrainedModel`."""
    return _is_a(target, "transformers.modeling_utils", "PreTrainedModel")


def is_pipeline(target: Any) -> bool:
    """Whether this is a `transformers.Pipeline`."""
    return _is_a(target, "transformers.pipelines.base", "Pipeline")


def _is_a(target: Any, module: str, name: str) -> bool:
    loaded = sys.modules.get(module)
    return loaded is not None and isinstance(target, getattr(loaded, name))
