"""Indices that are tensors of one integer, as `cache[:, position]`, for a `torch.export` that cannot capture them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import fx
from torch.overrides import TorchFunctionMode

_SUMS = {"add": 1, "__add__": 1, "__radd__": 1, "sub": -1, "__sub__": -1}


@contextlib.contextmanager
def indices_as_numbers(model: torch.nn.Module) -> Iterator[None]:
    """Let calls of `model` run in the mode IndicesAsNumbers, before the modes of `torch.export` where that is possible.

    These would make slices of their own. While Dynamo compiles, entering a mode in a call ends torch 2.11 with a
    segmentation fault; the graphs that Dynamo gives hold no such slices.
    """
    mode, entered = IndicesAsNumbers(), contextlib.ExitStack()
    if isinstance(model, fx.GraphModule):
        with mode:
            yield
        return
    before = model.register_forward_pre_hook(lambda *_: entered.enter_context(mode) and None)
    behind = model.register_forward_hook(lambda *_: entered.close(), always_call=True)
    try:
        yield
    finally:
        before.remove()
        behind.remove()
        entered.close()  # as after a call that a capture gave up, without the hooks behind it


class IndicesAsNumbers(TorchFunctionMode):
    """Mode in which a tensor of one integer, as an index or an end of a slice, is a number.

    As an index it is the number of a `select`, which is what PyTorch makes of it outside of a capture: the result is a
    view. torch 2.11 wants the number itself. Of a slice as `[t : t + 1]` the length is a known number.
    """

    def __init__(self) -> None:
        super().__init__()
        self._sums: dict[int, tuple[torch.Tensor, torch.Tensor, int]] = {}

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = getattr(func, "__name__", "")
        if name in ("__getitem__", "__setitem__") and isinstance(args[0], torch.Tensor):
            items = [self._with_numbers(item) for item in (args[1] if isinstance(args[1], tuple) else (args[1],))]
            if any(map(_is_of_run_time, items)) and all(map(_is_basic, items)):
                view = _view(args[0], items)
                return view if name == "__getitem__" else view.__setitem__(..., args[2])
        result = func(*args, **(kwargs or {}))
        if name in _SUMS and not kwargs and len(args) == 2:
            self._remember_sum(result, args, _SUMS[name])
        return result

    def _remember_sum(self, result: Any, args: tuple[Any, ...], sign: int) -> None:
        """Remember that a tensor is another one and a number, of which `item` would not know."""
        if _is_number(result) and _is_number(args[0]) and type(args[1]) is int:
            self._sums[id(result)] = result, args[0], sign * args[1]

    def _with_numbers(self, item: Any) -> Any:
        """Return an index with numbers in place of tensors of one integer."""
        if isinstance(item, slice):
            return slice(*map(self._with_numbers, (item.start, item.stop, item.step)))
        if not _is_number(item):
            return item
        _, base, offset = self._sums.get(id(item), (None, None, 0))
        return item.item() if base is None else self._with_numbers(base) + offset


def _is_number(item: Any) -> bool:
    is_tensor = isinstance(item, torch.Tensor) and item.dim() == 0
    return is_tensor and item.dtype in (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


def _is_of_run_time(item: Any) -> bool:
    ends = (item.start, item.stop, item.step) if isinstance(item, slice) else (item,)
    return any(isinstance(end, torch.SymInt) for end in ends)


def _is_basic(item: Any) -> bool:
    return item is None or item is Ellipsis or isinstance(item, (int, torch.SymInt, slice))


def _view(value: torch.Tensor, items: Sequence[Any]) -> torch.Tensor:
    """Return `value[items]`, with a `select` for each item that is a number."""
    dim = 0
    for item in _without_ellipsis(value, items):
        if item is None:
            value = value.unsqueeze(dim)
        elif isinstance(item, slice):
            value = _part(value, dim, item)
        else:
            value = torch.select(value, dim, item)
            continue
        dim += 1
    return value


def _part(value: torch.Tensor, dim: int, item: slice) -> torch.Tensor:
    """Return a slice of one dimension; of a known length if the two ends are a known number apart."""
    if item == slice(None):
        return value
    length = _known_length(item)
    if length is None:
        return value[(slice(None),) * dim + (item,)]
    # of [-1 : 0] PyTorch gives nothing, and `narrow` the last element
    torch._check((item.start >= 0) | (item.stop < 0))
    return value.narrow(dim, item.start, length)


def _known_length(item: slice) -> int | None:
    if not (isinstance(item.start, torch.SymInt) and isinstance(item.stop, torch.SymInt) and item.step in (None, 1)):
        return None
    length = (item.stop - item.start).node.maybe_as_int()
    return length if length is not None and length > 0 else None


def _without_ellipsis(value: torch.Tensor, items: Sequence[Any]) -> list[Any]:
    whole = [slice(None)] * (value.dim() - sum(item is not None and item is not Ellipsis for item in items))
    place = next((index for index, item in enumerate(items) if item is Ellipsis), len(items))
    return [*items[:place], *whole, *items[place + 1 :]]
