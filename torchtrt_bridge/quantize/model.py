"""The quantized model: an ordinary module, computed in PyTorch as TensorRT will, and the account of its layers."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import fx, nn
from torch.fx.graph import _PyTreeCodeGen, _PyTreeInfo

from torchtrt_bridge.capture.transformers_classes import is_model
from torchtrt_bridge.errors import CalibrationError
from torchtrt_bridge.graph.edit import copy_graph
from torchtrt_bridge.quantize.calibrate import Calibrated
from torchtrt_bridge.quantize.calls import check_call, limits_of
from torchtrt_bridge.quantize.place import Placed
from torchtrt_bridge.quantize.search import Found
from torchtrt_bridge.quantize.settings import Settings

WIDTH = 120
FLOAT = "float"
CONFIG = "config"


@dataclasses.dataclass(frozen=True)
class LayerEntry:
    """One row of the report.

    dtype: int8, fp8, int4 or float.
    scale: of its input; None for weights only and for layers in floating point.
    alone: the error of the outputs where this layer alone is quantized; None where it was not measured.
    reason: why it stays in floating point.
    """

    name: str
    op: str
    dtype: str
    scale: float | None = None
    alone: float | None = None
    reason: str = ""


@dataclasses.dataclass
class QuantizationReport:
    """What `quantize` did.

    choice: how ranges were found, in words.
    error: relative error of the outputs on batches held back from calibration; None where nothing was measured.
    tried: the errors of the choices that were measured.
    score, float_score: what `evaluate` gave for the quantized model and for the float one.
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
        """How many layers are quantized."""
        return sum(layer.dtype != FLOAT for layer in self.layers)

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self) | {"quantized": self.quantized}

    def __str__(self) -> str:
        from torchtrt_bridge.quantize.table import table_from_report
        from torchtrt_bridge.report.render import text_console, text_from_console

        console = text_console(WIDTH)
        console.print(self.headline())
        console.print(table_from_report(self))
        for note in self.notes:
            console.print(f"note: {note}")
        return text_from_console(console)

    def headline(self) -> str:
        """The outcome in one line."""
        parts = [f"{self.quantized} of {len(self.layers)} layers in {self.dtype}: {self.choice}"]
        if self.error is not None:
            parts.append(f"error of the outputs {self.error:.2e}")
        if self.score is not None and self.float_score is not None:
            parts.append(f"score {self.score:.4g}, in floating point {self.float_score:.4g}")
        return "; ".join(parts)


class _ReadsBuffers(fx.Tracer):
    """Traces what is unpickled: buffers are read by the graph, where fx would compute with them once and for all."""

    proxy_buffer_attributes = True


class QuantizedModel(fx.GraphModule):
    """A model with quantize and dequantize nodes, called as the model it was made of.

    It runs in PyTorch anywhere, with the rounding that TensorRT has; `compile` and `export` take it as any module.
    Its parameters are the arguments that the calibration data gave. Its class has the name of the model's. What a
    model of transformers has beyond an `nn.Module`, and its pipelines ask for, is here too, but for `generate`.
    """

    def __init__(self, root: nn.Module, graph: fx.Graph, class_name: str) -> None:
        super().__init__(root, graph, class_name)
        self.register_forward_pre_hook(check_call, with_kwargs=True)

    @property
    def quantization(self) -> QuantizationReport:
        """What was quantized, and how."""
        return cast(QuantizationReport, self.meta["quantization"])

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
        """Where its weights are."""
        return next(self.buffers()).device

    def __copy__(self) -> QuantizedModel:
        """A second module over the same weights; GraphModule's own copy is no QuantizedModel."""
        return _made_of(self, self.meta, type(self).__name__)

    def __deepcopy__(self, memo: dict[int, Any]) -> QuantizedModel:
        """GraphModule's own copy has neither the name of the class nor the check of calls."""
        twin = super().__deepcopy__(memo)
        return _made_of(twin, twin.meta, type(self).__name__)

    def __reduce__(self) -> tuple[Any, ...]:
        """As a GraphModule of flat arguments and results, as fx makes plain dicts of others in unpickling."""
        flat = fx.GraphModule(self, copy_graph(self.graph))
        flat._tracer_cls = _ReadsBuffers
        form = cast(_PyTreeCodeGen, self.graph._codegen).pytree_info
        return _unpickled, (flat, form, self.meta, type(self).__name__)

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> QuantizedModel:
        """What moves a module; its graph computes in the dtype that it was traced in."""
        if fn(torch.empty(0, dtype=self.dtype)).dtype != self.dtype:
            raise CalibrationError(
                f"A quantized model stays in {self.dtype}. Quantize the model in the dtype that you want, or compile "
                "this one with precision='fp16' or 'bf16'."
            )
        return cast(QuantizedModel, super()._apply(fn, recurse))  # type: ignore[no-untyped-call]

    def can_generate(self) -> bool:
        """False: a quantized model of transformers computes one pass, and has no `generate`."""
        return False


