"""Random programs: a list of steps on a pool of tensors, each of which eager PyTorch has run."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

Tensors = list[torch.Tensor]
Operation = Callable[..., torch.Tensor]

# Ranges of values that no step may leave: beyond, rounding decides between a number and infinity.
LARGEST = 1e3


def _rows(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return x.reshape(-1, x.shape[-1]) @ y.reshape(-1, y.shape[-1]).t()


def _attention(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    q, k = x.reshape(1, 1, -1, x.shape[-1]), y.reshape(1, 1, -1, y.shape[-1])
    return F.scaled_dot_product_attention(q, k, k)


# Steps whose results change a little where their inputs do, so that they may be compared in half precision.
SMOOTH: dict[str, Operation] = {
    "add": torch.add,
    "sub": torch.sub,
    "mul": torch.mul,
    "div": lambda x, y: x / (y * y + 1),
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "relu": torch.relu,
    "gelu": F.gelu,
    "silu": F.silu,
    "exp": lambda x: torch.exp(x.clamp(-4, 4)),
    "sqrt": lambda x: torch.sqrt(x.abs() + 0.5),
    "sin": torch.sin,
    "neg": torch.neg,
    "softmax": lambda x: x.softmax(-1),
    "layer_norm": lambda x: F.layer_norm(x, x.shape[-1:]),
    "mean": lambda x: x.mean(-1, keepdim=True),
    "sum": lambda x: x.sum(0),
    "amax": lambda x: x.amax(-1),
    "std": lambda x: x.std(-1, unbiased=False),
    "cumsum": lambda x: x.cumsum(-1),
    "matmul": _rows,
    "attention": _attention,
    "clamp": lambda x: x.clamp(-1, 1),
    "maximum": torch.maximum,
    "transpose": lambda x: x.transpose(0, -1),
    "flatten": lambda x: x.flatten(),
    "flatten_rows": lambda x: x.flatten(1),
    "unsqueeze": lambda x: x.unsqueeze(1),
    "squeeze": lambda x: x.squeeze(),
    "first_half": lambda x: x.chunk(2, -1)[0],
    "second_half": lambda x: x.chunk(2, -1)[-1],
    "slice": lambda x: x[:, 1:],
    "step": lambda x: x[..., ::2],
    "select": lambda x: x[-1],
    "flip": lambda x: x.flip(-1),
    "roll": lambda x: x.roll(1, -1),
    "cat": lambda x, y: torch.cat([x, y], -1),
    "stack": lambda x, y: torch.stack([x, y]),
    "expand": lambda x: x.unsqueeze(0).expand(2, *x.shape),
    "repeat": lambda x: x.repeat(*([1] * (x.dim() - 1)), 2),
    "pad": lambda x: F.pad(x, (1, 1)),
    "clone": torch.clone,
    "in_place": lambda x: x.clone().mul_(0.5),
    "in_place_view": lambda x: _halved(x.clone()),
    "written": lambda x: _written(x.clone()),
}

# Steps where a rounded input may give quite another result: only exact programs have them.
EXACT: dict[str, Operation] = {
    "floor": torch.floor,
    "round": torch.round,
    "sign": torch.sign,
    "greater": lambda x, y: x > y,
    "equal": lambda x, y: x == y,
    "where": lambda x, y: torch.where(x > 0, x, y),
    "masked_fill": lambda x: x.masked_fill(x < 0, -1.0),
    "not": lambda x: ~(x > 0),
    "any": lambda x: (x > 0).any(-1),
    "argmax": lambda x: x.argmax(-1),
    "sort": lambda x: x.sort(-1).values,
    "topk": lambda x: x.topk(2, -1).values,
    "to_int": lambda x: (x * 4).to(torch.int64),
    "to_float": lambda x: x.to(torch.float32),
    "remainder": lambda x: torch.remainder(x, 0.75),
    "floor_divide": lambda x: torch.floor_divide(x, 0.3),
    "gather": lambda x: x.gather(-1, x.argsort(-1)),
    "index_select": lambda x: x.index_select(0, torch.zeros(3, dtype=torch.int64)),
    "in_place_integers": lambda x: (x * 3).to(torch.int32).add_(1),
}


def _halved(x: torch.Tensor) -> torch.Tensor:
    """Change a view in place, and return what it is a view of."""
    x.chunk(2, -1)[0].mul_(0.5)
    return x


def _written(x: torch.Tensor) -> torch.Tensor:
    x[..., :1] = 2
    return x


@dataclasses.dataclass(frozen=True)
class Step:
    """One call: the name of an operation, and the places of its arguments in the pool."""

    name: str
    arguments: tuple[int, ...]


class Program(nn.Module):
    """A program: its inputs are the first tensors of the pool, and each step adds one."""

    def __init__(self, steps: list[Step], outputs: list[int]) -> None:
        super().__init__()
        self.steps, self.outputs = steps, outputs

    def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        pool = list(inputs)
        for step in self.steps:
            pool.append(OPERATIONS[step.name](*(pool[i] for i in step.arguments)))
        return tuple(pool[i] for i in self.outputs)

    def __str__(self) -> str:
        return "; ".join(f"{step.name}{step.arguments}" for step in self.steps) + f" -> {self.outputs}"


OPERATIONS = SMOOTH | EXACT


def inputs_of(seed: int, rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Two tensors whose first size is `rows`; the others depend on the seed."""
    chosen = random.Random(seed)
    shape = (rows, *(chosen.choice((2, 4, 6)) for _ in range(chosen.choice((1, 2)))))
    generator = torch.Generator().manual_seed(seed * 100 + rows)
    return torch.randn(shape, generator=generator), torch.randn(shape, generator=generator)


