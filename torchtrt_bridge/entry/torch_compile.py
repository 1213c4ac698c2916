"""Backend of `torch.compile`, which Dynamo calls for each graph; `compile`, also as a decorator; and reports."""

from __future__ import annotations

import copy
import dataclasses
import functools
import inspect
import itertools
import operator
import sys
import threading
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import fx, nn

from torchtrt_bridge.capture import graph_breaks, recurrent_layers
from torchtrt_bridge.capture.diffusers_classes import called_modules, is_diffusion, why_left_out
from torchtrt_bridge.capture.dynamic_sizes import with_sizes
from torchtrt_bridge.capture.transformers_classes import (
    install_hooks,
    is_for_pipelines,
    is_pipeline,
    is_sentence_model,
    version_of_sentence_models,
)
from torchtrt_bridge.entry.compiled_graph import CompiledGraph
from torchtrt_bridge.entry.option_signature import shows_options
from torchtrt_bridge.entry.reported_model import describe_model
from torchtrt_bridge.errors import BridgeError, OptionsError, UnsupportedOpError
from torchtrt_bridge.graph.dynamo_internals import backend_of_optimized, error_of_backend, function_of_backend
from torchtrt_bridge.graph.torch_internals import compiled_call, mode_counts, set_compiled_call, uncompiled_call
from torchtrt_bridge.options import KeywordOptions, Options
from torchtrt_bridge.report.log import warn_once
from torchtrt_bridge.report.model import CompileReport, GraphBreak, merged, stages_of

if TYPE_CHECKING:
    from typing_extensions import Unpack

_ATTRIBUTE = "_torchtrt_bridge_backend"
_BREAKS = "_torchtrt_bridge_breaks"
_numbers = itertools.count()
_all_graphs: weakref.WeakSet[CompiledGraph] = weakref.WeakSet()


def torchtrt_bridge(
    module: fx.GraphModule,
    example_inputs: Sequence[Any],
    *,
    options: Mapping[str, Any] | None = None,
    **unknown: Any,
) -> Callable[..., Any]:
    """Compile a graph for ``torch.compile(model, backend="torchtrt_bridge", options={...})``.

    options: the fields of `Options`. A wrong one raises OptionsError, which Dynamo wraps in its own exception.
    """
    if unknown:
        raise OptionsError(f"torch.compile passed {sorted(unknown)}; this backend takes options={{...}} only.")
    return Backend(Options.from_mapping(options))(module, example_inputs)


def _on_graph_break(found: GraphBreak, used: Any) -> None:
    """Keep a graph break for the report, with the object that `torch.compile` makes of the backend's name."""
    _check_break(found, Options.from_mapping(used.kwargs.get("options")))
    used.__dict__.setdefault(_BREAKS, []).append(dataclasses.replace(found, after=CompiledGraph.made))


torchtrt_bridge.on_graph_break = _on_graph_break  # type: ignore[attr-defined]
if "torch._dynamo" in sys.modules:  # as where `torch.compile` loads this module for the backend's name
    graph_breaks.watch()
    recurrent_layers.watch()


