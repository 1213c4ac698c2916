"""The table of converters: what a converter says of its operator is true, and has one answer for each name."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

import torchtrt_bridge as trtb
from torchtrt_bridge.graph.packed import PADDED_OF_PACKED
from torchtrt_bridge.lower.converters.sizes import fake
from torchtrt_bridge.lower.registry import CONVERTERS, converter, movement_of, precision_of

aten = torch.ops.aten
X = torch.arange(24, dtype=torch.float16).reshape(2, 3, 4)
ROWS = torch.tensor([1, 0, 1])

# One call of each operator that moves data.
CALLS: dict[Any, tuple[Any, ...]] = {
    aten._to_copy.default: (X,),
    aten.alias.default: (X,),
    aten.clone.default: (X,),
    aten.detach.default: (X,),
    aten.embedding.default: (X[0], ROWS),
    aten.expand.default: (X, [5, 2, 3, 4]),
    aten.flip.default: (X, [0, 2]),
    aten.gather.default: (X, 0, torch.ones(1, 3, 4, dtype=torch.int64)),
    aten.index.Tensor: (X, [None, ROWS]),
    aten.index_select.default: (X, 1, ROWS),
    aten.permute.default: (X, [2, 0, 1]),
    aten.repeat.default: (X, [2, 1, 2]),
    aten.reshape.default: (X, [4, 6]),
    aten.select.int: (X, 1, 2),
    aten.slice.Tensor: (X, 2, 1, 4, 2),
    aten.split_with_sizes.default: (X, [1, 2], 1),
    aten.squeeze.dims: (X[:1], [0]),
    aten.unsqueeze.default: (X, 1),
}
MOVING = [op for op, found in CONVERTERS.items() if found.movement is not None]


@pytest.mark.parametrize("op", MOVING, ids=str)
def test_an_operator_that_moves_data_gives_elements_of_its_input_in_its_dtype(op: Any) -> None:
    result = op(*CALLS[op])
    values = torch.cat([part.flatten() for part in (result if isinstance(result, (list, tuple)) else [result])])
    source = CALLS[op][0].flatten()
    assert values.dtype == source.dtype
    assert set(values.tolist()) <= set(source.tolist())
    if CONVERTERS[op].movement == "reshape":
        assert torch.equal(values, source)


def node_of(op: Any) -> torch.fx.Node:
    return torch.fx.Graph().call_function(op)


def test_an_overload_without_a_converter_counts_by_its_name() -> None:
    assert aten.squeeze.dim not in CONVERTERS
    assert movement_of(node_of(aten.squeeze.dim)) == "reshape"
    assert aten.softmax.int not in CONVERTERS
    assert precision_of(node_of(aten.softmax.int)) is None
    assert precision_of(node_of(aten.sum.IntList_out)) == "fp32"


def test_overloads_that_disagree_are_refused() -> None:
    with pytest.raises(ValueError, match="differ in movement or precision"):
        converter(aten.squeeze.dim)(lambda ctx, self, dim: self)
    assert aten.squeeze.dim not in CONVERTERS


# Their arguments have one dtype, which is that of the result: integers stay integers in each precision.
OF_ONE_DTYPE = {aten.matmul.default, aten.mm.default, aten.bmm.default, aten.addmm.default}

# Their integers are lengths, of which no float is computed.
WITH_LENGTHS = set(PADDED_OF_PACKED.values())


def test_an_operator_of_half_precision_makes_no_floats_of_integers() -> None:
    others = OF_ONE_DTYPE | WITH_LENGTHS
    half = [found for found in CONVERTERS.values() if found.precision == "half" and found.op not in others]
    assert half
    assert all(set(found.dtypes) <= {torch.float32, torch.float16, torch.bfloat16, torch.bool} for found in half)


@pytest.mark.parametrize("part", ["lower", "why_not"])
def test_a_converter_that_reads_a_dynamic_size_as_a_number_is_not_used(
    part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would hold for the size of the example alone."""

    def why_not(self: torch.Tensor) -> str | None:
        return "too long" if self.shape[1] > 1000 and part == "why_not" else None

    def lower(ctx: Any, self: Any) -> Any:
        size = fake(ctx, 0).shape[1]
        return ctx.elementwise("PROD", self, float(size) if part == "lower" else 7.0, torch.float32)

    planted = dataclasses.replace(CONVERTERS[aten.neg.default], lower=lower, why_not=why_not)
    monkeypatch.setitem(CONVERTERS, aten.neg.default, planted)
    fast = trtb.compile(lambda x: x.sigmoid().neg(), dynamic=True, engine="reference", cache_dir="")
    for size in (5, 2000):
        x = torch.randn(3, size)
        torch.testing.assert_close(fast(x), x.sigmoid().neg())
    report = trtb.report(fast)
    told = [entry.state for entry in report.engines] + [entry.reason for entry in report.in_torch]
    assert any("a size that is known only at run time" in text for text in told), told
