"""Calibration: kinds of batches, and the calls of the model that they become."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import torchtrt_bridge as trtb
from tests.quantize.nets import PLAIN, loader, quantized, relative_error
from torchtrt_bridge.errors import CalibrationError
from torchtrt_bridge.graph import torch_internals


class One(nn.Module):
    """One input."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x)


class Masked(One):
    """An input, and one that may be left out."""

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        y = self.linear(x)
        return y if mask is None else y * mask


class Text(nn.Module):
    """As a Hugging Face model: many arguments, of which few are given, and a dict of results."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.linear = nn.Embedding(20, 8), nn.Linear(8, 4)

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> dict[str, torch.Tensor]:
        assert labels is None
        logits = self.linear(self.embed(input_ids)) * attention_mask.unsqueeze(-1)
        return {"logits": logits, "first": logits[:, 0]}


class Item(NamedTuple):
    """A sample with its label."""

    x: torch.Tensor
    label: torch.Tensor


X = loader(6, 8)
LABELS = torch.arange(6) % 4
WORDS = [{"input_ids": torch.arange(6).view(2, 3) + n, "attention_mask": torch.ones(2, 3).long()} for n in range(4)]

BATCHES: dict[str, tuple[nn.Module, Any, tuple[str, ...]]] = {
    "tensors": (One(), X, ("x",)),
    "lists": (One(), [[x] for x in X], ("x",)),
    "pairs": (One(), [(x, LABELS) for x in X], ("x",)),
    "pairs as lists": (One(), [[x, LABELS] for x in X], ("x",)),
    "named tuples": (One(), [Item(x, LABELS) for x in X], ("x",)),
    "labels where a mask might be": (Masked(), [(x, LABELS) for x in X], ("x",)),
    "both arguments": (Masked(), [(x, torch.ones(6, 4)) for x in X], ("x", "mask")),
    "data loader": (One(), DataLoader(TensorDataset(torch.cat(X), torch.arange(24)), batch_size=6), ("x",)),
    "generator": (One(), (x for x in X), ("x",)),
    "dicts": (Text(), WORDS, ("input_ids", "attention_mask")),
    "dicts with labels": (Text(), [{**w, "labels": LABELS[:2]} for w in WORDS], ("input_ids", "attention_mask")),
    "dicts and labels": (Text(), [(w, LABELS[:2]) for w in WORDS], ("input_ids", "attention_mask")),
    "dicts with more": (One(), [{"x": x, "id": LABELS} for x in X], ("x",)),
}


@pytest.mark.parametrize("kind", BATCHES)
def test_batches_of_each_kind_calibrate(kind: str) -> None:
    model, batches, names = BATCHES[kind]
    found = quantized(model, batches)
    assert torch_internals.pytree_info(found.graph).orig_args == list(names)
    assert found.quantization.quantized == 1


def test_batch_encodings_calibrate() -> None:
    transformers = pytest.importorskip("transformers")
    found = quantized(Text(), [transformers.BatchEncoding(words) for words in WORDS])
    assert found.quantization.quantized == 1


def test_items_that_are_left_out_are_noted() -> None:
    found = quantized(One(), [(x, LABELS) for x in X])
    assert any("the last 1 of 2 items" in note for note in found.quantization.notes)


def test_the_model_is_called_as_the_user_says() -> None:
    class Odd:
        def __init__(self, x: torch.Tensor) -> None:
            self.x = x

    model = One()
    found = quantized(model, [Odd(x) for x in X], forward=lambda m, batch: m(batch.x * 2))
    plain = quantized(model, [x * 2 for x in X])
    torch.testing.assert_close(found(X[0]), plain(X[0]))


class Minuend(nn.Module):
    """Arguments of one shape and dtype: nothing but the order distinguishes them."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, x: torch.Tensor, y: torch.Tensor, *, z: torch.Tensor | None = None) -> torch.Tensor:
        return self.linear(x) - 2 * y + (0 if z is None else 10 * z)


