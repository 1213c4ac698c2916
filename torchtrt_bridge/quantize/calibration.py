"""Calibration: one pass over the loader, from which the ranges come, and a few batches held out to measure errors."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from torchtrt_bridge.capture.transformers_classes import generates
from torchtrt_bridge.errors import BridgeError, CalibrationError
from torchtrt_bridge.graph.edit import copy_graph
from torchtrt_bridge.graph.nodes import describe
from torchtrt_bridge.quantize.calls import ForwardCall, ForwardSignature, device_of, move_to
from torchtrt_bridge.quantize.config import Settings
from torchtrt_bridge.quantize.float_graph import (
    FloatGraph,
    capture,
    check_graph,
    decompose_attention,
    dtype_hint,
    serves_one,
)
from torchtrt_bridge.quantize.layers import (
    FloatLayer,
    QuantizableLayer,
    find_layers,
    nodes_by_name,
    only_linear_modules,
)
from torchtrt_bridge.quantize.statistics import NonFiniteError, Observed, Statistics, check_finite
from torchtrt_bridge.report.progress import LoopProgress

# One batch in so many is held out, as long as these are few and small.
HOLDOUT_EVERY = 4
MOST_HOLDOUT = 4
MOST_HOLDOUT_BYTES = 64 * 2**20


@dataclasses.dataclass
class CalibrationResult:
    """A float graph, its layers, and the statistics of their activations.

    holdout: the flat inputs of the batches on which errors are measured.
    holdout_counts: True where these batches are in the statistics too.
    """

    graph: FloatGraph
    layers: list[QuantizableLayer]
    floats: list[FloatLayer]
    observed: Observed
    holdout: list[tuple[Any, ...]]
    holdout_counts: bool
    notes: list[str]

    def count_holdout(self) -> None:
        """Update the statistics with the holdout, once nothing is chosen by its errors any more."""
        interpreter = CalibrationInterpreter(self.graph.module, self.layers, self.observed)
        for inputs in () if self.holdout_counts else self.holdout:
            interpreter.run(*inputs)
        self.holdout_counts = True


def new_statistics(module: fx.GraphModule, layers: Sequence[QuantizableLayer]) -> Observed:
    """Return empty statistics of each activation that a layer reads."""
    nodes = nodes_by_name(module)
    observed: Observed = {}
    for layer in layers:
        for index, (reader, argument) in enumerate(layer.reads):
            source = nodes[reader].args[argument]
            assert isinstance(source, fx.Node)
            channels = layer.channels if index == 0 else None
            if channels is not None and source.meta["val"].dim() == 1:
                channels = None
            known = observed.setdefault(source.name, Statistics(channels))
            if known.channel_dim is None:
                known.channel_dim = channels
    return observed


def check_channels(module: fx.GraphModule, wanted: Observed, observed: Observed) -> None:
    """Raise CalibrationError where statistics of a file are not of the channels that the layers read."""
    nodes = nodes_by_name(module)
    for name, each in wanted.items():
        value = nodes[name].meta["val"]
        count = None if each.channel_dim is None else int(value.shape[each.channel_dim])
        observed[name].check_channels(each.channel_dim, count)


class CalibrationInterpreter(fx.Interpreter):
    """Interpreter of the float graph that updates the statistics of the activations that layers read.

    batch: the number of the batch, for messages. only_checks: leave the statistics as they are, for the holdout.
    """

    def __init__(
        self, module: fx.GraphModule, layers: Sequence[QuantizableLayer], observed: Mapping[str, Statistics]
    ) -> None:
        super().__init__(module, garbage_collect_values=True)
        self.layers, self.observed = layers, observed
        self.batch = 0
        self.only_checks = False

    def run_node(self, n: fx.Node) -> Any:
        """Compute a node; CalibrationError where a layer reads NaN or infinity."""
        result = super().run_node(n)
        statistics = self.observed.get(n.name)
        if statistics is not None:
            try:
                (check_finite if self.only_checks else statistics.update)(result)
            except NonFiniteError:
                raise self._non_finite(n) from None
        return result

    def _non_finite(self, node: fx.Node) -> CalibrationError:
        reads = {(user.name, index) for user in node.users for index, arg in enumerate(user.args) if arg is node}
        reader = next(layer for layer in self.layers if reads & set(layer.reads))
        return CalibrationError(
            f"Batch {self.batch} gives NaN or infinity in the input of the layer {reader.name!r} "
            f"({describe(node)}), the first to see one. Look at the data, and at the float model's own results for "
            f"this batch; skip=({reader.name!r},) leaves the layer in floating point."
        )


class Calibration:
    """The pass over the batches of a loader; the first of them traces the model."""

    def __init__(self, model: nn.Module, settings: Settings) -> None:
        self.model, self.settings = model, settings
        self.signature = ForwardSignature(model)
        self.device = device_of(model)
        self.layers: list[QuantizableLayer] = []
        self.floats: list[FloatLayer] = []
        self.observed: Observed = {}
        self.holdout: list[tuple[Any, ...]] = []
        self.calls = 0
        self.example: ForwardCall | None = None
        self._graph: FloatGraph | None = None
        self._interpreter: CalibrationInterpreter | None = None
        self._first: tuple[Any, ...] = ()
        self._holdout_bytes = 0
        self._skipped: list[int] = []
        self._batch = 0

    @property
    def graph(self) -> FloatGraph:
        """The float graph, which is there after `begin`."""
        assert self._graph is not None
        return self._graph

    def read(self, loader: Iterable[Any], progress: LoopProgress) -> CalibrationResult:
        """Run all batches; CalibrationError for those that cannot be used."""
        config = self.settings.config
        forward = config.forward or self._forward
        total = config.num_batches if config.num_batches is not None else _length(loader)
        number = -1
        for number, batch in enumerate(progress.track(_items(loader, config.num_batches), "calibrating", total)):
            self._batch = number
            try:
                with torch.no_grad():
                    forward(_CalibratedModel(self), batch)
            except BridgeError:
                raise
            except Exception as error:
                why = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
                hint = dtype_hint(self.model, batch)
                text = f"The model fails on batch {number} of the loader: {why} {hint}"
                raise CalibrationError(text.rstrip()) from error
        self._check_reached(number + 1)
        return self.result()

    def _check_reached(self, batches: int) -> None:
        """Raise CalibrationError where none of so many batches ran the graph."""
        if self._graph is None and batches:
            raise CalibrationError(
                "forward() never called the model that it was given: it must run model(...), not a method of it, on "
                "each batch."
            )
        if self._graph is None:
            raise CalibrationError(
                "The loader gave no batch that runs the model. It is empty, or a generator that was used up before; "
                "pass a DataLoader or a list, or make the generator anew."
            )
        if self.calls == 0:
            raise CalibrationError(
                f"A batch of one goes another way through {type(self.model).__name__} than larger ones, with which "
                "torch.export traces it. Calibrate with larger batches."
            )

    def call(self, call: ForwardCall) -> Any:
        """Compute one call of the model with the float graph."""
        call = move_to(call, self.device)
        if not any(value.numel() for value in pytree.tree_leaves(call) if isinstance(value, torch.Tensor)):
            raise CalibrationError(f"Batch {self._batch} is empty: its tensors hold no values. Leave such batches out.")
        if self._graph is None:
            self.begin(call)
        inputs = self._flat(call)
        if not self._fits(inputs):
            return None
        is_holdout = self._is_holdout(inputs)
        if is_holdout:
            self.holdout.append(inputs)
        else:
            self._first = self._first or inputs
        outputs = self._run(inputs, is_holdout)
        if self.calls == 0:
            check_graph(self.graph, self.model, call, outputs)
        self.calls += 1
        return pytree.tree_unflatten(list(outputs), self.graph.out_spec)

    def _run(self, inputs: tuple[Any, ...], is_holdout: bool) -> Any:
        assert self._interpreter is not None
        self._interpreter.batch, self._interpreter.only_checks = self._batch, is_holdout
        try:
            return self._interpreter.run(*inputs)
        except CalibrationError as error:
            wrong = _first_non_finite(inputs, [spec.name if spec else "" for spec in self.graph.specs])
            if wrong is None:
                raise
            raise CalibrationError(f"{error} The batch itself holds such values, in {wrong!r}.") from None

    def begin(self, call: ForwardCall) -> None:
        """Trace the model with a call, and find its layers."""
        self.example = call
        graph = self._graph = capture(self.model, self.signature, call, self.settings.config.dynamic_shapes)
        graph.serves_one = serves_one(graph, self.model, call, self._flat(call))
        if self.settings.config.attention:
            graph.traced = graph.module
            graph.module = decompose_attention(fx.GraphModule(graph.module, copy_graph(graph.module.graph)))
        self.layers, self.floats = find_layers(graph.module, self.settings)
        if generates(self.model):
            self.layers, self.floats = only_linear_modules(self.model, self.layers, self.floats)
        self.observed = new_statistics(graph.module, self.layers)
        self._interpreter = CalibrationInterpreter(graph.module, self.layers, self.observed)

    def _forward(self, model: Any, batch: Any) -> None:
        args, kwargs = self.signature.call_from(batch, self._batch)
        model(*args, **kwargs)

    def _flat(self, call: ForwardCall) -> tuple[Any, ...]:
        """Return the flat inputs of the graph for a call."""
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
        """Check if the graph takes these; CalibrationError unless only a batch size differs that must be fixed."""
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

    def _is_holdout(self, inputs: tuple[Any, ...]) -> bool:
        is_one = self.settings.needs_holdout and self.calls % HOLDOUT_EVERY == 1
        if not is_one or len(self.holdout) >= MOST_HOLDOUT:
            return False
        size = sum(v.numel() * v.element_size() for v in inputs if isinstance(v, torch.Tensor))
        if self.holdout and self._holdout_bytes + size > MOST_HOLDOUT_BYTES:
            return False
        self._holdout_bytes += size
        return True

    def result(self) -> CalibrationResult:
        """Return what was observed so far."""
        notes = [*self.graph.notes]
        if self.graph.unreached:
            notes.append(f"Layers that the model's forward does not reach: {', '.join(self.graph.unreached)}.")
        if self.signature.dropped:
            notes.append(f"Not given to the model: {', '.join(self.signature.dropped)}.")
        if self._skipped:
            notes.append(f"Batches of another size were left out: {', '.join(map(str, self._skipped))}.")
        if self.settings.needs_holdout and self.calls and not self.holdout:
            notes.append("The loader gave one batch only: errors are measured on the data that set the ranges.")
        holdout = self.holdout or ([self._first] if self._first else [])
        return CalibrationResult(self.graph, self.layers, self.floats, self.observed, holdout, not self.holdout, notes)


class _CalibratedModel:
    """Stand-in for the model in the user's `forward`: calls of it are calibrated, all else is the model's."""

    def __init__(self, calibration: Calibration) -> None:
        self._calibration = calibration

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._calibration.call((args, kwargs))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._calibration.model, name)


def _items(loader: Iterable[Any], num_batches: int | None) -> Iterator[Any]:
    """Yield the loader's items; CalibrationError where it raises."""
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


def _first_non_finite(inputs: Sequence[Any], names: Sequence[str]) -> str | None:
    """Return the name of the first input that holds NaN or infinity."""
    for value, name in zip(inputs, names, strict=True):
        is_float = isinstance(value, torch.Tensor) and value.is_floating_point()
        if is_float and not bool(torch.isfinite(value).all()):
            return name
    return None
