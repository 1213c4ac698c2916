"""Compile a detector, compare its boxes with PyTorch's, and put its report into plain words.

    python recipes/detector_report.py --page detector.html

Needs `pip install 'torchtrt_bridge[demo]'`. A detector does not become one engine: how many boxes it returns depends on
the photograph, and such lines stay in PyTorch. The recipe walks over the data of the report and says which part runs
where, why, and what one can do about it. The weights are random unless `--weights FILE` names some.

On a GPU TensorRT computes. Without one the lowered networks are computed by the reference interpreter: the same boxes,
slowly. `--tiny` takes the photograph at 96 pixels; most of its time is the capture of the graphs.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from sklearn.datasets import load_sample_image
from torch import nn
from torchvision import models

import torchtrt_bridge as trtb

# What a reason of the report contains, the same in plain words, and what one can do.
REASONS = [
    (
        "nonzero",
        "boxes are chosen by a condition; how many pass is known only when their scores are",
        "compile the trunk alone (step 5), or keep a fixed number of boxes with topk",
    ),
    (
        "_unique2",
        "a loop over the classes that occur, which depend on the photograph",
        "compile the trunk alone (step 5)",
    ),
    (
        "nms",
        "it drops boxes that overlap; how many are left is known only afterwards",
        "nothing: it is a kernel of torchvision, and fast where it is",
    ),
    (
        "no converter",
        "the package has no converter for this operator",
        "nothing, if it takes little time; else write a converter (CONTRIBUTING.md)",
    ),
    ("__next__", "a loop of Python that Dynamo cannot follow", "rewrite the line, if it is yours"),
]
SMALL = 20  # nodes: an engine of fewer hardly pays for its start


def main() -> None:
    arguments = parse()
    warnings.simplefilter("ignore", FutureWarning)  # of torchvision's own lines
    device = "cuda" if torch.cuda.is_available() and arguments.engine != "reference" else "cpu"
    torch.backends.cudnn.allow_tf32 = False  # so that PyTorch computes in fp32 too
    options = {"precision": arguments.precision, "engine": arguments.engine}

    # 1. A detector and a photograph.
    photograph = torch.tensor(load_sample_image("china.jpg")).permute(2, 0, 1).float().to(device) / 255
    model = detector(arguments, photograph).to(device)
    with torch.inference_mode():
        (expected,) = model([photograph])

    # 2. Compile it. Every line that PyTorch has to run ends a graph, and the next line begins another one.
    fast = trtb.compile(model, **options)
    with torch.inference_mode():
        for _ in range(3):  # the first call builds the engines
            (found,) = fast([photograph])

    # 3. Compare boxes, labels and scores. Their order is left aside, as rounding may exchange two of equal scores.
    same = same_boxes(found, expected)
    print(f"{same} of {len(expected['boxes'])} boxes are PyTorch's, with their labels and scores")

    # 4. The report, in plain words. `to_dict` has all that the printed report and the page show.
    report = trtb.report(fast)
    data = report.to_dict()
    print(f"{str(report).splitlines()[0]}\n")
    for title, lines in (
        ("What runs where, in the order of the data", in_order(data)),
        ("Why it stays in PyTorch, and what one can do", reasons(data)),
        ("How much that is", amounts(data)),
        ("Milliseconds of a call in PyTorch", times_in_pytorch(model, photograph)),
    ):
        print(f"{title}\n" + "".join(f"  {line}\n" for line in lines))

    # 5. One answer to the report: compile the trunk alone. It is one graph, and all around it runs as before.
    model.backbone = trtb.compile(model.backbone, **options)
    with torch.inference_mode():
        (by_trunk,) = model([photograph])
    print(f"The trunk alone: {str(trtb.report(model.backbone)).splitlines()[0]}")
    print(f"{same_boxes(by_trunk, expected)} of {len(expected['boxes'])} boxes are PyTorch's")

    # 6. The page shows the same as a picture. It names your source files: look at it before you publish it.
    report.save(arguments.page)
    print(f"wrote {arguments.page}")
    if arguments.precision == "fp32" and same < 0.95 * len(expected["boxes"]):
        sys.exit("The boxes differ by more than rounding explains.")


def detector(arguments: argparse.Namespace, photograph: torch.Tensor) -> nn.Module:
    """Return a detector of torchvision, with the weights of a file, or with random ones that tell boxes apart."""
    torch.manual_seed(0)
    name = arguments.model
    size = {"min_size": 96, "max_size": 128} if arguments.tiny and "rcnn" in name else {}
    classes = {} if arguments.weights else {"num_classes": 5}
    model = models.get_model(name, weights=None, weights_backbone=None, **classes, **size)
    if arguments.weights:
        model.load_state_dict(torch.load(arguments.weights, weights_only=True))
        return model.eval()
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
    # Batch norms get the statistics of the photograph. Without them it fades from layer to layer.
    model.cpu()
    with torch.no_grad():
        images, _ = model.transform([photograph.cpu()])
        for _ in range(30):
            model.backbone(torch.cat([images.tensors, images.tensors.flip(-1)]))
    return model.eval()


def same_boxes(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> int:
    """Count the expected boxes that were found: the same label, within a pixel, the score within a thousandth."""
    near = (found["boxes"][:, None] - expected["boxes"]).abs().amax(-1) < 1
    near &= found["labels"][:, None] == expected["labels"]
    near &= (found["scores"][:, None] - expected["scores"]).abs() < 1e-3
    return int(near.any(0).sum())


def in_order(data: dict[str, Any]) -> Iterator[str]:
    """Yield a line for each engine, for what PyTorch runs in a graph, and for what it runs between two graphs."""
    engines = {engine["name"]: engine for engine in data["engines"]}
    breaks = list(data["breaks"])
    for number in range(data["graphs"] + 1):
        while breaks and breaks[0]["after"] <= number:
            found = breaks.pop(0)
            yield f"PyTorch   {found['in_torch'].partition(',')[0]}, {place(found['source'])}"
        for stage in data["stages"]:
            if stage["graph"] == number and stage["name"]:
                yield engine_line(engines[stage["name"]])
            elif stage["graph"] == number and stage["in_torch"]:
                yield f"PyTorch   {', '.join(stage['in_torch'])}"


def engine_line(engine: dict[str, Any]) -> str:
    """Return a line about an engine: its nodes, what most of them are, and the files that they come from."""
    count = sum(engine["nodes"].values())
    heavy = {"aten.convolution.default": "convolutions", "aten.linear.default": "linear layers"}
    parts = [f"{engine['nodes'][op]} {name}" for op, name in heavy.items() if op in engine["nodes"]]
    files: Counter[str] = Counter()
    for source, nodes in engine["sources"].items():
        files[place(source).partition(":")[0]] += nodes
    where = "TensorRT" if engine["choice"] == "engine" else engine["choice"]
    words = f" ({', '.join(parts)})" if parts else ""
    return f"{where:9} {count} node{'s'[: count != 1]}{words}, {', '.join(name for name, _ in files.most_common(3))}"


def place(source: str) -> str:
    """Return file and line of a source line, without the folders and the code."""
    path, line, *_ = source.split(":")
    return f"{Path(path).name}:{line}"


def reasons(data: dict[str, Any]) -> Iterator[str]:
    """Yield each kind of reason with the places that have it, and what one can do."""
    found: dict[tuple[str, str], list[str]] = {}
    for entry in [*data["breaks"], *data["in_torch"]]:
        words = next((words for sign, *words in REASONS if sign in entry["reason"]), [entry["reason"], "see the page"])
        found.setdefault((words[0], words[1]), []).append(place(entry["source"] or "unknown:0"))
    for (reason, answer), places in found.items():
        yield f"{', '.join(dict.fromkeys(places))}"
        yield f"  why: {reason}"
        yield f"  do:  {answer}"


def amounts(data: dict[str, Any]) -> Iterator[str]:
    """Yield how many nodes run in engines, in how many of them, and their times if a trial has measured them."""
    counts = sorted((sum(engine["nodes"].values()) for engine in data["engines"]), reverse=True)
    small = [count for count in counts if count < SMALL]
    yield f"{sum(counts)} nodes are in engines, {counts[0]} of them in the largest; {len(data['in_torch'])} are not"
    yield f"{len(small)} of {len(counts)} engines have fewer than {SMALL} nodes, {sum(small)} together"
    yield f"  do:  nothing on a GPU, where a trial keeps the fast ones; min_subgraph_nodes={SMALL} does not build them"
    times = [engine["milliseconds"] for engine in data["engines"]]
    timed = [each for each in times if "engine" in each and "PyTorch" in each]
    if timed:
        ours, theirs = (sum(each[name] for each in timed) for name in ("engine", "PyTorch"))
        yield f"these subgraphs take {ours:.2f} ms in engines, {theirs:.2f} ms in PyTorch"
    else:
        yield "no times of engines: the reference interpreter has none, a trial on a GPU has"


def times_in_pytorch(model: nn.Module, photograph: torch.Tensor) -> Iterator[str]:
    """Yield how long the parts of the model take in PyTorch: the part that an engine can make faster at most."""
    seconds: dict[str, list[float]] = {}

    def start(name: str) -> None:
        seconds.setdefault(name, []).append(-now())

    def stop(name: str) -> None:
        seconds[name][-1] += now()

    hooks = []
    for name, part in [("all", model), *model.named_children()]:
        hooks.append(part.register_forward_pre_hook(lambda *_, name=name: start(name)))
        hooks.append(part.register_forward_hook(lambda *_, name=name: stop(name)))
    with torch.inference_mode():
        for _ in range(5):
            model([photograph])
    for hook in hooks:
        hook.remove()
    for name, measured in seconds.items():
        yield f"{name:16} {statistics.median(measured) * 1e3:.1f} ms"


def now() -> float:
    """Return the time once the GPU is done."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def parse() -> argparse.Namespace:
    has_gpu = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="fasterrcnn_mobilenet_v3_large_320_fpn", help="a detector of torchvision")
    parser.add_argument("--weights", type=Path, help="a file of torch.save with the model's state_dict")
    parser.add_argument("--engine", default="auto" if has_gpu else "reference", help="as in Options")
    parser.add_argument("--precision", default="fp32", help="what the engines compute in")
    parser.add_argument("--page", type=Path, default=Path("detector.html"), help="where the report's page is written")
    parser.add_argument("--tiny", action="store_true", help="the photograph at 96 pixels")
    return parser.parse_args()


if __name__ == "__main__":
    main()