Z = [x.flip(0) for x in X]
TWO = list(zip(X, reversed(X), strict=True))
THREE = list(zip(X, reversed(X), Z, strict=True))
ORDERS: dict[str, tuple[Any, Callable[..., Any] | None]] = {
    "as in forward": ([{"x": x, "y": y} for x, y in TWO], None),
    "the other way round": ([{"y": y, "x": x} for x, y in TWO], None),
    "by keyword only, in another order": ([{"z": z, "y": y, "x": x} for x, y, z in THREE], None),
    "by position and by keyword": (THREE, lambda model, batch: model(batch[0], z=batch[2], y=batch[1])),
}


@pytest.mark.parametrize("order", ORDERS)
def test_arguments_reach_the_parameters_of_their_names(order: str) -> None:
    model, (batches, forward) = Minuend(), ORDERS[order]
    found = quantized(model, batches, forward=forward)
    for batch in batches:
        given = batch if isinstance(batch, dict) else dict(zip("xyz", batch, strict=True))
        assert relative_error(found(**given), model(**given)) < 1e-2
        by_position = [given.pop("x"), given.pop("y")]
        assert relative_error(found(*by_position, **given), model(*by_position, **given)) < 1e-2


def test_a_graph_that_is_not_the_model_is_refused() -> None:
    class Counting(Minuend):
        """Its calls differ, by a number that a graph takes for a constant."""

        calls = 0

        def forward(self, x: torch.Tensor, y: torch.Tensor, *, z: torch.Tensor | None = None) -> torch.Tensor:
            self.calls += 1
            return super().forward(x, y, z=z) * self.calls

    with pytest.raises(CalibrationError, match=r"Counting computes something else .* relative L2 distance"):
        quantized(Counting(), TWO)


def test_a_forward_may_use_the_model_and_its_results() -> None:
    seen = []

    def twice(model: Any, batch: torch.Tensor) -> None:
        first = model(batch)
        seen.append((first.shape, model.linear.out_features))
        model(torch.cat((first, first), -1))

    found = quantized(One(), X, forward=twice)
    assert seen == [(torch.Size([6, 4]), 4)] * 4
    assert found.quantization.quantized == 1


def test_only_so_many_batches_are_read() -> None:
    read = []

    def endless() -> Iterator[torch.Tensor]:
        while True:
            read.append(1)
            yield X[0]

    quantized(One(), endless(), num_batches=3)
    assert len(read) == 3


@pytest.mark.parametrize("method", ["auto", "mse"])
def test_the_loader_is_read_once(method: str) -> None:
    read = []

    def generator() -> Iterator[torch.Tensor]:
        for x in X:
            read.append(1)
            yield x

    trtb.quantize(One(), generator(), method=method, table=False)
    assert len(read) == len(X)


@pytest.mark.parametrize("batch", [1, 2, 7])
@pytest.mark.parametrize("traced", [1, 6])
def test_any_batch_size_is_accepted(traced: int, batch: int) -> None:
    model = One()
    found = quantized(model, loader(traced, 8))
    assert relative_error(found(torch.ones(batch, 8)), model(torch.ones(batch, 8))) < 0.02


def test_batches_may_differ_in_size_and_length() -> None:
    model = Text().eval()
    words = [{"input_ids": torch.ones(b, t).long(), "attention_mask": torch.ones(b, t)} for b, t in ((2, 3), (4, 7))]
    found = quantized(model, [*words, {name: value[:1] for name, value in words[1].items()}])
    result = found(**words[1])
    assert list(result) == ["logits", "first"]
    assert relative_error(result["logits"], model(**words[1])["logits"]) < 0.02


def test_sizes_named_by_the_user_are_free() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)).eval()
    auto = torch.export.Dim.AUTO
    images = [torch.randn(2, 3, size, size) for size in (8, 10, 12)]
    with pytest.raises(CalibrationError, match="dynamic_shapes"):
        trtb.quantize(model, images, **PLAIN)
    found = quantized(model, images, dynamic_shapes=({0: auto, 2: auto, 3: auto},))
    image = torch.randn(2, 3, 9, 9)
    assert relative_error(found(image), model(image)) < 0.05
