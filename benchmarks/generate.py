"""Time `generate` of GPT-2, Llama and T5 in several ways, in one run, in turns.

python -m benchmarks.generate [gpt2 llama t5] [--ways NAMES] [--batches 1,8] keeps the tokens per second of each way
under benchmarks/results; with --start it keeps what the first call takes in a new process, with empty and with filled
caches, and the GPU memory. --tiny shows on a CPU that the command works.
"""

from __future__ import annotations

import argparse
import copy
import datetime
import functools
import gc
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import (
    CompileConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

import torchtrt_bridge as trtb
from benchmarks.measured import RESULTS, device_name, keep, memory_in_use, seconds
from torchtrt_bridge.trt import library as libraries

PROMPT, NEW = 32, 256
ROUNDS = 3
CHILD = "TORCHTRT_BRIDGE_BENCHMARK_FIRST_CALL"  # set in the processes that make a first call

LLAMA = LlamaConfig(
    vocab_size=128256,
    hidden_size=2048,
    intermediate_size=8192,
    num_hidden_layers=16,
    num_attention_heads=32,
    num_key_value_heads=8,
    max_position_embeddings=4096,
    tie_word_embeddings=True,
)
T5 = T5Config(d_model=512, d_ff=2048, num_layers=6, num_heads=8, decoder_start_token_id=0)
MODELS: dict[str, Callable[[], Any]] = {
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config()),
    "llama": lambda: LlamaForCausalLM(LLAMA),
    "t5": lambda: T5ForConditionalGeneration(T5),
}
TINY: dict[str, Callable[[], Any]] = {
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(vocab_size=6000, n_embd=32, n_layer=2, n_head=2)),
}
PEER: dict[str, Any] = {
    "cache_implementation": "static",
    "compile_config": CompileConfig(mode="reduce-overhead"),
}
QUANTIZED: dict[str, Any] = {"smooth": None, "correct_bias": False, "max_error": None, "table": False}

Way = Callable[[torch.Tensor], torch.Tensor]


def main() -> int:
    arguments = _parse()
    if os.environ.get(CHILD):
        print(json.dumps(first_call(arguments.models[0], arguments)))
        return 0
    for name in arguments.models:
        found = started(name, arguments) if arguments.start else measured(made(name, arguments), arguments)
        result = {
            "date": datetime.date.today().isoformat(),
            "command": _command(),
            "gpu": device_name(),
            "tensorrt": str(libraries.choose("auto")),
            "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
            "tokens": {"prompt": PROMPT, "new": arguments.new},
            "models": {name: found},
        }
        kind = f"{name}_start" if arguments.start else "_".join([name, *arguments.label])
        keep(arguments.results, f"generate_{kind}", device_name(), result)
    return 0


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", help=f"of {', '.join(MODELS)}; all by default")
    parser.add_argument("--ways", help=f"of {', '.join(WAYS)}; by default {', '.join(DEFAULT_WAYS)}")
    parser.add_argument("--batches", default="1,8", help="batch sizes")
    parser.add_argument("--start", action="store_true", help="time the first call in new processes")
    parser.add_argument("--results", type=Path, default=RESULTS, help="the folder of the results")
    parser.add_argument("--tiny", action="store_true", help="a small model and few tokens")
    arguments = parser.parse_args()
    arguments.models = arguments.models or list(TINY if arguments.tiny else MODELS)
    arguments.label = [] if arguments.ways is None else arguments.ways.split(",")
    arguments.ways = arguments.label or list(DEFAULT_WAYS)
    arguments.batches = [int(batch) for batch in arguments.batches.split(",")]
    arguments.new = 8 if arguments.tiny else NEW
    unknown = [*(set(arguments.models) - set(MODELS)), *(set(arguments.ways) - set(WAYS))]
    if unknown:
        parser.error(f"unknown: {', '.join(unknown)}")
    return arguments


def _command() -> str:
    """Return the command of this run, without the folder of the results, which is one of this machine."""
    given = sys.argv[1:]
    if "--results" in given:
        place = given.index("--results")
        del given[place : place + 2]
    return " ".join(["python -m benchmarks.generate", *given])


def made(name: str, arguments: argparse.Namespace) -> Any:
    """Return the model in fp16 on the GPU, or in fp32 on the host."""
    torch.manual_seed(0)
    is_gpu = torch.cuda.is_available()
    torch.set_default_dtype(torch.float16 if is_gpu else torch.float32)
    with torch.device("cuda" if is_gpu else "cpu"):
        model = (TINY if arguments.tiny else MODELS)[name]().eval()
    torch.set_default_dtype(torch.float32)
    return model


# The ways -------------------------------------------------------------------------------------------------------


