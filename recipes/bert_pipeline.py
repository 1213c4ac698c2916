"""Classify text on TensorRT, through the Hugging Face pipeline that you have already.

    python recipes/bert_pipeline.py

Needs `pip install 'torchtrt_bridge[huggingface]'`. On a GPU TensorRT computes, in fp16. Without one the lowered network
is computed by the reference interpreter: the same answers, slowly. `--tiny` takes a small model.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

import torch
import transformers

import torchtrt_bridge as trtb

TEXTS = [
    "a fine film",
    "the story was long and the end was bad",
    "good",
    "i saw it two times and i was never bored , which is more than can be said of the book",
    "not for me",
    "bad sound , bad light , bad film",
    "the actors were very good and so was the music",
    "what a waste of time",
]
LONGEST = 128  # tokens; longer texts are cut


def main() -> None:
    arguments = parse()

    # 1. A pipeline as you have it. In place of this one: transformers.pipeline("text-classification", model=NAME).
    pipe = random_pipeline(arguments.tiny)
    expected = pipe(TEXTS, batch_size=4)

    # 2. The one line. Engines are built for every batch size and length up to `max_dynamic_size`, at the first call;
    #    TensorRT takes memory for the largest of them, so name the largest that you need.
    trtb.accelerate(pipe, precision=arguments.precision, engine=arguments.engine, max_dynamic_size=LONGEST)

    # 3. Used as before.
    found = pipe(TEXTS, batch_size=4)
    for text, answer in zip(TEXTS, found, strict=True):
        print(f"{answer['label']}  {answer['score']:.4f}  {text}")
    print(f"\n{trtb.report(pipe)}\n")

    # 4. Compare with the answers of PyTorch, in fp32.
    agree = sum(a["label"] == b["label"] for a, b in zip(found, expected, strict=True))
    error = max(abs(a["score"] - b["score"]) for a, b in zip(found, expected, strict=True))
    print(f"same label for {agree} of {len(TEXTS)} texts, scores differ by at most {error:.1e}")

    # 5. And back, should you want it.
    trtb.restore(pipe)
    if agree < len(TEXTS) or error > 1e-2:
        sys.exit("The answers differ by more than rounding explains.")


def random_pipeline(tiny: bool) -> Any:
    """A text classifier with random weights, and a tokenizer of the words above: nothing is downloaded."""
    torch.manual_seed(0)
    words = sorted({word for text in TEXTS for word in text.split()})
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]
    tokenizer = transformers.BertTokenizer(
        vocab={word: number for number, word in enumerate(vocabulary)}, model_max_length=LONGEST
    )
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    config = transformers.BertConfig(num_labels=3, initializer_range=0.05, **(sizes if tiny else {}))
    model = transformers.BertForSequenceClassification(config).eval()
    return transformers.pipeline("text-classification", model=model, tokenizer=tokenizer, truncation=True)


def parse() -> argparse.Namespace:
    has_gpu = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--engine", default="auto" if has_gpu else "reference", help="as in Options")
    parser.add_argument("--precision", default="fp16", help="what the engines compute in")
    parser.add_argument("--tiny", action="store_true", help="two small layers instead of BERT-base")
    return parser.parse_args()


if __name__ == "__main__":
    main()
