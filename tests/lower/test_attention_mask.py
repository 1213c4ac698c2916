"""A padded batch: each sentence gets what it gets alone, through both entry points."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import torchtrt_bridge as trtb
from torchtrt_bridge.errors import EngineLoadError
from torchtrt_bridge.lower.converters.attention import attention
from torchtrt_bridge.lower.registry import CONVERTERS

LENGTHS = (5, 2, 7)
SIZE, HEADS = 16, 2
SDPA = torch.ops.aten.scaled_dot_product_attention.default


class Functional(nn.Module):
    """Attention as BERT writes it, under the mask that a function makes of `attention_mask` and the length."""

    def __init__(self, mask: Callable[[torch.Tensor, int], torch.Tensor] | None) -> None:
        super().__init__()
        self.mask = mask
        self.linear = nn.Linear(SIZE, 3 * SIZE)

    def forward(self, x: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        q, k, v = self.linear(x).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        mask = None if self.mask is None else self.mask(attention_mask, x.shape[1])
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2)


class MultiHead(nn.Module):
    """PyTorch's module, which takes a mask of the padding."""

    def __init__(self, need_weights: bool) -> None:
        super().__init__()
        self.need_weights = need_weights
        self.attention = nn.MultiheadAttention(SIZE, HEADS, batch_first=True)

    def forward(self, x: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        padding = attention_mask == 0
        return self.attention(x, x, x, key_padding_mask=padding, need_weights=self.need_weights)[0]


class Encoder(nn.Module):
    """Two layers of attention over tokens (batch, length, size), of which `attention_mask` names the real ones."""

    def __init__(self, attention: Callable[[], nn.Module]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.attentions = nn.ModuleList(attention() for _ in range(2))
        self.norms = nn.ModuleList(nn.LayerNorm(SIZE) for _ in range(2))

    def forward(self, x: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        for layer, norm in zip(self.attentions, self.norms, strict=True):
            x = norm(x + layer(x, attention_mask))
        return x


def bools(attention_mask: torch.Tensor, length: int) -> torch.Tensor:
    return attention_mask.bool()[:, None, None]


def expanded(attention_mask: torch.Tensor, length: int) -> torch.Tensor:
    return attention_mask.bool()[:, None, None, :].expand(-1, 1, length, -1)


def lowest(attention_mask: torch.Tensor, length: int) -> torch.Tensor:
    return (1.0 - attention_mask[:, None, None]) * torch.finfo(torch.float32).min


def minus_infinity(attention_mask: torch.Tensor, length: int) -> torch.Tensor:
    hidden = (attention_mask == 0)[:, None, None]
    return torch.zeros(hidden.shape).masked_fill(hidden, -torch.inf)


ATTENTIONS: dict[str, Callable[[], nn.Module]] = {
    "bools": lambda: Functional(bools),
    "bools-expanded": lambda: Functional(expanded),
    "lowest": lambda: Functional(lowest),
    "minus-infinity": lambda: Functional(minus_infinity),
    "multihead": lambda: MultiHead(need_weights=False),
    "multihead-with-weights": lambda: MultiHead(need_weights=True),
}


def model_of(name: str) -> nn.Module:
    return Encoder(ATTENTIONS[name]).eval()


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    """Return sentences side by side, with noise as padding, which must not change results."""
    mask = (torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS)[:, None]).long()
    return torch.randn(len(LENGTHS), max(LENGTHS), SIZE), mask


def exported(model: nn.Module, inputs: tuple[torch.Tensor, ...], **options: Any) -> Callable[..., torch.Tensor]:
    return trtb.export(model, inputs, **options)


def compiled(model: nn.Module, inputs: tuple[torch.Tensor, ...], **options: Any) -> Callable[..., torch.Tensor]:
    return torch.compile(model, backend="torchtrt_bridge", options=options)


ROADS = pytest.mark.parametrize("road", [exported, pytest.param(compiled, marks=pytest.mark.full)])
OPTIONS = {"engine": "reference", "fallback": "error"}


def error_against_alone(result: torch.Tensor, model: nn.Module, x: torch.Tensor, mask: torch.Tensor, row: int) -> float:
    """Return the largest difference of one sentence in `result` to the same sentence computed alone, in PyTorch."""
    length = LENGTHS[row]
    alone = model(x[row : row + 1, :length], mask[row : row + 1, :length])
    return float((result[row, :length] - alone[0]).abs().max())


@pytest.mark.first(6)
@ROADS
@pytest.mark.parametrize("name", ATTENTIONS)
@pytest.mark.parametrize(("precision", "bound"), [("fp32", 1e-5), ("fp16", 2e-2)])
def test_padding_does_not_matter(road: Callable[..., Any], name: str, precision: str, bound: float) -> None:
    model, inputs = model_of(name), batch()
    with torch.no_grad():
        fast = road(model, inputs, precision=precision, **OPTIONS)
        result = fast(*inputs)
        assert trtb.report(fast).is_whole
        assert max(error_against_alone(result, model, *inputs, row) for row in range(len(LENGTHS))) < bound


def test_the_bounds_tell_a_mask_that_is_dropped() -> None:
    """Without its mask, the same model is ten times the largest bound away."""
    model, inputs = Encoder(lambda: Functional(None)).eval(), batch()
    with torch.no_grad():
        result = model(*inputs)
        assert error_against_alone(result, model, *inputs, LENGTHS.index(7)) < 1e-5  # the one that has no padding
        assert error_against_alone(result, model, *inputs, LENGTHS.index(2)) > 0.2


@ROADS
@pytest.mark.parametrize("name", ["bools", "lowest", "multihead"])
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_converter_that_drops_the_mask_is_found_out(
    road: Callable[..., Any], name: str, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The comparison with PyTorch on the first inputs finds it, before any result is returned."""

    def unmasked(ctx: Any, query: Any, key: Any, value: Any, attn_mask: Any = None, *rest: Any, **more: Any) -> Any:
        return attention(ctx, query, key, value, None, *rest, **more)

    planted = CONVERTERS[SDPA].__class__(SDPA, unmasked, None, CONVERTERS[SDPA].dtypes)
    monkeypatch.setitem(CONVERTERS, SDPA, planted)
    model, inputs = model_of(name), batch()
    with torch.no_grad(), pytest.raises(EngineLoadError, match="relative L2 distance"):
        road(model, inputs, precision=precision, **OPTIONS)(*inputs)


@ROADS
def test_a_sentence_of_padding_alone_harms_nobody(road: Callable[..., Any]) -> None:
    """Its queries see no key: PyTorch gives them zeros, and so do both forms of attention."""
    model, (x, mask) = model_of("bools"), batch()
    mask[1] = 0
    with torch.no_grad():
        result = road(model, (x, mask), **OPTIONS)(x, mask)
        torch.testing.assert_close(result, model(x, mask), rtol=1e-5, atol=1e-5)
        assert error_against_alone(result, model, x, mask, 0) < 1e-5
