"""What a node of a graph says of itself: by its operator's schema, or by the constant that it reads."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx


def operator_name(node: fx.Node) -> str:
    """The operator's name without namespace and overload, as ``"softmax"``; empty for what has no schema."""
    schema = getattr(node.target, "_schema", None)
    return "" if schema is None else str(schema.name).split("::")[-1]


def returns_view(node: fx.Node) -> bool:
    """Whether a result shares memory with an argument."""
    schema = getattr(node.target, "_schema", None)
    return schema is not None and any(result.alias_info is not None for result in schema.returns)


def constant_of(node: Any) -> torch.Tensor | None:
    """The tensor that `node` reads, if it is a constant."""
    if not isinstance(node, fx.Node) or node.op != "get_attr":
        return None
    module = node.graph.owning_module
    value = getattr(module, str(node.target), None)
    return value if isinstance(value, torch.Tensor) else None


def arguments_of(node: fx.Node) -> dict[str, Any]:
    """The arguments of a call by their names in its operator's schema, defaults included."""
    schema = node.target._schema  # type: ignore[union-attr]
    found = {argument.name: argument.default_value for argument in schema.arguments if argument.has_default_value()}
    found.update(zip((argument.name for argument in schema.arguments), node.args, strict=False))
    return found | node.kwargs


def is_random(node: fx.Node) -> bool:
    """Whether its results change from call to call; an attention's only with dropout."""
    if not isinstance(node.target, torch._ops.OpOverload) or torch.Tag.nondeterministic_seeded not in node.target.tags:
        return False
    return arguments_of(node).get("dropout_p") != 0.0
