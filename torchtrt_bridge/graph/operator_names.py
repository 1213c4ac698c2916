"""Names of PyTorch's operators, as reports write them and the option `torch_ops` takes them."""

from __future__ import annotations

import difflib
from typing import Any

import torch

from torchtrt_bridge.graph import kv_cache, ops, packed, recurrent
from torchtrt_bridge.graph.torch_internals import higher_order_name

OWN = (kv_cache, ops, packed, recurrent)  # register operators of this package

NEAR = 0.75  # `aten.softmx.int` is nearer than this to `aten.softmax.int`, and a word of no meaning to nothing


def is_operator_name(name: str) -> bool:
    """Return whether PyTorch has an operator of this name, with its overload: ``aten.softmax.int``, or ``cond``."""
    namespace, _, rest = name.partition(".")
    packet, _, overload = rest.partition(".")
    if not rest:
        return bool(name) and higher_order_name(_member(torch.ops.higher_order, name)) == name
    overloads = getattr(_member(getattr(torch.ops, namespace, None), packet), "overloads", None)
    return overloads is not None and overload in overloads()


def similar_operator(name: str) -> str | None:
    """Return the operator that a wrong name may mean, first one that it names without its overload; None if none is."""
    known = sorted(_all_names(), key=lambda each: (not each.endswith(".default"), len(each), each))
    stems = [f"{name}.", f"aten.{name}.", f"{name.rpartition('.')[0]}."] if name else []
    overload = next((each for stem in stems for each in known if stem.count(".") > 1 and each.startswith(stem)), None)
    return overload or next(iter(difflib.get_close_matches(name, known, n=1, cutoff=NEAR)), None)


def _member(namespace: Any, name: str) -> Any:
    """Return an operator of a namespace; None if there is none."""
    try:
        return getattr(namespace, name, None)
    except RuntimeError:  # for a name that no operator can have
        return None


def _all_names() -> list[str]:
    """Return the names of all operators that are registered now."""
    found = (name.replace("::", ".") for name in torch._C._dispatch_get_all_op_names())
    return [name if name.count(".") > 1 else f"{name}.default" for name in found]
