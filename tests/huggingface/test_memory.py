"""The memory that a compiled model takes beside its weights, and that of a build, in a process of its own."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import torchtrt_bridge as trtb
from tests.huggingface.decoders import generated, prompt
from tests.huggingface.models import tiny
from torchtrt_bridge.graph.memory import memory_of

ROOT = Path(__file__).parents[2]

# TensorRT writes an engine in parts of 64 MiB, of which two are in memory at a time.
FIXED_BYTES = 128 * 2**20


def test_a_decoder_holds_the_weights_of_the_model_and_no_others() -> None:
    """PyTorch computes with them where it computes a step; only the network has query, key and value in one."""
    model = tiny("llama").build(intermediate_size=64, use_cache=True)
    fast = trtb.accelerate(copy.deepcopy(model), engine="reference", fallback="error")
    assert torch.equal(generated(fast, prompt(2)), generated(model, prompt(2)))
    graphs = [graph.compiled.run.module for graph in fast.generate.decoder.backend.graphs]
    held = {memory_of(value): value for graph in graphs for value in graph.buffers()}
    own = {memory_of(value) for value in fast.state_dict().values()}
    assert own <= held.keys()
    others = [value.nbytes for memory, value in held.items() if memory not in own]
    assert sum(others) < 1024  # as positions, which are computed once


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the peak of a process's memory is read from /proc")
@pytest.mark.parametrize("road", ["export", "compile"])
def test_a_build_takes_little_more_than_the_weights(road: str) -> None:
    sizes = ["1024", "16", "8192"]  # 268 million parameters
    command = [sys.executable, "-m", "tests.huggingface.memory", road, *sizes]
    output = subprocess.run(command, check=True, cwd=ROOT, stdout=subprocess.PIPE, text=True).stdout
    taken = json.loads(output.splitlines()[-1])
    assert taken["weights"] > 500 * 2**20
    assert taken["before_build"] < 1.3 * taken["weights"]
    assert taken["in_all"] < 2.5 * taken["weights"] + FIXED_BYTES
