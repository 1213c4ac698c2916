"""ResNet-50: speed on a GPU, and the cost of building on the CPU.

    python benchmarks/resnet50.py           on a GPU: TensorRT through torch.compile, eager and inductor
    python benchmarks/resnet50.py --host    anywhere: seconds and memory of an export for one target

Writes a JSON file to benchmarks/results/ and prints it as a table.
"""

from __future__ import annotations

import argparse
import copy
import datetime
import json
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from resnet50_host import host_rows, resnet50
from rich.console import Console
from rich.table import Table
from torch import nn

RESULTS = Path(__file__).parent / "results"
BATCHES = (1, 32)
CALLS, REPEATS, WARM_UP = 50, 10, 10


def main() -> None:
    arguments = parse()
    if arguments.host:
        rows, name = host_rows(), "resnet50_host"
    elif torch.cuda.is_available():
        rows, name = gpu_rows(), f"resnet50_{torch.cuda.get_device_name().replace(' ', '_').lower()}"
    else:
        sys.exit("No GPU is visible to PyTorch. --host measures what needs none.")
    arguments.output.mkdir(parents=True, exist_ok=True)
    path = arguments.output / f"{name}.json"
    path.write_text(json.dumps(environment() | {"rows": rows}, indent=1) + "\n")
    show(rows)
    print(f"wrote {path}")


def gpu_rows() -> list[dict[str, Any]]:
    """One row per batch and mode; a mode that fails leaves its error in its row, and the others go on."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    model = resnet50().cuda()
    rows = []
    for batch in BATCHES:
        torch.manual_seed(1)
        images = torch.randn(batch, 3, 224, 224, device="cuda")
        with torch.inference_mode():
            expected = model(images)
        for name, make in modes().items():
            row = {"mode": name, "batch": batch}
            try:
                row |= measured(make, model, images, expected)
            except Exception as error:
                row["failed"] = f"{type(error).__name__}: {str(error).strip()[:300]}"
            rows.append(row)
            print(row, file=sys.stderr, flush=True)
    return rows


# A mode makes, of the fp32 model and its images, a function and the images that it takes.
Mode = Callable[[nn.Module, torch.Tensor], tuple[Callable[[torch.Tensor], torch.Tensor], torch.Tensor]]


def modes() -> dict[str, Mode]:
    """What is measured, by name. PyTorch's own run the model in half precision."""
    compiled: dict[str, Mode] = {
        "torchtrt_bridge fp16": bridge(precision="fp16"),
        "torchtrt_bridge fp16, no CUDA graph": bridge(precision="fp16", cuda_graphs=False),
        "torchtrt_bridge, model in half": half(bridge()),
    }
    for name, make in {
        "eager fp16": as_is,
        "inductor fp16": inductor("default"),
        "inductor fp16, reduce-overhead": inductor("reduce-overhead"),
    }.items():
        compiled[name] = half(make)
        compiled[f"{name}, channels-last"] = half(make, torch.channels_last)
    return compiled


def as_is(model: nn.Module, images: torch.Tensor) -> Any:
    return model, images


def bridge(**options: Any) -> Mode:
    """Through torch.compile, with an empty engine cache."""

    def make(model: nn.Module, images: torch.Tensor) -> Any:
        cache = tempfile.mkdtemp(prefix="torchtrt_bridge-")
        own = copy.deepcopy(model)  # reports go by weights, so that modes must not share them
        return torch.compile(own, backend="torchtrt_bridge", options=options | {"cache_dir": cache}), images

    return make


def inductor(mode: str) -> Mode:
    return lambda model, images: (torch.compile(model, mode=mode), images)


def half(make: Mode, memory_format: torch.memory_format = torch.contiguous_format) -> Mode:
    def made(model: nn.Module, images: torch.Tensor) -> Any:
        converted = copy.deepcopy(model).half().to(memory_format=memory_format)
        return make(converted, images.half().to(memory_format=memory_format))

    return made


