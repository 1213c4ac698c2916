"""The quantized model, an ordinary module that PyTorch computes as TensorRT will, and the report of its layers.

Pickles of quantized models name `_unpickled`, `_ReadsBuffers`, `QuantizationReport` and `LayerEntry` by this module.
"""

from __future__ import annotations

import copy
import dataclasses
import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from torchtrt_bridge.capture.transformers_classes import is_model
from torchtrt_bridge.graph import torch_internals
from torchtrt_bridge.graph.edit import copy_graph, free_name
from torchtrt_bridge.graph.shapes import UNBOUNDED
from torchtrt_bridge.quantize.calibration import CalibrationResult
from torchtrt_bridge.quantize.calls import Limits, check_call
from torchtrt_bridge.quantize.config import Settings
from torchtrt_bridge.quantize.decoder import check_dtype
from torchtrt_bridge.quantize.float_graph import FloatGraph
from torchtrt_bridge.quantize.qdq import Choice, QdqGraph
from torchtrt_bridge.quantize.search import SearchResult

if TYPE_CHECKING:
    from rich.table import Table

aten = torch.ops.aten
WIDTH = 120
FLOAT = "float"
CONFIG = "config"
QUANTIZATION = "quantization"


@dataclasses.dataclass(frozen=True)
class LayerEntry:
    """One row of the report.

    dtype: int8, fp8, int4 or float.
    scale: of its input; None for weights only and for layers in floating point.
    sensitivity: the error of the outputs where no other layer is quantized; None where it was not measured.
    reason: the reason that it stays in floating point.
    """

    name: str
    op: str
    dtype: str
    scale: float | None = None
    sensitivity: float | None = None
    reason: str = ""

    @property
    def alone(self) -> float | None:
        """The earlier name of `sensitivity`."""
        return self.sensitivity

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore a pickled entry, of an earlier version too, where `sensitivity` is called `alone`."""
        values = dict(state)
        if "alone" in values:
            values["sensitivity"] = values.pop("alone")
        self.__dict__.update(values)


@dataclasses.dataclass
class QuantizationReport:
    """A report of what `quantize` did.

    choice: the range method and the rescaling, in words.
    error: relative error of the outputs on the holdout; None where nothing was measured.
    tried: the errors of the choices that were measured.
    score, float_score: the results of `evaluate` for the quantized model and for the float one.
    """

    dtype: str
    choice: str
    error: float | None
    layers: list[LayerEntry]
    tried: dict[str, float]
    score: float | None
    float_score: float | None
    notes: list[str]

    @property
    def quantized(self) -> int:
        """The number of quantized layers."""
        return sum(layer.dtype != FLOAT for layer in self.layers)

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain data."""
        return dataclasses.asdict(self) | {"quantized": self.quantized}

    def __str__(self) -> str:
        from torchtrt_bridge.report.render import text_console, text_from_console

        console = text_console(WIDTH)
        console.print(self.headline())
        console.print(_table_from(self.layers))
        for note in self.notes:
            console.print(f"note: {note}")
        return text_from_console(console)

    def headline(self) -> str:
        """Sum the result up in one line."""
        parts = [f"{self.quantized} of {len(self.layers)} layers in {self.dtype}: {self.choice}"]
        if self.error is not None:
            parts.append(f"error of the outputs {self.error:.2e}")
        if self.score is not None and self.float_score is not None:
            parts.append(f"score {self.score:.4g}, in floating point {self.float_score:.4g}")
        return "; ".join(parts)


class _ReadsBuffers(fx.Tracer):
    """A tracer of unpickled modules whose graph reads buffers, where fx would compute with their values at once."""

    proxy_buffer_attributes = True


