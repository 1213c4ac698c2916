"""Generate text on TensorRT, token by token on the screen, with `generate` and with a pipeline.

    python recipes/generate_text.py

Needs `pip install 'torchtrt_bridge[huggingface]'`. On a GPU TensorRT computes the steps, in fp16. Without one the
reference interpreter computes their network: the same tokens, slowly. `--tiny` takes a small model. The weights are
random, and so is the text.
"""

from __future__ import annotations

import argparse
import sys
import time
from typing import Any

import tokenizers
import torch
import transformers

import torchtrt_bridge as trtb

PROMPT = "the film was"
WORDS = "a actors all and at bad book by end ever film for good i in it long music never of saw story the very was with"


def main() -> None:
    arguments = parse()

    # 1. A model and a tokenizer as you have them. In place of these: AutoModelForCausalLM.from_pretrained(NAME), ...
    model, tokenizer = random_model(arguments.tiny)
    if torch.cuda.is_available():
        model = model.cuda()
    prompt = tokenizer(PROMPT, return_tensors="pt").to(model.device)
    settings: dict[str, Any] = {"max_new_tokens": arguments.tokens, "do_sample": True, "top_k": 20}
    torch.manual_seed(0)
    expected, before = timed(lambda: model.generate(**prompt, **settings))

    # 2. The one line. The first call builds an engine for a step; later calls of any length use it again.
    trtb.accelerate(model, precision=arguments.precision, engine=arguments.engine)

    # 3. Used as before: here each word is printed when it is there.
    streamer = transformers.TextStreamer(tokenizer)
    model.generate(**prompt, **settings, streamer=streamer)
    torch.manual_seed(0)
    found, after = timed(lambda: model.generate(**prompt, **settings))

    # 4. In a pipeline too.
    pipe = transformers.pipeline("text-generation", model=model, tokenizer=tokenizer)
    print(pipe(PROMPT, max_new_tokens=8, do_sample=False)[0]["generated_text"])
    print(f"\n{trtb.report(model)}\n")

    # 5. Compare with PyTorch, which computes in fp32: rounding may choose another token, and all behind it.
    same = int((found == expected).long().cumprod(-1).sum()) - prompt["input_ids"].shape[1]
    print(f"the first {same} of {arguments.tokens} tokens are PyTorch's")
    print(f"tokens per second: {arguments.tokens / before:.0f} by PyTorch, {arguments.tokens / after:.0f} accelerated")

    # 6. And back, should you want it.
    trtb.restore(model)
    if arguments.precision == "fp32" and same < arguments.tokens:
        sys.exit("The tokens differ.")


def timed(call: Any) -> tuple[Any, float]:
    """Return the result of a second call, and its seconds."""
    state = torch.random.get_rng_state()
    call()
    torch.random.set_rng_state(state)
    started = time.perf_counter()
    result = call()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return result, time.perf_counter() - started


def random_model(tiny: bool) -> tuple[Any, Any]:
    """A decoder with random weights, and a tokenizer of the words above: nothing is downloaded."""
    torch.manual_seed(0)
    vocabulary = {word: number for number, word in enumerate(["<end>", "<unknown>", *WORDS.split()])}
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="<unknown>"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=words, eos_token="<end>", pad_token="<end>", unk_token="<unknown>"
    )
    sizes = {"n_embd": 32, "n_layer": 2, "n_head": 2} if tiny else {}
    config = transformers.GPT2Config(
        vocab_size=len(vocabulary), bos_token_id=0, eos_token_id=0, initializer_range=0.3, **sizes
    )
    model = transformers.GPT2LMHeadModel(config).eval()
    model.generation_config.eos_token_id = None  # so that random text does not end early
    model.generation_config.pad_token_id = 0
    return model, tokenizer


def parse() -> argparse.Namespace:
    has_gpu = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--engine", default="auto" if has_gpu else "reference", help="as in Options")
    parser.add_argument("--precision", default="fp16", help="what the engine computes in")
    parser.add_argument("--tokens", type=int, default=128, help="how many tokens to generate")
    parser.add_argument("--tiny", action="store_true", help="two small layers instead of GPT-2's twelve")
    return parser.parse_args()


if __name__ == "__main__":
    main()
