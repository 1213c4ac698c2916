"""A program: what `export` returns and `load` reads, called as the model was called."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from torchtrt_bridge.archive import Manifest
from torchtrt_bridge.capture import CapturedGraph
from torchtrt_bridge.compile_report import CompileReport, tell_once
from torchtrt_bridge.errors import ShapeRangeError
from torchtrt_bridge.runtime import Execution
from torchtrt_bridge.runtime.surroundings import is_transformed
from torchtrt_bridge.shapes import UNBOUNDED, TensorSpec, spec_of


class Program:
    """A model as engines and what stays in PyTorch.

    report: what runs where.
    plans: the bytes of each engine, by subgraph.
    """

    def __init__(
        self,
        exported: ExportedProgram,
        captured: CapturedGraph,
        run: Execution,
        manifest: Manifest,
        plans: dict[str, bytes],
    ) -> None:
        self._exported = exported
        self.report: CompileReport = run.report
        self.manifest = manifest
        self.plans = plans
        self._run = run
        self._in_spec = exported.call_spec.in_spec
        self._out_spec = exported.call_spec.out_spec
        self._state = [exported.state_dict[name] for name in captured.state]
        run.hold_too(exported.state_dict, needed=self._state)
        self._specs = _specs(run.module, captured)
        self._devices = [n.meta["val"].device.type if _is_tensor(n) else None for n in _inputs(run.module, captured)]

    @property
    def exported(self) -> ExportedProgram:
        """An ordinary `torch.export.ExportedProgram` of the same computation, normalized, in PyTorch.

        With ``release_weights=True`` this brings its weights back from host memory.
        """
        self._run.bring_back_weights()
        return self._exported

    def __reduce__(self) -> tuple[Any, ...]:
        raise TypeError(
            "A Program is neither pickled nor copied: engines are of one process. Write it with trtb.save(program, "
            "'model.pt2'), and read it with trtb.load('model.pt2') in the process that needs it."
        )

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the program, without gradients; under a transform of `torch.func` PyTorch runs it, with them.

        Its dtypes are those that it was exported with, under autocast too.
        Raises ShapeRangeError for arguments of another structure, dtype or size than it was exported for.
        """
        inputs = [*self._flat(args, kwargs), *self._state]
        if is_transformed():
            results = self._run.in_pytorch(inputs)
        else:
            _tell_of_gradients(inputs)
            with torch.no_grad():
                results = self._run(inputs)
        return pytree.tree_unflatten(list(results), self._out_spec)

    def _flat(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
        """The arguments as the graph takes them, checked."""
        values, spec = pytree.tree_flatten((args, self._in_order(kwargs)))
        if spec != self._in_spec:
            raise ShapeRangeError(f"The program takes arguments nested as {self._in_spec}, and got {spec}.")
        for value, wanted, device in zip(values, self._specs, self._devices, strict=True):
            if wanted is None:
                continue
            if isinstance(value, torch.Tensor) and value.device.type != device:
                raise ShapeRangeError(
                    f"Argument {wanted.name} is on {value.device}, and the program on {device}. "
                    f"Save it and load it with device={value.device.type!r}, or move the argument."
                )
            if not (isinstance(value, torch.Tensor) and wanted.accepts(value)):
                raise ShapeRangeError(
                    f"Argument {wanted.name} is {_describe(value)}; the program was exported for {wanted}. "
                    "Export it with dynamic_shapes that hold this size, or with an input of this dtype."
                )
        return values

    def _in_order(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        names = self._in_spec.child(1).context if kwargs else []
        return {name: kwargs[name] for name in names} if set(names) == set(kwargs) else kwargs


def _tell_of_gradients(inputs: list[Any]) -> None:
    if torch.is_grad_enabled() and any(isinstance(value, torch.Tensor) and value.requires_grad for value in inputs):
        tell_once("an exported program computes no gradients, and an input asks for them; torch.compile keeps them.")


def _specs(module: fx.GraphModule, captured: CapturedGraph) -> list[TensorSpec | None]:
    """What each input of the user's must be; None for those that are no tensors."""
    ranges = {symbol: (low, UNBOUNDED if high is None else high) for symbol, (low, high) in captured.ranges.items()}
    nodes = _inputs(module, captured)
    return [spec_of(n.name, n.meta["val"], ranges) if _is_tensor(n) else None for n in nodes]


def _inputs(module: fx.GraphModule, captured: CapturedGraph) -> list[fx.Node]:
    """The placeholders of the user's inputs; those of the state come behind them."""
    nodes = [node for node in module.graph.nodes if node.op == "placeholder"]
    return nodes[: len(nodes) - len(captured.state)]


def _is_tensor(node: fx.Node) -> bool:
    return isinstance(node.meta.get("val"), torch.Tensor)


def _describe(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)}"
    return f"a {type(value).__name__}"
