"""What 8 bits cost and give: python benchmarks/int8.py [--only digits,minilm,...] [--out FILE]

Needs `pip install '.[test]'`. Each part of the file stands under the versions that it was measured with; parts that are
not run again stay as they are.
"""

from __future__ import annotations

import argparse
import datetime
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # the networks and the data are those of the tests

import torchtrt_bridge as trtb  # noqa: E402
from benchmarks.suite.clock import back_to_back, waiter  # noqa: E402
from benchmarks.suite.environment import environment  # noqa: E402
from torchtrt_bridge.cache import written_aside  # noqa: E402
from torchtrt_bridge.quantize.ranges import RANGE_METHODS  # noqa: E402
from torchtrt_bridge.runtime.tolerance import relative_distance  # noqa: E402

TARGETS = ("sm_86", "sm_89", "sm_120")
VERSIONS = ("gpu", "cpu", "python", "torch", "torchvision", "transformers", "tensorrt", "torchtrt_bridge")
CALLS = 50

# Nothing but the ranges: no search, no correction.
PLAIN: dict[str, Any] = {"smooth": None, "equalize": False, "correct_bias": False, "max_error": None}

Row = dict[str, Any]


def main() -> None:
    arguments = parse()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    versions = {name: value for name, value in environment(device, "auto").items() if name in VERSIONS}
    versions["cpu"] = versions["cpu"].rpartition(", ")[0]  # the number of threads is kept with each part
    for name in arguments.only:
        rows = list(PARTS[name]())
        if rows:
            show(name, rows)
            keep(arguments.out, versions, name, rows)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", type=parts, default=list(PARTS), help=f"parts, from {', '.join(PARTS)}")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "int8_host.json")
    return parser.parse_args()


def parts(text: str) -> list[str]:
    names = text.split(",")
    for name in names:
        if name not in PARTS:
            raise argparse.ArgumentTypeError(f"{name!r} is no part; there are {', '.join(PARTS)}")
    return names


# Digits -----------------------------------------------------------------------------------------------------------


def digits() -> Iterator[Row]:
    """A small ResNet on scikit-learn's digits: accuracy in percent, by each method and in each type."""
    from tests.quantize.digits import ResidualNet, accuracy, calibration_loader, trained

    torch.manual_seed(0)
    model = trained(ResidualNet())
    yield {"what": "fp32", "accuracy": accuracy(model)}
    for method in (*RANGE_METHODS, "auto"):
        found = quantized(model, calibration_loader(), method=method, max_error=None)
        yield {"what": f"int8, {method}", "accuracy": accuracy(found), **layers(found)}


def depthwise() -> Iterator[Row]:
    """Depthwise convolutions with channels of uneven range, with equalization and without."""
    from tests.quantize.digits import DepthwiseNet, accuracy, calibration_loader, trained, uneven

    torch.manual_seed(0)
    model = uneven(trained(DepthwiseNet()))
    yield {"what": "fp32", "accuracy": accuracy(model)}
    for equalize in (False, True):
        found = quantized(model, calibration_loader(), method="absmax", **PLAIN | {"equalize": equalize})
        yield {"what": f"int8, absmax, equalize={equalize}", "accuracy": accuracy(found), **layers(found)}
    found = quantized(model, calibration_loader())
    yield {"what": f"int8, auto: {found.quantization.choice}", "accuracy": accuracy(found), **layers(found)}


# MiniLM -----------------------------------------------------------------------------------------------------------


def minilm() -> Iterator[Row]:
    """Sentence embeddings: cosine to fp32 on sentences that calibration has not seen."""
    yield embeddings("int8, auto")
    yield embeddings("int8, absmax everywhere", method="absmax", **PLAIN)


