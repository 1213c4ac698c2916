"""The engine as a module: it runs what its engine serves, and PyTorch whatever it does not."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import fx, nn

from torchtrt_bridge.compile_report import EngineEntry, tell_once
from torchtrt_bridge.errors import BridgeError, EngineLoadError, ShapeRangeError
from torchtrt_bridge.options import Options
from torchtrt_bridge.runtime.check import difference, error_bound
from torchtrt_bridge.shapes import TensorSpec


class Runner(Protocol):
    """Something that computes an engine: TensorRT on a GPU, or the reference interpreter."""

    device: torch.device

    def __call__(self, inputs: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]: ...

    def rehearse(self, inputs: Sequence[torch.Tensor]) -> list[Sequence[torch.Tensor]]:
        """Results of several runs, in each way that later calls may take: all of them must be right."""
        ...


class EngineModule(nn.Module):
    """One subgraph: `runner` computes it once it has been checked against PyTorch on the first real inputs.

    pytorch: the same subgraph in PyTorch; it serves inputs outside the engine's ranges, and everything once
        the engine has failed or differed.
    entry: its line in the report, kept up to date.
    """

    def __init__(
        self,
        pytorch: fx.GraphModule,
        specs: Sequence[TensorSpec],
        runner: Runner | None,
        entry: EngineEntry,
        options: Options,
    ) -> None:
        super().__init__()
        self.pytorch = pytorch
        self.specs = tuple(specs)
        self.runner = runner
        self.entry = entry
        self.options = options
        self.checked = False
        self._told_unserved = False
        self._lock = threading.RLock()

    def forward(self, *inputs: torch.Tensor) -> Sequence[torch.Tensor]:
        runner = self.runner
        if runner is None:
            return self._without_engine(inputs)
        problem = self._problem(inputs, runner)
        if problem is not None:
            return self._unserved(problem, inputs)
        if not self.checked:
            return self._first_call(runner, inputs)
        try:
            return runner(inputs)
        except (BridgeError, RuntimeError) as error:
            return self._give_up(f"it failed at run time: {error}", inputs)

    @property
    def _bound(self) -> float:
        """How far from PyTorch rounding may take an engine of these dtypes."""
        at_work = [getattr(torch, name) for name in self.entry.dtypes]
        return error_bound(at_work, self.options.tf32)

    def _in_pytorch(self, inputs: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
        result: Sequence[torch.Tensor] = self.pytorch(*inputs)
        return result

    def _problem(self, inputs: Sequence[torch.Tensor], runner: Runner) -> str | None:
        """Why the engine does not serve these inputs; None if it does."""
        for value, spec in zip(inputs, self.specs, strict=True):
            if not spec.accepts(value):
                return f"input {spec.name} is {_kind(value)}, the engine serves {spec}"
            if value.device != runner.device:
                return f"input {spec.name} is on {value.device}, the engine runs on {runner.device}"
        return None

    def _unserved(self, problem: str, inputs: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
        widen = "Widen the range (dynamic_shapes, torch._dynamo.mark_dynamic, max_dynamic_size)"
        if self.options.fallback == "error":
            raise ShapeRangeError(
                f"{self.entry.name}: {problem}. {widen}, or let PyTorch serve such calls with fallback='pytorch'."
            )
        if not self._told_unserved:
            self._told_unserved = True
            tell_once(f"{self.entry.name}: {problem}; PyTorch runs such calls. {widen} to have them in TensorRT.")
        return self._in_pytorch(inputs)

    def _first_call(self, runner: Runner, inputs: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
        """Compare the engine with PyTorch on these inputs, and trust it only if they agree."""
        with self._lock:
            if self.checked or self.runner is None:
                return self.forward(*inputs)
            expected = self._in_pytorch(inputs)
            if not all(bool(value.isfinite().all()) for value in inputs if value.is_floating_point()):
                tell_once(f"{self.entry.name}: the first inputs are not finite; PyTorch runs it until they are.")
                return expected
            try:
                runs = runner.rehearse(inputs)
            except (BridgeError, RuntimeError) as error:
                return self._give_up(f"it failed at run time: {error}", inputs, expected)
            for results in runs:
                verdict = difference(results, expected, self._bound)
                self.entry.error = max(verdict.error, self.entry.error or 0.0)
                if verdict.problem is not None:
                    return self._give_up(verdict.problem, inputs, expected)
            self.checked = True
            return runs[-1]

    def _give_up(
        self, why: str, inputs: Sequence[torch.Tensor], expected: Sequence[torch.Tensor] | None = None
    ) -> Sequence[torch.Tensor]:
        self.runner = None
        self.entry.state = why
        result = self._without_engine(inputs, expected)
        tell_once(f"{self.entry.name}: {why}; PyTorch runs this subgraph from now on.")
        return result

    def _without_engine(
        self, inputs: Sequence[torch.Tensor], expected: Sequence[torch.Tensor] | None = None
    ) -> Sequence[torch.Tensor]:
        if self.options.fallback == "error" and not self.entry.is_ready:
            raise EngineLoadError(
                f"{self.entry.name} is not trusted: {self.entry.state}. fallback='pytorch' lets PyTorch run it; "
                "torch_ops=(...) keeps chosen operators in PyTorch."
            )
        return self._in_pytorch(inputs) if expected is None else expected


def _kind(value: torch.Tensor) -> str:
    return f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)}"
