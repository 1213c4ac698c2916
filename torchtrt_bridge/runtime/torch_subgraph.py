"""What stays in PyTorch between engines, compiled by inductor where that is right and no slower."""

from __future__ import annotations

import operator
import threading
from collections.abc import Sequence

import torch
from torch import fx, nn

from torchtrt_bridge.errors import BridgeError
from torchtrt_bridge.graph.fork_safety import renewed_in_children
from torchtrt_bridge.report.model import CompileReport
from torchtrt_bridge.runtime.call_context import is_capturing
from torchtrt_bridge.runtime.inductor import Inductor
from torchtrt_bridge.runtime.tolerance import Reference, error_bound, holds_nan
from torchtrt_bridge.runtime.trial import ENGINE, PYTORCH, Outcome, Run, Trial


class TorchSubgraph(nn.Module):
    """Nodes of static sizes that no engine computes.

    pytorch: the nodes; inductor compiles them at the first call, and is tried as an engine is. Where it fails, or
        loses, they stay as they are, and a line of the report says why.
    """

    def __init__(self, name: str, pytorch: fx.GraphModule, report: CompileReport) -> None:
        super().__init__()
        self.name = name
        self.pytorch = pytorch
        self.report = report
        self._inductor = Inductor(name, pytorch, report.options.tunes_inductor)
        self._serve: Run | None = None
        self._lock = threading.RLock()
        renewed_in_children(self)

    def after_fork(self) -> None:
        self._lock = threading.RLock()

    @property
    def is_settled(self) -> bool:
        """Whether it is decided who runs it."""
        return self._serve is not None

    def forward(self, *inputs: torch.Tensor) -> Sequence[torch.Tensor]:
        return self._first_call(inputs) if self._serve is None else self._serve(inputs)

    def in_pytorch(self, inputs: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
        """The piece computed by PyTorch, operator by operator."""
        results: Sequence[torch.Tensor] = self.pytorch(*inputs)
        return results

    def _first_call(self, inputs: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
        with self._lock:
            if self._serve is not None:
                return self._serve(inputs)
            expected = self.in_pytorch(inputs)
            if is_capturing(inputs) or holds_nan([*inputs, *expected]):
                return expected
            why_not = self._why_not(inputs, expected)
            self._serve = self._inductor if why_not is None else self.in_pytorch
            calls = [
                n for n in self.pytorch.graph.nodes if n.op == "call_function" and n.target is not operator.getitem
            ]
            what = f"{self.name} ({len(calls)} of the nodes in PyTorch)"
            self.report.note(f"{what} is compiled by inductor" if why_not is None else f"{what} is not: {why_not}")
            return expected

    def _why_not(self, inputs: Sequence[torch.Tensor], expected: Sequence[torch.Tensor]) -> str | None:
        """Why inductor is not to run this piece; None if it is."""
        if not self._inductor.prepare(inputs):
            return f"inductor failed: {self._inductor.failure}"
        if self.report.options.trial == "off":
            return None
        try:
            outcome = self._trial(inputs, expected)
        except (BridgeError, RuntimeError, MemoryError) as error:
            return f"what inductor made of it failed: {error}"
        if outcome.problem is not None:
            return f"inductor's results are wrong: {outcome.problem}"
        if outcome.winner != ENGINE:
            mine, theirs = (outcome.seconds[name] * 1e3 for name in (ENGINE, PYTORCH))
            return f"inductor takes {mine:.3g} ms, PyTorch {theirs:.3g} ms"
        return None

    def _trial(self, inputs: Sequence[torch.Tensor], expected: Sequence[torch.Tensor]) -> Outcome:
        options = self.report.options
        is_timed = options.trial == "check+time" and options.engine != "reference"
        others: dict[str, Run] = {PYTORCH: self.in_pytorch} if is_timed else {}
        bound = error_bound([value.dtype for value in (*inputs, *expected)], options.tf32)
        is_recorded = options.cuda_graphs == "auto" and any(value.is_cuda for value in inputs)
        return Trial(inputs, Reference(expected, bound), is_recorded, plain_runs=1).run(self._inductor, others)