def accelerated(model: Any, new: int, **options: Any) -> tuple[Way, Any]:
    """Return `generate` of an accelerated copy, and the copy."""
    options = {"precision": "fp16", **({} if torch.cuda.is_available() else {"engine": "reference"}), **options}
    fast = trtb.accelerate(copy.deepcopy(model), **options)
    return lambda ids: generated(fast, ids, new), fast


def quantized(model: Any, new: int, dtype: Any) -> tuple[Way, Any]:
    """Return `generate` of an accelerated copy with weights of fewer bits; random ones, so their error says nothing."""
    ids = torch.randint(100, 5000, (2, PROMPT), device=model.device)
    block = {"block_size": 32} if model.config.hidden_size % 128 else {}
    copied = trtb.quantize(model, [{"input_ids": ids}], dtype=dtype, method="absmax", **block, **QUANTIZED)
    return accelerated(copied, new, keep_int8=True)


WAYS: dict[str, Callable[[Any, int], tuple[Way, Any]]] = {
    "accelerated": accelerated,
    "eager": lambda model, new: (lambda ids: generated(model, ids, new), None),
    "peer": lambda model, new: (lambda ids: generated(model, ids, new, **PEER), None),
    "compete": lambda model, new: accelerated(model, new, inductor="compete"),
    "int8": lambda model, new: quantized(model, new, "int8"),
    "int4": lambda model, new: quantized(model, new, "int4"),
}
DEFAULT_WAYS = ("accelerated", "eager", "peer", "compete")


def measured(model: Any, arguments: argparse.Namespace) -> dict[str, Any]:
    """Return, for each batch size and way, the seconds of the first call and the tokens per second."""
    ways = {way: WAYS[way](model, arguments.new) for way in arguments.ways}
    found: dict[str, Any] = {}
    for batch in arguments.batches:
        ids = torch.randint(100, 5000, (batch, PROMPT), device=model.device)
        first = {way: seconds(functools.partial(call, ids)) for way, (call, _) in ways.items()}
        for call, _ in ways.values():
            call(ids)
        times = {way: [seconds(functools.partial(call, ids)) for _ in range(ROUNDS)] for way, (call, _) in ways.items()}
        found[f"batch {batch}"] = {
            way: {
                "first_call_s": round(first[way], 1),
                "tokens_per_s": round(batch * arguments.new / statistics.median(values)),
                "ms_per_token": round(statistics.median(values) / arguments.new * 1e3, 3),
            }
            for way, values in times.items()
        }
        print(batch, json.dumps(found[f"batch {batch}"]), flush=True)
    found["reports"] = {way: _of_report(fast) for way, (_, fast) in ways.items() if fast is not None}
    return found


def _of_report(fast: Any) -> dict[str, Any]:
    report = trtb.report(fast)
    engines = [
        {
            name: getattr(each, name)
            for name in ("choice", "milliseconds", "bytes", "error", "products", "build_seconds")
        }
        for each in report.engines
    ]
    return {"notes": report.notes, "engines": engines}


# The first call -------------------------------------------------------------------------------------------------


def started(name: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Return what the first call takes in a process with empty caches, and in a second one that finds them filled."""
    command = [sys.executable, "-m", "benchmarks.generate", name, *(["--tiny"] if arguments.tiny else [])]
    with tempfile.TemporaryDirectory() as caches:
        places = {"TORCHTRT_BRIDGE_CACHE_DIR": caches, "TORCHINDUCTOR_CACHE_DIR": f"{caches}/inductor"}
        environment = os.environ | places | {CHILD: "1"}
        found = {}
        for caches_are in ("empty", "filled"):
            done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
            found[caches_are] = json.loads(done.stdout.splitlines()[-1])
    return found


def first_call(name: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the seconds of a first call at batch 1, and the GPU memory that the process takes, in MB of 10^6 bytes."""
    empty = memory_in_use()
    model = made(name, arguments)
    weights = sum(value.numel() * value.element_size() for value in model.parameters())
    loaded = memory_in_use()
    call, _ = accelerated(model, arguments.new)
    del model
    ids = torch.randint(100, 5000, (1, PROMPT)).to("cuda" if torch.cuda.is_available() else "cpu")
    taken = seconds(lambda: call(ids))
    call(ids)
    gc.collect()
    memory = {"weights": weights, "model": loaded - empty, "all": memory_in_use() - empty}
    return {"first_call_s": round(taken, 1), "MB": {what: round(size / 1e6) for what, size in memory.items()}}


def generated(model: Any, ids: torch.Tensor, new: int, **settings: Any) -> torch.Tensor:
    mask = torch.ones_like(ids)
    fixed: dict[str, Any] = {"min_new_tokens": None, "max_new_tokens": new, "do_sample": False, "eos_token_id": None}
    result: torch.Tensor = model.generate(ids, attention_mask=mask, pad_token_id=0, **fixed, **settings)
    return result


if __name__ == "__main__":
    sys.exit(main())
