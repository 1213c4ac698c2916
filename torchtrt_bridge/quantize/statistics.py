"""Statistics of the activations that layers read, over all batches, in memory that does not grow with these."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from torchtrt_bridge.errors import CalibrationError

# Bins of the histogram of absolute values. Merging neighbours doubles its range, so at least half of them are in use.
BINS = 4096

# Values beyond it are infinity to every layer.
LARGEST_VALUE = torch.finfo(torch.float32).max

# The part by which numbers of a file may differ that are equal but for rounding.
ROUNDING = 1e-4

# The weight of a new batch in the moving average of the absolute maximum.
NEWEST = 0.1


class NonFiniteError(Exception):
    """A tensor holds NaN or infinity."""


def check_finite(x: Tensor) -> None:
    """Raise NonFiniteError for a tensor that holds NaN or infinity."""
    if x.numel() and not all(math.isfinite(float(end)) for end in torch.aminmax(x)):
        raise NonFiniteError


class Statistics:
    """Absolute maximum, its moving average, a histogram of absolute values, and maximum and mean of each channel.

    channel_dim: the dimension of the channels; None where no layer needs these apart.
    limit: the upper end of the histogram's last bin.
    thresholds: those computed so far, by range method, dtype and percentile.
    All range methods compute from these numbers, so one pass over the data serves each of them.
    """

    def __init__(self, channel_dim: int | None) -> None:
        self.channel_dim = channel_dim
        self.absmax = 0.0
        self.moving = 0.0
        self.limit = 0.0
        self.batches = 0
        self.counts: Tensor | None = None
        self.channel_max: Tensor | None = None
        self._channel_sum: Tensor | None = None
        self._rows = 0
        self.thresholds: dict[Any, float] = {}

    def update(self, x: Tensor) -> None:
        """Add one batch; NonFiniteError for NaN and infinity."""
        if x.numel() == 0:
            return
        x = x.detach()
        low, high = self._extremes(x)
        peak = max(-float(low.min()), float(high.max()))
        if not peak <= LARGEST_VALUE:
            raise NonFiniteError
        self.moving = peak if self.batches == 0 else self.moving + NEWEST * (peak - self.moving)
        self.absmax = max(self.absmax, peak)
        self.batches += 1
        self.thresholds.clear()
        self._count(x.float() if float(low.min()) >= 0 else x.float().abs(), peak)
        if self.channel_dim is not None:
            self._add_channels(x, torch.maximum(high, -low).float())

    def _extremes(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the smallest and the largest value, of each channel where there is a channel dimension."""
        others = self._other_dims(x)
        if others:
            return x.amin(others), x.amax(others)
        low, high = torch.aminmax(x)
        return low, high

    def _other_dims(self, x: Tensor) -> list[int]:
        if self.channel_dim is None:
            return []
        return [dim for dim in range(x.dim()) if dim != self.channel_dim % x.dim()]

    @property
    def channel_mean(self) -> Tensor | None:
        """The mean of each channel over all batches."""
        return None if self._channel_sum is None else self._channel_sum / self._rows

    def _count(self, magnitudes: Tensor, peak: float) -> None:
        if self.counts is None:
            self.counts = torch.zeros(BINS, dtype=torch.float64, device=magnitudes.device)
        if peak == 0:
            self.counts[0] += magnitudes.numel()
            return
        if self.limit == 0:
            self.limit = peak
        while self.limit < peak:
            pairs = self.counts.view(-1, 2).sum(1)
            self.counts = torch.cat((pairs, torch.zeros_like(pairs)))
            self.limit *= 2
        counted = torch.histc(magnitudes, BINS, 0.0, self.limit).double()
        # A limit that rounds down to float32 would leave out the peak itself.
        counted[-1] += magnitudes.numel() - counted.sum()
        self.counts += counted

    def _add_channels(self, x: Tensor, peaks: Tensor) -> None:
        total = x.sum(self._other_dims(x), dtype=torch.float32).double()
        if self.channel_max is None or self._channel_sum is None:
            self.channel_max, self._channel_sum = peaks, total
        else:
            self.channel_max = torch.maximum(self.channel_max, peaks)
            self._channel_sum += total
        self._rows += x.numel() // total.numel()

    def to_dict(self) -> dict[str, Any]:
        """Return the statistics as a calibration file holds them."""
        return {
            "channel_dim": self.channel_dim,
            "absmax": self.absmax,
            "moving": self.moving,
            "limit": self.limit,
            "batches": self.batches,
            "counts": _listed(self.counts),
            "channel_max": _listed(self.channel_max),
            "channel_sum": _listed(self._channel_sum),
            "rows": self._rows,
        }

    @classmethod
    def from_dict(cls, content: dict[str, Any], device: torch.device) -> Statistics:
        """Read what `to_dict` returned; CalibrationError for anything else."""
        try:
            made = cls(content["channel_dim"])
            made.absmax, made.moving = float(content["absmax"]), float(content["moving"])
            made.limit, made.batches, made._rows = float(content["limit"]), content["batches"], content["rows"]
            made.counts = _tensor(content["counts"], torch.float64, device)
            made.channel_max = _tensor(content["channel_max"], torch.float32, device)
            made._channel_sum = _tensor(content["channel_sum"], torch.float64, device)
            fault = next(made._faults(), None)
        except (KeyError, TypeError, ValueError, OverflowError, RuntimeError) as error:
            raise CalibrationError(f"The calibration file's statistics are damaged: {error!r}. Delete it.") from error
        if fault is not None:
            raise CalibrationError(f"The calibration file's statistics are damaged: {fault}. Delete it.")
        return made

    def check_channels(self, channel_dim: int | None, count: int | None) -> None:
        """Raise CalibrationError for channels along another dimension, or another number of them."""
        if self.batches == 0:
            return
        known = None if self.channel_max is None else len(self.channel_max)
        if (self.channel_dim, known) != (channel_dim, count):
            raise CalibrationError(
                f"The calibration file's statistics are damaged: they are of {known} channels along dimension "
                f"{self.channel_dim}, and the layer reads {count} along {channel_dim}. Delete it."
            )

    def _faults(self) -> Iterator[str]:
        """Yield what no batches could have given."""
        if self.to_dict() == Statistics(self.channel_dim).to_dict():
            return  # only empty batches reached the layer
        if not (type(self.batches) is int and self.batches > 0 and type(self._rows) is int and self._rows >= 0):
            yield f"they are of {self.batches!r} batches and {self._rows!r} rows"
        if not 0 <= self.absmax <= LARGEST_VALUE:
            yield f"the largest value is {self.absmax}"
        if not 0 <= self.moving <= self.absmax * (1 + ROUNDING) or (self.moving == 0 < self.absmax):
            yield f"the moving average of the largest value is {self.moving}, and that value {self.absmax}"
        if not self.absmax * (1 - ROUNDING) <= self.limit <= self.absmax * 2 * (1 + ROUNDING):
            yield f"the histogram ends at {self.limit}, and the largest value is {self.absmax}"
        if self.counts is None or self.counts.shape != (BINS,) or not _is_between(self.counts, 0, LARGEST_VALUE):
            yield f"the histogram does not have {BINS} counts of zero or more"
        elif not self.counts.any() or (self.absmax == 0 and self.counts[1:].any()):
            yield "the histogram counts no value, or others than zero"
        yield from self._channel_faults()

    def _channel_faults(self) -> Iterator[str]:
        peaks, sums = self.channel_max, self._channel_sum
        if not (self.channel_dim is None or type(self.channel_dim) is int):
            yield f"the dimension of the channels is {self.channel_dim!r}"
        if peaks is None and sums is None and self.channel_dim is None:
            return
        if peaks is None or sums is None or peaks.dim() != 1 or peaks.shape != sums.shape or not self._rows:
            yield "the channels' largest values and sums do not fit each other"
        elif not _is_between(peaks, 0, self.absmax * (1 + ROUNDING)) or peaks.max() < self.absmax * (1 - ROUNDING):
            yield f"a channel's largest value is not of 0 to {self.absmax}, that of all"
        elif not _is_between(sums.abs(), 0, self.absmax * self._rows * (1 + ROUNDING)):
            yield f"a channel's sum is not that of {self._rows} values up to {self.absmax}"


def _is_between(values: Tensor, least: float, most: float) -> bool:
    return bool(((values >= least) & (values <= most)).all())


def _listed(values: Tensor | None) -> list[float] | None:
    return None if values is None else values.tolist()


def _tensor(values: list[float] | None, dtype: torch.dtype, device: torch.device) -> Tensor | None:
    return None if values is None else torch.tensor(values, dtype=dtype, device=device)


# The statistics of each activation that a layer reads, by the name of the node that computes it.
Observed = dict[str, Statistics]
