"""Program that `export` returns and `load` reads, called as the model was called."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from torchtrt_bridge.capture.capture_errors import is_failed_assertion
from torchtrt_bridge.capture.export import CapturedGraph, tensor_of
from torchtrt_bridge.capture.shared_memory import MemoryGuard
from torchtrt_bridge.entry.call_signature import CallSignature
from torchtrt_bridge.entry.manifest import Manifest
from torchtrt_bridge.errors import ShapeRangeError
from torchtrt_bridge.graph.shapes import TensorSpec
from torchtrt_bridge.graph.torch_internals import is_transformed
from torchtrt_bridge.report.log import warn_once
from torchtrt_bridge.report.model import CompileReport
from torchtrt_bridge.runtime import Execution


class Program:
    """Model as engines, with the rest in PyTorch.

    report: the place where each node runs.
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
        self._out_spec = exported.call_spec.out_spec
        self._state = [tensor_of(exported, name) for name in captured.state]
        run.track_releasable(exported.state_dict, needed=self._state)
        self._signature = CallSignature(exported, run.module, captured)
        self._memory = MemoryGuard([i for i in captured.mutations if i < len(self._signature.names)])

    @property
    def exported(self) -> ExportedProgram:
        """Ordinary `torch.export.ExportedProgram` of the same computation, normalized, in PyTorch.

        With ``release_weights=True``, reading it restores the weights from host memory.
        """
        self._run.restore_weights()
        return self._exported

    @property
    def inputs(self) -> dict[str, TensorSpec]:
        """Tensors that a call takes, by the name of the argument, each with its `dtype` and the `ranges` of its sizes.

        `accepts` of one says whether it may be a given tensor, and `str` of it is like ``float32[1..16, 3, 224, 224]``.
        Tensors within a nested argument have the names that the graph gives them.
        """
        return self._signature.tensors

    def __repr__(self) -> str:
        from torchtrt_bridge.report.facts import headline

        return f"<torchtrt_bridge.Program: {headline(self.report)}>"

    def _repr_html_(self) -> str:
        """Return the report for a notebook."""
        return self.report._repr_html_()

    def __reduce__(self) -> tuple[Any, ...]:
        raise TypeError(
            "A Program is neither pickled nor copied: engines are of one process. Write it with trtb.save(program, "
            "'model.pt2'), and read it with trtb.load('model.pt2') in the process that needs it."
        )

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the program, without gradients; under a transform of `torch.func` PyTorch runs it, with them.

        Its dtypes are those that it was exported with, under autocast too.
        Raises ShapeRangeError for arguments of another structure, dtype or size than it was exported for, and for
        another number, string or None.
        """
        given = self._signature.flat(args, kwargs)
        values = self._signature.laid_out(given)
        self._check_memory(given)
        inputs = [*values, *self._state]
        if is_transformed():
            results = self._run.in_pytorch(inputs)
        else:
            _warn_of_gradients(inputs)
            with torch.no_grad(), _assertions_named():
                results = self._run(inputs)
        self._copy_back(values, given)
        return pytree.tree_unflatten(list(results), self._out_spec)

    def _check_memory(self, given: list[Any]) -> None:
        """Raise ShapeRangeError if a write to an argument would change another one."""
        shared = self._memory.shared(given)
        if shared is not None:
            written, other = (self._signature.names[index] for index in shared)
            raise ShapeRangeError(
                f"Argument {written} shares memory with {other}, and the program writes to {written}: it reads both as "
                f"they were before the call. Give it a copy of {other}."
            )

    def _copy_back(self, values: list[Any], given: list[Any]) -> None:
        """Copy to the arguments that the model changes the values written to their contiguous copies."""
        for position in self._run.mutations:
            if position < len(given) and values[position] is not given[position]:
                with torch.no_grad():
                    given[position].copy_(values[position])


@contextlib.contextmanager
def _assertions_named() -> Iterator[None]:
    """Raise ShapeRangeError for an assertion that `torch.export` put into the graph and that a call breaks."""
    try:
        yield
    except RuntimeError as error:
        if not is_failed_assertion(error):
            raise
        raise ShapeRangeError(
            f"A size or an index that depends on data is not what the program was exported for: {error}. Call the "
            "program with values like those of the example inputs, or the model itself."
        ) from error


def _warn_of_gradients(inputs: list[Any]) -> None:
    if torch.is_grad_enabled() and any(isinstance(value, torch.Tensor) and value.requires_grad for value in inputs):
        warn_once("an exported program computes no gradients, and an input asks for them; torch.compile keeps them.")
