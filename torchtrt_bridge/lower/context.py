"""The context of a converter: a network that names its layers, and the steps that every family needs."""

from __future__ import annotations

import collections
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.fx import Node

from torchtrt_bridge.errors import LoweringError
from torchtrt_bridge.lower.quantizers import is_4_bit_weight, quantizer_of
from torchtrt_bridge.trt.dtypes import torch_dtype_from_trt, trt_dtype_from_torch
from torchtrt_bridge.trt.error_log import ErrorLog

# A TensorRT tensor, a weight, a number, or a size known only at run time (an int64 tensor of shape (1,)).
Value = Any
Size = Any


class NamedNetwork:
    """An `INetworkDefinition` whose layers are named after the node being lowered, and whose errors are raised.

    Nodes that entered under one name share it; each layer has a name of its own, as TensorRT-RTX 1.6 demands.
    """

    def __init__(self, network: Any, log: ErrorLog) -> None:
        self.definition = network
        self.scope = ""
        self._log = log
        self._counts: collections.Counter[str] = collections.Counter()

    def enter(self, scope: str) -> None:
        self.scope = scope

    def __getattr__(self, name: str) -> Any:
        method = getattr(self.definition, name)
        return self.named(name[4:], method) if name.startswith("add_") else method

    def named(self, kind: str, method: Callable[..., Any]) -> Callable[..., Any]:
        """Return a method that adds a layer, changed to name the layer and to raise LoweringError for none."""

        def add(*args: Any, **kwargs: Any) -> Any:
            layer = method(*args, **kwargs)
            if layer is None:
                raise LoweringError(f"TensorRT refused the layer {kind}: {self.take_errors()}")
            count = self._counts[self.scope]
            layer.name = f"{self.scope}/{kind}_{count}" if count else f"{self.scope}/{kind}"
            self._counts[self.scope] += 1
            return layer

        return add

    def take_errors(self) -> str:
        errors = "; ".join(self._log.errors)
        self._log.clear()
        return errors or "it gave no reason"

    def raise_errors(self) -> None:
        if self._log.errors:
            raise LoweringError(f"TensorRT reported: {self.take_errors()}")


