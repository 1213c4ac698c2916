"""Padding of sliding windows, from the formulas at TensorRT's `PaddingMode`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torchtrt_bridge.reference.layer import Layer


@dataclass(frozen=True)
class Window:
    """A sliding window over the spatial dimensions, as a convolution or pooling layer describes it."""

    mode: str
    size: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    pre: tuple[int, ...]
    post: tuple[int, ...]

    @classmethod
    def from_layer(cls, layer: Layer, size: str) -> Window:
        """Read it from a layer whose attribute `size` has the window's size."""
        sizes = layer.set_dims(size)
        return cls(
            mode=layer.option("padding_mode", "EXPLICIT_ROUND_DOWN"),
            size=sizes,
            stride=layer.set_dims("stride_nd"),
            dilation=layer.dims("dilation_nd") or (1,) * len(sizes),
            pre=layer.set_dims("pre_padding"),
            post=layer.set_dims("post_padding"),
        )

    @property
    def spans(self) -> list[int]:
        """Return the number of elements that a window spans, with its dilation."""
        return [1 + dilation * (size - 1) for dilation, size in zip(self.dilation, self.size, strict=True)]

    def padding(self, image: Sequence[int]) -> list[tuple[int, int, int]]:
        """Return for each dimension: elements before, elements after, and more only to round the output size up."""
        found = []
        for dim, size in enumerate(image):
            span, stride = self.spans[dim], self.stride[dim]
            if self.mode.startswith("SAME"):
                found.append((*_halves(max((size - 1) // stride * stride + span - size, 0), self.mode), 0))
                continue
            before, after = self.pre[dim], self.post[dim]
            rest = (size + before + after - span) % stride
            rounds_up = self.mode == "EXPLICIT_ROUND_UP" and rest
            found.append((before, after, stride - rest if rounds_up else 0))
        return found

    def cropping(self) -> list[tuple[int, int]]:
        """Return for each dimension of a deconvolution's output: elements cut off before and after."""
        if not self.mode.startswith("SAME"):
            return list(zip(self.pre, self.post, strict=True))
        return [_halves(max(span - stride, 0), self.mode) for span, stride in zip(self.spans, self.stride, strict=True)]


def _halves(total: int, mode: str) -> tuple[int, int]:
    small = total // 2
    return (small, total - small) if mode == "SAME_UPPER" else (total - small, small)


def pad_widths(pairs: Sequence[tuple[int, int]]) -> list[int]:
    """Return padding by dimension in the order of `torch.nn.functional.pad`, the last dimension first."""
    return [width for pair in reversed(pairs) for width in pair]