def other_type(dtype: str, **options: Any) -> Iterator[Row]:
    """The digits and MiniLM in another type."""
    from tests.quantize.digits import ResidualNet, accuracy, calibration_loader, trained

    torch.manual_seed(0)
    model = trained(ResidualNet())
    block = {"block_size": 32} if dtype == "int4" else {}  # the only linear layer of the digits has 64 inputs
    found = quantized(model, calibration_loader(), dtype=dtype, **options, **block)
    yield {"what": f"digits, {dtype}", "accuracy": accuracy(found), "fp32": accuracy(model), **layers(found)}
    yield embeddings(f"MiniLM, {dtype}", dtype=dtype, **options)


def embeddings(what: str, **options: Any) -> Row:
    """On new sentences, and on those that were known while `quantize` was made, exclamations among them."""
    from tests.quantize.embeddings import KNOWN, TO_SCORE, calibration, cosines, embedder

    model = embedder()
    found = quantized(model, calibration(), **options)
    row: Row = {"what": what}
    for kind, sentences in (("", TO_SCORE), ("known, ", KNOWN)):
        cosine = cosines(found, model, sentences)
        row |= {f"{kind}sentences": len(cosine), f"{kind}mean": float(cosine.mean()), f"{kind}min": float(cosine.min())}
    return {**row, **layers(found), "choice": found.quantization.choice}


# ResNet-50 --------------------------------------------------------------------------------------------------------


def resnet50() -> Iterator[Row]:
    """Sizes of engines built without a GPU, and the error that rounding gives in PyTorch."""
    from tests.quantize import photographs

    model = photographs.resnet50()
    found = quantized(model, photographs.batches(), method="absmax", **PLAIN)
    x = photographs.unseen()
    with torch.no_grad():
        yield {
            "what": "simulated int8, absmax",
            "relative error": relative_distance(found(x), model(x)),
            **layers(found),
        }
    for target in TARGETS:
        int8, fp16 = (size(each, x[:4], target) for each in (found, model))
        yield {"what": target, "int8 MB": int8, "fp16 MB": fp16, "int8 / fp16": int8 / fp16}


def size(model: nn.Module, x: torch.Tensor, target: str) -> float:
    """The size of its engine, in MB."""
    program = trtb.export(model, x, targets=(target,), precision="fp16", fallback="error", cache_dir="")
    (plan,) = program.plans.values()
    return len(plan) / 1e6


# Cost -------------------------------------------------------------------------------------------------------------


def cost() -> Iterator[Row]:
    """ResNet-18, 32 images: the calibration pass beside the forward passes."""
    from tests.quantize import cost as costs
    from torchtrt_bridge.quantize.calibration import Calibration

    model, images = costs.network(), list(costs.batches(4))
    calibration = Calibration(model, costs.plain("entropy"))
    with torch.no_grad():
        calibration.begin(((images[0],), {}))
    yield {"what": "CPU time, calibration pass / forward passes", "ratio": costs.ratio(model, images, calibration)}
    few, many = costs.extra_mb()
    yield {"what": "peak memory beyond the forward pass", "2 batches, MB": few, f"{costs.MANY} batches, MB": many}


# On a GPU ---------------------------------------------------------------------------------------------------------


def gpu() -> Iterator[Row]:
    """ResNet-50 and BERT-base with random weights: INT8 and FP16 in TensorRT beside PyTorch's fp32."""
    if not torch.cuda.is_available():
        print("gpu: no GPU")
        return
    from tests.quantize import photographs

    batches = [batch.cuda() for batch in photographs.batches()]
    yield from on_gpu("ResNet-50", photographs.resnet50().cuda(), batches, (photographs.unseen().cuda(),))
    model, tokens = bert()
    yield from on_gpu("BERT-base", model, list(tokens[:4]), (tokens[4],))