def program_of(seed: int, exact: bool, sizes: tuple[int, ...]) -> Program:
    """Return a program that runs in eager PyTorch for inputs of each of these numbers of rows.

    exact: whether it may have steps that rounding changes the result of.
    """
    chosen = random.Random(seed)
    names = sorted(OPERATIONS if exact else SMOOTH)
    pools: list[Tensors] = [list(inputs_of(seed, rows)) for rows in sizes]
    steps: list[Step] = []
    wanted = chosen.randint(3, 10)
    for _ in range(wanted * 10):
        name = chosen.choice(names)
        count = len(pools[0])
        arguments = tuple(chosen.randrange(count) for _ in range(2 if _takes_two(name) else 1))
        results = [_tried(name, [pool[i] for i in arguments]) for pool in pools]
        if all(result is not None for result in results):
            steps.append(Step(name, arguments))
            for pool, result in zip(pools, results, strict=True):
                assert result is not None
                pool.append(result)
        if len(steps) == wanted:
            break
    last = len(pools[0]) - 1
    extra = chosen.sample(range(2, last), min(chosen.choice((0, 1, 2)), max(last - 2, 0)))
    return Program(steps, [last, *extra])


def _takes_two(name: str) -> bool:
    return name in {
        "add", "sub", "mul", "div", "matmul", "attention", "maximum", "cat", "stack", "greater", "equal", "where",
    }  # fmt: skip


def _tried(name: str, arguments: Tensors) -> torch.Tensor | None:
    """Return the result of a step; None where PyTorch raises, or the result is too large, empty or not finite."""
    try:
        result = OPERATIONS[name](*arguments)
    except (RuntimeError, IndexError, TypeError, NotImplementedError):
        return None
    if not isinstance(result, torch.Tensor) or result.numel() == 0 or result.numel() > 4096 or result.dim() > 5:
        return None
    if result.is_floating_point() and not bool((result.abs() < LARGEST).all()):
        return None
    return result


def storages(values: Any) -> list[int]:
    """The address of the memory of each tensor."""
    return [value.untyped_storage().data_ptr() for value in values]
