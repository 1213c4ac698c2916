"""Decomposed attention, quantized or not, against the model's: masks that hide all, PyTorch's layers, paddings."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import torchtrt_bridge as trtb
from tests.quantize.nets import quantized, relative_error

SHOWN = torch.ones(2, 1, 5, 5, dtype=torch.bool).tril()
PADDED = SHOWN & (torch.arange(5) >= torch.tensor([2, 0]).view(2, 1, 1, 1))  # on the left: its first queries see none


class Attention(nn.Module):
    """One head."""

    def __init__(self) -> None:
        super().__init__()
        self.query = nn.Linear(16, 16)

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        keys = x[:, None]
        return F.scaled_dot_product_attention(self.query(x)[:, None], keys, keys, attn_mask=mask)


def additive(mask: torch.Tensor, least: float) -> torch.Tensor:
    return torch.zeros(mask.shape).masked_fill(~mask, least)


MASKS = {
    "boolean": PADDED, "minus infinity": additive(PADDED, -math.inf), "finite": additive(PADDED, -1e9),
    "least": additive(PADDED, torch.finfo(torch.float32).min),
}  # fmt: skip


@pytest.mark.first(2)
@pytest.mark.parametrize("attention", [True, False])
@pytest.mark.parametrize("kind", MASKS)
def test_queries_that_see_no_key(kind: str, attention: bool) -> None:
    model, x, mask = Attention().eval(), torch.randn(2, 5, 16), MASKS[kind]
    found = quantized(model, [(x, mask), (x.flip(0), mask)], attention=attention)
    expected = model(x, mask)
    assert relative_error(found(x, mask), expected) < 0.03
    assert relative_error(trtb.compile(found, engine="reference")(x, mask), expected) < 0.03


def test_a_mask_that_calibration_has_not_seen() -> None:
    model, x = Attention().eval(), torch.randn(2, 5, 16)
    found = quantized(model, [(x, SHOWN)] * 2, attention=True)
    assert relative_error(found(x, PADDED), model(x, PADDED)) < 0.03
    assert found(x, PADDED)[0, 0, :2].abs().max() == 0


@pytest.mark.parametrize("options", [{}, {"attention": True}])
def test_padding_in_pytorch_s_own_layers(options: dict[str, Any]) -> None:
    """Eager PyTorch has a fast path that gives zeros for padding, where gradients or an export give other values."""
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    model, src = nn.TransformerEncoder(layer, 1).eval(), torch.randn(2, 5, 16)
    padding = torch.arange(5)[None] >= torch.tensor([[3], [5]])
    found = quantized(model, [{"src": src, "src_key_padding_mask": padding}] * 2, **options)
    with torch.no_grad():
        expected = model(src, src_key_padding_mask=padding)
    assert relative_error(found(src=src, src_key_padding_mask=padding)[~padding], expected[~padding]) < 0.03
    assert torch.backends.mha.get_fastpath_enabled()