class Context:
    """The network under construction and the node being lowered.

    node: the FX node; `node.meta["val"]` is its fake value, with dtype and (symbolic) shape.
    supports: tells whether TensorRT builds the network of the probe of this name.
    fp16_accumulation: whether products of fp16 matrices may be summed in fp16.
    constants: value of each constant layer by layer name; TensorRT cannot give back all of them.
    """

    def __init__(
        self, trt: Any, network: NamedNetwork, supports: Callable[[str], bool], fp16_accumulation: bool = False
    ) -> None:
        self.trt = trt
        self.network = network
        self.supports = supports
        self.fp16_accumulation = fp16_accumulation
        self.node: Node
        self.constants: dict[str, torch.Tensor] = {}
        self._kept: list[Any] = []
        self._made: dict[tuple[Any, ...], tuple[Value, Any]] = {}

    def once(self, what: str, value: Value, make: Callable[[], Any], *more: Any) -> Any:
        """Return `make()`, called once for all nodes that ask for `what` of the same `value` and `more`."""
        key = (what, id(value), *more)
        if key not in self._made:
            self._made[key] = value, make()  # holds `value`, so that no other object gets its id
        return self._made[key][1]

    # Constants and weights -------------------------------------------------------------------------------

    def constant(self, value: Any, dtype: torch.dtype | None = None) -> Any:
        """Add a constant layer for a torch tensor, a number or a (nested) list of numbers, and return its tensor."""
        host = torch.as_tensor(value, dtype=dtype).detach().to("cpu").resolve_neg().contiguous()
        layer = self.network.add_constant(tuple(host.shape), self.weights(host))
        self.constants[layer.name] = host
        return layer.get_output(0)

    def weights(self, value: torch.Tensor | None) -> Any:
        """Return weights that point at `value`'s memory, which stays alive until the engine is built."""
        if value is None:
            return self.trt.Weights()
        host = value.detach().to("cpu").resolve_neg().contiguous()
        self._kept.append(host)
        return self.trt.Weights(trt_dtype_from_torch(self.trt, host.dtype), host.data_ptr(), host.numel())

    def keep(self, value: Any) -> None:
        """Keep `value` alive until the engine is built."""
        self._kept.append(value)

    # Tensors ---------------------------------------------------------------------------------------------

    def tensor(self, value: Value, dtype: torch.dtype | None = None, rank: int | None = None) -> Any:
        """Return `value` as a TensorRT tensor, cast to `dtype` and with leading ones up to `rank` dimensions."""
        if not isinstance(value, self.trt.ITensor):
            value = self.constant(value, dtype)
        if dtype is not None:
            value = self.cast(value, dtype)
        if rank is not None and len(value.shape) < rank:
            value = self.unsqueeze(value, range(rank - len(value.shape)))
        return value

    def dtype(self, value: Value) -> torch.dtype:
        """Return the torch dtype of a TensorRT tensor or of a weight."""
        return value.dtype if isinstance(value, torch.Tensor) else torch_dtype_from_trt(value.dtype)

    def operands(self, *values: Value, dtype: torch.dtype | None = None) -> list[Any]:
        """Return `values` as tensors of equal dtype and rank, ready for an elementwise layer.

        dtype: if None, PyTorch's type promotion decides.
        """
        dtype = dtype or self.result_type(*values)
        rank = max(self.rank(value) for value in values)
        return [self.tensor(value, dtype, rank) for value in values]

    def rank(self, value: Value) -> int:
        if isinstance(value, (self.trt.ITensor, torch.Tensor)):
            return 0 if self.is_size(value) else len(value.shape)
        return 0

    def result_type(self, *values: Value) -> torch.dtype:
        """Return the dtype that PyTorch's type promotion gives for `values`."""
        stand_ins = [self._stand_in(value) for value in values]
        result = torch.result_type(stand_ins[0], stand_ins[-1])
        for value in stand_ins[1:-1]:
            result = torch.result_type(torch.empty(1, dtype=result), value)
        return result

    def _stand_in(self, value: Value) -> Any:
        if isinstance(value, self.trt.ITensor):
            if self.is_size(value):
                return 1 if self.dtype(value) == torch.int64 else 1.0
            return torch.empty((1,) * len(value.shape), dtype=self.dtype(value), device="meta")
        return value

    def cast(self, tensor: Any, dtype: torch.dtype) -> Any:
        """Return `tensor` in another dtype; as bools, whether each element is not zero."""
        own = self.dtype(tensor)
        if own == dtype:
            return tensor
        if dtype == torch.bool and own != torch.uint8:  # a cast need not give True of NaN and 0.5
            return self.unary("NOT", self.elementwise("EQUAL", tensor, 0, own))
        return self.network.add_cast(tensor, trt_dtype_from_torch(self.trt, dtype)).get_output(0)

    def elementwise(self, op: str, left: Value, right: Value, dtype: torch.dtype | None = None) -> Any:
        """Add an `ElementWiseOperation`, by name, of two values, promoted to one dtype and rank."""
        left, right = self.operands(left, right, dtype=dtype)
        kind = getattr(self.trt.ElementWiseOperation, op)
        return self.network.add_elementwise(left, right, kind).get_output(0)

    def product(self, left: Any, right: Any, right_operation: str = "NONE", left_operation: str = "NONE") -> Any:
        """Add a product of matrices; operations are those of `MatrixOperation`, by name.

        A product in fp32 of casts from fp16, cast back, is what TensorRT takes for one of fp16 that is summed in fp32.
        One of dequantized operands is computed in 8 bits, and one of a 4-bit weight by kernels that read it as it is.
        """
        dtype = self.dtype(left)
        if dtype == torch.float16 and not self.fp16_accumulation and not self._is_quantized():
            left, right = self.cast(left, torch.float32), self.cast(right, torch.float32)
        operations = [getattr(self.trt.MatrixOperation, name) for name in (left_operation, right_operation)]
        result = self.network.add_matrix_multiply(left, operations[0], right, operations[1]).get_output(0)
        return self.cast(result, dtype)

    def _is_quantized(self) -> bool:
        """Return whether two operands of the node are dequantized, or one from 4 bits."""
        inputs = self.node.all_input_nodes
        found = map(quantizer_of, inputs)
        is_8_bits = sum(quantizer is not None and quantizer.dequantizes for quantizer in found) > 1
        return is_8_bits or any(map(is_4_bit_weight, inputs))

    def unary(self, op: str, tensor: Any) -> Any:
        """Add a `UnaryOperation`, by name."""
        return self.network.add_unary(tensor, getattr(self.trt.UnaryOperation, op)).get_output(0)

    def activation(self, op: str, tensor: Any, alpha: float | None = None, beta: float | None = None) -> Any:
        """Add an activation of an `ActivationType`, by name."""
        layer = self.network.add_activation(tensor, getattr(self.trt.ActivationType, op))
        if alpha is not None:
            layer.alpha = alpha
        if beta is not None:
            layer.beta = beta
        return layer.get_output(0)

    def select(self, condition: Any, then: Value, otherwise: Value, dtype: torch.dtype | None = None) -> Any:
        """Return `then` where `condition` holds, else `otherwise`; all three broadcast."""
        then, otherwise = self.operands(then, otherwise, dtype=dtype)
        rank = max(len(condition.shape), len(then.shape))
        condition, then, otherwise = (self.tensor(v, rank=rank) for v in (condition, then, otherwise))
        return self.network.add_select(condition, then, otherwise).get_output(0)

    # Shapes ----------------------------------------------------------------------------------------------

    def is_size(self, value: Value) -> bool:
        """Return whether `value` stands for a size known only at run time."""
        return isinstance(value, self.trt.ITensor) and value.name.startswith(SIZE_PREFIX)

    def as_size(self, tensor: Any) -> Size:
        """Mark an int64 tensor of shape (1,) as a size."""
        tensor.name = f"{SIZE_PREFIX}{self.network.scope}/{tensor.name}"
        return tensor

    def shape(self, tensor: Any) -> Any:
        """Return the sizes of `tensor`, as an int64 tensor of shape (rank,)."""
        return self.network.add_shape(tensor).get_output(0)

    def size(self, tensor: Any, dim: int) -> Size:
        """Return the size of one dimension: an int if it is known, else a run-time size."""
        dim %= len(tensor.shape)
        known = tensor.shape[dim]
        if known >= 0:
            return known
        sliced = self.network.add_slice(self.shape(tensor), (dim,), (1,), (1,))
        return self.as_size(sliced.get_output(0))

    def sizes(self, tensor: Any) -> list[Size]:
        """Return the sizes of all dimensions."""
        return [self.size(tensor, dim) for dim in range(len(tensor.shape))]

    def shape_tensor(self, sizes: Sequence[Size]) -> Any:
        """Return sizes, of which some are ints and some run-time ones, as one int64 tensor of shape (len(sizes),)."""
        if all(isinstance(size, int) for size in sizes):
            return self.constant(list(sizes), torch.int64)
        parts = [size if self.is_size(size) else self.constant([size], torch.int64) for size in sizes]
        return parts[0] if len(parts) == 1 else self.network.add_concatenation(parts).get_output(0)

    def reshape(self, tensor: Any, sizes: Sequence[Size]) -> Any:
        """Return `tensor` with the given sizes, of which one may be -1."""
        layer = self.network.add_shuffle(tensor)
        layer.zero_is_placeholder = False
        unknown = [i for i, size in enumerate(sizes) if not isinstance(size, int)]
        if len(unknown) == 1 and -1 not in sizes:
            sizes = [-1 if i in unknown else size for i, size in enumerate(sizes)]
        if all(isinstance(size, int) for size in sizes):
            layer.reshape_dims = tuple(sizes)
        else:
            layer.set_input(1, self.shape_tensor(sizes))
        return layer.get_output(0)

    def permute(self, tensor: Any, dims: Sequence[int]) -> Any:
        layer = self.network.add_shuffle(tensor)
        layer.first_transpose = self.trt.Permutation(list(dims))
        return layer.get_output(0)

    def unsqueeze(self, tensor: Any, dims: Sequence[int]) -> Any:
        """Insert dimensions of size 1, so that they stand at `dims` of the result."""
        return self.network.add_unsqueeze(tensor, self.constant(list(dims), torch.int64)).get_output(0)

    def squeeze(self, tensor: Any, dims: Sequence[int]) -> Any:
        """Remove the dimensions `dims`, each of size 1."""
        return self.network.add_squeeze(tensor, self.constant(list(dims), torch.int64)).get_output(0)

    def slice(
        self,
        tensor: Any,
        start: Sequence[Size],
        shape: Sequence[Size],
        stride: Sequence[Size] | None = None,
        mode: str = "STRICT_BOUNDS",
        fill: float = 0,
    ) -> Any:
        """Add an `ISliceLayer`; start, shape and stride may hold run-time sizes.

        mode: a `SampleMode` by name; FILL puts `fill` where there is no element.
        """
        stride = [1] * len(start) if stride is None else stride
        given = (start, shape, stride)
        static = [all(isinstance(v, int) for v in values) for values in given]
        dims = [tuple(v) if known else (0,) * len(start) for v, known in zip(given, static, strict=True)]
        layer = self.network.add_slice(tensor, *dims)
        layer.mode = getattr(self.trt.SampleMode, mode)
        for index, (values, known) in enumerate(zip(given, static, strict=True), start=1):
            if not known:
                layer.set_input(index, self.shape_tensor(values))
        if fill != 0:
            layer.set_input(4, self.constant(fill, self.dtype(tensor)))
        return layer.get_output(0)

    def expand(self, tensor: Any, sizes: Sequence[Size]) -> Any:
        """Broadcast `tensor` to `sizes` (-1 keeps a size), as `torch.Tensor.expand` does."""
        tensor = self.tensor(tensor, rank=len(sizes))
        old = self.sizes(tensor)
        new = [a if isinstance(b, int) and b == -1 else b for a, b in zip(old, sizes, strict=True)]
        if all(isinstance(a, int) and isinstance(b, int) and a == b for a, b in zip(old, new, strict=True)):
            return tensor
        stride = [0 if size == 1 else 1 for size in old]
        return self.slice(tensor, [0] * len(old), new, stride)

    def reduce(self, op: str, tensor: Any, dims: Sequence[int], keep_dims: bool) -> Any:
        """Add a `ReduceOperation`, by name, over `dims`."""
        axes = self.axes(dims, len(tensor.shape))
        kind = getattr(self.trt.ReduceOperation, op)
        return self.network.add_reduce(tensor, kind, axes, keep_dims).get_output(0)

    def axes(self, dims: Sequence[int], rank: int) -> int:
        """Return the bit mask by which TensorRT takes a set of dimensions."""
        return sum({1 << (dim % rank) for dim in dims})


SIZE_PREFIX = "size:"
