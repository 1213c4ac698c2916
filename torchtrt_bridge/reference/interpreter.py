"""The walk: a TensorRT network becomes a list of steps once, and every call runs them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import torch

from torchtrt_bridge.errors import BridgeError, LoweringError, ShapeRangeError
from torchtrt_bridge.reference.layer import Layer, tensor_dims
from torchtrt_bridge.reference.layers import READERS
from torchtrt_bridge.reference.registry import Compute
from torchtrt_bridge.trt.dtypes import torch_dtype_from_trt

# Marks where an attention begins; its end computes it all.
_NO_COMPUTATION = ("ATTENTION_INPUT",)


@dataclass(frozen=True)
class Slot:
    """What TensorRT says about one tensor of the network. Dynamic dimensions are -1."""

    key: int
    name: str
    dtype: torch.dtype
    dims: tuple[int, ...]

    def complaint(self, value: torch.Tensor) -> str | None:
        """How `value` contradicts TensorRT; None if it does not."""
        if value.dtype != self.dtype:
            return f"{_short(value.dtype)} where TensorRT says {_short(self.dtype)}"
        same_rank = value.dim() == len(self.dims)
        if same_rank and all(dim in (-1, size) for dim, size in zip(self.dims, value.shape, strict=True)):
            return None
        return f"shape {tuple(value.shape)} where TensorRT says {self.dims}"


@dataclass(frozen=True)
class Step:
    """One layer's computation, and the tensors that nobody needs after it."""

    title: str
    compute: Compute
    inputs: tuple[int | None, ...]
    outputs: tuple[Slot, ...]
    release: tuple[int, ...] = ()

    def run(self, values: dict[int, torch.Tensor]) -> None:
        arguments = [None if key is None else values[key] for key in self.inputs]
        try:
            results = self.compute(*arguments)
        except Exception as error:
            _fail(self.title, error)
        if not isinstance(results, tuple):
            results = (results,)
        for slot, result in zip(self.outputs, results, strict=True):
            if complaint := slot.complaint(result):
                raise LoweringError(f"{self.title}: the reference computed {complaint}.")
            values[slot.key] = result
        for key in self.release:
            del values[key]


class NetworkInterpreter:
    """Computes a TensorRT network in PyTorch on the CPU, by the rules that TensorRT documents for its layers.

    The network is read here once and may be destroyed afterwards. `constants` holds, by layer name, the
    values that TensorRT cannot give back (bfloat16, float8, int4), and any others that should not be copied;
    convolution weights are found under ``"<layer name>.kernel"`` and ``"<layer name>.bias"``.
    Raises LoweringError for a layer that it cannot compute, and for results that contradict TensorRT's own
    dtypes and shapes.
    """

    def __init__(self, trt: Any, network: Any, constants: Mapping[str, torch.Tensor] | None = None) -> None:
        slots = _Slots()
        self._inputs = [slots[network.get_input(index)] for index in range(network.num_inputs)]
        self._outputs = [slots[network.get_output(index)] for index in range(network.num_outputs)]
        self.input_names: list[str] = [slot.name for slot in self._inputs]
        self.output_names: list[str] = [slot.name for slot in self._outputs]
        found = (Layer(trt, network.get_layer(index), constants or {}) for index in range(network.num_layers))
        steps = [_step_from_layer(layer, slots) for layer in found if layer.kind not in _NO_COMPUTATION]
        ordered = _in_order(steps, {slot.key for slot in self._inputs})
        outputs = {slot.key for slot in self._outputs}
        self._steps = _with_releases(_live(ordered, outputs), outputs)

    def __call__(self, *inputs: torch.Tensor) -> list[torch.Tensor]:
        """The outputs in the network's order, each in memory of its own; `inputs` come in its order too."""
        self._check(inputs)
        values = {slot.key: value.detach() for slot, value in zip(self._inputs, inputs, strict=True)}
        with torch.no_grad():
            for step in self._steps:
                step.run(values)
            return [values[slot.key].clone(memory_format=torch.contiguous_format) for slot in self._outputs]

    def _check(self, inputs: Sequence[torch.Tensor]) -> None:
        if len(inputs) != len(self._inputs):
            names = ", ".join(self.input_names)
            raise ShapeRangeError(f"The network takes {len(self._inputs)} inputs ({names}), not {len(inputs)}.")
        for slot, value in zip(self._inputs, inputs, strict=True):
            if complaint := slot.complaint(value):
                raise ShapeRangeError(f"Input {slot.name!r} has {complaint}.")
            if value.device.type != "cpu":
                raise ShapeRangeError(f"Input {slot.name!r} is on {value.device}; the reference runs on the CPU.")