def on_gpu(name: str, model: nn.Module, batches: list[torch.Tensor], inputs: tuple[torch.Tensor, ...]) -> Iterator[Row]:
    """A row for each form of a model: its error to fp32, its time back to back, its engine."""
    found = quantized(model, batches, method="absmax", **PLAIN)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    with torch.inference_mode():
        expected, rounded = model(*inputs), found(*inputs)
        yield {"what": f"{name}, PyTorch fp32", "ms": milliseconds(model, inputs)}
        yield {"what": f"{name}, simulated int8", "relative error": relative_distance(rounded, expected)}
        for label, each, precision in (("int8", found, "fp16"), ("fp16", model, "fp16"), ("fp32", model, "fp32")):
            torch._dynamo.reset()
            fast = trtb.compile(each, precision=precision, trial="check", dynamic=False)
            fast(*inputs)  # builds and checks
            row = {"what": f"{name}, {label}", "relative error": relative_distance(fast(*inputs), expected)}
            if label == "int8":
                row["to simulated"] = relative_distance(fast(*inputs), rounded)
            yield {**row, "ms": milliseconds(fast, inputs), **engines(fast)}


def bert() -> tuple[nn.Module, torch.Tensor]:
    """BERT-base that gives its last states, and five batches of eight times 128 token ids."""
    from transformers import BertConfig, BertModel

    class States(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bert = BertModel(BertConfig(), add_pooling_layer=False)

        def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
            states: torch.Tensor = self.bert(input_ids=input_ids).last_hidden_state
            return states

    torch.manual_seed(0)
    model = States().eval().cuda()
    return model, torch.randint(0, model.bert.config.vocab_size, (5, 8, 128)).cuda()


def milliseconds(call: Callable[..., Any], inputs: tuple[torch.Tensor, ...]) -> float:
    """The least of five measurements, after the warm-up that recordings need."""
    for _ in range(10):
        call(*inputs)
    return min(back_to_back(lambda: call(*inputs), CALLS, waiter("cuda")) for _ in range(5))


def engines(fast: Any) -> Row:
    entries = trtb.report(fast).engines
    states = sorted({entry.state.splitlines()[0][:80] for entry in entries})
    products: dict[str, int] = {}
    for entry in entries:
        for dtype, count in entry.products.items():
            products[dtype] = products.get(dtype, 0) + count
    counts = ", ".join(f"{dtype} {count}" for dtype, count in products.items())
    return {"engine MB": sum(entry.bytes for entry in entries) / 1e6, "state": "; ".join(states), "products": counts}


# What the parts share ---------------------------------------------------------------------------------------------


def quantized(model: nn.Module, loader: Any, **options: Any) -> Any:
    return trtb.quantize(model, loader, table=False, progress=False, **options)


def layers(model: Any) -> Row:
    report = model.quantization
    could = [layer for layer in report.layers if layer.op != "attention"]
    return {"layers": f"{report.quantized} of {len(could)}"}


def show(name: str, rows: list[Row]) -> None:
    """The rows as a table, with a column for each figure that some row has."""
    titles = list(dict.fromkeys(key for row in rows for key in row))
    table = Table(*titles, title=name)
    for row in rows:
        table.add_row(*(f"{row[t]:.5g}" if isinstance(row.get(t), float) else str(row.get(t, "")) for t in titles))
    Console().print(table)


def keep(path: Path, versions: Row, name: str, rows: list[Row]) -> None:
    """Add a part to the file: written aside and renamed, what else is there stays."""
    entries = json.loads(path.read_text())["entries"] if path.exists() else []
    entry = next((each for each in entries if each["versions"] == versions), None)
    if entry is None:
        entries.append(entry := {"versions": versions, "parts": {}})
    command = " ".join(["python", "benchmarks/int8.py", *sys.argv[1:]])
    run = {"date": datetime.date.today().isoformat(), "command": command, "threads": torch.get_num_threads()}
    entry["parts"][name] = {**run, "rows": rows}
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_aside(path, mode=0o644) as aside:
        aside.write_text(json.dumps({"entries": entries}, indent=1) + "\n")


PARTS: dict[str, Callable[[], Iterator[Row]]] = {
    "digits": digits,
    "depthwise": depthwise,
    "minilm": minilm,
    "resnet50": resnet50,
    "cost": cost,
    "int4": lambda: other_type("int4", **PLAIN),
    "fp8": lambda: other_type("fp8", method="absmax", **PLAIN),
    "gpu": gpu,
}

if __name__ == "__main__":
    main()
