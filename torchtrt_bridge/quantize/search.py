"""The search for the choice with the least error, and for the layers that must stay in floating point for a limit."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from torchtrt_bridge.errors import CalibrationError
from torchtrt_bridge.quantize.calibration import CalibrationResult
from torchtrt_bridge.quantize.config import Settings
from torchtrt_bridge.quantize.graph_rewrite import GraphRewrite
from torchtrt_bridge.quantize.qdq import Choice, insert_qdq
from torchtrt_bridge.quantize.rescaling import ALPHAS, FIRST_ALPHAS, equalizable, smoothable
from torchtrt_bridge.report.progress import LoopProgress

# A more complicated choice must have an error this much smaller.
WORTHWHILE = 0.98

# No sample of the holdout may have more than this many times the error that the mean may have. With the limit of
# method="auto" it has 0.07: a cosine of 0.9975.
WORST_SAMPLE = 1.75

# Of each output at most so many values are compared, evenly spaced.
MOST_VALUES = 2**18

# The sensitivity of a layer is measured on so many batches of the holdout.
SENSITIVITY_BATCHES = 2


@dataclasses.dataclass
class SearchResult:
    """The result of a search.

    error: of the choice on the holdout, with ranges from the other batches.
    tried: the error of each choice that was measured with all layers quantized.
    sensitivity: by layer, the error of the outputs with no other layer quantized; empty where it was not measured.
    score, float_score: the user's score of the quantized model and of the float model.
    """

    choice: Choice
    error: float | None
    tried: dict[str, float] = dataclasses.field(default_factory=dict)
    sensitivity: dict[str, float] = dataclasses.field(default_factory=dict)
    score: float | None = None
    float_score: float | None = None
    notes: list[str] = dataclasses.field(default_factory=list)


class Search:
    """The search: one setting after the other is chosen, each by its error on the holdout."""

    def __init__(self, calibrated: CalibrationResult, settings: Settings, progress: LoopProgress) -> None:
        self.calibrated, self.settings, self.progress = calibrated, settings, progress
        self.meter = AccuracyMeter(calibrated, settings)
        rewrite = GraphRewrite(calibrated.graph.module, calibrated.layers, frozenset(), calibrated.observed)
        self.can_equalize = settings.dtype != "int4" and bool(equalizable(rewrite))
        self.can_smooth = settings.dtype != "int4" and bool(smoothable(rewrite))
        self.found = SearchResult(plain_choice(settings), None)

    def run(self, evaluate: Callable[[Choice | None], float] | None) -> SearchResult:
        """Return the best choice; `evaluate` scores a choice, and the float model for None."""
        found = self.found
        found.choice = self._best_choice(found.choice)
        limit = self.settings.error_limit
        if self.settings.config.sensitivity:
            self._measure_sensitivity(found.choice)
        is_by_score = evaluate is not None and self.settings.max_drop is not None
        if limit is not None and not is_by_score and not self._is_within(found.choice, limit):
            self._limit_error(limit)
        found.error = self.meter.error(found.choice)
        self.calibrated.count_holdout()  # before the score, which is that of the result
        if evaluate is not None:
            self._score(evaluate)
        return found

    def _score(self, evaluate: Callable[[Choice | None], float]) -> None:
        found = self.found
        if self.settings.max_drop is None:
            found.float_score, found.score = evaluate(None), evaluate(found.choice)
            return
        chosen = found.choice
        self._limit_drop(evaluate, self.settings.max_drop)
        if found.choice != chosen:
            found.error = self.meter.error(found.choice)

    def _best_choice(self, choice: Choice) -> Choice:
        choice = self._best("method", [dataclasses.replace(choice, method=m) for m in self.settings.methods])
        if self.can_equalize and self.settings.config.equalize == "auto":
            choice = self._best("equalize", [choice, dataclasses.replace(choice, equalize=True)])
        if self.can_smooth and self.settings.config.smooth == "auto":
            choice = self._smoothed(choice)
        if self.settings.config.correct_bias == "auto":
            choice = self._best("correct_bias", [choice, dataclasses.replace(choice, correct_bias=True)])
        return choice

    def _best(self, setting: str, choices: Sequence[Choice]) -> Choice:
        """Return the choice of the least error; the first one, unless another is worthwhile."""
        if len(choices) == 1:
            return choices[0]
        for choice in self.progress.track(choices, f"measuring {setting}", len(choices)):
            self._measure(choice)
        best = min(choices, key=self.meter.error)
        return best if self.meter.error(best) < WORTHWHILE * self.meter.error(choices[0]) else choices[0]

    def _smoothed(self, choice: Choice) -> Choice:
        """Return the choice with an alpha whose neighbours are no better, or without smoothing."""
        best = self._best("smooth", [choice, *(dataclasses.replace(choice, alpha=alpha) for alpha in FIRST_ALPHAS)])
        while best.alpha is not None:
            index = ALPHAS.index(best.alpha)
            near = [best, *(dataclasses.replace(choice, alpha=a) for a in ALPHAS[max(index - 1, 0) : index + 2])]
            better = min(near, key=self._measure)
            if better == best:
                break
            best = better
        return best

    def _measure(self, choice: Choice) -> float:
        """Measure the error of a choice, for the report too."""
        self.found.tried[str(choice)] = self.meter.error(choice)
        return self.meter.error(choice)

    # Layers that stay in floating point ---------------------------------------------------------------------------

    def _measure_sensitivity(self, choice: Choice) -> None:
        """Measure the error of the outputs for each layer, quantized as in `choice` with no other layer; once."""
        if self.found.sensitivity:
            return
        layers = self.calibrated.layers
        for layer in self.progress.track(layers, "measuring each layer alone", len(layers)):
            self.found.sensitivity[layer.name] = self.meter.sensitivity(choice, layer.name)

    def _most_sensitive_first(self) -> list[str]:
        self._measure_sensitivity(self.found.choice)
        return sorted(self.found.sensitivity, key=lambda name: -self.found.sensitivity[name])

    def _limit_error(self, limit: float) -> None:
        """Leave the fewest of the most sensitive layers in floating point.

        Where that leaves all, those that do most to their worst sample come first: one layer may be the cause of it
        that does little to the mean.
        Quantizing some of them again, as for a score, would use up the limit to the last on these batches, and go
        beyond it on others: of MiniLM's 36 layers, 30 instead of 24, and six in place of one of 141 sentences.
        """
        choice = self.found.choice
        names = self._most_sensitive_first()
        floats = self._fewest(names, limit)
        if len(floats) == len(names):
            names = self._worst_sample_first()
            floats = self._fewest(names, limit)
        self.found.choice = _with_float(choice, floats)
        if len(floats) < len(names):
            return
        alone = self.meter.alone(choice, names[-1])
        self.found.notes.append(
            f"No layer is quantized: with {names[-1]} alone in {self.settings.dtype} the error is {alone.mean:.2g}, "
            f"and {alone.worst:.2g} of one sample, above max_error={limit:g} or {WORST_SAMPLE} times that. A larger "
            "max_error lets some be quantized, None all."
        )

    def _fewest(self, names: Sequence[str], limit: float) -> Sequence[str]:
        """Return the shortest beginning of `names` that is enough to leave in floating point."""
        choice = self.found.choice
        return names[: _least(lambda count: self._is_within(_with_float(choice, names[:count]), limit), len(names))]

    def _worst_sample_first(self) -> list[str]:
        names = [layer.name for layer in self.calibrated.layers]
        return sorted(names, key=lambda name: -self.meter.alone(self.found.choice, name).worst)

    def _is_within(self, choice: Choice, limit: float) -> bool:
        return self.meter.error(choice) <= limit and self.meter.worst(choice) <= WORST_SAMPLE * limit

    def _limit_drop(self, evaluate: Callable[[Choice | None], float], max_drop: float) -> None:
        """Leave the fewest of the most sensitive layers in floating point; then try to quantize each of these again."""
        found, scores = self.found, {}
        found.float_score = evaluate(None)

        def score(choice: Choice) -> float:
            if choice not in scores:
                scores[choice] = evaluate(choice)
            return scores[choice]

        def is_enough(float_layers: Iterable[str]) -> bool:
            assert found.float_score is not None
            return found.float_score - score(_with_float(found.choice, float_layers)) <= max_drop

        if not is_enough(()):
            names = self._most_sensitive_first()
            floats = names[: _least(lambda count: is_enough(names[:count]), len(names))]
            for name in self.progress.track(floats[::-1], "quantizing again", len(floats)):
                fewer = [other for other in floats if other != name]
                floats = fewer if is_enough(fewer) else floats
            found.choice = _with_float(found.choice, floats)
        found.score = score(found.choice)


def plain_choice(settings: Settings) -> Choice:
    """Return the choice that needs no measuring: "auto" settings are left out."""
    config = settings.config
    alpha = None if config.smooth in (None, "auto") else float(config.smooth)
    return Choice(settings.methods[0], alpha, config.equalize is True, config.correct_bias is True)


def _with_float(choice: Choice, names: Iterable[str]) -> Choice:
    return dataclasses.replace(choice, float_layers=frozenset(names))


def _least(is_enough: Callable[[int], bool], most: int) -> int:
    """Return the least count that is enough, where more never make it worse and `most` always is."""
    low, high = 0, most
    while low < high:
        middle = (low + high) // 2
        if is_enough(middle):
            high = middle
        else:
            low = middle + 1
    return high


def checked_score(score: Any) -> float:
    """Return the result of a user's `evaluate` as a number."""
    try:
        number = float(score)
    except (TypeError, ValueError) as error:
        raise CalibrationError(f"evaluate(model) must give a number, the higher the better, not {score!r}.") from error
    if math.isnan(number):
        raise CalibrationError("evaluate(model) gave NaN, which is neither higher nor lower than another score.")
    return number