class QuantizedModel(fx.GraphModule):
    """A model with quantize and dequantize nodes, called as the model it was made of.

    It runs in PyTorch anywhere, with the rounding that TensorRT has; `compile` and `export` take it as any module.
    Its parameters are the arguments that the calibration data gave. Its class has the name of the model's. A model of
    transformers also has the attributes here that its pipelines read. One with `generate` is quantized otherwise, by
    `decoder_from`.
    """

    def __init__(self, root: nn.Module, graph: fx.Graph, class_name: str) -> None:
        super().__init__(root, graph, class_name)
        self.register_forward_pre_hook(check_call, with_kwargs=True)

    @property
    def quantization(self) -> QuantizationReport:
        """The report of `quantize`; AttributeError for a graph that is still without one."""
        if QUANTIZATION not in self.meta:
            raise AttributeError(QUANTIZATION)
        return cast(QuantizationReport, self.meta[QUANTIZATION])

    @property
    def config(self) -> Any:
        """The configuration of the model, one of transformers; AttributeError for others."""
        if CONFIG not in self.meta:
            raise AttributeError("config")
        return self.meta[CONFIG]

    @property
    def dtype(self) -> torch.dtype:
        """The floating point type that the model had."""
        return cast(torch.dtype, self.meta["dtype"])

    @property
    def device(self) -> torch.device:
        """The device of its weights."""
        return next(self.buffers()).device

    def __copy__(self) -> QuantizedModel:
        """Return a second module over the same weights; GraphModule's own copy is no QuantizedModel."""
        return _model_of(self, self.meta, type(self).__name__)

    def __deepcopy__(self, memo: dict[int, Any]) -> QuantizedModel:
        """Return a copy; GraphModule's own has neither the name of the class nor the check of calls."""
        twin = super().__deepcopy__(memo)
        return _model_of(twin, twin.meta, type(self).__name__)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle a GraphModule of flat arguments and results: fx turns nested ones into plain dicts in unpickling."""
        flat = fx.GraphModule(self, copy_graph(self.graph))
        _let_full_be_traced(flat)
        torch_internals.set_tracer(flat, _ReadsBuffers)
        return _unpickled, (flat, torch_internals.pytree_info(self.graph), self.meta, type(self).__name__)

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> QuantizedModel:
        """Move the module; CalibrationError for another dtype than the one that its graph was traced in."""
        check_dtype(fn, self.dtype)
        return cast(QuantizedModel, super()._apply(fn, recurse))  # type: ignore[no-untyped-call]

    def can_generate(self) -> bool:
        """Return False: a graph computes one pass."""
        return False


def _let_full_be_traced(module: fx.GraphModule) -> None:
    """Make tensors of a dynamic size, as the first states of recurrent layers, from a buffer of one element.

    fx traces a module when it is unpickled, and `full` has no tensor among its arguments by which fx would notice it.
    """
    for node in module.graph.find_nodes(op="call_function", target=aten.full.default):
        sizes, value = node.args[:2]
        if not any(isinstance(size, fx.Node) for size in sizes):
            continue
        like = node.meta["val"]
        name = free_name(module, f"{node.name}_value")
        module.register_buffer(name, torch.full([1] * like.dim(), value, dtype=like.dtype, device=like.device))
        with module.graph.inserting_before(node):
            one = module.graph.get_attr(name)
            expanded = module.graph.call_function(aten.expand.default, (one, sizes))
            node.replace_all_uses_with(module.graph.call_function(aten.clone.default, (expanded,)))
        module.graph.erase_node(node)
    module.recompile()


def _unpickled(flat: fx.GraphModule, info: Any, meta: dict[str, Any], name: str) -> QuantizedModel:
    """Rebuild a quantized model from the parts that `__reduce__` pickles."""
    flat.graph.set_codegen(torch_internals.codegen_from_info(info))
    return _model_of(flat, meta, name)


def _model_of(module: fx.GraphModule, meta: dict[str, Any], name: str) -> QuantizedModel:
    """Build a quantized model with the graph, the tensors and the mode of `module`."""
    model = QuantizedModel(module, module.graph, name)
    model.meta = meta
    return model


def model_from(
    source: nn.Module, calibrated: CalibrationResult, quantized: QdqGraph, report: QuantizationReport
) -> QuantizedModel:
    """Build a module of the graph, with the arguments and results of `source`, the user's model."""
    graph = quantized.module.graph
    graph.set_codegen(calibrated.graph.code_generator())
    model = QuantizedModel(quantized.module, graph, type(source).__name__)
    for name, value in list(model.named_buffers()):
        model.register_buffer(name, value)  # a part of its state, as the constants of captured graphs are not
    model.meta[QUANTIZATION] = report
    model.meta["limits"] = _limits_of(calibrated.graph, source)
    model.meta["dtype"] = next(
        (p.dtype for p in source.parameters() if p.is_floating_point()), torch.get_default_dtype()
    )
    if is_model(source):
        model.meta[CONFIG] = copy.deepcopy(source.config)
    return model.eval()