class Backend:
    """Backend with its options, the graphs that it compiled, and where Dynamo broke them.

    target: the model or function that it compiles, as far as it is known.
    """

    def __init__(self, options: Options, target: Any = None) -> None:
        self.options = options
        self.graphs: list[CompiledGraph] = []
        self.breaks: list[GraphBreak] = []
        self.notes: list[str] = []
        self._target = target
        graph_breaks.watch()
        recurrent_layers.watch()

    def __call__(self, module: fx.GraphModule, example_inputs: Sequence[Any]) -> Callable[..., Any]:
        known = (graph for graph in _all_graphs if graph.is_for(module, example_inputs, self.options))
        graph = next(known, None) or CompiledGraph(module, example_inputs, self.options)
        if graph not in self.graphs:
            self.graphs.append(graph)
        _all_graphs.add(graph)
        return graph

    def __reduce__(self) -> tuple[Any, ...]:
        """Reduce to the options: a copy, as in a worker of a DataLoader, compiles again."""
        return Backend, (self.options,)

    def on_graph_break(self, found: GraphBreak, _: Any = None) -> None:
        """Keep a graph break for the report; UnsupportedOpError with ``fallback="error"``."""
        _check_break(found, self.options)
        self.breaks.append(dataclasses.replace(found, after=CompiledGraph.made))

    def after_first_call(self) -> None:
        """Keep the break for which Dynamo passes over a function that it left to Python before, as it logs nothing."""
        if is_training(self._target):
            warn_once(TRAINING)
        found = graph_breaks.known_break(self._target)
        if found is not None and not self.graphs and not self.breaks:
            self.on_graph_break(found)

    def note(self, text: str) -> None:
        """Have the report say something of the model's calls, once."""
        if text not in self.notes:
            self.notes.append(text)

    def calls(self) -> list[int]:
        """Return how often each graph was called."""
        return [graph.calls for graph in self.graphs]

    def settled_engines(self, before: Sequence[int]) -> Any:
        """Return a value that is equal while the engines that computed the calls since `before` compute further ones.

        before: what `calls` returned. None where these are not the engines of one graph, settled for good.
        """
        counts = [*before, *[0] * (len(self.graphs) - len(before))]
        called = [graph for graph, count in zip(self.graphs, counts, strict=True) if graph.calls != count]
        return None if len(called) != 1 or self.breaks else called[0].settled_engines

    @property
    def report(self) -> CompileReport:
        whole = _report_of(self.graphs, self.breaks, self.options, self._target)
        whole.notes += self.notes
        if (whole.graphs or whole.breaks) and is_training(self._target):
            whole.notes.insert(0, TRAINING)
        return whole


TRAINING = "the model is in training mode: call model.eval() first, as dropout and batch norm stay in PyTorch before"


def is_training(model: Any) -> bool:
    """Return whether a model computes other results in training mode, in which it is: by dropout or batch norm."""
    norms = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
    return isinstance(model, nn.Module) and any(
        part.training and (isinstance(part, norms) or _drops(part)) for part in model.modules()
    )


def _drops(part: nn.Module) -> bool:
    """Return whether a module has a probability of dropping values, as `nn.Dropout` and attention layers do."""
    values = [getattr(part, name, 0) for name in ("p", "drop_prob", "dropout", "dropout_p", "attention_dropout")]
    return any(isinstance(value, float) and value > 0 for value in values)


def _check_break(found: GraphBreak, options: Options) -> None:
    if options.fallback == "error":
        raise UnsupportedOpError(
            f"Graph break at {found.source!r}; PyTorch would run {found.in_torch}. {found.reason}. "
            "fallback='pytorch' lets PyTorch run it."
        )


def _report_of(
    graphs: Iterable[CompiledGraph],
    breaks: Sequence[GraphBreak],
    options: Options,
    model: Any,
    report_of_graph: Callable[[CompiledGraph], CompileReport] = operator.attrgetter("report"),
) -> CompileReport:
    """Return the report of all graphs of a model."""
    graphs = sorted(graphs, key=lambda graph: graph.number)
    known = graph_breaks.placed(breaks, [graph.number for graph in graphs], [graph.ends_in_break for graph in graphs])
    whole = merged([*map(report_of_graph, graphs), CompileReport(options, breaks=known)])
    describe_model(whole, model)
    return whole


@shows_options(KeywordOptions)
def compile(
    model: Any = None, *, dynamic: bool | None = None, fullgraph: bool = False, **options: Unpack[KeywordOptions]
) -> Any:
    """Compile a module, function or method for TensorRT; also a decorator of these and of nn.Module classes.

    dynamic, fullgraph: as in `torch.compile`.
    options: the fields of `Options`, checked at once.
    Returns the result of `torch.compile`, or the decorated class itself with its `forward` compiled. For a Hugging Face
    model, quantized or not, and for a module with a method `generate`, the result is a second module of the same class
    over the same weights, since pipelines look at the class, and `generate` calls the module that it belongs to. So it
    is for a SentenceTransformer and a CrossEncoder.
    """
    checked = Options.from_mapping(options)
    if model is None:
        return lambda target: _compile(target, dynamic, fullgraph, checked)
    return _compile(model, dynamic, fullgraph, checked)


