"""One graph of Dynamo, run by its engines, and by PyTorch wherever they may not run."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import torch
from torch import fx

from torchtrt_bridge.capture import dynamo
from torchtrt_bridge.capture.capture_cache import load_or_capture
from torchtrt_bridge.capture.capture_key import environment
from torchtrt_bridge.capture.constant_guard import ConstantGuard
from torchtrt_bridge.capture.export import CapturedGraph
from torchtrt_bridge.capture.shared_memory import MemoryGuard
from torchtrt_bridge.capture.unseen_edits import STATISTICS, counters_of, watch_fused_steps
from torchtrt_bridge.entry.graph_accuracy import GraphAccuracyCheck
from torchtrt_bridge.errors import BridgeError, CaptureError
from torchtrt_bridge.graph.dynamo_internals import ends_in_break
from torchtrt_bridge.graph.torch_internals import is_fork_of_cuda_process, is_transformed, tracing_disabled
from torchtrt_bridge.options import Options
from torchtrt_bridge.pipeline import EngineGraph, compile_graph
from torchtrt_bridge.report.log import warn_once
from torchtrt_bridge.report.model import CompileReport
from torchtrt_bridge.runtime.call_context import is_capturing

# Engines of a graph are built anew so often for other values of numbers; then PyTorch runs it.
MOST_BUILDS_FOR_NUMBERS = 16


class CompiledGraph:
    """Callable that Dynamo calls with the weights and inputs of a graph, in the order of its placeholders.

    Weights, and Python numbers that are not sizes, are constants of the engines. Each call checks that they are
    unchanged. If one has changed, PyTorch runs the call, and a second call in a row with the same new ones builds the
    engines again.

    number: how many graphs of any model were made before.
    """

    made = 0

    def __init__(self, module: fx.GraphModule, example_inputs: Sequence[Any], options: Options) -> None:
        self.number = CompiledGraph.made
        CompiledGraph.made += 1
        self.ends_in_break = ends_in_break(module)
        self.original = module
        self.options = options
        self._thread = threading.get_ident()
        self._environment = environment()
        self._lock = threading.RLock()
        self.report = CompileReport(options, graphs=1)
        self.compiled: EngineGraph | None = None
        self.weights = dynamo.weight_positions(module, example_inputs)
        self.weight_tensors = [example_inputs[i] for i in self.weights]
        self._numbers = dynamo.number_positions(module, example_inputs)
        self._returned = dynamo.returned_from_arguments(module)
        self._inputs: list[int] = []
        self._frozen: list[int] = []
        self._statistics: list[torch.Tensor] = []
        self._counters: list[torch.Tensor] = []
        self._builds_for_numbers = 0
        self._bound: ConstantGuard | None = None
        self._changed: ConstantGuard | None = None
        watch_fused_steps()
        self._accuracy: GraphAccuracyCheck | None = None
        self._memory = MemoryGuard(())
        self.calls = 0
        self._is_postponed = is_capturing(example_inputs)
        if self._is_postponed:
            warn_once(
                "PyTorch runs a call that is recorded in a CUDA graph; engines are built at the next one that is not."
            )
        else:
            self._begin(example_inputs)

    def is_for(self, module: fx.GraphModule, example_inputs: Sequence[Any], options: Options) -> bool:
        """Return whether this is the graph `module`, as another thread has compiled it.

        Threads that call a model for the first time at once all have Dynamo compile it, one after the other.
        """
        return (
            threading.get_ident() != self._thread
            and self.options == options
            and self.weights == dynamo.weight_positions(module, example_inputs)
            and all(example_inputs[i] is weight for i, weight in zip(self.weights, self.weight_tensors, strict=True))
            and dynamo.is_same(module, self.original)
            and self._environment == environment()
        )

    @property
    def settled_engines(self) -> Any:
        """A value that is equal while the same engines compute each call; None where PyTorch or others may."""
        compiled, accuracy = self.compiled, self._accuracy
        if compiled is None or self._changed is not None or accuracy is None or accuracy.is_due:
            return None
        run = compiled.run
        return (run, run.generation.count) if run.uses_graphs and run.is_settled else None

    def __call__(self, *args: Any) -> Any:
        self.calls += 1
        if self._is_postponed and not is_capturing(args):
            with self._lock:
                if self._is_postponed:
                    self._begin(args)
                    self._is_postponed = False
        compiled, bound = self.compiled, self._bound
        if compiled is None or is_transformed():
            return self.original(*args)
        assert bound is not None
        if bound.matches(args):
            self._changed = None
        else:
            compiled = self._with_new_constants(args)
        inputs, accuracy = self._inputs, self._accuracy
        if compiled is None or compiled is not self.compiled:  # another thread has had it compiled anew since
            return self.original(*args)
        assert accuracy is not None
        given = [args[i] for i in inputs]
        if (shared := self._memory.shared(given)) is not None:
            self._note_shared(*shared)
            return self.original(*args)
        if accuracy.is_due and not is_capturing(args):
            results = self._first_call(compiled, accuracy, args)
        else:
            results = compiled.run(given)
        if not self._returned:
            return results
        return [self._returned[i](args) if i in self._returned else result for i, result in enumerate(results)]

    def _first_call(self, compiled: EngineGraph, check: GraphAccuracyCheck, args: Sequence[Any]) -> Any:
        """Run a call and compare its results with the model's own; PyTorch alone runs it while engines are built."""
        if compiled.run.is_building:
            return self.original(*args)
        results, comparison = check.call(args)
        if comparison is None:
            self.report.note("there was no memory to compare the results with the model's own")
        elif comparison.problem is None:
            self.report.error = max(comparison.error, self.report.error or 0.0)
        else:
            self.compiled = None
            compiled.run.drop_engines("the graph that it is part of gives other results than the model")
            hint = "; precision='bf16' has the range of fp32" if self.options.precision == "fp16" else ""
            self._leave_to_pytorch(f"with engines its results are not the model's own: {comparison.problem}{hint}")
        return results

    def _note_shared(self, written: int, other: int) -> None:
        """Say that PyTorch runs a call in which a write to one input changes another."""
        names = [dynamo.argument_name(self.original, self._inputs[index]) for index in (written, other)]
        reason = (
            f"{names[0]}, which it writes to, shares memory with {names[1]}; a copy of one of them lets engines run"
        )
        if self.options.fallback == "error":
            raise CaptureError(f"PyTorch would run a call: {reason}.")
        self.report.note(f"PyTorch runs calls in which {reason}")
        warn_once(f"PyTorch runs a call: {reason}.")

    def _begin(self, args: Sequence[Any]) -> None:
        """Build the engines, unless PyTorch is to run the graph."""
        reason = self._why_pytorch(args)
        if reason is None:
            self._compile(args)
        else:
            self._leave_to_pytorch(reason)

    def _why_pytorch(self, inputs: Sequence[Any]) -> str | None:
        """Return why PyTorch must run the whole graph; None if engines may."""
        used = dynamo.input_positions(self.original, inputs, self._numbers)
        tensors = [inputs[i] for i in used]
        if torch.is_grad_enabled() and any(value.requires_grad for value in tensors):
            return "gradients are needed; call the model under torch.inference_mode() or torch.no_grad() for TensorRT"
        reason = why_not_these_devices({value.device.type for value in tensors}, self.options)
        if reason is not None:
            return reason
        if self.options.engine != "reference" and is_fork_of_cuda_process():
            return "this process was forked from one that uses CUDA, so it cannot; start it with 'spawn'"
        return None

    def _leave_to_pytorch(self, reason: str) -> None:
        reason = reason.rstrip(". ")
        if self.options.fallback == "error":
            raise CaptureError(f"PyTorch would run the whole graph: {reason}. fallback='pytorch' lets it.")
        self.report.note(f"PyTorch runs a whole graph: {reason}")
        warn_once(f"PyTorch runs a whole graph: {reason}.")

    def _compile(self, args: Sequence[Any]) -> None:
        self.compiled = None
        try:
            captured, inputs = load_or_capture(self.original, args, self.weights, self._numbers, self.options)
            self._check_aliases(captured, inputs)
            names = dynamo.input_names(self.original, captured.module, inputs)
            with tracing_disabled():  # the passes look for the fake mode of the captured graph, not of Dynamo's trace
                compiled = compile_graph(captured, self.options)
        except Exception as error:  # whatever goes wrong here, PyTorch runs the user's model
            if self.options.fallback == "error":
                raise
            kind = "" if isinstance(error, BridgeError) else f"{type(error).__name__}: "
            self._leave_to_pytorch(f"{kind}{error}")
            return
        state = [dynamo.weight_index(name) for name in captured.state]
        self.report = compiled.report
        self.report.rename_inputs(names)
        self._inputs = inputs + state
        self._frozen = [i for i in self.weights if i not in state]
        self._watch_statistics(args)
        self._bound = self._guard(args)
        self._accuracy = GraphAccuracyCheck(self.original, compiled.run, self._inputs, self.options)
        self._memory = MemoryGuard(captured.mutations)
        self.compiled = compiled  # last, as other threads run PyTorch until then

    def _guard(self, args: Sequence[Any]) -> ConstantGuard:
        return ConstantGuard(args, self._frozen, self._numbers, self._counters)

    def _watch_statistics(self, args: Sequence[Any]) -> None:
        """Find what the batch norms among the weights count, once: new values of a statistic are in the same tensor."""
        names = {i: dynamo.argument_name(self.original, i) for i in self._frozen}
        found = [args[i] for i, name in names.items() if any(each in name for each in STATISTICS)]
        if list(map(id, found)) != list(map(id, self._statistics)):
            self._statistics, self._counters = found, counters_of(found)

    def _check_aliases(self, captured: CapturedGraph, inputs: Sequence[int]) -> None:
        mutated = [inputs[i] for i in captured.mutations if i < len(inputs)]
        shared = dynamo.output_sharing(self.original, mutated)
        if shared is not None:
            raise CaptureError(f"its output {shared} is a view of an input that it changes; return a clone() of it")

    def _with_new_constants(self, args: Sequence[Any]) -> EngineGraph | None:
        """Return engines with the weights and numbers of this call, once these came twice; None if PyTorch runs it."""
        if is_capturing(args):
            return None  # nothing is built while the caller records a CUDA graph
        with self._lock:
            return self._compiled_for(args)

    def _compiled_for(self, args: Sequence[Any]) -> EngineGraph | None:
        bound = self._bound
        if self.compiled is None or bound is None or bound.matches(args):  # another thread was faster
            return self.compiled
        if (reason := self._why_pytorch(args)) is not None:  # its weights need gradients by now, or are elsewhere
            self._leave_to_pytorch(reason)
            return None
        names = [dynamo.argument_name(self.original, index) for index in bound.changed_numbers(args)]
        if self.options.fallback == "pytorch" and (self._changed is None or not self._changed.matches(args)):
            self._changed = self._guard(args)
            others = f" and {len(names) - 1} more" if names[1:] else ""  # of the layers of a LoRA there are hundreds
            changed = f"the value of {names[0]}{others} has" if names else "weights have"
            warn_once(f"{changed} changed since the engines were built; PyTorch runs until two calls agree.")
            return None
        self._changed = None
        self._builds_for_numbers += bool(names)
        if self._builds_for_numbers > MOST_BUILDS_FOR_NUMBERS:
            self.compiled = None
            self._leave_to_pytorch(f"the value of {names[0]} changes from call to call; pass it as a tensor")
            return None
        self._compile(args)
        return self.compiled


def why_not_these_devices(devices: set[str], options: Options) -> str | None:
    """Return why engines compute nothing of a graph whose tensors are on these devices; None if they may.

    Beside tensors on a GPU there may be some on the CPU: what reads them stays in PyTorch.
    """
    wanted = "cpu" if options.engine == "reference" else "cuda"
    others = sorted(devices - {wanted})
    if not others or (others == ["cpu"] and wanted in devices):
        return None
    return (
        f"its tensors are on {' and '.join(others)}, and engines run on {wanted}; move model and inputs there, "
        "or build for a GPU elsewhere with trtb.export(..., targets=...)"
    )
