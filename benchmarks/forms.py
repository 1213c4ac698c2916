"""Time engines with large layers in other forms against engines with them as captured, in turns in one process.

python -m benchmarks.forms [MODEL:BATCH ...] keeps the milliseconds of both in fp16 on a GPU under benchmarks/results.
`--tiny` takes a small model, on the CPU by the reference interpreter.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import statistics
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch

import torchtrt_bridge as trtb
from benchmarks.measured import RESULTS, keep, seconds
from benchmarks.suite.models import SUITE, build
from torchtrt_bridge.lower.converters import activation, folded_strides, image_means
from torchtrt_bridge.trt import library as libraries

LIMITS = ((activation, "GELU_APART"), (folded_strides, "LEAST_KERNEL"), (image_means, "LEAST_ELEMENTS"))
ROUNDS, CALLS = 9, 20
LARGE = ("resnet50:32", "efficientnet-b0:32", "bert-base:32", "vit-b-16:32")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("rows", nargs="*", metavar="MODEL:BATCH", help=f"default: {' '.join(LARGE)}")
    parser.add_argument("--tiny", action="store_true", help="a small model on the CPU")
    parser.add_argument("--results", type=Path, default=RESULTS, help="the folder of the results")
    arguments = parser.parse_args()
    rows = arguments.rows or (("tiny-cnn:2",) if arguments.tiny else LARGE)
    device = "host" if arguments.tiny else torch.cuda.get_device_name()
    result = {
        "date": datetime.date.today().isoformat(),
        "command": "python -m benchmarks.forms" + (" --tiny" if arguments.tiny else ""),
        "device": device,
        "tensorrt": str(libraries.choose("auto")),
        "versions": {"torch": torch.__version__},
        "milliseconds": {row: measured(*row.split(":"), tiny=arguments.tiny) for row in rows},
    }
    keep(arguments.results, "forms", device, result)
    return 0


@torch.inference_mode()
def measured(name: str, batch: str, tiny: bool) -> dict[str, Any]:
    """Return the median time of a call of both engines, and their errors."""
    device, dtype = ("cpu", torch.float32) if tiny else ("cuda", torch.float16)
    with torch.inference_mode(False):
        model = build(SUITE[name], device).to(device, dtype)
    given = {key: value.to(device) for key, value in SUITE[name].inputs(int(batch)).items()}
    inputs = {key: value.to(dtype) if value.is_floating_point() else value for key, value in given.items()}
    torch._dynamo.reset()
    calls: dict[str, Callable[[], Any]] = {}
    found: dict[str, Any] = {}
    for way, forms in (("as captured", as_captured()), ("in other forms", contextlib.nullcontext())):
        fast = trtb.compile(model, engine="reference" if tiny else "auto", trial="check", cache_dir="")
        calls[way] = lambda fast=fast: fast(**inputs)
        with forms:
            for _ in range(1 if tiny else 5):
                calls[way]()
        found[f"error {way}"] = trtb.report(fast).error
    times: dict[str, list[float]] = {way: [] for way in calls}
    for _ in range(1 if tiny else ROUNDS):
        for way, call in calls.items():
            times[way].append(seconds(lambda call=call: [call() for _ in range(CALLS)]) / CALLS)
    return {way: round(1e3 * statistics.median(each), 4) for way, each in times.items()} | found


@contextlib.contextmanager
def as_captured() -> Iterator[None]:
    """Let no layer be large enough for another form."""
    with contextlib.ExitStack() as stack:
        for module, limit in LIMITS:
            stack.enter_context(mock.patch.object(module, limit, sys.maxsize))
        yield


if __name__ == "__main__":
    sys.exit(main())
