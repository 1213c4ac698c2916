"""From a model and a loader to a quantized model: the public call."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from torchtrt_bridge.capture.transformers_classes import generates
from torchtrt_bridge.errors import CalibrationError, OptionsError
from torchtrt_bridge.graph.edit import own_constants
from torchtrt_bridge.quantize import calibration_file
from torchtrt_bridge.quantize.calibration import Calibration, CalibrationResult, check_channels, new_statistics
from torchtrt_bridge.quantize.calibration_file import CalibrationFile
from torchtrt_bridge.quantize.config import Method, QuantizeConfig, QuantizedType, QuantizeKeywords, settings_from
from torchtrt_bridge.quantize.decoder import decoder_from
from torchtrt_bridge.quantize.model import QuantizedModel, model_from, report_from
from torchtrt_bridge.quantize.qdq import Choice, insert_qdq
from torchtrt_bridge.quantize.search import Search, SearchResult, checked_score, plain_choice
from torchtrt_bridge.report.progress import LoopProgress

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from torchtrt_bridge.quantize.config import Settings

Evaluate = Callable[[nn.Module], float]


def quantize(
    model: nn.Module,
    loader: Iterable[Any] | None = None,
    *,
    method: Method = "auto",
    dtype: QuantizedType = "int8",
    skip: Sequence[str] = (),
    evaluate: Evaluate | None = None,
    max_drop: float | None = None,
    calibration: str | Path | None = None,
    config: QuantizeConfig | None = None,
    **keywords: Unpack[QuantizeKeywords],
) -> QuantizedModel | Any:
    """Quantize `model` after training, with ranges from the batches of `loader`, which is read once.

    loader: yields tensors, tuples, mappings, or pairs of these with labels, which are left out; None where
        `calibration` names a file that has it all.
    method: the way in which the range of an activation is found: its absolute maximum, the moving average of the
        batches' maxima, a percentile, the least mean squared error, or the least KL divergence ("entropy"). "auto"
        measures which is best.
    dtype: "int8"; "fp8" (E4M3, compute capability 8.9 or newer); "int4", of the weights of linear layers only.
    skip: names of layers to leave in floating point, of modules around them, or patterns of names (``"head.*"``).
    evaluate: ``evaluate(model)`` gives a score, the higher the better. With `max_drop`, the largest loss of it to
        accept, the fewest layers are kept in floating point.
    calibration: a JSON file for what was found. Where it exists, and belongs to this model, no data is read.
    config: the finer settings, a `QuantizeConfig`. keywords: its fields, one by one, in place of it:
        ``quantize(model, loader, smooth=None)``.

    Returns a `QuantizedModel`; for a model of transformers with `generate` a model of its class, whose linear layers
    are quantized, and whose attribute `quantization` is the report.
    What "auto" chooses has the least error of the outputs on a holdout: one batch in four, four at most. In the end
    these batches count for the ranges too.
    Raises CalibrationError for data or a file that cannot be used, OptionsError for a wrong option.
    """
    settings = settings_from(method, dtype, skip, max_drop, config, **keywords)
    if not isinstance(model, nn.Module) or isinstance(model, torch.jit.ScriptModule):
        raise CalibrationError(f"quantize() takes an nn.Module written in Python, not {type(model).__name__}.")
    if max_drop is not None and evaluate is None:
        raise CalibrationError("max_drop needs evaluate=, a function that gives the score of a model.")
    path = None if calibration is None else Path(calibration)
    with _in_evaluation_mode(model) as notes, torch.no_grad():
        quantization = _Quantization(model, settings, evaluate)
        saved = calibration_file.read(path) if path is not None and path.exists() else None
        found = quantization.from_file(saved, path) if saved is not None and path is not None else None
        if found is None:
            found = quantization.from_data(loader, path)
        quantization.calibrated.notes += notes
        quantized = quantization.model_of(found)
    if settings.config.table:
        print(quantized.quantization)
    return quantized


class _Quantization:
    """One run of `quantize`: the calibration, then the search, then the model."""

    def __init__(self, model: nn.Module, settings: Settings, evaluate: Evaluate | None) -> None:
        self.model, self.evaluate = model, evaluate
        self.settings = _without_equalizing(settings) if generates(model) else settings
        self.progress = LoopProgress(settings.config.progress)
        self._calibrated: CalibrationResult | None = None

    @property
    def calibrated(self) -> CalibrationResult:
        """The result of the calibration, which is there after `from_file` or `from_data`."""
        assert self._calibrated is not None
        return self._calibrated

    def from_data(self, loader: Iterable[Any] | None, path: Path | None) -> SearchResult:
        """Read the loader, search, and write the file."""
        if loader is None:
            there = "" if path is None else f": {str(path)!r} does not have what these settings need"
            raise CalibrationError(f"quantize() needs a loader here{there}.")
        calibration = Calibration(self.model, self.settings)
        self._calibrated = calibration.read(loader, self.progress)
        self._check_layers()
        score = None if self.evaluate is None else self._score
        found = Search(self.calibrated, self.settings, self.progress).run(score)
        if path is not None:
            self._write(calibration, found, path)
        return found

    def from_file(self, saved: CalibrationFile, path: Path) -> SearchResult | None:
        """Return the result that the file has for these settings; None where data is needed."""
        calibration = Calibration(self.model, self.settings)
        example = saved.call(calibration.device)
        try:
            calibration.begin(example)
        except Exception as error:
            raise CalibrationError(
                f"calibration={str(path)!r} holds arguments that {type(self.model).__name__} does not take: "
                f"{type(error).__name__}: {error}. Delete the file to calibrate anew."
            ) from error
        saved.check_model(calibration.graph.digest(), path)
        observed = saved.observed(calibration.device)
        wanted = new_statistics(calibration.graph.module, calibration.layers)
        if not wanted.keys() <= observed.keys():
            return None
        check_channels(calibration.graph.module, wanted, observed)
        calibration.observed = observed
        self._calibrated = calibration.result()
        self._check_layers()
        if saved.settings == self.settings.digest:
            return saved.search_result()
        if self.settings.needs_holdout or self.evaluate is not None:
            return None
        return SearchResult(plain_choice(self.settings), None)

    def model_of(self, found: SearchResult) -> Any:
        """Build the quantized model of a choice, which shares no memory with the user's."""
        quantized = insert_qdq(self.calibrated, found.choice, self.settings)
        report = report_from(self.calibrated, quantized, found, self.settings)
        if generates(self.model):
            return decoder_from(self.model, self.calibrated, quantized, report)
        model = model_from(self.model, self.calibrated, quantized, report)
        own_constants([model], [*self.model.parameters(), *self.model.buffers()])
        return model

    def _score(self, choice: Choice | None) -> float:
        """Return the user's score of a choice; of the float model for None."""
        assert self.evaluate is not None
        model = self.model if choice is None else self.model_of(SearchResult(choice, None))
        return checked_score(self.evaluate(model))

    def _check_layers(self) -> None:
        if not self.calibrated.layers:
            reasons = [f"{each.name}: {each.reason}" for each in self.calibrated.floats[:5]]
            why = "; ".join(reasons) or "it has no convolution and no product of matrices"
            raise CalibrationError(f"Nothing of {type(self.model).__name__} can be quantized: {why}.")

    def _write(self, calibration: Calibration, found: SearchResult, path: Path) -> None:
        assert calibration.example is not None
        digest, settings = self.calibrated.graph.digest(), self.settings.digest
        CalibrationFile.of(digest, settings, calibration.example, self.calibrated.observed, found).write(path)


def _without_equalizing(settings: Settings) -> Settings:
    """Return the settings for a model with `generate`, whose layers are quantized each by itself."""
    if settings.config.equalize is True:
        raise OptionsError(
            "equalize=True moves scales between layers, and a model with generate has each of its layers replaced by "
            "itself. Leave it at 'auto'."
        )
    return dataclasses.replace(settings, config=dataclasses.replace(settings.config, equalize=False))


@contextlib.contextmanager
def _in_evaluation_mode(model: nn.Module) -> Iterator[list[str]]:
    """Put `model` into evaluation mode, and back afterwards; yield a note for the report where that changed it."""
    training = [module for module in model.modules() if module.training]
    try:
        if training:
            with contextlib.suppress(NotImplementedError):  # a module of torch.export has one mode
                model.eval()
        yield ["The model was in training mode; it was quantized as in evaluation mode."] if training else []
    finally:
        for module in training:
            module.training = True
