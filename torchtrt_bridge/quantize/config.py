"""Settings of a quantization: the public config, and all that shapes a result; both are checked when they are built."""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
from collections.abc import Callable, Mapping
from typing import Any, Literal, TypedDict, get_args

from torchtrt_bridge.errors import OptionsError
from torchtrt_bridge.quantize.ranges import RANGE_METHODS, RangeMethod, compared_methods

Method = Literal["auto"] | RangeMethod
QuantizedType = Literal["int8", "fp8", "int4"]
Auto = Literal["auto"]
Forward = Callable[[Any, Any], Any]

# The relative error of the outputs up to which method="auto" leaves every layer quantized. For embeddings of length
# one it is a cosine of 0.9992.
AUTO_MAX_ERROR = 0.04

# The keywords of `quantize` that shape its result. Calibration files hold a digest of their values by these names.
SHAPING = (
    "method", "dtype", "skip", "smooth", "equalize", "correct_bias", "attention", "percentile", "block_size",
    "max_error", "max_drop", "sensitivity",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class QuantizeConfig:
    """The finer settings of `quantize`, which takes each of them as a keyword too.

    num_batches: the number of batches that are read from the loader; None means all.
    forward: ``forward(model, batch)`` calls the model, for batches that do not tell how.
    max_error: layers stay in floating point until the relative error of the outputs is below this, and that of each
        sample below 1.75 times this; "auto" is 0.04 with method="auto", else None, which leaves every layer quantized.
    smooth: SmoothQuant's alpha for linear layers; "auto" searches it, None leaves SmoothQuant out.
    equalize: scale channels across layers, as depthwise convolutions need it; "auto" measures if it helps.
    correct_bias: take the mean error of rounded weights out of biases; "auto" measures if it helps.
    attention: quantize the two products of attention, and other products of two activations, too.
    percentile: the share of values inside the range, in percent, for method="percentile".
    block_size: the number of weights with one scale, for dtype="int4".
    sensitivity: measure the error of the outputs with each layer quantized by itself, for the report.
    dynamic_shapes: as in `torch.export.export`, to trace the model with; by default the batch size, and the length of
        token ids, are free.
    progress: show a progress bar; None shows it on a terminal only.
    table: print a table of the layers.
    """

    num_batches: int | None = None
    forward: Forward | None = None
    max_error: float | Auto | None = "auto"
    smooth: float | Auto | None = "auto"
    equalize: bool | Auto = "auto"
    correct_bias: bool | Auto = "auto"
    attention: bool = False
    percentile: float = 99.99
    block_size: int = 128
    sensitivity: bool = False
    dynamic_shapes: Any = None
    progress: bool | None = None
    table: bool = True

    def __post_init__(self) -> None:
        for name in ("equalize", "correct_bias"):
            if getattr(self, name) not in (True, False, "auto"):
                raise OptionsError(f"{name} must be True, False or 'auto', not {getattr(self, name)!r}.")
        _check_number("smooth", self.smooth, 0.0, 1.0, or_else="'auto' or None")
        _check_number("percentile", self.percentile, 50.0, 100.0)
        _check_number("max_error", self.max_error, 0.0, float("inf"), or_else="'auto' or None")
        if not isinstance(self.block_size, int) or self.block_size not in (16, 32, 64, 128):
            raise OptionsError(f"block_size={self.block_size!r}: TensorRT has blocks of 16, 32, 64 and 128 values.")
        count = self.num_batches
        if count is not None and (not isinstance(count, int) or count < 1):
            raise OptionsError(f"num_batches={count!r} is no count of batches: 1 or more, or None for all.")


class QuantizeKeywords(TypedDict, total=False):
    """The fields of `QuantizeConfig` as keywords, by which editors complete and check a call of `quantize`."""

    num_batches: int | None
    forward: Forward | None
    max_error: float | Auto | None
    smooth: float | Auto | None
    equalize: bool | Auto
    correct_bias: bool | Auto
    attention: bool
    percentile: float
    block_size: int
    sensitivity: bool
    dynamic_shapes: Any
    progress: bool | None
    table: bool


def config_from(config: QuantizeConfig | None, keywords: Mapping[str, Any]) -> QuantizeConfig:
    """Return the config of a call; OptionsError for an unknown keyword, or for keywords beside a config."""
    known = [field.name for field in dataclasses.fields(QuantizeConfig)]
    for name in keywords:
        if name not in known:
            names = ["method", "dtype", "skip", "evaluate", "max_drop", "calibration", "config", *known]
            near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise OptionsError(f"quantize() has no keyword {name!r}.{hint} Known: {', '.join(names)}.")
    if config is None:
        return QuantizeConfig(**keywords)
    if not isinstance(config, QuantizeConfig):
        raise OptionsError(f"config takes a QuantizeConfig, not a {type(config).__name__}.")
    if keywords:
        name = next(iter(keywords))
        raise OptionsError(
            f"quantize() got config= and {name}={keywords[name]!r}, which the config sets too. Put it into the config: "
            f"dataclasses.replace(config, {name}=...)."
        )
    return config


@dataclasses.dataclass(frozen=True)
class Settings:
    """All that shapes the result of `quantize`, which explains its own parameters."""

    method: Method = "auto"
    dtype: QuantizedType = "int8"
    skip: tuple[str, ...] = ()
    max_drop: float | None = None
    config: QuantizeConfig = dataclasses.field(default_factory=QuantizeConfig)

    def __post_init__(self) -> None:
        _check_choice("method", self.method, ("auto", *RANGE_METHODS))
        _check_choice("dtype", self.dtype, get_args(QuantizedType))
        skip = (self.skip,) if isinstance(self.skip, str) else tuple(self.skip)
        object.__setattr__(self, "skip", skip)
        if not all(isinstance(pattern, str) for pattern in skip):
            raise OptionsError(f"skip takes names of layers, as 'encoder.*.output', not {self.skip!r}.")
        _check_number("max_drop", self.max_drop, 0.0, float("inf"), or_else="None")
        if self.dtype == "fp8" and self.method == "entropy":
            raise OptionsError(
                "method='entropy' compares histograms of evenly spaced levels, and those of dtype='fp8' are not. "
                "Take 'mse' or 'percentile'."
            )

    @property
    def methods(self) -> tuple[RangeMethod, ...]:
        """The range methods to choose from, the plainest first."""
        if self.dtype == "int4":  # its activations are not quantized
            return ("absmax",)
        return compared_methods(self.dtype) if self.method == "auto" else (self.method,)

    @property
    def error_limit(self) -> float | None:
        """The relative error above which layers stay in floating point."""
        if self.config.max_error == "auto":
            return AUTO_MAX_ERROR if self.method == "auto" and self.dtype != "int4" else None
        return self.config.max_error

    @property
    def needs_holdout(self) -> bool:
        """True where something is chosen by its error on batches that calibration does not read."""
        chosen = (self.method, self.config.smooth, self.config.equalize, self.config.correct_bias)
        is_limited = self.error_limit is not None or self.max_drop is not None
        return "auto" in chosen or is_limited or self.config.sensitivity

    @property
    def digest(self) -> str:
        """A text that differs where the chosen ranges and layers may differ."""
        values = {name: getattr(self if hasattr(self, name) else self.config, name) for name in SHAPING}
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


def settings_from(
    method: Method = "auto",
    dtype: QuantizedType = "int8",
    skip: Any = (),
    max_drop: float | None = None,
    config: QuantizeConfig | None = None,
    **keywords: Any,
) -> Settings:
    """Return the checked settings of a call of `quantize`."""
    return Settings(method, dtype, skip, max_drop, config_from(config, keywords))


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
