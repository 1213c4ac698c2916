"""Other forms that transformers write: rotations, gates, experts, products by name, pooling. Inputs are negated."""

import math

import torch
import torch.nn.functional as F
from torch import nn

from tests.lower.case import Case, Rejected
from tests.lower.cases.positions import heads, states_and_mask, token_ids

aten = torch.ops.aten
Inputs = tuple[torch.Tensor, ...]


def tokens(n: int) -> Inputs:
    return (torch.randn(2, n, 12),)


def states_and_ids(n: int) -> Inputs:
    return torch.randn(2, n + 3, 12), *token_ids(n)


# Rotations ---------------------------------------------------------------------------------------------------------


def angles(length: int, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    frequencies = 1.0 / (100.0 ** (torch.arange(0, size, 2, dtype=torch.int64).float() / size))
    phase = torch.arange(length)[:, None].float() * frequencies[None, :]
    return phase.cos(), phase.sin()


def rotated_halves(x: torch.Tensor) -> torch.Tensor:
    """Llama: number i turns with number i + size / 2."""
    cos, sin = (torch.cat([part, part], -1).to(x.dtype) for part in angles(x.shape[-2], x.shape[-1]))
    first, second = x[..., : x.shape[-1] // 2], x[..., x.shape[-1] // 2 :]
    return x * cos + torch.cat([-second, first], -1) * sin


def rotated_partly(x: torch.Tensor) -> torch.Tensor:
    """GPT-NeoX, Phi: only the first numbers turn."""
    return torch.cat([rotated_halves(x[..., :4]), x[..., 4:]], -1)


def rotated_pairs(x: torch.Tensor) -> torch.Tensor:
    """GPT-J: number 2 i turns with number 2 i + 1."""
    cos, sin = (torch.repeat_interleave(part, 2, dim=-1).to(x.dtype) for part in angles(x.shape[-2], x.shape[-1]))
    turned = torch.stack((-x[..., 1::2], x[..., ::2]), dim=-1).flatten(-2)
    return x * cos + turned * sin


def repeated_heads(x: torch.Tensor) -> torch.Tensor:
    """Grouped queries: each head of keys serves three of queries."""
    batch, count, length, size = x.shape
    return x[:, :, None].expand(batch, count, 3, length, size).reshape(batch, 3 * count, length, size)


HEADS = [
    Case(aten.cat.default, rotated_halves, heads, name="rotated-halves"),
    Case(aten.cat.default, rotated_partly, heads, name="rotated-partly"),
    Case(aten.cat.default, rotated_pairs, heads, name="rotated-pairs"),
    Case(aten.expand.default, repeated_heads, heads, name="repeated-heads"),
    Case(aten.split_with_sizes.default, lambda x: [y.relu() for y in x.chunk(3, -1)], tokens, name="qkv-chunk"),
    Case(
        aten.permute.default,
        lambda x: [y + 1 for y in x.reshape(2, x.shape[1], 3, 2, 2).permute(2, 0, 3, 1, 4).unbind(0)],
        tokens,
        name="qkv-unbind",
    ),
    Case(
        aten.split_with_sizes.default,
        lambda x: [y + 1 for y in x.view(*x.shape[:2], 2, 6).split([2, 2, 2], -1)],
        tokens,
        name="qkv-of-each-head",
    ),
]


# Feed-forward layers -----------------------------------------------------------------------------------------------


def rms_norm(x: torch.Tensor) -> torch.Tensor:
    """As written out in most models, in fp32."""
    wide = x.to(torch.float32)
    return (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-6)).to(x.dtype)


def gated(x: torch.Tensor) -> torch.Tensor:
    gate, up = x.chunk(2, dim=-1)
    return F.silu(gate) * up


def new_gelu(x: torch.Tensor) -> torch.Tensor:
    return 0.5 * x * (1.0 + torch.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * torch.pow(x, 3.0))))


