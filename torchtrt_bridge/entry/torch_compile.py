"""Capture by `torch.compile`: the backend that Dynamo calls for each graph, and the decorator."""

from __future__ import annotations

import copy
import inspect
import itertools
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import fx, nn

from torchtrt_bridge.capture.transformers_classes import install_hooks, is_for_pipelines, is_pipeline
from torchtrt_bridge.entry.compiled_graph import CompiledGraph
from torchtrt_bridge.entry.option_signature import shows_options
from torchtrt_bridge.errors import OptionsError
from torchtrt_bridge.options import KeywordOptions, Options
from torchtrt_bridge.report.model import CompileReport, merged

if TYPE_CHECKING:
    from typing_extensions import Unpack

_ATTRIBUTE = "_torchtrt_bridge_backend"
_numbers = itertools.count()
_all_graphs: weakref.WeakSet[CompiledGraph] = weakref.WeakSet()


def torchtrt_bridge(
    module: fx.GraphModule,
    example_inputs: Sequence[Any],
    *,
    options: Mapping[str, Any] | None = None,
    **unknown: Any,
) -> Callable[..., Any]:
    """The backend behind ``torch.compile(model, backend="torchtrt_bridge", options={...})``.

    options: the fields of `Options`. A wrong one raises OptionsError, inside the exception that Dynamo makes of it.
    """
    if unknown:
        raise OptionsError(f"torch.compile passed {sorted(unknown)}; this backend takes options={{...}} only.")
    return Backend(Options.from_mapping(options))(module, example_inputs)


class Backend:
    """A backend with its options, and the graphs that it compiled."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.graphs: list[CompiledGraph] = []

    def __call__(self, module: fx.GraphModule, example_inputs: Sequence[Any]) -> Callable[..., Any]:
        graph = CompiledGraph(module, example_inputs, self.options)
        self.graphs.append(graph)
        _all_graphs.add(graph)
        return graph

    def __reduce__(self) -> tuple[Any, ...]:
        """Copies and pickles, as for the workers of a DataLoader, compile anew: engines are of one process."""
        return Backend, (self.options,)

    @property
    def report(self) -> CompileReport:
        return merged([graph.report for graph in self.graphs]) if self.graphs else CompileReport(self.options)


@shows_options(KeywordOptions)
def compile(
    model: Any = None, *, dynamic: bool | None = None, fullgraph: bool = False, **options: Unpack[KeywordOptions]
) -> Any:
    """Compile a module, function or method for TensorRT; also a decorator of these and of nn.Module classes.

    dynamic, fullgraph: as in `torch.compile`.
    options: the fields of `Options`, checked at once.
    Returns what `torch.compile` returns; a decorated class is returned itself, its `forward` compiled. A Hugging Face
    model, quantized or not, or a module with a method `generate`, comes back as a second module of its class over the
    same weights, since pipelines look at the class, and `generate` calls the module that it belongs to.
    """
    checked = Options.from_mapping(options)
    if model is None:
        return lambda target: _compile(target, dynamic, fullgraph, checked)
    return _compile(model, dynamic, fullgraph, checked)


def _compile(target: Any, dynamic: bool | None, fullgraph: bool, options: Options) -> Any:
    backend = Backend(options)
    if inspect.isclass(target):
        if not issubclass(target, nn.Module):
            raise OptionsError(f"compile() takes nn.Module classes, not {target.__name__}.")
        target.forward = torch.compile(target.forward, backend=backend, dynamic=dynamic, fullgraph=fullgraph)
        setattr(target, _ATTRIBUTE, backend)
        return target
    if not callable(target):
        raise OptionsError(f"compile() takes a module, a function or a class, not {type(target).__name__}.")
    if isinstance(target, nn.Module) and (is_for_pipelines(target) or hasattr(type(target), "generate")):
        install_hooks(target)
        twin = copy.copy(target)  # its parameters, buffers, submodules and hooks are those of the original
        compile_calls(twin, backend, dynamic, fullgraph)
        return twin
    compiled = torch.compile(target, backend=backend, dynamic=dynamic, fullgraph=fullgraph)
    object.__setattr__(compiled, _ATTRIBUTE, backend)
    return compiled


def compile_calls(module: nn.Module, backend: Backend, dynamic: bool | None, fullgraph: bool) -> None:
    """Compile `module` in place, as `nn.Module.compile` does: whoever calls it reaches what `backend` compiled.

    PyTorch looks at `_compiled_call_impl` in each call, and leaves it out of copies and pickles.
    """
    call = _with_code_of_its_own(module._call_impl, f"{type(module).__name__}_{next(_numbers)}")
    compiled = torch.compile(call, backend=backend, dynamic=dynamic, fullgraph=fullgraph)
    setattr(compiled, _ATTRIBUTE, backend)
    module._compiled_call_impl = compiled


def uncompile_calls(module: nn.Module) -> bool:
    """Undo `compile_calls`; False if there was nothing to undo."""
    if backend_of_calls(module) is None:
        return False
    module._compiled_call_impl = None
    return True


def backend_of_calls(module: Any) -> Backend | None:
    """The backend that `compile_calls` gave to this module."""
    return getattr(getattr(module, "_compiled_call_impl", None), _ATTRIBUTE, None)


def backend_of(compiled: Any) -> Backend | None:
    """The backend of what `compile` returned; None for anything else."""
    backend = getattr(compiled, _ATTRIBUTE, None) or backend_of_calls(compiled)
    return backend if isinstance(backend, Backend) else None


def _with_code_of_its_own(function: Callable[..., Any], name: str) -> Callable[..., Any]:
    """`function` in an outermost frame that no other compiled function shares.

    Dynamo counts graphs by the code of that frame, and leaves those beyond `recompile_limit` (8) to PyTorch without
    asking the backend; by its place and name it remembers which sizes have changed. The models of Hugging Face have
    that frame in common: the decorator of their `forward`.
    """

    def call(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    call.__code__ = call.__code__.replace(co_name=name)
    return call


def report(compiled: Any) -> CompileReport:
    """What was built for a compiled or loaded model: engines, fallbacks, times, errors.

    compiled: what `trtb.compile`, `trtb.accelerate`, `trtb.export`, `trtb.load` or
        `torch.compile(..., backend="torchtrt_bridge")` gave, or a Hugging Face pipeline around it.
    Before the first call there is nothing to tell, as `torch.compile` compiles then.
    """
    own = getattr(compiled, "report", None)
    if isinstance(own, CompileReport):
        return own
    backend = backend_of(compiled)
    if backend is not None:
        return backend.report
    if is_pipeline(compiled):
        return report(compiled.model)
    return _report_by_weights(compiled)


def _report_by_weights(compiled: Any) -> CompileReport:
    """The report of `torch.compile`'s own result, found by the weights that it shares with the captured graphs."""
    module = getattr(compiled, "_orig_mod", compiled)
    if not isinstance(module, nn.Module):
        raise OptionsError(
            "report() finds the graphs of torch.compile(module) by the module's weights, and this is "
            f"a {type(compiled).__name__}. Compile it with torchtrt_bridge.compile(...) to have its report."
        )
    own = {id(tensor) for tensor in (*module.parameters(), *module.buffers())}
    graphs = [graph for graph in _all_graphs if any(id(weight) in own for weight in graph.weight_tensors)]
    return merged([graph.report for graph in graphs]) if graphs else CompileReport(Options())
