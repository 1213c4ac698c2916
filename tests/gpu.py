"""Checks that the tests of real engines share."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

import torchtrt_bridge as trtb
from tests.models import image
from torchtrt_bridge.runtime.tolerance import BOUNDS, compare

# How often a compiled model is called: the first calls are the trial's, the last replays a CUDA graph.
CALLS = 5

# Relative L2 distance to fp32 that fp16 rounding explains in a network this small.
FP16 = 5e-3


def images(batch: int = 2, size: int = 16) -> torch.Tensor:
    return image(batch, size).cuda()


def assert_near(result: torch.Tensor, expected: torch.Tensor) -> None:
    assert float((result - expected).norm() / expected.norm()) < FP16


def assert_one_right_engine(fast: Callable[..., Any], model: nn.Module, *args: Any, **kwargs: Any) -> None:
    """Check that one engine in fp16 computes all of `fast`, and gives what `model` gives for these arguments."""
    with torch.no_grad():
        expected = pytree.tree_leaves(model(*args, **kwargs))
        for _ in range(CALLS):
            found = pytree.tree_leaves(fast(*args, **kwargs))
            assert compare(found, expected, BOUNDS[torch.float16]).problem is None
    report = trtb.report(fast)
    assert report.is_whole, str(report)
    assert report.graphs == 1
    (engine,) = report.engines
    assert engine.is_ready, str(report)
    assert engine.error is not None


def assert_serves_threads(fast: Callable[..., torch.Tensor], model: nn.Module, calls: int) -> None:
    """Check that eight threads, each on a stream of its own, all have right results."""
    failures: list[BaseException] = []

    def serve() -> None:
        try:
            with torch.inference_mode(), torch.cuda.stream(torch.cuda.Stream()):
                for _ in range(calls):
                    x = images()
                    assert_near(fast(x), model(x))
        except BaseException as failure:
            failures.append(failure)

    threads = [threading.Thread(target=serve) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
