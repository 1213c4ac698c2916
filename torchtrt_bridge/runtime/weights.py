"""The weights that PyTorch needs where it computes an engine's subgraph: on the device, or released to host memory."""

from __future__ import annotations

import contextlib
import dataclasses
import threading
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator

import torch
from torch import nn

from torchtrt_bridge.errors import EngineLoadError
from torchtrt_bridge.graph.memory import memory_of

# Tensors by name, as a module holds its buffers and an exported program its state.
Holder = dict[str, torch.Tensor]


class SpareWeights:
    """The weights of subgraphs that engines compute.

    `release` moves them to host memory. The first use of `loaded` after that brings all of them back for good: a call
    that no engine computes is likely to come again. Tensors that shared memory, as tied weights, share it again.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._away: list[_Away] = []
        self._is_pinned = False

    @property
    def bytes_away(self) -> int:
        """The bytes in host memory."""
        return sum(away.storage.nbytes() for away in self._away)

    @contextlib.contextmanager
    def loaded(self, is_captured: bool = False) -> Iterator[None]:
        """Keep the weights on their device within this context.

        is_captured: a CUDA graph is being captured, which will need them where they are now.
        """
        with self._lock:
            if is_captured and self._away:
                raise EngineLoadError(
                    "PyTorch's weights are in host memory (release_weights=True), and do not come back while a CUDA "
                    "graph is captured. Call the model with inputs of these sizes before the capture."
                )
            self._is_pinned |= is_captured
            self._restore()
            yield

    def release(self, holders: Iterable[Holder], needed: Collection[int | None]) -> None:
        """Move the tensors of `holders` to host memory, without those whose memory is `needed`."""
        with self._lock:
            if self._is_pinned:
                return
            places: dict[int, list[tuple[Holder, str]]] = defaultdict(list)
            for holder in holders:
                for name, value in holder.items():
                    memory = movable_memory_of(value)
                    if memory is not None and memory not in needed:
                        places[memory].append((holder, name))
            values = [holder[name] for sharing in places.values() for holder, name in sharing]
            for device in {value.device for value in values if value.is_cuda}:
                torch.cuda.synchronize(device)  # work on any stream may still read them
            del values
            for sharing in places.values():
                self._away.append(_Away.taken_from(sharing))

    def _restore(self) -> None:
        with torch.inference_mode(False):  # else they would be of use to calls in that mode only
            back = [away.tensors() for away in self._away]
        for away, tensors in zip(self._away, back, strict=True):
            for view, value in zip(away.views, tensors, strict=True):
                view.holder[view.name] = value
        self._away.clear()


@dataclasses.dataclass
class _View:
    """The place that a tensor was taken from, and its layout in its memory."""

    holder: Holder
    name: str
    dtype: torch.dtype
    offset: int
    shape: torch.Size
    stride: tuple[int, ...]


@dataclasses.dataclass
class _Away:
    """Memory that was moved from `device` to the host, and the tensors that shared it."""

    storage: torch.UntypedStorage
    device: torch.device
    views: list[_View]

    @classmethod
    def taken_from(cls, places: list[tuple[Holder, str]]) -> _Away:
        """Take tensors that share one memory from their places."""
        holder, name = places[0]
        first = holder[name]
        away = cls(first.untyped_storage().cpu(), first.device, [])
        for holder, name in places:
            value = holder.pop(name)
            away.views.append(
                _View(holder, name, value.dtype, int(value.storage_offset()), value.shape, value.stride())
            )
        return away

    def tensors(self) -> list[torch.Tensor]:
        """Return the tensors, on their device again."""
        storage = self.storage.to(device=self.device)
        return [
            torch.empty(0, dtype=view.dtype, device=self.device).set_(storage, view.offset, view.shape, view.stride)
            for view in self.views
        ]


def movable_memory_of(value: torch.Tensor) -> int | None:
    """Return the storage address of a strided tensor; None for another, and for a lazy negative or conjugate."""
    is_plain = type(value) is torch.Tensor and value.layout is torch.strided and not (value.is_neg() or value.is_conj())
    return memory_of(value) if is_plain else None


def buffers_of(modules: Iterable[nn.Module]) -> list[Holder]:
    """Return the dictionaries that hold the buffers of modules and of their parts."""
    return [part._buffers for module in modules for part in module.modules()]  # type: ignore[misc]
