"""The interpreter: it turns a TensorRT network into a list of steps once, and runs these in every call."""

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

# The layer at which an attention begins; the one at its end computes all of it.
_NO_COMPUTATION = ("ATTENTION_INPUT",)


@dataclass(frozen=True)
class NetworkTensor:
    """A tensor of the network, with the dtype and the dimensions that TensorRT gives it; dynamic ones are -1."""

    key: int
    name: str
    dtype: torch.dtype
    dims: tuple[int, ...]

    def mismatch(self, value: torch.Tensor) -> str | None:
        """Return how `value` differs from what TensorRT gives the tensor; None if it does not."""
        if value.dtype != self.dtype:
            return f"{_short(value.dtype)} where TensorRT says {_short(self.dtype)}"
        same_rank = value.dim() == len(self.dims)
        if same_rank and all(dim in (-1, size) for dim, size in zip(self.dims, value.shape, strict=True)):
            return None
        return f"shape {tuple(value.shape)} where TensorRT says {self.dims}"


@dataclass(frozen=True)
class Step:
    """The computation of one layer, with the tensors to release after it."""

    title: str
    compute: Compute
    inputs: tuple[int | None, ...]
    outputs: tuple[NetworkTensor, ...]
    release: tuple[int, ...] = ()

    def run(self, values: dict[int, torch.Tensor]) -> None:
        arguments = [None if key is None else values[key] for key in self.inputs]
        try:
            results = self.compute(*arguments)
        except Exception as error:
            _fail(self.title, error)
        if not isinstance(results, tuple):
            results = (results,)
        for tensor, result in zip(self.outputs, results, strict=True):
            if mismatch := tensor.mismatch(result):
                raise LoweringError(f"{self.title}: the reference computed {mismatch}.")
            values[tensor.key] = result
        for key in self.release:
            del values[key]


class NetworkInterpreter:
    """Computes a TensorRT network in PyTorch on the CPU, by the rules that TensorRT documents for its layers.

    The network is read once, here, and may be destroyed afterwards. `constants` holds, by layer name, the
    values that TensorRT cannot give back (bfloat16, float8, int4), and any others that should not be copied;
    it has convolution weights under ``"<layer name>.kernel"`` and ``"<layer name>.bias"``.
    Raises LoweringError for a layer that it cannot compute, and for results that contradict TensorRT's own
    dtypes and shapes.
    """

    def __init__(self, trt: Any, network: Any, constants: Mapping[str, torch.Tensor] | None = None) -> None:
        tensors = _Tensors()
        self._inputs = [tensors[network.get_input(index)] for index in range(network.num_inputs)]
        self._outputs = [tensors[network.get_output(index)] for index in range(network.num_outputs)]
        self.input_names: list[str] = [tensor.name for tensor in self._inputs]
        self.output_names: list[str] = [tensor.name for tensor in self._outputs]
        found = (Layer(trt, network.get_layer(index), constants or {}) for index in range(network.num_layers))
        steps = [_step_from_layer(layer, tensors) for layer in found if layer.kind not in _NO_COMPUTATION]
        ordered = _in_order(steps, {tensor.key for tensor in self._inputs})
        outputs = {tensor.key for tensor in self._outputs}
        self._steps = _with_releases(_live(ordered, outputs), outputs)

    def __call__(self, *inputs: torch.Tensor) -> list[torch.Tensor]:
        """Return the outputs in the network's order, each in memory of its own; `inputs` come in its order too."""
        self._check(inputs)
        values = {tensor.key: value.detach() for tensor, value in zip(self._inputs, inputs, strict=True)}
        with torch.no_grad():
            for step in self._steps:
                step.run(values)
            return [values[tensor.key].clone(memory_format=torch.contiguous_format) for tensor in self._outputs]

    def _check(self, inputs: Sequence[torch.Tensor]) -> None:
        if len(inputs) != len(self._inputs):
            names = ", ".join(self.input_names)
            raise ShapeRangeError(f"The network takes {len(self._inputs)} inputs ({names}), not {len(inputs)}.")
        for tensor, value in zip(self._inputs, inputs, strict=True):
            if mismatch := tensor.mismatch(value):
                raise ShapeRangeError(f"Input {tensor.name!r} has {mismatch}.")
            if value.device.type != "cpu":
                raise ShapeRangeError(f"Input {tensor.name!r} is on {value.device}; the reference runs on the CPU.")


class _Tensors:
    """The tensors of a network by `ITensor`. Holds the wrappers, whose identity is the tensor's."""

    def __init__(self) -> None:
        self._found: dict[int, tuple[Any, NetworkTensor]] = {}

    def __getitem__(self, tensor: Any) -> NetworkTensor:
        key = id(tensor)
        if key not in self._found:
            self._found[key] = (tensor, NetworkTensor(key, tensor.name, _dtype_of(tensor), tensor_dims(tensor)))
        return self._found[key][1]


def _dtype_of(tensor: Any) -> torch.dtype:
    """Return the dtype that holds an `ITensor`'s values; int8 holds int4."""
    if tensor.dtype.name == "INT4":
        return torch.int8
    try:
        return torch_dtype_from_trt(tensor.dtype)
    except KeyError:
        raise LoweringError(f"The reference has no {tensor.dtype.name}, which {tensor.name!r} is.") from None


def _step_from_layer(layer: Layer, tensors: _Tensors) -> Step:
    reader = READERS.get(layer.kind)
    if reader is None:
        raise LoweringError(f"The reference cannot compute {layer}: it knows no {layer.kind} layers.")
    try:
        layer.downcast()
        compute = reader(layer)
        inputs = tuple(None if each is None else tensors[each].key for each in layer.inputs)
        return Step(str(layer), compute, inputs, tuple(tensors[each] for each in layer.outputs))
    except Exception as error:
        _fail(str(layer), error)
    finally:
        layer.close()


def _in_order(steps: list[Step], known: set[int]) -> list[Step]:
    """Sort the steps, each after those that it depends on: `set_input` allows another order in the network."""
    ordered: list[Step] = []
    while steps:
        waiting = []
        for step in steps:
            if all(key is None or key in known for key in step.inputs):
                ordered.append(step)
                known.update(tensor.key for tensor in step.outputs)
            else:
                waiting.append(step)
        if len(waiting) == len(steps):
            raise LoweringError(f"{waiting[0].title} depends on a tensor that no layer computes.")
        steps = waiting
    return ordered


def _live(steps: Iterable[Step], outputs: set[int]) -> list[Step]:
    """Return the steps, in order, that an output needs, and assertions, which have no output."""
    needed, kept = set(outputs), []
    for step in reversed(list(steps)):
        if not step.outputs or any(tensor.key in needed for tensor in step.outputs):
            needed.update(key for key in step.inputs if key is not None)
            kept.append(step)
    return kept[::-1]


def _with_releases(steps: Iterable[Step], kept: set[int]) -> list[Step]:
    """Return the steps, each with the tensors to release after it: those that no later step uses."""
    done: list[Step] = []
    seen = set(kept)
    for step in reversed(list(steps)):
        touched = [key for key in step.inputs if key is not None] + [tensor.key for tensor in step.outputs]
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
