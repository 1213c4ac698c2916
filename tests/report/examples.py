"""Reports for the tests of text and pages."""

from __future__ import annotations

from torchtrt_bridge import CompileReport, Options
from torchtrt_bridge.report.layers import LayerTime, LayerTimes
from torchtrt_bridge.report.model import EngineEntry, GraphBreak, Stage, TorchEntry, merged

SCRIPT = "<script>document.title = 'run'</script>"


def engine(name: str = "trt_0", **changes: object) -> EngineEntry:
    """Return the entry of an engine of 102 nodes, with these fields changed."""
    fields = {
        "name": name,
        "nodes": {"aten.conv2d.default": 53, "aten.relu.default": 49},
        "inputs": ["x: float32[1, 3, 224, 224]"],
        "outputs": ["float32[1, 1000]"],
        "dtypes": {"float16": 101, "float32": 1},
        "layers": 120,
        "engine": "TensorRT-RTX 1.7.1.116",
        "build_seconds": 0.52,
        "bytes": 51_600_000,
        "error": 1.4e-3,
        "sources": {"net/model.py:31: x = self.conv(x)": 53, "net/model.py:32: x = x.relu()": 49},
    }
    return EngineEntry(**(fields | changes))


def timed(name: str, engine_ms: float, pytorch_ms: float, **changes: object) -> EngineEntry:
    """Return the entry of an engine that won a trial by time."""
    return engine(name, milliseconds={"engine": engine_ms, "PyTorch": pytorch_ms}, **changes)


def node(name: str, op: str = "aten.linalg_det.default", reason: str = "no converter", line: int = 12) -> TorchEntry:
    return TorchEntry(op, name, reason, f"net/model.py:{line}: y = f(x)")


def whole() -> CompileReport:
    """Return the report of a model that one engine computes."""
    report = CompileReport(Options(precision="fp16"), [timed("trt_0", 0.21, 0.5)], graphs=1, error=1.1e-3, model="Net")
    report.stages = [Stage(0, "trt_0")]
    report.gpus, report.versions["TensorRT-RTX"] = ["NVIDIA L4"], "1.7.1.116"
    return report


def mixed() -> CompileReport:
    """Return the report of a graph of two engines with nodes in PyTorch between them."""
    stays = [node("det"), node("det_1", line=14), node("cat", "aten.cat.default", "inputs mix float16, float32")]
    entries = [timed("trt_0", 0.2, 0.5), engine("trt_1", state="no CUDA GPU is visible to PyTorch")]
    report = CompileReport(Options(precision="fp16"), entries, stays, graphs=1)
    report.stages = [Stage(0, "trt_0"), Stage(0, in_torch=stays, moves=2), Stage(0, "trt_1")]
    return report


def broken(graphs: int = 3) -> CompileReport:
    """Return the report of several graphs with a graph break behind each but the last."""
    breaks = [
        GraphBreak("Data-dependent branching", f"net/model.py:{n}: if x > {n}:", "this line", n)
        for n in range(1, graphs)
    ]
    options = Options(precision="fp16")
    return merged([*(mixed() for _ in range(graphs)), CompileReport(options, breaks=breaks)])


def quantized() -> CompileReport:
    """Return the report of a quantized model, one of whose layers stays in floating point."""
    report = whole()
    report.engines[0].products = {"int8": 3, "float16": 2}
    report.in_float = [node("linear", "aten.linear.default", "TensorRT does not build it", 7)]
    layer = {"op": "linear", "dtype": "int8", "scale": 0.034, "sensitivity": None, "reason": ""}
    stays = layer | {"name": "head", "dtype": "float", "scale": None, "reason": "few"}
    report.quantization = {
        "dtype": "int8", "choice": "absmax", "error": 3.8e-4, "tried": {}, "score": None, "float_score": None,
        "notes": [], "quantized": 1,
        "layers": [layer | {"name": "body.0"}, stays],
    }  # fmt: skip
    return report


def layer_times(count: int = 24) -> LayerTimes:
    """Return the times of so many layers of a transformer, of which TensorRT names the nodes of three in four."""
    kinds = ("linear", "scaled_dot_product_attention", "layer_norm", "")
    whole = sum(range(1, count + 1))
    layers = []
    for index in range(count):
        node, kind = kinds[index % 4], "add, reshape, transpose, reshape, move"
        sources = [f"models/bert/net.py:{index + 7}: x = self.part(x)", "models/bert/net.py:90: x = x + y"]
        layers.append(
            LayerTime(
                f"{node}_{index} + add_{index}" if node else kind,
                {f"{node}_{index}": f"aten.{node}.default", f"add_{index}": "aten.add.Tensor"} if node else {},
                kind,
                sources[: index % 3] if node else [],
                (count - index) / 1000,
                (count - index) / whole,
                f"__myl_AddReshTranReshMove_myl0_{index}",
            )
        )
    return LayerTimes(layers, ["input_ids: int64[8, 128]", "attention_mask: bool[8, 1, 128, 128]"])


def profiled() -> CompileReport:
    """Return the report of two engines, of which TensorRT's profiler could time one."""
    report = mixed()
    report.engines[0].layer_times = layer_times()
    report.engines[1].layer_times = LayerTimes(problem="PyTorch runs it: no CUDA GPU is visible to PyTorch")
    return report


def hostile() -> CompileReport:
    """Return a report in which every text that comes from the user or from TensorRT is markup."""
    entries = [
        engine(SCRIPT, nodes={SCRIPT: 2}, inputs=[SCRIPT], outputs=[SCRIPT], dtypes={SCRIPT: 2}, engine=SCRIPT),
        engine("trt_1", state=SCRIPT, sources={f"{SCRIPT}:3: {SCRIPT}": 2}, products={SCRIPT: 1}, device=SCRIPT),
        engine("trt_2", by_torch_tensorrt={SCRIPT: SCRIPT}, unquantized=SCRIPT),
    ]
    layer = LayerTime(SCRIPT, {SCRIPT: SCRIPT}, SCRIPT, [f"a.py:4: {SCRIPT}"], 1.0, 1.0, SCRIPT)
    entries[0].layer_times, entries[1].layer_times = LayerTimes([layer], [SCRIPT]), LayerTimes(problem=SCRIPT)
    stays = [TorchEntry(SCRIPT, SCRIPT, SCRIPT, f'a.py:1: {SCRIPT} "quoted"')]
    breaks = [GraphBreak(SCRIPT, f"a.py:2: {SCRIPT}", SCRIPT)]
    report = CompileReport(Options(cache_dir=SCRIPT), entries, stays, [SCRIPT], 1, stays, breaks=breaks, model=SCRIPT)
    report.stages = [Stage(0, entries[0].name), Stage(0, in_torch=stays), Stage(0, "trt_1")]
    report.gpus, report.versions[SCRIPT] = [SCRIPT], SCRIPT
    report.quantization = quantized().quantization | {"choice": SCRIPT}
    return report


def large(nodes: int = 3000) -> CompileReport:
    """Return the report of many nodes in PyTorch, each with a line of its own, among many engines."""
    stays = [node(f"n_{i}", f"aten.op_{i % 97}.default", f"reason {i % 60}", i) for i in range(nodes)]
    entries = [timed(f"trt_{i}", 0.1 + i / 500, 0.5) for i in range(nodes // 10)]
    report = CompileReport(Options(), entries, stays, graphs=1)
    for index, entry in enumerate(entries):
        report.stages += [Stage(0, entry.name), Stage(0, in_torch=stays[10 * index : 10 * index + 10])]
    return report
