"""Call networks thousands of times beside processes that keep the GPU busy, and compare every result with the first.

    python -m benchmarks.under_load [--calls 10000] [--load 3] [--networks NAMES] [--out FILE]

Each network runs in a process of its own, all of them at the same time, so that they disturb each other too. Results
must be equal bit by bit. Exit status 1 if one differs.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

import torchtrt_bridge as trtb

COMPARED_AT_ONCE = 50


class Block(nn.Module):
    """A residual block of two convolutions."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.norm2 = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(x + self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x))))))


class Branches(nn.Module):
    """Parallel branches of four resolutions that exchange their features three times, as in HRNet."""

    def __init__(self, widths: tuple[int, ...] = (16, 32, 64, 128), stages: int = 3) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, widths[0], 3, stride=2, padding=1)
        self.down = nn.ModuleList(nn.Conv2d(widths[0], w, 3, stride=2**i, padding=1) for i, w in enumerate(widths))
        self.stages = nn.ModuleList(nn.ModuleList(Block(w) for w in widths) for _ in range(stages))
        self.exchange = nn.ModuleList(
            nn.ModuleList(
                nn.ModuleList(self._link(i, j, widths) for j in range(len(widths))) for i in range(len(widths))
            )
            for _ in range(stages)
        )
        self.head = nn.Linear(sum(widths), 100)

    @staticmethod
    def _link(target: int, source: int, widths: tuple[int, ...]) -> nn.Conv2d:
        if source >= target:
            return nn.Conv2d(widths[source], widths[target], 1)
        return nn.Conv2d(widths[source], widths[target], 3, stride=2 ** (target - source), padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.stem(x))
        branches = [down(x) for down in self.down]
        for stage, exchange in zip(self.stages, self.exchange, strict=True):
            branches = [block(branch) for block, branch in zip(stage, branches, strict=True)]
            branches = [
                F.relu(
                    sum(F.interpolate(link(b), size=own.shape[-2:]) for link, b in zip(links, branches, strict=True))
                )
                for links, own in zip(exchange, branches, strict=True)
            ]
        return self.head(torch.cat([branch.mean((2, 3)) for branch in branches], 1))


@dataclasses.dataclass(frozen=True)
class Network:
    """A network to call: its module, the shape of its input, and the options that it is compiled with."""

    make: Callable[[], nn.Module]
    shape: tuple[int, ...]
    options: dict[str, Any]


def _torchvision(name: str) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        import torchvision

        return getattr(torchvision.models, name)(weights=None)  # type: ignore[no-any-return]

    return make


NETWORKS = {
    "branches, fp16": Network(Branches, (1, 3, 128, 128), {"precision": "fp16"}),
    "branches, fp16, batch 32": Network(Branches, (32, 3, 128, 128), {"precision": "fp16"}),
    "shufflenet, fp16, batch 8": Network(_torchvision("shufflenet_v2_x1_0"), (8, 3, 224, 224), {"precision": "fp16"}),
    "resnet50, fp32": Network(_torchvision("resnet50"), (1, 3, 224, 224), {"tf32": True}),
    "branches, fp16, call by call": Network(
        Branches, (1, 3, 128, 128), {"precision": "fp16", "cuda_graphs": "off"}
    ),
}  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--calls", type=int, default=10_000)
    parser.add_argument("--load", type=int, default=3, help="processes that keep the GPU busy; 0 for none")
    parser.add_argument("--networks", nargs="*", default=list(NETWORKS), choices=list(NETWORKS))
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    spawning = multiprocessing.get_context("spawn")
    with load(arguments.load), ProcessPoolExecutor(len(arguments.networks), mp_context=spawning) as pool:
        rows = list(pool.map(called, arguments.networks, [arguments.calls] * len(arguments.networks)))
    for row in rows:
        print(json.dumps(row))
    if arguments.out is not None:
        where = {"gpu": torch.cuda.get_device_name(), "torch": torch.__version__, "load": arguments.load}
        arguments.out.write_text(json.dumps({**where, "rows": rows}, indent=1) + "\n")
    return int(any(row["differing"] or row["served_by"] != ["engine"] for row in rows))


def called(name: str, calls: int) -> dict[str, Any]:
    """Compile a network, call it, and count the results that differ from the first."""
    network = NETWORKS[name]
    torch.manual_seed(0)
    model = network.make().train()
    with torch.no_grad():
        model(torch.randn(4, *network.shape[1:]))  # statistics of batch norms, so that activations stay of one size
    model = model.eval().cuda()
    images = torch.randn(network.shape, device="cuda")
    fast = trtb.compile(model, trial="check", cache_dir="", **network.options)
    with torch.inference_mode():
        for _ in range(5):
            fast(images)
        first, differing, worst = fast(images).clone(), 0, 0.0
        started = time.perf_counter()
        for done in range(0, calls, COMPARED_AT_ONCE):
            count = min(COMPARED_AT_ONCE, calls - done)
            distances = torch.stack([(fast(images) - first).norm() for _ in range(count)]) / first.norm()
            differing += int((distances != 0).sum())  # NaN differs too
            worst = max(worst, float(distances.max()))
        seconds = time.perf_counter() - started
    (entry,) = trtb.report(fast).engines
    return {
        "network": name, "calls": calls, "differing": differing, "worst": worst, "ms": round(1e3 * seconds / calls, 3),
        "engine": entry.engine, "error": entry.error, "served_by": [entry.choice if entry.is_ready else entry.state],
    }  # fmt: skip


@contextmanager
def load(count: int) -> Iterator[None]:
    """Have `count` other processes keep the GPU busy."""
    spawning = multiprocessing.get_context("spawn")
    processes = [spawning.Process(target=_busy, args=(number,), daemon=True) for number in range(count)]
    for process in processes:
        process.start()
    try:
        yield
    finally:
        for process in processes:
            process.kill()


def _busy(number: int) -> None:
    """Compute for ever: large products, many small kernels, or convolutions."""
    x = torch.randn(4096, 4096, device="cuda", dtype=torch.half)
    small, images = torch.randn(256, 256, device="cuda"), torch.randn(32, 64, 56, 56, device="cuda").half()
    weight = torch.randn(64, 64, 3, 3, device="cuda").half()
    work: list[Callable[[], object]] = [lambda: x @ x, lambda: small.add(1).relu(), lambda: F.conv2d(images, weight)]
    while os.getppid() != 1:
        for _ in range(50):
            work[number % len(work)]()
        torch.cuda.synchronize()


if __name__ == "__main__":
    raise SystemExit(main())