def _limits_of(graph: FloatGraph, model: nn.Module) -> Limits:
    """Derive the calls to accept from a graph traced from a call of `model`; nested arguments are left to PyTorch."""
    sizes, values = {}, {}
    arguments, _ = pytree.tree_unflatten(list(range(len(graph.specs))), graph.in_spec)
    for name, index in zip(graph.names, arguments, strict=True):
        if not isinstance(index, int):
            continue
        spec = graph.specs[index]
        if spec is None:
            values[name] = graph.constants[index]
        else:
            ranges = enumerate(graph.ranges_of(spec))
            sizes[name] = tuple((dim, low, high) for dim, (low, high) in ranges if low > 1 or high < UNBOUNDED)
    return Limits(_positional(graph.names, model), graph.names, sizes, values)


def _positional(names: tuple[str, ...], model: nn.Module) -> int:
    """Count the arguments that are the first parameters of the model's forward."""
    count = 0
    for name, parameter in zip(names, inspect.signature(model.forward).parameters.values(), strict=False):
        if parameter.kind is parameter.VAR_POSITIONAL:
            return len(names)
        if name != parameter.name or parameter.kind is parameter.KEYWORD_ONLY:
            break
        count += 1
    return count


# The report -------------------------------------------------------------------------------------------------------


def report_from(
    calibrated: CalibrationResult, quantized: QdqGraph, found: SearchResult, settings: Settings
) -> QuantizationReport:
    """Report the quantization of a model by one choice."""
    entries = []
    for layer in calibrated.layers:
        sensitivity = found.sensitivity.get(layer.name)
        if layer.name in quantized.scales:
            scale = quantized.scales[layer.name]
            entries.append(LayerEntry(layer.name, layer.op, settings.dtype, scale, sensitivity))
        else:
            is_chosen = layer.name in found.choice.float_layers
            reason = "kept for accuracy" if is_chosen else "no calibration data reached it"
            entries.append(LayerEntry(layer.name, layer.op, FLOAT, None, sensitivity, reason))
    entries += [LayerEntry(each.name, each.op, FLOAT, reason=each.reason) for each in calibrated.floats]
    names = [layer.name for layer in calibrated.layers if layer.name in quantized.scales]
    notes = [*calibrated.notes, *found.notes, *_zero_input_notes(calibrated, names)]
    return QuantizationReport(
        settings.dtype,
        _in_words(found.choice, settings),
        found.error,
        entries,
        found.tried,
        found.score,
        found.float_score,
        notes,
    )


def _in_words(choice: Choice, settings: Settings) -> str:
    if settings.dtype != "int4":
        return str(choice)
    blocks = f"blocks of {settings.config.block_size} weights"
    return blocks + (", corrected biases" if choice.correct_bias else "")


def _zero_input_notes(calibrated: CalibrationResult, names: list[str]) -> list[str]:
    """Return a note on layers whose inputs were always zero: any scale suits these, and none may suit other data."""
    zero = [
        layer.name
        for layer in calibrated.layers
        if layer.name in names and layer.weight is not None and _is_zero(calibrated, layer.reads[0])
    ]
    return [f"Inputs that were zero in all batches, and got a range of 1.0: {', '.join(zero)}."] if zero else []


def _is_zero(calibrated: CalibrationResult, read: tuple[str, int]) -> bool:
    node = next(node for node in calibrated.graph.module.graph.nodes if node.name == read[0])
    statistics = calibrated.observed[cast(fx.Node, node.args[read[1]]).name]
    return statistics.batches > 0 and statistics.absmax == 0


def _table_from(layers: list[LayerEntry]) -> Table:
    """Build a table with a row for each layer; columns that would be empty are left out."""
    from rich import box
    from rich.table import Table

    has_scales = any(layer.scale is not None for layer in layers)
    has_errors = any(layer.sensitivity is not None for layer in layers)
    has_reasons = any(layer.reason for layer in layers)
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for title in ("layer", "operator", "dtype"):
        table.add_column(title, no_wrap=True)
    for title, is_wanted in (("input scale", has_scales), ("error alone", has_errors)):
        if is_wanted:
            table.add_column(title, justify="right")
    if has_reasons:
        table.add_column("reason")
    for layer in layers:
        table.add_row(*_cells(layer, has_scales, has_errors, has_reasons))
    return table


def _cells(layer: LayerEntry, has_scales: bool, has_errors: bool, has_reasons: bool) -> list[str]:
    cells = [layer.name, layer.op, layer.dtype]
    if has_scales:
        cells.append("-" if layer.scale is None else f"{layer.scale:.3g}")
    if has_errors:
        cells.append("-" if layer.sensitivity is None else f"{layer.sensitivity:.1e}")
    return [*cells, layer.reason] if has_reasons else cells