def _unpickled(flat: fx.GraphModule, form: _PyTreeInfo, meta: dict[str, Any], name: str) -> QuantizedModel:
    flat.graph.set_codegen(_PyTreeCodeGen(form))
    return _made_of(flat, meta, name)


def _made_of(module: fx.GraphModule, meta: dict[str, Any], name: str) -> QuantizedModel:
    """A quantized model with the graph, the tensors and the mode of `module`."""
    model = QuantizedModel(module, module.graph, name)
    model.meta = meta
    return model


def model_from(source: nn.Module, calibrated: Calibrated, placed: Placed, report: QuantizationReport) -> QuantizedModel:
    """The graph as a module with the arguments and results of `source`, the user's model."""
    graph = placed.module.graph
    graph.set_codegen(calibrated.graph.code_generator())
    model = QuantizedModel(placed.module, graph, type(source).__name__)
    for name, value in list(model.named_buffers()):
        model.register_buffer(name, value)  # a part of its state, as the constants of captured graphs are not
    model.meta["quantization"] = report
    model.meta["limits"] = limits_of(calibrated.graph, source)
    model.meta["dtype"] = next(
        (p.dtype for p in source.parameters() if p.is_floating_point()), torch.get_default_dtype()
    )
    if is_model(source):
        model.meta[CONFIG] = copy.deepcopy(source.config)
    return model.eval()


def report_from(calibrated: Calibrated, placed: Placed, found: Found, settings: Settings) -> QuantizationReport:
    """The account of a choice that was carried out."""
    entries = []
    for layer in calibrated.layers:
        alone = found.alone.get(layer.name)
        if layer.name in placed.scales:
            entries.append(LayerEntry(layer.name, layer.op, settings.dtype, placed.scales[layer.name], alone))
        else:
            reason = "kept for accuracy" if layer.name in found.choice.kept else "no calibration data reached it"
            entries.append(LayerEntry(layer.name, layer.op, FLOAT, None, alone, reason))
    entries += [LayerEntry(each.name, each.op, FLOAT, reason=each.reason) for each in calibrated.floats]
    names = [layer.name for layer in calibrated.layers if layer.name in placed.scales]
    notes = [*calibrated.notes, *found.notes, *_constant_inputs(calibrated, names)]
    return QuantizationReport(
        settings.dtype, _how(found, settings), found.error, entries, found.tried, found.score, found.float_score, notes
    )


def _how(found: Found, settings: Settings) -> str:
    if settings.dtype != "int4":
        return str(found.choice)
    return f"blocks of {settings.block_size} weights" + (", corrected biases" if found.choice.correct_bias else "")


def _constant_inputs(calibrated: Calibrated, names: list[str]) -> list[str]:
    """A note on layers whose inputs were zero throughout: any scale suits these, and none may suit other data."""
    zero = [
        layer.name
        for layer in calibrated.layers
        if layer.name in names and layer.weight is not None and _is_zero(calibrated, layer.reads[0])
    ]
    return [f"Inputs that were zero in all batches, and got a range of 1.0: {', '.join(zero)}."] if zero else []


def _is_zero(calibrated: Calibrated, read: tuple[str, int]) -> bool:
    node = next(node for node in calibrated.graph.module.graph.nodes if node.name == read[0])
    seen = calibrated.observed[cast(fx.Node, node.args[read[1]]).name]
    return seen.batches > 0 and seen.absmax == 0
