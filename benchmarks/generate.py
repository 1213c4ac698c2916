"""Time `generate` of GPT-2, Llama and T5: eager, transformers' static cache and compile, and accelerated, in one run.

python -m benchmarks.generate [gpt2 llama t5] keeps the tokens per second of each under benchmarks/results.
"""

from __future__ import annotations

import copy
import datetime
import json
import statistics
import sys
import time
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
from torchtrt_bridge.trt import library as libraries

RESULTS = Path(__file__).parent / "results"
PROMPT, NEW = 32, 256
BATCHES = (1, 8)
ROUNDS = 3

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


def main() -> int:
    for name in sys.argv[1:] or list(MODELS):
        result = {
            "date": datetime.date.today().isoformat(),
            "command": f"python -m benchmarks.generate {name}",
            "gpu": torch.cuda.get_device_name(),
            "tensorrt": str(libraries.choose("auto")),
            "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
            "tokens": {"prompt": PROMPT, "new": NEW},
            "models": {name: measured(name)},
        }
        RESULTS.mkdir(exist_ok=True)
        where = torch.cuda.get_device_name().replace(" ", "_").lower()
        (RESULTS / f"generate_{name}_{where}.json").write_text(json.dumps(result, indent=1) + "\n")
        print(json.dumps(result, indent=1))
    return 0


def measured(name: str) -> dict[str, Any]:
    """Return, for each batch size and each way of decoding, the first call's seconds and the tokens per second."""
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float16)
    with torch.device("cuda"):
        model = MODELS[name]().eval()
    torch.set_default_dtype(torch.float32)
    fast = trtb.accelerate(copy.deepcopy(model), precision="fp16")
    compiled = {"cache_implementation": "static", "compile_config": CompileConfig(mode="reduce-overhead")}
    ways: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
        "accelerated": lambda ids: generated(fast, ids),
        "eager": lambda ids: generated(model, ids),
        "static cache and compile": lambda ids: generated(model, ids, **compiled),
    }
    found: dict[str, Any] = {}
    for batch in BATCHES:
        ids = torch.randint(100, 5000, (batch, PROMPT), device="cuda")
        first = {way: seconds(call, ids) for way, call in ways.items()}
        for call in ways.values():
            call(ids)
        times = {way: [seconds(call, ids) for _ in range(ROUNDS)] for way, call in ways.items()}
        found[f"batch {batch}"] = {
            way: {
                "first_call_s": round(first[way], 1),
                "tokens_per_s": round(batch * NEW / statistics.median(values)),
                "ms_per_token": round(statistics.median(values) / NEW * 1e3, 3),
            }
            for way, values in times.items()
        }
        print(name, batch, json.dumps(found[f"batch {batch}"]), flush=True)
    report = trtb.report(fast)
    found["notes"] = report.notes
    found["engines"] = [{"choice": each.choice, "milliseconds": each.milliseconds} for each in report.engines]
    return found


def generated(model: Any, ids: torch.Tensor, **settings: Any) -> torch.Tensor:
    mask = torch.ones_like(ids)
    fixed: dict[str, Any] = {"min_new_tokens": None, "max_new_tokens": NEW, "do_sample": False, "eos_token_id": None}
    result: torch.Tensor = model.generate(ids, attention_mask=mask, pad_token_id=0, **fixed, **settings)
    return result


def seconds(call: Callable[[torch.Tensor], torch.Tensor], ids: torch.Tensor) -> float:
    torch.cuda.synchronize()
    started = time.perf_counter()
    call(ids)
    torch.cuda.synchronize()
    return time.perf_counter() - started


if __name__ == "__main__":
    sys.exit(main())