def _compile(target: Any, dynamic: bool | None, fullgraph: bool, options: Options) -> Any:
    backend = Backend(options, target)
    if inspect.isclass(target):
        if not issubclass(target, nn.Module):
            raise OptionsError(f"compile() takes nn.Module classes, not {target.__name__}.")
        forward = torch.compile(target.forward, backend=backend, fullgraph=fullgraph)
        target.forward = _alone_at_first(with_sizes(forward, dynamic), backend)
        setattr(target, _ATTRIBUTE, backend)
        return target
    if not callable(target):
        raise OptionsError(f"compile() takes a module, a function or a class, not {type(target).__name__}.")
    if isinstance(target, nn.Module) and _is_called_by_its_methods(target):
        check_sentence_model(target)
        install_hooks(target)
        shallow = copy.copy(target)  # its parameters, buffers, submodules and hooks are those of the original
        compile_calls(shallow, backend, dynamic, fullgraph)
        return shallow
    compiled: Any = torch.compile(target, backend=backend, fullgraph=fullgraph)
    if isinstance(target, nn.Module):
        compiled.forward = _alone_at_first(with_sizes(compiled.forward, dynamic), backend)
    else:
        compiled = _alone_at_first(with_sizes(compiled, dynamic), backend)
    object.__setattr__(compiled, _ATTRIBUTE, backend)
    return compiled


def _is_called_by_its_methods(module: nn.Module) -> bool:
    """Return whether others expect the class of a module, or its own methods call it."""
    return is_for_pipelines(module) or is_sentence_model(module) or hasattr(type(module), "generate")


def check_sentence_model(model: nn.Module) -> None:
    """Raise OptionsError for a model of sentence-transformers before 6.0, whose `encode` would not run the engines."""
    if is_sentence_model(model) and int((version := version_of_sentence_models()).partition(".")[0]) < 6:
        raise OptionsError(
            f"A {type(model).__name__} of sentence-transformers {version} calls its forward directly, past the "
            "engines: pip install 'sentence-transformers>=6'."
        )


def compile_calls(module: nn.Module, backend: Backend, dynamic: bool | None, fullgraph: bool) -> None:
    """Compile `module` in place, as `nn.Module.compile` does: every call of it runs the graphs of `backend`."""
    set_call(module, compiled_anew(module, backend, dynamic, fullgraph), backend)


def compiled_anew(module: nn.Module, backend: Backend, dynamic: bool | None, fullgraph: bool) -> Callable[..., Any]:
    """Return the call of `module`, compiled apart from all other compiled calls of it."""
    call = with_own_code(uncompiled_call(module), f"{type(module).__name__}_{next(_numbers)}")
    compiled = torch.compile(call, backend=backend, fullgraph=fullgraph)
    return _alone_at_first(with_sizes(compiled, dynamic), backend)


def set_call(module: nn.Module, compiled: Callable[..., Any], backend: Backend) -> None:
    """Let every call of `module` run `compiled`, whose graphs are those of `backend`."""
    setattr(compiled, _ATTRIBUTE, backend)
    set_compiled_call(module, compiled)


def uncompile_calls(module: nn.Module) -> bool:
    """Undo `compile_calls`; return False if there was nothing to undo."""
    if backend_of_calls(module) is None:
        return False
    set_compiled_call(module, None)
    return True


def backend_of_calls(module: Any) -> Backend | None:
    """Return the backend that `compile_calls` gave to this module; None if there is none."""
    return getattr(compiled_call(module), _ATTRIBUTE, None)


def backend_of(compiled: Any) -> Backend | None:
    """Return the backend of a result of `compile`; None for any other object."""
    backend = getattr(compiled, _ATTRIBUTE, None) or backend_of_calls(compiled)
    return backend if isinstance(backend, Backend) else None


def _alone_at_first(compiled: Callable[..., Any], backend: Backend) -> Callable[..., Any]:
    """Return `compiled` with a first call that other threads wait for.

    Each thread that finds no graph has Dynamo make one, and Dynamo leaves what comes after 8 of them to PyTorch. A call
    within a trace of this thread waits for none: the trace holds a lock that the first call may wait for. Errors of
    this package are raised as they are, without the exception that Dynamo makes of them.
    """
    lock = threading.RLock()
    is_first = True

    @functools.wraps(compiled)
    def call(*args: Any, **kwargs: Any) -> Any:
        nonlocal is_first
        try:
            if not is_first or torch.compiler.is_dynamo_compiling() or any(mode_counts()):
                return compiled(*args, **kwargs)
            with lock:
                try:
                    result = compiled(*args, **kwargs)
                finally:
                    is_first = False
        except Exception as error:
            own = error_of_backend(error)
            if isinstance(own, BridgeError):
                raise own from None
            raise
        backend.after_first_call()
        return result

    return call


