"""The host memory that a build takes beside the model: `python -m tests.huggingface.memory export|compile`.

Prints, as JSON and in bytes, the weights, the peak before TensorRT builds, and the peak in all, both above the
loaded model. A tiny model goes the same road first, so that libraries are loaded.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

import torch
import transformers

import torchtrt_bridge as trtb
from torchtrt_bridge import pipeline
from torchtrt_bridge.capture import dynamo
from torchtrt_bridge.engine import builder
from torchtrt_bridge.graph.torch_internals import tracing_disabled
from torchtrt_bridge.options import Options

OPTIONS = {"targets": ("sm_89",), "cache_dir": "", "fallback": "error"}
IDS = torch.ones(2, 16, dtype=torch.int64)


def llama(hidden: int, layers: int, vocabulary: int) -> torch.nn.Module:
    """Return a Llama in bfloat16 with random weights."""
    config = transformers.LlamaConfig(
        hidden_size=hidden,
        num_hidden_layers=layers,
        intermediate_size=4 * hidden,
        vocab_size=vocabulary,
        num_attention_heads=16,
        num_key_value_heads=8,
        use_cache=False,
        dtype=torch.bfloat16,
    )
    return transformers.AutoModelForCausalLM.from_config(config).eval()


def export(model: torch.nn.Module) -> Any:
    return trtb.export(model, (), kwargs={"input_ids": IDS}, **OPTIONS)


def compile(model: torch.nn.Module) -> Any:
    """Do what `torch.compile` does but for loading the engines, which needs a GPU."""
    kept = []

    def backend(module: torch.fx.GraphModule, args: list[Any]) -> Any:
        captured, _ = dynamo.capture(
            module, args, dynamo.weight_positions(module, args), dynamo.number_positions(module, args)
        )
        with tracing_disabled():
            kept.append(pipeline.compile_graph(captured, Options(**OPTIONS), run=False))
        return module

    with torch.no_grad():
        torch.compile(model, backend=backend)(IDS)
    return kept


def status(field: str) -> int:
    """Return a size that Linux keeps of this process: VmRSS now, VmHWM at its peak."""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(field))


def measured(road: Callable[[torch.nn.Module], Any], model: torch.nn.Module) -> dict[str, int]:
    """Return the bytes of the weights, and the peaks of memory above what is taken now."""
    peaks = []
    lower = builder.network_from_graph

    def lowered(*args: Any, **kwargs: Any) -> Any:
        network = lower(*args, **kwargs)
        peaks.append(status("VmHWM"))
        return network

    builder.network_from_graph = lowered
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # the peak is counted anew
    before = status("VmRSS")
    kept = road(model)
    peaks.append(status("VmHWM"))
    del kept
    weights = sum(value.numel() * value.element_size() for value in model.parameters())
    return {"weights": weights, "before_build": peaks[0] - before, "in_all": peaks[-1] - before}


if __name__ == "__main__":
    name, *sizes = sys.argv[1:]
    road = {"export": export, "compile": compile}[name]
    road(llama(64, 1, 64))
    print(json.dumps(measured(road, llama(*map(int, sizes)))))
