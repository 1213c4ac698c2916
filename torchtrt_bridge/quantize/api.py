"""From a model and a loader to a quantized model: the public call."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from torchtrt_bridge.errors import CalibrationError, OptionsError
from torchtrt_bridge.graph.edit import own_constants
from torchtrt_bridge.quantize import state as states
from torchtrt_bridge.quantize.calibrate import Calibrated, Calibration, Forward
from torchtrt_bridge.quantize.model import QuantizedModel, model_from, report_from
from torchtrt_bridge.quantize.observe import new_statistics
from torchtrt_bridge.quantize.place import Choice, place
from torchtrt_bridge.quantize.progress import Progress
from torchtrt_bridge.quantize.search import Found, Search, checked_score, plain_choice
from torchtrt_bridge.quantize.settings import Auto, Kind, Method, Settings

Evaluate = Callable[[nn.Module], float]


def quantize(
    model: nn.Module,
    loader: Iterable[Any] | None = None,
    *,
    method: Method = "auto",
    dtype: Kind = "int8",
    num_batches: int | None = None,
    forward: Forward | None = None,
    skip: Sequence[str] = (),
    evaluate: Evaluate | None = None,
    max_drop: float | None = None,
    max_error: float | Auto | None = "auto",
    smooth: float | Auto | None = "auto",
    equalize: bool | Auto = "auto",
    correct_bias: bool | Auto = "auto",
    attention: bool = False,
    percentile: float = 99.99,
    block_size: int = 128,
    sensitivity: bool = False,
    calibration: str | Path | None = None,
    dynamic_shapes: Any = None,
    progress: bool | None = None,
    table: bool = True,
) -> QuantizedModel:
    """Quantize `model` after training, with ranges from the batches of `loader`, which is read once.

    loader: yields tensors, tuples, mappings, or pairs of these with labels, which are left out; None where
        `calibration` names a file that has it all.
    method: how the range of an activation is found: its absolute maximum, the moving average of the batches' maxima, a
        percentile, the least mean squared error, or the least KL divergence ("entropy"). "auto" measures them.
    dtype: "int8"; "fp8" (E4M3, compute capability 8.9 or newer); "int4", of the weights of linear layers only.
    num_batches: how many batches are read; None means all.
    forward: ``forward(model, batch)`` calls the model, where a batch does not tell how.
    skip: names of layers to leave in floating point, of modules around them, or patterns of names (``"head.*"``).
    evaluate: ``evaluate(model)`` gives a score, the higher the better. With `max_drop`, the largest loss of it to
        accept, the fewest layers are kept in floating point.
    max_error: layers are kept in floating point until the relative error of the outputs is below, and that of each
        sample below 1.75 times as much; "auto" is 0.04 with method="auto", else None, which keeps none.
    smooth: SmoothQuant's alpha for linear layers; "auto" searches it, None leaves it out.
    equalize: scale channels across layers, as depthwise convolutions need it. correct_bias: take the mean error of
        rounded weights out of biases. "auto" measures whether they help.
    attention: quantize the two products of attention, and other products of two activations, too.
    percentile: of method="percentile". block_size: of dtype="int4".
    sensitivity: measure the error of each layer alone, for the report.
    calibration: a JSON file for what was found. Where it exists, and belongs to this model, no data is read.
    dynamic_shapes: as in `torch.export.export`, to trace the model with; by default the batch size, and the length of
        token ids, are free.
    progress, table: show a progress bar (None: on a terminal), print a table of layers.

    What "auto" chooses has the least error of the outputs on batches that are held back: one in four, four at most. In
    the end these count for the ranges too.
    Raises CalibrationError for data or a file that cannot be used, OptionsError for a wrong option.
    """
    settings = Settings(
        method, dtype, skip, smooth, equalize, correct_bias, attention, percentile, block_size, max_error, max_drop,  # type: ignore[arg-type]
        sensitivity,
    )  # fmt: skip
    if not isinstance(model, nn.Module) or isinstance(model, torch.jit.ScriptModule):
        raise CalibrationError(f"quantize() takes an nn.Module written in Python, not {type(model).__name__}.")
    if num_batches is not None and (not isinstance(num_batches, int) or num_batches < 1):
        raise OptionsError(f"num_batches={num_batches!r} is no count of batches: 1 or more, or None for all.")
    if max_drop is not None and evaluate is None:
        raise CalibrationError("max_drop needs evaluate=, a function that gives the score of a model.")
    path = None if calibration is None else Path(calibration)
    with _in_evaluation_mode(model) as notes, torch.no_grad():
        work = _Work(model, settings, evaluate, Progress(progress), dynamic_shapes)
        saved = states.read(path) if path is not None and path.exists() else None
        found = work.from_file(saved, path) if saved is not None and path is not None else None
        if found is None:
            found = work.from_data(loader, num_batches, forward, path)
        assert work.calibrated is not None
        work.calibrated.notes += notes
        quantized = work.model_of(found)
        own_constants([quantized], [*model.parameters(), *model.buffers()])
    if table:
        print(quantized.quantization)
    return quantized


class _Work:
    """One quantization: the calibration, then the search, then the model."""

    def __init__(
        self, model: nn.Module, settings: Settings, evaluate: Evaluate | None, progress: Progress, shapes: Any
    ) -> None:
        self.model, self.settings, self.evaluate, self.progress = model, settings, evaluate, progress
        self.calibration = Calibration(model, settings, shapes)
        self.shapes = shapes
        self.calibrated: Calibrated | None = None

    def from_data(
        self, loader: Iterable[Any] | None, num_batches: int | None, forward: Forward | None, path: Path | None
    ) -> Found:
        """Read the loader, search, and write the file."""
        if loader is None:
            there = "" if path is None else f": {str(path)!r} does not have what these settings need"
            raise CalibrationError(f"quantize() needs a loader here{there}.")
        self.calibration = Calibration(self.model, self.settings, self.shapes)
        self.calibrated = self.calibration.take(loader, num_batches, forward, self.progress)
        self._check_layers()
        found = self._searched()
        if path is not None:
            self._write(found, path)
        return found

    def from_file(self, saved: states.State, path: Path) -> Found | None:
        """The result that the file has for these settings; None where data is needed."""
        calibration = self.calibration
        calibration.begin(saved.call(calibration.device))
        assert calibration.graph is not None
        states.check_model(saved, calibration.graph.digest(), path)
        observed = saved.observed(calibration.device)
        wanted = new_statistics(calibration.graph.module, calibration.layers)
        if not wanted.keys() <= observed.keys():
            return None
        calibration.observed = observed
        self.calibrated = calibration.result()
        self._check_layers()
        if saved.settings == self.settings.digest:
            return saved.choice()
        return None if self.settings.measures or self.evaluate is not None else Found(plain_choice(self.settings), None)

    def model_of(self, found: Found) -> QuantizedModel:
        assert self.calibrated is not None
        placed = place(self.calibrated, found.choice, self.settings)
        report = report_from(self.calibrated, placed, found, self.settings)
        return model_from(self.model, self.calibrated, placed, report)

    def _searched(self) -> Found:
        assert self.calibrated is not None
        score = None if self.evaluate is None else self._score
        return Search(self.calibrated, self.settings, self.progress).run(score)

    def _score(self, choice: Choice | None) -> float:
        """The user's score of a choice; of the float model for None."""
        assert self.evaluate is not None
        return checked_score(self.evaluate(self.model if choice is None else self.model_of(Found(choice, None))))

    def _check_layers(self) -> None:
        assert self.calibrated is not None
        if not self.calibrated.layers:
            reasons = [f"{each.name}: {each.reason}" for each in self.calibrated.floats[:5]]
            told = "; ".join(reasons) or "it has no convolution and no product of matrices"
            raise CalibrationError(f"Nothing of {type(self.model).__name__} can be quantized: {told}.")

    def _write(self, found: Found, path: Path) -> None:
        calibration, calibrated = self.calibration, self.calibrated
        assert calibrated is not None
        assert calibration.example is not None
        statistics = {name: seen.to_dict() for name, seen in calibrated.observed.items()}
        example = states.example_from(calibration.example)
        states.write(
            states.State(
                calibrated.graph.digest(), self.settings.digest, example, statistics, states.found_to_dict(found)
            ),
            path,
        )


@contextlib.contextmanager
def _in_evaluation_mode(model: nn.Module) -> Iterator[list[str]]:
    """`model` in evaluation mode, and as it was afterwards; what is to be noted of that."""
    training = [module for module in model.modules() if module.training]
    try:
        if training:
            with contextlib.suppress(NotImplementedError):  # a module of torch.export has one mode
                model.eval()
        yield ["The model was in training mode; it was quantized as in evaluation mode."] if training else []
    finally:
        for module in training:
            module.training = True
