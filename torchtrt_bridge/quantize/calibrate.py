"""Calibrate: one pass over the loader, from which the statistics come, and a few batches to measure errors on."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from torchtrt_bridge.errors import BridgeError, CalibrationError
from torchtrt_bridge.graph.edit import copy_graph
from torchtrt_bridge.quantize.attention import take_attention_apart
from torchtrt_bridge.quantize.batches import Call, Signature, device_of, moved
from torchtrt_bridge.quantize.capture import FloatGraph, capture, check_graph, dtype_hint, serves_one
from torchtrt_bridge.quantize.layers import FloatLayer, Layer, find_layers
from torchtrt_bridge.quantize.observe import Observed, Observer, first_wrong_input, new_statistics
from torchtrt_bridge.quantize.progress import Progress
from torchtrt_bridge.quantize.settings import Settings

# Of so many batches one is held back, as long as these are few and small.
HOLD_BACK = 4
MOST_HELD = 4
MOST_HELD_BYTES = 64 * 2**20

Forward = Callable[[Any, Any], Any]


@dataclasses.dataclass
class Calibrated:
    """A float graph, its layers, and what was seen of their activations.

    held: the flat inputs of the batches on which errors are measured.
    are_counted: whether these set the ranges too.
    """

    graph: FloatGraph
    layers: list[Layer]
    floats: list[FloatLayer]
    observed: Observed
    held: list[tuple[Any, ...]]
    are_counted: bool
    notes: list[str]

    def count_held(self) -> None:
        """Let what was held back set the ranges too, once nothing is chosen by its errors any more."""
        observer = Observer(self.graph.module, self.layers, self.observed)
        for inputs in () if self.are_counted else self.held:
            observer.run(*inputs)
        self.are_counted = True


class Calibration:
    """Takes in the batches of a loader; the first of them traces the model."""

    def __init__(self, model: nn.Module, settings: Settings, dynamic_shapes: Any = None) -> None:
        self.model, self.settings, self.dynamic_shapes = model, settings, dynamic_shapes
        self.signature = Signature(model)
        self.device = device_of(model)
        self.graph: FloatGraph | None = None
        self.layers: list[Layer] = []
        self.floats: list[FloatLayer] = []
        self.observed: Observed = {}
        self.held: list[tuple[Any, ...]] = []
        self.calls = 0
        self._observer: Observer | None = None
        self.example: Call | None = None
        self._first: tuple[Any, ...] = ()
        self._held_bytes = 0
        self._skipped: list[int] = []
        self._batch = 0

    def take(
        self, loader: Iterable[Any], num_batches: int | None, forward: Forward | None, progress: Progress
    ) -> Calibrated:
        """Run all batches; CalibrationError for those that cannot be used."""
        total = num_batches if num_batches is not None else _length(loader)
        number = -1
        for number, batch in enumerate(progress.track(_items(loader, num_batches), "calibrating", total)):
            self._batch = number
            try:
                with torch.no_grad():
                    (forward or self._forward)(_Recorder(self), batch)
            except BridgeError:
                raise
            except Exception as error:
                told = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
                hint = dtype_hint(self.model, batch)
                raise CalibrationError(f"The model fails on batch {number} of the loader: {told} {hint}") from error
        if self.graph is None and number >= 0:
            raise CalibrationError(
                "forward() never called the model that it was given: it must run model(...), not a method of it, on "
                "each batch."
            )
        if self.graph is None:
            raise CalibrationError(
                "The loader gave no batch that runs the model. It is empty, or a generator that was used up before; "
                "pass a DataLoader or a list, or make the generator anew."
            )
        if self.calls == 0:
            raise CalibrationError(
                f"A batch of one goes another way through {type(self.model).__name__} than larger ones, with which "
                "torch.export traces it. Calibrate with larger batches."
            )
        return self.result()

    def call(self, call: Call) -> Any:
        """One call of the model, computed by the float graph."""
        call = moved(call, self.device)
        if self.graph is None:
            self.begin(call)
        assert self.graph is not None
        inputs = self._flat(call)
        if not self._fits(inputs):
            return None
        is_held = self._is_held_back(inputs)
        if is_held:
            self.held.append(inputs)
        else:
            self._first = self._first or inputs
        outputs = self._run(inputs, is_held)
        if self.calls == 0:
            check_graph(self.graph, self.model, call, outputs)
        self.calls += 1
        return pytree.tree_unflatten(list(outputs), self.graph.out_spec)

    def _run(self, inputs: tuple[Any, ...], is_held: bool) -> Any:
        assert self._observer is not None
        assert self.graph is not None
        self._observer.batch, self._observer.only_checks = self._batch, is_held
        try:
            return self._observer.run(*inputs)
        except CalibrationError as error:
            wrong = first_wrong_input(inputs, [spec.name if spec else "" for spec in self.graph.specs])
            if wrong is None:
                raise
            raise CalibrationError(f"{error} The batch itself holds such values, in {wrong!r}.") from None

    def begin(self, call: Call) -> None:
        """Trace the model with a call, and find its layers."""
        self.example = call
        self.graph = capture(self.model, self.signature, call, self.dynamic_shapes)
        self.graph.serves_one = serves_one(self.graph, self.model, call, self._flat(call))
        if self.settings.attention:
            self.graph.traced = self.graph.module
            copied = fx.GraphModule(self.graph.module, copy_graph(self.graph.module.graph))
            self.graph.module = take_attention_apart(copied)
        self.layers, self.floats = find_layers(self.graph.module, self.settings)
        self.observed = new_statistics(self.graph.module, self.layers)
        self._observer = Observer(self.graph.module, self.layers, self.observed)

    def _forward(self, model: Any, batch: Any) -> None:
        args, kwargs = self.signature.call_from(batch, self._batch)
        model(*args, **kwargs)

    def _flat(self, call: Call) -> tuple[Any, ...]:
        """The flat inputs of the graph."""
        assert self.graph is not None
        values = self.signature.named_values(call)
        if tuple(values) != self.graph.names:
            raise CalibrationError(
                f"Batch {self._batch} gives the model {', '.join(values)}, and those before it "
                f"{', '.join(self.graph.names)}. All batches must give the same arguments."
            )
        leaves, spec = pytree.tree_flatten((tuple(values.values()), {}))
        if spec != self.graph.in_spec:
            raise CalibrationError(f"Batch {self._batch} is nested in another way than the first: {spec}.")
        return tuple(leaves)

    def _fits(self, inputs: tuple[Any, ...]) -> bool:
        """Whether the graph takes these; CalibrationError unless only a batch size differs that must be fixed."""
        assert self.graph is not None
        for value, spec, constant in zip(inputs, self.graph.specs, self.graph.constants, strict=True):
            if spec is None or not isinstance(value, torch.Tensor):
                self._check_constant(value, constant)
                continue
            ranges = self.graph.ranges_of(spec)
            if dataclasses.replace(spec, ranges=ranges).accepts(value):
                continue
            same = value.dtype == spec.dtype and value.dim() == len(ranges)
            if same and all(low <= n <= high for n, (low, high) in zip(value.shape[1:], ranges[1:], strict=True)):
                self._skipped.append(self._batch)
                return False
            raise CalibrationError(
                f"Batch {self._batch}: {spec.name} is {value.dtype} of shape {tuple(value.shape)}, and the graph that "
                f"the first batch traced takes {spec}. Give all batches one dtype; name sizes that vary with "
                "dynamic_shapes=, as in torch.export.export."
            )
        return True

    def _check_constant(self, value: Any, traced: Any) -> None:
        if type(value) is not type(traced) or value != traced:
            raise CalibrationError(
                f"Batch {self._batch} gives the model {value!r} where the first gave {traced!r}. What is no tensor "
                "is part of the graph: quantize the model for one of the two."
            )

    def _is_held_back(self, inputs: tuple[Any, ...]) -> bool:
        if not self.settings.measures or self.calls % HOLD_BACK != 1 or len(self.held) >= MOST_HELD:
            return False
        size = sum(v.numel() * v.element_size() for v in inputs if isinstance(v, torch.Tensor))
        if self.held and self._held_bytes + size > MOST_HELD_BYTES:
            return False
        self._held_bytes += size
        return True

    def result(self) -> Calibrated:
        """What was seen so far."""
        assert self.graph is not None
        notes = [*self.graph.notes]
        if self.graph.unreached:
            notes.append(f"Layers that the model's forward does not reach: {', '.join(self.graph.unreached)}.")
        if self.signature.dropped:
            notes.append(f"Not given to the model: {', '.join(self.signature.dropped)}.")
        if self._skipped:
            notes.append(f"Batches of another size were left out: {', '.join(map(str, self._skipped))}.")
        if self.settings.measures and self.calls and not self.held:
            notes.append("The loader gave one batch only: errors are measured on the data that set the ranges.")
        held = self.held or ([self._first] if self._first else [])
        return Calibrated(self.graph, self.layers, self.floats, self.observed, held, not self.held, notes)


class _Recorder:
    """What `forward` gets in place of the model: calls of it are calibrated, all else is the model's."""

    def __init__(self, calibration: Calibration) -> None:
        self._calibration = calibration

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._calibration.call((args, kwargs))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._calibration.model, name)


def _items(loader: Iterable[Any], num_batches: int | None) -> Iterator[Any]:
    """The loader's items; CalibrationError where it raises."""
    try:
        batches = iter(loader)
    except TypeError as error:
        raise CalibrationError(f"The loader is a {type(loader).__name__}, which gives no batches: {error}.") from error
    for number in itertools.count() if num_batches is None else range(num_batches):
        try:
            batch = next(batches)
        except StopIteration:
            return
        except Exception as error:
            raise CalibrationError(
                f"The loader failed at batch {number}: {type(error).__name__}: {error}. Nothing of this calibration "
                "is kept."
            ) from error
        yield batch


def _length(loader: Any) -> int | None:
    try:
        return len(loader)
    except TypeError:
        return None
