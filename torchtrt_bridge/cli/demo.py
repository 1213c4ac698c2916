"""Demo: two real photographs, classified by a torchvision model through TensorRT.

With a GPU the model runs in TensorRT, timed against PyTorch. Without one it is built for named GPUs, the reference
interpreter computes its lowered network, and the saved program is loaded and run.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import itertools
import logging
import statistics
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn

import torchtrt_bridge as trtb
from torchtrt_bridge.cli.console import step, write_page
from torchtrt_bridge.errors import OptionsError
from torchtrt_bridge.options import Precision
from torchtrt_bridge.report.model import CompileReport
from torchtrt_bridge.runtime.tolerance import relative_distance

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

CALLS = 50
TOP = 5
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
INSTALL = 'pip install "torchtrt_bridge[demo]"'


@dataclasses.dataclass(frozen=True)
class Task:
    """Model of the demo, and photographs as it takes them.

    expected: the model's results in PyTorch fp32.
    """

    name: str
    model: nn.Module
    photos: torch.Tensor
    photo_names: tuple[str, ...]
    categories: list[str]
    is_trained: bool
    expected: torch.Tensor


@dataclasses.dataclass(frozen=True)
class Classification:
    """Column of the table: the results of one way to classify the photographs.

    where: what computed them. facts: properties of its engines, by row.
    """

    where: str
    results: torch.Tensor
    facts: dict[str, str]
    milliseconds: float | None = None


def demo(
    model: str = "resnet50",
    weights: Path | None = None,
    precision: Precision = "fp16",
    targets: Sequence[str] = ("sm_86", "sm_89", "sm_120"),
    output: Path | None = None,
) -> None:
    """Classify two photographs and print where the model ran, how fast and how exactly.

    model: the name of a classification model of torchvision's.
    weights: a file with its state_dict; None takes random weights, of a fixed seed.
    targets: compute capabilities to build for, on a machine without a GPU.
    output: directory for the report and the program; None keeps nothing.
    Raises OptionsError for a missing package, model or file.
    """
    from rich.console import Console

    trtb.Options.from_mapping({"precision": precision, "targets": tuple(targets)})
    console = Console(highlight=False, soft_wrap=False)
    with step(f"{model} in PyTorch fp32"):
        task = _task(model, weights)
    console.print(f"[bold]{model}[/bold] on {' and '.join(task.photo_names)}, {precision}")
    if not task.is_trained:
        warning = "Random weights: the class names below mean nothing; --weights FILE loads real ones."
        console.print(warning, style="yellow")
    with _directory(output) as directory:
        steps = _on_gpu if torch.cuda.is_available() else _without_gpu
        runs, closing = steps(console, task, precision, tuple(targets), directory)
        console.print(_top_table(task, runs[0]))
        console.print(_run_table(task, runs))
        if output is not None:
            written = sorted(file.name for file in directory.iterdir())
            console.print(f"Written to {output}: {', '.join(written)}")
        console.print(closing)


def _task(name: str, weights: Path | None) -> Task:
    try:
        from sklearn.datasets import load_sample_images
        from torchvision import models
    except ImportError as error:
        raise OptionsError(f"The demo needs torchvision, scikit-learn and pillow: {error}. Run: {INSTALL}") from error
    if name not in models.list_models(module=models):
        raise OptionsError(f"torchvision has no classification model {name!r}; resnet50 and vit_b_16 are some.")
    torch.manual_seed(0)
    model: nn.Module = models.get_model(name, weights=None).eval().requires_grad_(False)
    if weights is not None:
        _load_weights(model, weights)
    meta = models.get_model_weights(name).DEFAULT
    images = load_sample_images()
    preprocess = meta.transforms()
    photos = torch.stack([preprocess(torch.from_numpy(image.copy()).permute(2, 0, 1)) for image in images.images])
    if torch.cuda.is_available():
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
        model, photos = model.cuda(), photos.cuda()
    with torch.inference_mode():
        expected = model(photos)
    names = tuple(Path(file).name for file in images.filenames)
    return Task(name, model, photos, names, meta.meta["categories"], weights is not None, expected)


def _load_weights(model: nn.Module, path: Path) -> None:
    try:
        model.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    except Exception as error:
        reason = str(error).strip().splitlines()[0]
        raise OptionsError(
            f"--weights {path} holds no weights of this model: {type(error).__name__}: {reason}"
        ) from error


def _without_gpu(
    console: Console, task: Task, precision: Precision, targets: tuple[str, ...], directory: Path
) -> tuple[list[Classification], str]:
    """Build for `targets`, compute the network with the reference interpreter, save, load and run."""
    path = directory / f"{task.name}.pt2"
    # PyTorch's half precision convolutions on CPU took a third of the time in this layout.
    photos = task.photos.to(memory_format=torch.channels_last)
    with step(f"building for {', '.join(targets)}"):
        program = trtb.export(task.model, task.photos, precision=precision, targets=targets)
        write_page(program.report, directory / "report.html")
    with step("computing the lowered network in the reference interpreter"):
        reference = trtb.export(task.model, task.photos, precision=precision, engine="reference")
        checked = reference(photos)
    with step(f"saving {path.name}, loading it back, running it in PyTorch"):
        trtb.save(program, path)
        logging.disable(logging.WARNING)  # the closing line says that PyTorch runs it
        loaded = trtb.load(path)(photos)
        logging.disable(logging.NOTSET)
    runs = [
        Classification("reference interpreter", checked, _engine_facts(program.report)),
        Classification(f"{path.name} in PyTorch", loaded, {"size": f"{path.stat().st_size / 1e6:.1f} MB file"}),
    ]
    ready = [entry for entry in program.report.engines if entry.is_ready]
    built = f"{ready[0].engine} built it for {', '.join(targets)}" if ready else "No engine was built"
    closing = (
        f"{built}; without a GPU here, the network ran in the reference interpreter and the saved program "
        "in PyTorch, both on CPU."
    )
    return runs, _with_failures(closing, program.report)


def _on_gpu(
    console: Console, task: Task, precision: Precision, targets: tuple[str, ...], directory: Path
) -> tuple[list[Classification], str]:
    """Compile with `torch.compile`, run, and time it against PyTorch in the same precision."""
    compiled = torch.compile(task.model, backend="torchtrt_bridge", options={"precision": precision})
    dtype = DTYPES[precision]
    eager, photos = copy.deepcopy(task.model).to(dtype), task.photos.to(dtype)
    with torch.inference_mode():
        with step('torch.compile(model, backend="torchtrt_bridge")'):
            results = compiled(task.photos).clone()
        with step(f"timing {CALLS} calls of each"):
            engine_time = _milliseconds(lambda: compiled(task.photos))
            eager_time = _milliseconds(lambda: eager(photos))
        expected = eager(photos).float()
    report = trtb.report(compiled)
    write_page(report, directory / "report.html")
    device = torch.cuda.get_device_name()
    runs = [
        Classification("TensorRT", results, _engine_facts(report), engine_time),
        Classification(f"PyTorch eager {precision}", expected, {}, eager_time),
    ]
    total = report.trt_nodes + report.torch_nodes
    built = next((entry.engine for entry in report.engines if entry.is_ready), "TensorRT")
    speed = f"{eager_time / engine_time:.1f}x as fast as PyTorch eager"
    closing = f"{report.trt_nodes} of {total} nodes ran in {built} on {device}, {speed}."
    return runs, _with_failures(closing, report)


def _with_failures(closing: str, report: CompileReport) -> str:
    """Return the last line, preceded by the reasons for what ran in PyTorch."""
    reasons = [f"{entry.name}: {entry.state}" for entry in report.engines if not entry.is_ready]
    reasons += [f"{entry.op}: {entry.reason}" for entry in report.in_torch]
    unique = list(dict.fromkeys([*reasons, *report.notes]))
    if not unique:
        return closing
    more = f"; and {len(unique) - 3} more" if len(unique) > 3 else ""
    return f"In PyTorch: {'; '.join(unique[:3])}{more}. torchtrt-bridge doctor says what to install.\n{closing}"


def _milliseconds(call: Callable[[], Any]) -> float:
    """Return the median time of CALLS calls that are queued back to back."""
    for _ in range(10):
        call()
    make: Any = torch.cuda.Event
    events = [make(enable_timing=True) for _ in range(CALLS + 1)]
    torch.cuda.synchronize()
    events[0].record()
    for event in events[1:]:
        call()
        event.record()
    torch.cuda.synchronize()
    return float(statistics.median(a.elapsed_time(b) for a, b in itertools.pairwise(events)))


def _run_table(task: Task, runs: Sequence[Classification]) -> Table:
    """Return the table of measurements, with a column for each classification."""
    table = _table("What ran where", "", *(run.where for run in runs), justify="right")
    for title in ("nodes in TensorRT", "engines", "build", "size"):
        table.add_row(title, *(run.facts.get(title, "-") for run in runs))
    if any(run.milliseconds is not None for run in runs):
        table.add_row("time per call", *(f"{run.milliseconds:.2f} ms" for run in runs))
    errors = [relative_distance(run.results, task.expected) for run in runs]
    table.add_row("error to PyTorch fp32", *(f"{error:.1e}" for error in errors))
    table.add_row(f"top {TOP} as PyTorch fp32", *(_agreement(run.results, task.expected) for run in runs))
    return table


def _engine_facts(report: CompileReport) -> dict[str, str]:
    ready = [entry for entry in report.engines if entry.is_ready]
    is_cached = bool(ready) and all(entry.from_cache for entry in ready)
    return {
        "nodes in TensorRT": f"{report.trt_nodes} of {report.trt_nodes + report.torch_nodes}",
        "engines": str(len(ready)),
        "build": "from the cache" if is_cached else f"{sum(entry.build_seconds for entry in ready):.1f} s",
        "size": f"{sum(entry.bytes for entry in ready) / 1e6:.1f} MB engine",
    }


def _agreement(results: torch.Tensor, expected: torch.Tensor) -> str:
    """Return how many of the best five classes of each photograph are the same, in words."""
    pairs = zip(results.topk(TOP).indices.tolist(), expected.topk(TOP).indices.tolist(), strict=True)
    return f"{sum(len(set(found) & set(wanted)) for found, wanted in pairs)} of {expected.shape[0] * TOP}"


def _top_table(task: Task, run: Classification) -> Table:
    """Return the table of the best classes of each photograph, with their probabilities."""
    table = _table(f"Top {TOP} ({run.where})", *task.photo_names)
    best = run.results.float().softmax(-1).topk(TOP)
    for place in range(TOP):
        table.add_row(
            *(
                f"{task.categories[int(indices[place])]} {float(values[place]):.1%}"
                for indices, values in zip(best.indices, best.values, strict=True)
            )
        )
    return table


def _table(title: str, *columns: str, justify: Literal["left", "right"] = "left") -> Table:
    from rich import box
    from rich.table import Table

    table = Table(title=title, title_justify="left", title_style="bold", box=box.ROUNDED, header_style="cyan")
    for index, column in enumerate(columns):
        table.add_column(column, justify=justify if index else "left")
    return table


@contextlib.contextmanager
def _directory(output: Path | None) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="torchtrt_bridge-") as name:
        directory = output or Path(name)
        directory.mkdir(parents=True, exist_ok=True)
        yield directory