# Accuracy -------------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Errors:
    """Relative errors ||quantized - float|| / ||float||: the mean over outputs, and that of the worst sample."""

    mean: float
    worst: float


class AccuracyMeter:
    """Meter of errors against the float graph's outputs for the holdout."""

    def __init__(self, calibrated: CalibrationResult, settings: Settings) -> None:
        self.calibrated, self.settings = calibrated, settings
        self.known: dict[Choice, Errors] = {}
        self._expected = [_outputs(calibrated.graph.module, inputs) for inputs in calibrated.holdout]

    def error(self, choice: Choice) -> float:
        """Return the relative error of a choice, the mean over outputs."""
        return self._errors(choice).mean

    def worst(self, choice: Choice) -> float:
        """Return the relative error of the worst sample of a choice."""
        return self._errors(choice).worst

    def _errors(self, choice: Choice) -> Errors:
        if choice not in self.known:
            self.known[choice] = self._errors_of(choice, len(self._expected))
        return self.known[choice]

    def _errors_of(self, choice: Choice, batches: int) -> Errors:
        module = insert_qdq(self.calibrated, choice, self.settings, simulate=True).module
        differences: dict[int, list[Tensor]] = {}
        sizes: dict[int, list[Tensor]] = {}
        for inputs, expected in zip(self.calibrated.holdout[:batches], self._expected, strict=False):
            for index, (found, wanted) in enumerate(zip(_outputs(module, inputs), expected, strict=True)):
                differences.setdefault(index, []).append((found - wanted).square().sum(1))
                sizes.setdefault(index, []).append(wanted.square().sum(1))
        _free_weights(module)
        found_errors = [_errors(torch.cat(differences[i]), torch.cat(sizes[i])) for i in sizes]
        if not found_errors:
            return Errors(0.0, 0.0)
        mean = sum(each.mean for each in found_errors) / len(found_errors)
        worst = max(each.worst for each in found_errors)
        return Errors(mean if math.isfinite(mean) else math.inf, worst if math.isfinite(worst) else math.inf)

    def sensitivity(self, choice: Choice, name: str) -> float:
        """Return the error of the outputs where one layer is quantized as in `choice`, and no other."""
        return self._errors_of(self._alone(choice, name), SENSITIVITY_BATCHES).mean

    def alone(self, choice: Choice, name: str) -> Errors:
        """Return the errors on the whole holdout where one layer is quantized as in `choice`, and no other."""
        return self._errors(self._alone(choice, name))

    def _alone(self, choice: Choice, name: str) -> Choice:
        return _with_float(choice, (layer.name for layer in self.calibrated.layers if layer.name != name))


