"""Engines on a GPU give equal results in every call, replayed or not, while other processes keep the GPU busy."""

from __future__ import annotations

import pytest
import torch

import torchtrt_bridge as trtb
from benchmarks.under_load import NETWORKS, called, load
from torchtrt_bridge.runtime.launch_order import may_overlap, order_captured_kernels

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("name", NETWORKS)
def test_results_under_load_are_equal(name: str) -> None:
    with load(2):
        row = called(name, 500)
    assert row["served_by"] == ["engine"]
    assert (row["differing"], row["worst"]) == (0, 0.0)


@pytest.mark.parametrize("overlap", [False, True])
def test_only_an_option_lets_kernels_overlap(overlap: bool) -> None:
    if not may_overlap(torch.device("cuda", 0)):
        pytest.skip("kernels of this GPU do not overlap")
    model = torch.nn.Sequential(*(torch.nn.Conv2d(16, 16, 3, padding=1) for _ in range(6))).eval().cuda()
    images = torch.randn(2, 16, 32, 32, device="cuda")
    fast = trtb.compile(model, precision="fp16", overlap_kernels=overlap)
    with torch.inference_mode():
        fast(images)
        stream, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            fast(images)
            left = order_captured_kernels(stream.cuda_stream)
    assert (left > 0) == overlap
