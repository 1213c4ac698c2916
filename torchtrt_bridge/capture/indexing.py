"""Indices that are tensors of one integer, as `cache[:, position]`, for a `torch.export` that cannot capture them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.overrides import TorchFunctionMode


class IndicesAsNumbers(TorchFunctionMode):
    """Mode in which a tensor of one integer, as an index, is the number of a `select`.

    That is what PyTorch makes of it outside of a capture: the result is a view. torch 2.11 wants the number itself.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = getattr(func, "__name__", "")
        if name in ("__getitem__", "__setitem__") and isinstance(args[0], torch.Tensor):
            items = list(args[1]) if isinstance(args[1], tuple) else [args[1]]
            if any(map(_is_number, items)) and all(map(_is_basic, items)):
                view = _view(args[0], items)
                return view if name == "__getitem__" else view.__setitem__(..., args[2])
        return func(*args, **(kwargs or {}))


def _is_number(item: Any) -> bool:
    is_tensor = isinstance(item, torch.Tensor) and item.dim() == 0
    return is_tensor and item.dtype in (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


def _is_basic(item: Any) -> bool:
    return item is None or item is Ellipsis or isinstance(item, (int, torch.SymInt, slice)) or _is_number(item)


def _view(value: torch.Tensor, items: Sequence[Any]) -> torch.Tensor:
    """Return `value[items]`, with a `select` for each item that is a tensor."""
    dim = 0
    for item in _without_ellipsis(value, items):
        if item is None:
            value = value.unsqueeze(dim)
        elif isinstance(item, slice):
            value = value if item == slice(None) else value[(slice(None),) * dim + (item,)]
        else:
            number: Any = item.item() if isinstance(item, torch.Tensor) else item
            value = torch.select(value, dim, number)
            continue
        dim += 1
    return value


def _without_ellipsis(value: torch.Tensor, items: Sequence[Any]) -> list[Any]:
    whole = [slice(None)] * (value.dim() - sum(item is not None and item is not Ellipsis for item in items))
    place = next((index for index, item in enumerate(items) if item is Ellipsis), len(items))
    return [*items[:place], *whole, *items[place + 1 :]]