def _errors(differences: Tensor, sizes: Tensor) -> Errors:
    """Compute the errors of one output from the squared L2 norms of its samples' differences and of the samples.

    A sample smaller than the others is compared with their mean size. The sums are of all batches, whose outputs need
    not fit into memory together; `relative_distance` is of two tensors.
    """
    if not float(sizes.sum()):
        error = float(float(differences.sum()) > 0)
        return Errors(error, error)
    samples = differences / sizes.clamp(min=float(sizes.mean()))
    return Errors(math.sqrt(float(differences.sum() / sizes.sum())), math.sqrt(float(samples.max())))


def _outputs(module: fx.GraphModule, inputs: Sequence[Any]) -> list[Tensor]:
    """Compute the floating point outputs, thinned out, with a row for each sample."""
    with torch.no_grad():
        outputs = module(*inputs)
    samples = next((v.shape[0] for v in inputs if isinstance(v, torch.Tensor) and v.dim() > 1), None)
    return [_thinned(v, samples) for v in outputs if isinstance(v, torch.Tensor) and v.is_floating_point()]


def _free_weights(module: fx.GraphModule) -> None:
    """Free the weights of a graph at once: its nodes refer to each other, and would wait for the garbage collector."""
    for name, _ in list(module.named_buffers(recurse=False)):
        delattr(module, name)


def _thinned(value: Tensor, samples: int | None) -> Tensor:
    """Return evenly spaced values, a row for each sample.

    There is one row where the first dimension is not that of the samples, or a sample has one value only.
    """
    rows = value.flatten(1) if value.dim() > 1 and value.shape[0] == samples else value.reshape(1, -1)
    step = -(-value.numel() // MOST_VALUES) or 1
    return rows[:, ::step].double()
