"""Search: which choice has the least error, and which layers stay in floating point to keep it within a budget."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from torchtrt_bridge.errors import CalibrationError
from torchtrt_bridge.quantize.calibrate import Calibrated
from torchtrt_bridge.quantize.draft import Draft
from torchtrt_bridge.quantize.equalize import equalizable
from torchtrt_bridge.quantize.measure import Judge
from torchtrt_bridge.quantize.place import Choice
from torchtrt_bridge.quantize.progress import Progress
from torchtrt_bridge.quantize.settings import Settings
from torchtrt_bridge.quantize.smooth import ALPHAS, FIRST_ALPHAS, smoothable

# A more complicated choice must have an error this much smaller.
WORTHWHILE = 0.98

# No sample held back may have more than this many times the error that the mean may have. With the limit of
# method="auto" it has 0.07: a cosine of 0.9975.
WORST_SAMPLE = 1.75


@dataclasses.dataclass
class Found:
    """The result of a search.

    error: of the choice, where the ranges leave out the data that it is measured on.
    tried: the error of each choice that was measured with all layers quantized.
    alone: the error of the outputs where one layer alone is quantized; empty where it was not asked for.
    score, float_score: what `evaluate` gave.
    """

    choice: Choice
    error: float | None
    tried: dict[str, float] = dataclasses.field(default_factory=dict)
    alone: dict[str, float] = dataclasses.field(default_factory=dict)
    score: float | None = None
    float_score: float | None = None
    notes: list[str] = dataclasses.field(default_factory=list)


class Search:
    """Chooses one thing after the other, each by its error on batches that were held back."""

    def __init__(self, calibrated: Calibrated, settings: Settings, progress: Progress) -> None:
        self.calibrated, self.settings, self.progress = calibrated, settings, progress
        self.judge = Judge(calibrated, settings)
        draft = Draft(calibrated.graph.module, calibrated.layers, frozenset(), calibrated.observed)
        self.can_equalize = settings.dtype != "int4" and bool(equalizable(draft))
        self.can_smooth = settings.dtype != "int4" and bool(smoothable(draft))
        self.found = Found(plain_choice(settings), None)

    def run(self, evaluate: Callable[[Choice | None], float] | None) -> Found:
        """The best choice; `evaluate` gives the score of a choice, and of the float model for None."""
        found = self.found
        found.choice = self._best_choice(found.choice)
        limit = self.settings.error_limit
        if self.settings.sensitivity:
            self._measure_alone(found.choice)
        is_by_score = evaluate is not None and self.settings.max_drop is not None
        if limit is not None and not is_by_score and not self._is_within(found.choice, limit):
            self._keep_error(limit)
        found.error = self.judge.error(found.choice)
        self.calibrated.count_held()  # before the score, which is that of the result
        if evaluate is not None:
            self._score(evaluate)
        return found

    def _score(self, evaluate: Callable[[Choice | None], float]) -> None:
        found = self.found
        if self.settings.max_drop is None:
            found.float_score, found.score = evaluate(None), evaluate(found.choice)
            return
        chosen = found.choice
        self._keep_score(evaluate, self.settings.max_drop)
        if found.choice != chosen:
            found.error = self.judge.error(found.choice)

    def _best_choice(self, choice: Choice) -> Choice:
        choice = self._best("method", [dataclasses.replace(choice, method=m) for m in self.settings.observers])
        if self.can_equalize and self.settings.equalize == "auto":
            choice = self._best("equalize", [choice, dataclasses.replace(choice, equalize=True)])
        if self.can_smooth and self.settings.smooth == "auto":
            choice = self._smoothed(choice)
        if self.settings.correct_bias == "auto":
            choice = self._best("correct_bias", [choice, dataclasses.replace(choice, correct_bias=True)])
        return choice

    def _best(self, what: str, choices: Sequence[Choice]) -> Choice:
        """The choice of the least error; the first one, unless another is worthwhile."""
        if len(choices) == 1:
            return choices[0]
        for choice in self.progress.track(choices, f"measuring {what}", len(choices)):
            self._tried(choice)
        best = min(choices, key=self.judge.error)
        return best if self.judge.error(best) < WORTHWHILE * self.judge.error(choices[0]) else choices[0]

    def _smoothed(self, choice: Choice) -> Choice:
        """The choice with the alpha from which neither neighbour is better, or without smoothing."""
        best = self._best("smooth", [choice, *(dataclasses.replace(choice, alpha=alpha) for alpha in FIRST_ALPHAS)])
        while best.alpha is not None:
            index = ALPHAS.index(best.alpha)
            near = [best, *(dataclasses.replace(choice, alpha=a) for a in ALPHAS[max(index - 1, 0) : index + 2])]
            better = min(near, key=lambda each: self._tried(each))
            if better == best:
                break
            best = better
        return best

    def _tried(self, choice: Choice) -> float:
        self.found.tried[str(choice)] = self.judge.error(choice)
        return self.judge.error(choice)

    # Layers that stay in floating point ---------------------------------------------------------------------------

    def _measure_alone(self, choice: Choice) -> None:
        if self.found.alone:
            return
        layers = self.calibrated.layers
        for layer in self.progress.track(layers, "measuring each layer alone", len(layers)):
            self.found.alone[layer.name] = self.judge.sensitivity(choice, layer.name)

    def _worst_first(self) -> list[str]:
        self._measure_alone(self.found.choice)
        return sorted(self.found.alone, key=lambda name: -self.found.alone[name])

    def _keep_error(self, limit: float) -> None:
        """Keep the fewest of the layers that are worst alone.

        Quantizing some of them again, as for a score, would use up the limit to the last on these batches, and go
        beyond it on others: of MiniLM's 36 layers, 30 instead of 24, and six in place of one of 141 sentences.
        """
        names, choice = self._worst_first(), self.found.choice
        count = _least(lambda count: self._is_within(_keeping(choice, names[:count]), limit), len(names))
        self.found.choice = _keeping(choice, names[:count])

    def _is_within(self, choice: Choice, limit: float) -> bool:
        return self.judge.error(choice) <= limit and self.judge.worst(choice) <= WORST_SAMPLE * limit

    def _keep_score(self, evaluate: Callable[[Choice | None], float], max_drop: float) -> None:
        """Keep the fewest of the layers that are worst alone; then try to quantize each of these again."""
        found, scores = self.found, {}
        found.float_score = evaluate(None)

        def score(choice: Choice) -> float:
            if choice not in scores:
                scores[choice] = evaluate(choice)
            return scores[choice]

        def is_enough(kept: Iterable[str]) -> bool:
            assert found.float_score is not None
            return found.float_score - score(_keeping(found.choice, kept)) <= max_drop

        if not is_enough(()):
            names = self._worst_first()
            kept = names[: _least(lambda count: is_enough(names[:count]), len(names))]
            for name in self.progress.track(kept[::-1], "quantizing again", len(kept)):
                fewer = [other for other in kept if other != name]
                kept = fewer if is_enough(fewer) else kept
            found.choice = _keeping(found.choice, kept)
        found.score = score(found.choice)


def plain_choice(settings: Settings) -> Choice:
    """What is settled without measuring; the rest is left out."""
    return Choice(
        settings.observers[0],
        None if settings.smooth in (None, "auto") else float(settings.smooth),
        settings.equalize is True,
        settings.correct_bias is True,
    )


def _keeping(choice: Choice, names: Iterable[str]) -> Choice:
    return dataclasses.replace(choice, kept=frozenset(names))


def _least(is_enough: Callable[[int], bool], most: int) -> int:
    """The least count that is enough, where more of them never make it worse; `most` always is."""
    low, high = 0, most
    while low < high:
        middle = (low + high) // 2
        if is_enough(middle):
            high = middle
        else:
            low = middle + 1
    return high


def checked_score(score: Any) -> float:
    """What a user's `evaluate` gave, as a number."""
    try:
        number = float(score)
    except (TypeError, ValueError) as error:
        raise CalibrationError(f"evaluate(model) must give a number, the higher the better, not {score!r}.") from error
    if math.isnan(number):
        raise CalibrationError("evaluate(model) gave NaN, which is neither higher nor lower than another score.")
    return number
