"""Views: the same elements under other sizes, in another order, or repeated."""

import torch

from tests.lower.case import Case, Rejected

aten = torch.ops.aten


def rows(n: int) -> tuple[torch.Tensor]:
    return (torch.randn(n, 6, 8),)


def square(n: int) -> tuple[torch.Tensor]:
    return (torch.randn(n, 6, n + 3),)


def single(n: int) -> tuple[torch.Tensor]:
    return (torch.randn(n, 1, 8),)


def ones(n: int) -> tuple[torch.Tensor]:
    return (torch.randn(1, n, 1, 8),)


def integers(n: int) -> tuple[torch.Tensor]:
    return (torch.randint(-9, 9, (n, 6)),)


def mask(n: int) -> tuple[torch.Tensor]:
    return (torch.randn(n, 1, 6) > 0,)


def scalar(n: int) -> tuple[torch.Tensor]:
    return (torch.randn(()),)


VIEWS = [
    Case(aten.reshape.default, lambda x: x.flatten(1), rows, name="flatten"),
    Case(aten.reshape.default, lambda x: x.flatten(0, 1), square, name="flatten-dynamic"),
    Case(aten.reshape.default, lambda x: x.unflatten(2, (2, -1)), rows, name="unflatten"),
    Case(aten.reshape.default, lambda x: x.reshape(-1), square, name="ravel"),
    Case(aten.reshape.default, lambda x: x.transpose(0, 1).reshape(6, -1), square, name="copied"),
    Case(aten.reshape.default, lambda x: x.view(x.shape[0], 2, 3, x.shape[2]), square, name="two-dynamic"),
    Case(aten.reshape.default, lambda x: x.view(x.shape[0], -1, x.shape[2], 2, 3).relu(), square, name="rest"),
    Case(aten.reshape.default, lambda x: x.view_as(x.relu()), square, name="same"),
    Case(aten.reshape.default, lambda x: x.view(1, 1), scalar, name="of-0d"),
    Case(aten.reshape.default, lambda x: x[:1, :1, :1].reshape(()), rows, name="to-0d"),
    Case(aten.reshape.default, lambda x: x.view(3, -1), integers, half=False, name="int64"),
    Case(aten.reshape.default, lambda x: x.view(-1), mask, half=False, name="bool"),
    Case(aten.reshape.default, lambda x: aten._unsafe_view(x, [x.shape[0], 48]), rows, name="unsafe"),
]

ORDER = [
    Case(aten.permute.default, lambda x: x.permute(0, -1, 1), rows),
    Case(aten.permute.default, lambda x: x.permute(0, 1, 2), rows, name="in-order"),
    Case(aten.permute.default, lambda x: x.transpose(-1, 1), square, name="transpose"),
    Case(aten.permute.default, lambda x: x.t(), integers, half=False, name="t"),
    Case(aten.permute.default, lambda x: x.mT, square, name="mT"),
    Case(aten.permute.default, lambda x: x.movedim(0, 2), rows, name="movedim"),
    Case(aten.permute.default, lambda x: x.swapaxes(0, 2), mask, half=False, name="bool"),
    Case(aten.permute.default, lambda x: x.transpose(0, 1).contiguous(), rows, name="contiguous"),
    Case(aten.squeeze.dims, lambda x: x.squeeze(1), single, name="one"),
    Case(aten.squeeze.dims, lambda x: x.squeeze(-1), single, name="not-one"),
    Case(aten.squeeze.dims, lambda x: x.squeeze((0, -2)), ones, name="two"),
    Case(aten.squeeze.dims, lambda x: x.squeeze(), ones, name="all"),
    Case(aten.squeeze.dims, lambda x: x.squeeze(1), mask, half=False, name="bool"),
    Case(aten.unsqueeze.default, lambda x: x.unsqueeze(0), rows),
    Case(aten.unsqueeze.default, lambda x: x.unsqueeze(-1), rows, name="last"),
    Case(aten.unsqueeze.default, lambda x: x.unsqueeze(-2), rows, name="negative"),
    Case(aten.unsqueeze.default, lambda x: x.unsqueeze(0), scalar, name="0d"),
    Case(aten.unsqueeze.default, lambda x: x[:, None, ..., None], rows, name="none"),
]

REPEATS = [
    Case(aten.expand.default, lambda x: x.expand(-1, 5, 8), single),
    Case(aten.expand.default, lambda x: x.expand(2, -1, 5, -1), single, name="new-dim"),
    Case(aten.expand.default, lambda x: x.expand(x.shape[1], -1, x.shape[1], -1), ones, name="dynamic"),
    Case(aten.expand.default, lambda x: x.expand(3, 2), scalar, name="0d"),
    Case(
        aten.expand.default,
        lambda x, y: x.expand_as(y),
        lambda n: (*single(n), *rows(n)),
        name="as",
    ),
    Case(aten.expand.default, lambda x: x.expand(-1, 4, 6), mask, half=False, name="bool"),
    Case(aten.expand.default, lambda x: x.expand(-1, -1, 8), rows, name="nothing"),
    Case(
        aten.expand.default,
        lambda x, y: torch.broadcast_tensors(x, y),
        lambda n: (torch.randn(n, 1, 8), torch.randn(6, 1)),
        name="broadcast_tensors",
    ),
    Case(
        aten.expand.default,
        lambda x, y: torch.meshgrid(x, y, indexing="ij"),
        lambda n: (torch.randn(n), torch.randn(3)),
        name="meshgrid",
    ),
    Case(aten.expand.default, lambda x: x.repeat_interleave(3, dim=1), rows, name="repeat_interleave"),
    Case(aten.expand.default, lambda x: x.repeat_interleave(2, dim=0), rows, name="repeat_interleave-dynamic"),
    Case(aten.expand.default, lambda x: x.repeat_interleave(2), square, name="repeat_interleave-flat"),
    Case(aten.copy.default, lambda x, y: aten.copy(x, y), lambda n: (*rows(n), *single(n))),
    Case(
        aten.copy.default,
        lambda x, y: aten.copy(x, y),
        lambda n: (torch.randn(n, 6), *integers(n)),
        name="cast",
    ),
    Case(aten.repeat.default, lambda x: x.repeat(2, 1, 3), rows),
    Case(aten.repeat.default, lambda x: x.repeat(3, 1, 1, 2), square, name="new-dim"),
    Case(aten.repeat.default, lambda x: x.repeat(1, 5, 1), single, name="of-one"),
    Case(aten.repeat.default, lambda x: x.repeat(1, x.shape[0], 1), single, name="dynamic-of-one"),
    Case(aten.repeat.default, lambda x: x.repeat(x.shape[0], 1, 2), rows, name="dynamic"),
    Case(aten.repeat.default, lambda x: x.tile(2, 3), integers, half=False, name="tile-int64"),
    Case(aten.repeat.default, lambda x: x.repeat(1, 3, 2), mask, half=False, name="bool"),
]

CASES: list[Case] = [*VIEWS, *ORDER, *REPEATS]

REJECTED: list[Rejected] = []
