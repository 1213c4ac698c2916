"""Resize and grid sampling."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from torchtrt_bridge.reference.layer import Layer
from torchtrt_bridge.reference.registry import Compute, in_float32, reads

_ROUNDINGS: dict[str, Callable[[Tensor], Tensor]] = {
    "HALF_UP": lambda x: torch.floor(x + 0.5),
    "HALF_DOWN": lambda x: torch.ceil(x - 0.5),
    "FLOOR": torch.floor,
    "CEIL": torch.ceil,
}


@dataclass(frozen=True)
class Resampling:
    """The mapping and weights of positions along one dimension of a resize layer."""

    mode: str
    coordinates: str
    selector: str
    rounding: str
    cubic_coefficient: float
    excludes_outside: bool

    def positions(self, old: int, new: int) -> Tensor:
        """Return the position of each new element among the old ones, as float32."""
        x = torch.arange(new, dtype=torch.float32)
        if new < 2 and self.selector == "UPPER":
            return torch.zeros_like(x)
        if self.coordinates == "ALIGN_CORNERS":
            return x * ((old - 1) / (new - 1)) if new > 1 else torch.zeros_like(x)
        ratio = torch.tensor(old / new, dtype=torch.float32)
        return (x + 0.5) * ratio - 0.5 if self.coordinates == "HALF_PIXEL" else x * ratio

    def along(self, x: Tensor, axis: int, new: int) -> Tensor:
        """Resize `x` along one dimension."""
        old = x.shape[axis]
        positions = self.positions(old, new)
        if self.mode == "NEAREST":
            return x.index_select(axis, _ROUNDINGS[self.rounding](positions).long().clamp(0, old - 1))
        first = torch.floor(positions)
        taps, weights = self._taps(positions - first)
        index = first.long() + taps.reshape(-1, 1)
        if self.excludes_outside:
            weights = weights * ((index >= 0) & (index < old))
            weights = weights / weights.sum(0)
        index = index.clamp(0, old - 1)
        shape = [-1] + [1] * (x.dim() - axis - 1)
        parts = [x.index_select(axis, at) * w.reshape(shape) for at, w in zip(index, weights, strict=True)]
        return torch.stack(parts).sum(0)

    def _taps(self, fraction: Tensor) -> tuple[Tensor, Tensor]:
        """Return offsets from the element at or before a position, and their weights by the distance past it."""
        if self.mode == "LINEAR":
            return torch.tensor([0, 1]), torch.stack([1 - fraction, fraction])
        taps = torch.tensor([-1, 0, 1, 2])
        return taps, _cubic_weight((fraction - taps.reshape(-1, 1)).abs(), self.cubic_coefficient)


def _cubic_weight(distance: Tensor, a: float) -> Tensor:
    """Evaluate the cubic convolution kernel of Keys (1981)."""
    near = ((a + 2) * distance - (a + 3)) * distance * distance + 1
    far = ((a * distance - 5 * a) * distance + 8 * a) * distance - 4 * a
    return torch.where(distance <= 1, near, torch.where(distance < 2, far, torch.zeros_like(far)))


@reads("RESIZE")
def resize(layer: Layer) -> Compute:
    """Resize dimension by dimension. The new sizes are an input, an attribute, or the old ones times scales."""
    resampling = Resampling(
        mode=layer.option("resize_mode", "NEAREST"),
        coordinates=layer.option("coordinate_transformation", "ASYMMETRIC"),
        selector=layer.option("selector_for_single_pixel", "FORMULA"),
        rounding=layer.option("nearest_rounding", "FLOOR"),
        cubic_coefficient=float(layer.raw.cubic_coeff),
        excludes_outside=bool(layer.raw.exclude_outside),
    )
    # TensorRT logs an error when asked for the shape of a layer that gets it from an input.
    dims = None if layer.has_input(1) else layer.dims("shape")
    scales = list(layer.raw.scales or [])

    def compute(x: Tensor, sizes: Tensor | None = None) -> Tensor:
        target = dims if sizes is None else tuple(sizes.tolist())
        if target is None:
            target = tuple(int(size * scale) for size, scale in zip(x.shape, scales, strict=True))
        for axis, new in enumerate(target):
            x = x if x.shape[axis] == new else resampling.along(x, axis, new)
        return x

    return compute if resampling.mode == "NEAREST" else in_float32(compute)


_INTERPOLATIONS = {"NEAREST": "nearest", "LINEAR": "bilinear", "CUBIC": "bicubic"}
_BORDERS = {"FILL": "zeros", "CLAMP": "border", "REFLECT": "reflection"}


@reads("GRID_SAMPLE")
def grid_sample(layer: Layer) -> Compute:
    mode = _INTERPOLATIONS[layer.raw.interpolation_mode.name]
    border = _BORDERS[layer.raw.sample_mode.name]
    align = bool(layer.raw.align_corners)
    return in_float32(lambda x, grid: F.grid_sample(x, grid, mode, border, align))