def with_own_code(function: Callable[..., Any], name: str) -> Callable[..., Any]:
    """Return `function` within a frame whose code no other compiled function shares.

    Dynamo counts graphs by the code of the outermost frame, and leaves those beyond `recompile_limit` (8) to PyTorch
    without calling the backend; by its place and name it remembers which sizes have changed. The models of Hugging Face
    share that frame: the decorator of their `forward`.
    """

    def call(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    call.__code__ = call.__code__.replace(co_name=name)
    return call


def report(compiled: Any) -> CompileReport:
    """Return the report of a compiled or loaded model: engines, fallbacks, times, errors.

    compiled: a result of `trtb.compile`, `trtb.accelerate`, `trtb.export`, `trtb.load` or
        `torch.compile(..., backend="torchtrt_bridge")`, or a Hugging Face pipeline around some.
    The report is empty before the first call, as `torch.compile` compiles then.
    """
    own = getattr(compiled, "report", None)
    if isinstance(own, CompileReport):
        return own
    backend = backend_of(compiled)
    if backend is not None:
        return backend.report
    if is_pipeline(compiled):
        return report(compiled.model)
    if is_diffusion(compiled):
        return _report_of_modules(compiled)
    return _report_by_weights(compiled)


def _report_of_modules(target: Any) -> CompileReport:
    """Return the report of a pipeline or model of diffusers, in which names of engines begin with their module's."""
    modules = called_modules(target)
    backends = {name: found for name, module in modules.items() if (found := backend_of_calls(module)) is not None}
    if not backends and isinstance(target, nn.Module):
        return _report_by_weights(target)
    owners = {graph: name for name, backend in backends.items() for graph in backend.graphs}
    breaks = sorted((each for backend in backends.values() for each in backend.breaks), key=lambda each: each.after)
    options = next((backend.options for backend in backends.values()), Options())
    whole = _report_of(owners, breaks, options, target, lambda graph: _named(graph.report, owners[graph]))
    for name, module in modules.items():
        if name in backends:
            notes = [*([TRAINING] if backends[name].graphs and is_training(module) else []), *backends[name].notes]
        else:
            notes = [f"PyTorch runs it: {why_left_out(target, name) or 'it is not accelerated'}"]
        for text in notes:
            whole.note(f"{name}: {text}" if name else text)
    return whole


def _named(report: CompileReport, module: str) -> CompileReport:
    """Return the report of a graph with the name of its module in those of its engines, stages and notes."""
    if not module:
        return report
    return dataclasses.replace(
        report,
        engines=[each.within(module) for each in report.engines],
        stages=[dataclasses.replace(s, name=f"{module}.{s.name}" if s.name else "") for s in stages_of(report)],
        notes=[f"{module}: {note}" for note in report.notes],
    )


def _report_by_weights(compiled: Any) -> CompileReport:
    """Return the report of a result of `torch.compile`, found by the weights that it shares with captured graphs."""
    module = getattr(compiled, "_orig_mod", compiled)
    if not isinstance(module, nn.Module):
        raise OptionsError(
            "report() finds the graphs of torch.compile(module) by the module's weights, and this is "
            f"a {type(compiled).__name__}. Compile it with torchtrt_bridge.compile(...) to have its report."
        )
    own = {id(tensor) for tensor in (*module.parameters(), *module.buffers())}
    graphs = [graph for graph in _all_graphs if any(id(weight) in own for weight in graph.weight_tensors)]
    used = backend_of_optimized(compiled)
    is_own = function_of_backend(used) is torchtrt_bridge
    options = Options.from_mapping(used.kwargs.get("options")) if is_own else Options()
    return _report_of(graphs, getattr(used, _BREAKS, []), options, module)
