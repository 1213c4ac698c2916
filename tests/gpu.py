"""What the tests of real engines share."""

from __future__ import annotations

import threading
from collections.abc import Callable

import torch
from torch import nn

from tests.models import image

# Relative L2 distance to fp32 that fp16 rounding explains in a network this small.
FP16 = 5e-3


def images(batch: int = 2, size: int = 16) -> torch.Tensor:
    return image(batch, size).cuda()


def assert_near(result: torch.Tensor, expected: torch.Tensor) -> None:
    assert float((result - expected).norm() / expected.norm()) < FP16


def assert_serves_threads(fast: Callable[..., torch.Tensor], model: nn.Module, calls: int) -> None:
    """Eight threads, each on a stream of its own, all have right results."""
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
