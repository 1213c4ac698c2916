"""Tiny decoders with random weights, their prompts, and calls of `generate`."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import torch
from transformers.generation.streamers import BaseStreamer

import torchtrt_bridge as trtb
from tests.huggingface.models import VOCABULARY, tiny

ENCODER_DECODERS = {
    "t5": ("t5-decoder", "T5ForConditionalGeneration"),
    "bart": ("bart-encoder", "BartForConditionalGeneration"),
    "whisper": ("whisper-encoder", "WhisperForConditionalGeneration"),
}


@dataclasses.dataclass
class Prompt:
    """Token ids, of which some begin with padding."""

    input_ids: torch.Tensor
    attention_mask: torch.Tensor


def prompt(batch: int, device: str = "cpu") -> Prompt:
    generator = torch.Generator().manual_seed(batch)
    ids = torch.randint(3, VOCABULARY, (batch, 7), generator=generator)
    mask = torch.ones_like(ids)
    for row in range(1, batch):
        mask[row, :row] = 0
    return Prompt((ids * mask).to(device), mask.to(device))


def causal(family: str) -> Any:
    name = tiny(family).model
    return tiny(family).build("GPT2LMHeadModel" if family == "gpt2" else name, use_cache=True)


def encoder_decoder(family: str) -> Any:
    """Return a model that chooses many different tokens."""
    name, kind = ENCODER_DECODERS[family]
    settings = {"use_cache": True, "decoder_start_token_id": 0, "pad_token_id": 0, "tie_word_embeddings": False}
    made: Any = dataclasses.replace(tiny(name), part=None).build(kind, **settings)
    made.generation_config.forced_eos_token_id = None
    return made


def generated(model: Any, given: Prompt, **settings: Any) -> Any:
    settings = {"max_new_tokens": 24, "do_sample": False, "pad_token_id": 0, "eos_token_id": None, **settings}
    torch.manual_seed(0)
    return model.generate(given.input_ids, attention_mask=given.attention_mask, use_cache=True, **settings)


def accelerated(family: str) -> tuple[Any, Any]:
    """Return a model, and its accelerated twin."""
    model = causal(family)
    return model, trtb.accelerate(copy.deepcopy(model), engine="reference", fallback="error")


class Tokens(BaseStreamer):
    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.ended = 0

    def put(self, value: torch.Tensor) -> None:
        self.tokens += value.flatten().tolist()

    def end(self) -> None:
        self.ended += 1
