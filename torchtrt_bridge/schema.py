"""What the schema of a node's operator says."""

from __future__ import annotations

from torch import fx


def operator_name(node: fx.Node) -> str:
    """The operator's name without namespace and overload, as ``"softmax"``; empty for what has no schema."""
    schema = getattr(node.target, "_schema", None)
    return "" if schema is None else str(schema.name).split("::")[-1]


def returns_view(node: fx.Node) -> bool:
    """Whether a result shares memory with an argument."""
    schema = getattr(node.target, "_schema", None)
    return schema is not None and any(result.alias_info is not None for result in schema.returns)
