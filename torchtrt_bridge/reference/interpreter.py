"""The interpreter: it turns a TensorRT network into a list of steps once, and runs these in every call."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import torch

from torchtrt_bridge.errors import LoweringError, ShapeRangeError
from torchtrt_bridge.reference.layer import Layer, tensor_dims
from torchtrt_bridge.reference.layers import READERS
from torchtrt_bridge.reference.loops import BOUNDARIES, boundary_from_layer, with_loops
from torchtrt_bridge.reference.steps import NetworkTensor, Step, fail, in_order, live, with_releases
from torchtrt_bridge.trt.dtypes import torch_dtype_from_trt

# The layer at which an attention begins; the one at its end computes all of it.
_NO_COMPUTATION = ("ATTENTION_INPUT",)

_Read = TypeVar("_Read")


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
        steps, boundaries = [], []
        for layer in found:
            if layer.kind in BOUNDARIES:
                boundaries.append(_read(layer, lambda layer: boundary_from_layer(layer, tensors)))
            elif layer.kind not in _NO_COMPUTATION:
                steps.append(_read(layer, lambda layer: _step_from_layer(layer, tensors)))
        ordered = in_order(with_loops(steps, boundaries), {tensor.key for tensor in self._inputs})
        outputs = {tensor.key for tensor in self._outputs}
        self._steps = with_releases(live(ordered, outputs), outputs)

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


def _read(layer: Layer, read: Callable[[Layer], _Read]) -> _Read:
    """Return what `read` makes of a layer, which must not use TensorRT's objects afterwards."""
    try:
        return read(layer)
    except Exception as error:
        fail(str(layer), error)
    finally:
        layer.close()


def _step_from_layer(layer: Layer, tensors: _Tensors) -> Step:
    reader = READERS.get(layer.kind)
    if reader is None:
        raise LoweringError(f"The reference cannot compute {layer}: it knows no {layer.kind} layers.")
    layer.downcast()
    compute = reader(layer)
    inputs = tuple(None if each is None else tensors[each].key for each in layer.inputs)
    return Step(str(layer), compute, inputs, tuple(tensors[each] for each in layer.outputs))
