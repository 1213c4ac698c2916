"""Nodes that stay in PyTorch between engines, compiled by inductor where that is right and no slower."""

from __future__ import annotations

import operator
from collections.abc import Sequence

import torch
from torch import fx

from torchtrt_bridge.errors import BridgeError
from torchtrt_bridge.report.model import CompileReport, Stage
from torchtrt_bridge.runtime.inductor import Inductor
from torchtrt_bridge.runtime.tolerance import Reference, error_bound
from torchtrt_bridge.runtime.trial import INDUCTOR, PYTORCH, Trial, TriedModule, ready


class TorchSubgraph(TriedModule):
    """Nodes of static sizes that no engine computes: inductor compiles them where that is right and no slower.

    Where inductor fails, or loses, they stay as they are, and a note of the report says why.
    """

    def __init__(self, name: str, pytorch: fx.GraphModule, report: CompileReport) -> None:
        super().__init__(name, pytorch, report.options, INDUCTOR)
        self.report = report
        self._inductor = Inductor(name, pytorch, report.options.tunes_inductor)

    def forward(self, *inputs: torch.Tensor) -> Sequence[torch.Tensor]:
        if self.state == "untried":
            return self._first_call(inputs)
        return self._inductor(inputs) if self.choice == INDUCTOR else self.in_pytorch(inputs)

    def _try(self, inputs: Sequence[torch.Tensor], expected: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
        problem = self._problem(inputs, expected)
        self.choice = INDUCTOR if problem is None else PYTORCH
        if problem is not None:
            self._inductor.discard()
        self.state = "serving"
        self._stage.choice = self.choice
        nodes = self.pytorch.graph.nodes
        calls = [n for n in nodes if n.op == "call_function" and n.target is not operator.getitem]
        subject = f"{self.name} ({len(calls)} of the nodes in PyTorch)"
        self.report.note(f"{subject} is compiled by inductor" if problem is None else f"{subject} is not: {problem}")
        return expected

    @property
    def _stage(self) -> Stage:
        """The stage of the report that shows these nodes."""
        return next((stage for stage in self.report.stages if stage.name == self.name), Stage(0))

    def _problem(self, inputs: Sequence[torch.Tensor], expected: Sequence[torch.Tensor]) -> str | None:
        """Return why inductor is not to compute this subgraph; None if it is."""
        options = self.options
        if not self._inductor.prepare(inputs):
            return f"inductor failed: {self._inductor.failure}"
        if options.trial == "off":
            return None
        bound = error_bound([value.dtype for value in (*inputs, *expected)], options.tf32)
        candidates = [ready(INDUCTOR, self._inductor, Reference(expected, bound))]
        if options.trial == "check+time" and options.engine != "reference":
            candidates.append(ready(PYTORCH, self.in_pytorch))
        is_replayed = options.cuda_graphs == "auto" and any(value.is_cuda for value in inputs)
        try:
            outcome = Trial(inputs, candidates, is_replayed, plain_runs=1).run()
        except (BridgeError, RuntimeError, MemoryError) as error:
            return f"what inductor made of it failed: {error}"
        if outcome.problem is not None:
            return f"inductor's results are wrong: {outcome.problem}"
        times = self._stage.milliseconds = outcome.milliseconds
        if outcome.winner == INDUCTOR:
            return None
        return f"inductor takes {times[INDUCTOR]:.3g} ms, PyTorch {times[PYTORCH]:.3g} ms"