class _Slots:
    """The slot of each `ITensor`. Keeps the wrappers alive: their identity is the tensor's."""

    def __init__(self) -> None:
        self._found: dict[int, tuple[Any, Slot]] = {}

    def __getitem__(self, tensor: Any) -> Slot:
        key = id(tensor)
        if key not in self._found:
            self._found[key] = (tensor, Slot(key, tensor.name, _dtype_of(tensor), tensor_dims(tensor)))
        return self._found[key][1]


def _dtype_of(tensor: Any) -> torch.dtype:
    """The dtype that holds an `ITensor`'s values; int4 ones are held as int8."""
    if tensor.dtype.name == "INT4":
        return torch.int8
    try:
        return torch_dtype_from_trt(tensor.dtype)
    except KeyError:
        raise LoweringError(f"The reference has no {tensor.dtype.name}, which {tensor.name!r} is.") from None


def _step_from_layer(layer: Layer, slots: _Slots) -> Step:
    reader = READERS.get(layer.kind)
    if reader is None:
        raise LoweringError(f"The reference cannot compute {layer}: it knows no {layer.kind} layers.")
    try:
        layer.downcast()
        compute = reader(layer)
        inputs = tuple(None if tensor is None else slots[tensor].key for tensor in layer.inputs)
        return Step(str(layer), compute, inputs, tuple(slots[tensor] for tensor in layer.outputs))
    except Exception as error:
        _fail(str(layer), error)
    finally:
        layer.close()


def _in_order(steps: list[Step], known: set[int]) -> list[Step]:
    """The steps, each after those that it depends on: `set_input` allows another order in the network."""
    ordered: list[Step] = []
    while steps:
        waiting = []
        for step in steps:
            if all(key is None or key in known for key in step.inputs):
                ordered.append(step)
                known.update(slot.key for slot in step.outputs)
            else:
                waiting.append(step)
        if len(waiting) == len(steps):
            raise LoweringError(f"{waiting[0].title} depends on a tensor that no layer computes.")
        steps = waiting
    return ordered


def _live(steps: Iterable[Step], outputs: set[int]) -> list[Step]:
    """The steps, in order, without those that no output needs; assertions have no output and stay."""
    needed, kept = set(outputs), []
    for step in reversed(list(steps)):
        if not step.outputs or any(slot.key in needed for slot in step.outputs):
            needed.update(key for key in step.inputs if key is not None)
            kept.append(step)
    return kept[::-1]


def _with_releases(steps: Iterable[Step], kept: set[int]) -> list[Step]:
    """The steps, each with the tensors to release after it, those last used (or never used) there."""
    done: list[Step] = []
    seen = set(kept)
    for step in reversed(list(steps)):
        touched = [key for key in step.inputs if key is not None] + [slot.key for slot in step.outputs]
        release = tuple(dict.fromkeys(key for key in touched if key not in seen))
        seen.update(release)
        done.append(Step(step.title, step.compute, step.inputs, step.outputs, release))
    return done[::-1]


def _fail(title: str, error: Exception) -> NoReturn:
    if isinstance(error, BridgeError) and title in str(error):
        raise error
    kind = "" if isinstance(error, BridgeError) else f"{type(error).__name__}: "
    raise LoweringError(f"{title}: {kind}{error}") from error


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
