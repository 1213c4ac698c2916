"""Settings: what the user may choose of a quantization; checked when built."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from typing import Any, Literal, get_args

from torchtrt_bridge.errors import OptionsError

Observer = Literal["absmax", "moving_average", "percentile", "mse", "entropy"]
Method = Literal["auto", "absmax", "moving_average", "percentile", "mse", "entropy"]
Kind = Literal["int8", "fp8", "int4"]
Auto = Literal["auto"]

OBSERVERS: tuple[Observer, ...] = get_args(Observer)

# The relative error of the outputs up to which method="auto" leaves every layer quantized. For embeddings of length
# one it is a cosine of 0.9992.
AUTO_MAX_ERROR = 0.04


@dataclasses.dataclass(frozen=True)
class Settings:
    """The keyword arguments of `quantize` that shape its result; it explains them."""

    method: Method = "auto"
    dtype: Kind = "int8"
    skip: tuple[str, ...] = ()
    smooth: float | Auto | None = "auto"
    equalize: bool | Auto = "auto"
    correct_bias: bool | Auto = "auto"
    attention: bool = False
    percentile: float = 99.99
    block_size: int = 128
    max_error: float | Auto | None = "auto"
    max_drop: float | None = None
    sensitivity: bool = False

    def __post_init__(self) -> None:
        _check_choice("method", self.method, get_args(Method))
        _check_choice("dtype", self.dtype, get_args(Kind))
        skip = (self.skip,) if isinstance(self.skip, str) else tuple(self.skip)
        object.__setattr__(self, "skip", skip)
        if not all(isinstance(pattern, str) for pattern in skip):
            raise OptionsError(f"skip takes names of layers, as 'encoder.*.output', not {self.skip!r}.")
        for name in ("equalize", "correct_bias"):
            if getattr(self, name) not in (True, False, "auto"):
                raise OptionsError(f"{name} must be True, False or 'auto', not {getattr(self, name)!r}.")
        _check_number("smooth", self.smooth, 0.0, 1.0, or_else="'auto' or None")
        _check_number("percentile", self.percentile, 50.0, 100.0)
        _check_number("max_error", self.max_error, 0.0, float("inf"), or_else="'auto' or None")
        _check_number("max_drop", self.max_drop, 0.0, float("inf"), or_else="None")
        if not isinstance(self.block_size, int) or self.block_size not in (16, 32, 64, 128):
            raise OptionsError(f"block_size={self.block_size!r}: TensorRT has blocks of 16, 32, 64 and 128 values.")
        if self.dtype == "fp8" and self.method == "entropy":
            raise OptionsError(
                "method='entropy' compares histograms of evenly spaced levels, and those of dtype='fp8' are not. "
                "Take 'mse' or 'percentile'."
            )

    @property
    def observers(self) -> tuple[Observer, ...]:
        """The methods to choose from; the first is the plainest."""
        if self.dtype == "int4":  # its activations stay as they are
            return ("absmax",)
        if self.method != "auto":
            return (self.method,)
        return ("absmax", "percentile", "mse") + (("entropy",) if self.dtype == "int8" else ())

    @property
    def error_limit(self) -> float | None:
        """The relative error above which layers are kept in floating point."""
        if self.max_error == "auto":
            return AUTO_MAX_ERROR if self.method == "auto" and self.dtype != "int4" else None
        return self.max_error

    @property
    def measures(self) -> bool:
        """Whether anything is chosen by its error on batches that are held back from calibration."""
        chosen = (self.method, self.smooth, self.equalize, self.correct_bias)
        return "auto" in chosen or self.error_limit is not None or self.sensitivity or self.max_drop is not None

    @property
    def digest(self) -> str:
        """Differs where the chosen ranges and layers may differ."""
        return hashlib.sha256(json.dumps(dataclasses.asdict(self), sort_keys=True).encode()).hexdigest()[:16]


def _check_choice(name: str, value: object, choices: tuple[Any, ...]) -> None:
    if value not in choices:
        raise OptionsError(f"{name}={value!r} is not a choice. Known: {', '.join(map(str, choices))}.")


def _check_number(name: str, value: object, low: float, high: float, or_else: str = "") -> None:
    if or_else and (value is None or value == "auto") and ("'auto'" in or_else or value is None):
        return
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not is_number or not low <= float(value) <= high:  # type: ignore[arg-type]
        upper = f" to {high:g}" if high != float("inf") else " or more"
        also = f", or {or_else}" if or_else else ""
        raise OptionsError(f"{name}={value!r} must be a number, {low:g}{upper}{also}.")