def measured(make: Mode, model: nn.Module, images: torch.Tensor, expected: torch.Tensor) -> dict[str, Any]:
    """Seconds to the first result, ms per call back to back, and the error of a late call."""
    torch._dynamo.reset()
    torch.cuda.empty_cache()
    function, inputs = make(model, images)
    with torch.inference_mode():
        started = time.perf_counter()
        function(inputs)
        torch.cuda.synchronize()
        first = time.perf_counter() - started
        times = back_to_back(lambda: function(inputs))
        error = relative_error(function(inputs), expected)
    row = {"ms": statistics.median(times), "ms_least": min(times), "ms_most": max(times)}
    return row | {"error": error, "first_result_s": first} | of_report(function)


def back_to_back(call: Callable[[], Any]) -> list[float]:
    """Milliseconds per call, of CALLS calls that are queued without waiting; REPEATS times."""
    for _ in range(WARM_UP):
        call()
    times = []
    for _ in range(REPEATS):
        torch.cuda.synchronize()
        started = time.perf_counter()
        for _ in range(CALLS):
            call()
        torch.cuda.synchronize()
        times.append((time.perf_counter() - started) / CALLS * 1e3)
    return times


def relative_error(results: torch.Tensor, expected: torch.Tensor) -> float:
    return float((results.double() - expected.double()).norm() / expected.double().norm())


def of_report(function: Any) -> dict[str, Any]:
    """What torchtrt_bridge says it ran; nothing for PyTorch's own modes."""
    import torchtrt_bridge as trtb

    report = trtb.report(function)
    if not report.engines and not report.notes:
        return {}
    states = [entry.state for entry in report.engines if not entry.is_ready]
    row = {
        "trt_nodes": report.trt_nodes,
        "torch_nodes": report.torch_nodes,
        "problems": states + report.notes,
    }
    return row | {"build_s": sum(entry.build_seconds for entry in report.engines)}


def environment() -> dict[str, Any]:
    """Versions, hardware and command."""
    import torchvision

    import torchtrt_bridge
    from torchtrt_bridge.engine import flavour as flavours

    return {
        "date": datetime.date.today().isoformat(),
        "command": "python benchmarks/resnet50.py" + (" --host" if "--host" in sys.argv else ""),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "cpu_threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "tensorrt": str(flavours.choose("auto")),
        "torchtrt_bridge": torchtrt_bridge.__version__,
        "calls": CALLS,
        "repeats": REPEATS,
    }


def show(rows: list[dict[str, Any]]) -> None:
    """Print the rows as one table."""
    console = Console(highlight=False, width=110)
    if any("measurement" in row for row in rows):
        console.print(host_table(rows))
        return
    titles = {"batch": "batch", "ms": "ms", "error": "error", "first_result_s": "first s"}
    titles |= {"trt_nodes": "in TensorRT", "torch_nodes": "in PyTorch"}
    table = Table()
    table.add_column("mode", no_wrap=True)
    for title in titles.values():
        table.add_column(title, justify="right")
    for row in rows:
        table.add_row(row["mode"], *(cell(row.get(column, "-")) for column in titles))
    console.print(table)
    for row in rows:
        for problem in [*row.get("problems", []), *([row["failed"]] if "failed" in row else [])]:
            console.print(f"{row['mode']}, batch {row['batch']}: {problem}", markup=False)


def host_table(rows: list[dict[str, Any]]) -> Table:
    table = Table("measurement", "what", "value")
    for row in rows:
        fields = [(key, value) for key, value in row.items() if key != "measurement"]
        for index, (key, value) in enumerate(fields):
            is_last = index == len(fields) - 1
            table.add_row("" if index else row["measurement"], key, cell(value), end_section=is_last)
    return table


def cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.2e}" if 0 < abs(value) < 0.05 else f"{value:.3f}"
    return str(value)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--host", action="store_true", help="measure an export on the CPU")
    parser.add_argument("--output", type=Path, default=RESULTS, metavar="DIR")
    return parser.parse_args()


if __name__ == "__main__":
    main()
