"""Time an engine for all sizes against one that knows each size: python -m benchmarks.sizes [--models NAMES] [--tiny]

In fp16 on a GPU, by the trial of the engine that is built in the background for sizes that come often. `--tiny` takes
small models, on the CPU by the reference interpreter, to try the command.
"""

from __future__ import annotations

import argparse
import datetime
import sys
from pathlib import Path
from typing import Any

import torch

import torchtrt_bridge as trtb
from benchmarks.measured import RESULTS, keep, wait_for_static_engines
from benchmarks.suite.models import SUITE, build, names
from torchtrt_bridge.trt import library as libraries

BATCHES = (1, 8)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", default="bert-base,minilm-l6,resnet50,convnext-tiny")
    parser.add_argument("--tiny", action="store_true", help="small models on the CPU")
    parser.add_argument("--results", type=Path, default=RESULTS, help="the folder of the results")
    arguments = parser.parse_args()
    device = "host" if arguments.tiny else torch.cuda.get_device_name()
    chosen = names(tiny=True) if arguments.tiny else arguments.models.split(",")
    result = {
        "date": datetime.date.today().isoformat(),
        "command": "python -m benchmarks.sizes" + (" --tiny" if arguments.tiny else ""),
        "device": device,
        "tensorrt": str(libraries.choose("auto")),
        "versions": {"torch": torch.__version__},
        "milliseconds": [measured(name, batch, arguments.tiny) for name in chosen for batch in BATCHES],
    }
    keep(arguments.results, "sizes", device, result)
    return 0


@torch.inference_mode()
def measured(name: str, batch: int, tiny: bool) -> dict[str, Any]:
    """Return the times of a call: of the engine for all sizes, of that for these, and of PyTorch.

    They are empty where the trial does not time, as on the CPU.
    """
    device, dtype = ("cpu", torch.float32) if tiny else ("cuda", torch.float16)
    with torch.inference_mode(False):
        model = build(SUITE[name], device).to(device, dtype)
    given = {key: value.to(device) for key, value in SUITE[name].inputs(batch).items()}
    inputs = {key: value.to(dtype) if value.is_floating_point() else value for key, value in given.items()}
    torch._dynamo.reset()
    engine = "reference" if tiny else "auto"
    fast = trtb.compile(model, dynamic=True, static_engines=1, engine=engine, cache_dir="")
    statics = wait_for_static_engines(lambda: fast(**inputs), fast)
    found = {key: round(ms, 4) for static in statics for key, ms in static.milliseconds.items()}
    return {"model": name, "batch": batch, "choices": [static.choice for static in statics], **found}


if __name__ == "__main__":
    sys.exit(main())
