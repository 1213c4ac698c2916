"""MiniLM with its trained weights, sentences to calibrate it with, and others to score it on."""

from __future__ import annotations

import functools
import runpy
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

_HERE = Path(__file__).parent
_LINES = (_HERE / "sentences.txt").read_text(encoding="utf-8").splitlines()

# The second part, with exclamations of two words among them, was looked at while `quantize` was made, and the third was
# not: it was scored once, in the end.
TO_CALIBRATE, KNOWN, TO_SCORE = _LINES[:256], _LINES[256:397], _LINES[397:]


@functools.cache
def _recipe() -> dict[str, Any]:
    return runpy.run_path(str(_HERE.parents[1] / "recipes" / "minilm_embeddings.py"))


def embedder() -> nn.Module:
    model: nn.Module = _recipe()["Embedder"]().eval()
    return model


def tokens(sentences: list[str]) -> dict[str, torch.Tensor]:
    words: dict[str, torch.Tensor] = _recipe()["tokens"](sentences, "cpu")
    return words


def calibration() -> list[dict[str, torch.Tensor]]:
    """Return batches of sixteen."""
    return [tokens(TO_CALIBRATE[first : first + 16]) for first in range(0, len(TO_CALIBRATE), 16)]


def cosines(model: nn.Module, reference: nn.Module, sentences: list[str]) -> torch.Tensor:
    """Return the cosine of the two embeddings of each sentence."""
    found = []
    with torch.no_grad():
        for first in range(0, len(sentences), 32):
            words = tokens(sentences[first : first + 32])
            found.append(F.cosine_similarity(model(**words).double(), reference(**words).double()))
    return torch.cat(found)