class Experts(nn.Module):
    """A mixture in which every expert sees every token, weighted by its two best scores."""

    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Linear(12, 4)
        self.weight = nn.Parameter(torch.randn(4, 12, 12) / 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weights, chosen = torch.topk(F.softmax(self.router(x), dim=-1), 2, dim=-1)
        shares = (F.one_hot(chosen, 4).to(x.dtype) * weights[..., None]).sum(-2)
        return torch.einsum("btd,edf,bte->btf", x, self.weight, shares)


class Adapter(nn.Module):
    """A linear layer with a low-rank one beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.base, self.down, self.up = nn.Linear(12, 12), nn.Linear(12, 2, bias=False), nn.Linear(2, 12, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.base(x) + self.up(self.down(x)) * 0.5


FEED_FORWARD = [
    Case(aten.rsqrt.default, rms_norm, tokens, name="rms-norm"),
    Case(aten.silu.default, gated, tokens, name="gated"),
    Case(aten.gelu.default, lambda x: F.gelu(x[..., :6]) * x[..., 6:], tokens, name="gated"),
    Case(aten.tanh.default, new_gelu, tokens, name="new-gelu"),
    Case(aten.sigmoid.default, lambda x: x * torch.sigmoid(1.702 * x), tokens, name="quick-gelu"),
    Case(aten.square.default, lambda x: torch.square(F.relu(x)), tokens, name="squared-relu"),
    Case(
        aten.topk.default,
        Experts(),
        tokens,
        half=False,  # two scores that are equal in fp16 may change places
        name="experts",
    ),
    Case(aten.linear.default, Adapter(), tokens, name="adapter"),
]


# Products by name --------------------------------------------------------------------------------------------------


def einsum(equation: str, *shapes: tuple[int, ...]) -> Case:
    """Sizes of -1 are dynamic."""
    name = "einsum-" + equation.replace(" ", "").replace(",", "-").replace("...", "x").replace("->", "-to-")
    return Case(
        aten.bmm.default,
        lambda *tensors: torch.einsum(equation, *tensors),
        lambda n: tuple(torch.randn([n if size == -1 else size for size in shape]) for shape in shapes),
        name=name,
    )


PRODUCTS = [
    einsum("bhid,bhjd->bhij", (2, 3, -1, 8), (2, 3, 5, 8)),
    einsum("bhij,bhjd->bhid", (2, 3, -1, 5), (2, 3, 5, 8)),
    einsum("bnd,ndh->bnh", (-1, 3, 8), (3, 8, 5)),
    einsum("bid,dhe->bihe", (2, -1, 8), (8, 3, 5)),
    einsum("...id,...jd->...ij", (2, 3, -1, 8), (2, 3, 5, 8)),
    einsum("bhld,lrd->bhlr", (-1, 3, 4, 8), (4, 5, 8)),
    einsum("bi,ij,bj->b", (-1, 3), (3, 5), (-1, 5)),
    Case(aten.mul.Tensor, lambda x: torch.outer(x[0, :, 0], x[1, :, 1]), tokens, name="outer"),
    Case(aten.sum.dim_IntList, lambda x: torch.einsum("bij->bj", x), tokens, name="einsum-bij-to-bj"),
    Case(
        aten.index.Tensor,
        lambda x: (x @ x.mT)[:, torch.triu_indices(4, 4, 1)[0], torch.triu_indices(4, 4, 1)[1]],
        lambda n: (torch.randn(n, 4, 8),),
        name="pairs",
    ),
]


# Ends --------------------------------------------------------------------------------------------------------------


def mean_of_tokens(x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    mask = mask.unsqueeze(-1).expand(x.size()).to(x.dtype)
    return F.normalize(torch.sum(x * mask, 1) / torch.clamp(mask.sum(1), min=1e-9), p=2, dim=1)


def last_token(x: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """The state of each row's last token that is no padding."""
    numbers = torch.arange(ids.shape[-1], dtype=torch.int32)
    last = (numbers * (ids != 0).to(torch.int32)).argmax(-1)
    return x[torch.arange(x.shape[0]), last]


def end_token(x: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """The state of the first token 2 of each row, or of the first token."""
    return x[torch.arange(x.shape[0]), (ids == 2).int().argmax(-1)]


def shifted(ids: torch.Tensor) -> torch.Tensor:
    """The decoder's inputs in training and in scoring."""
    result = ids.new_zeros(ids.shape)
    result[:, 1:] = ids[:, :-1].clone()
    result[:, 0] = 5
    return result.masked_fill(result == 8, 0)


def token_loss(x: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    logits = x[:, :-1].reshape(-1, x.shape[-1])
    return F.cross_entropy(logits.float(), ids[:, 1:].reshape(-1), ignore_index=0)


ENDS = [
    Case(aten.linalg_vector_norm.default, mean_of_tokens, states_and_mask, name="mean-of-tokens"),
    Case(aten.argmax.default, last_token, states_and_ids, name="last-token"),
    Case(aten.argmax.default, end_token, states_and_ids, name="end-token"),
    Case(aten.masked_fill.Scalar, shifted, token_ids, half=False, name="shifted"),
    Case(aten._log_softmax.default, token_loss, states_and_ids, half=False, name="token-loss"),
    Case(aten.any.dims, lambda ids: torch.isin(ids, torch.tensor([2, 5])), token_ids, half=False, name="isin"),
]

CASES: list[Case] = [*HEADS, *FEED_FORWARD, *PRODUCTS, *ENDS]

REJECTED: list[Rejected] = []
