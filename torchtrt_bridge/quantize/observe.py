"""Observe: run the float graph, and take in what the layers read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import fx

from torchtrt_bridge.errors import CalibrationError
from torchtrt_bridge.graph.nodes import describe
from torchtrt_bridge.quantize.layers import Layer, nodes_by_name
from torchtrt_bridge.quantize.statistics import NonFiniteError, Statistics, check_finite

# The statistics of each activation, by the name of the node that gives it.
Observed = dict[str, Statistics]


def new_statistics(module: fx.GraphModule, layers: Sequence[Layer]) -> Observed:
    """Empty statistics of each activation that a layer reads."""
    nodes = nodes_by_name(module)
    observed: Observed = {}
    for layer in layers:
        for index, (reader, argument) in enumerate(layer.reads):
            source = nodes[reader].args[argument]
            assert isinstance(source, fx.Node)
            channels = layer.channels if index == 0 else None
            if channels is not None and source.meta["val"].dim() == 1:
                channels = None
            known = observed.setdefault(source.name, Statistics(channels))
            if known.channel_dim is None:
                known.channel_dim = channels
    return observed


def known_channels(seen: Statistics, layer: Layer, source: fx.Node) -> int | None:
    """The dimension of the channels of `source`, a layer's own input; None where `seen` does not tell these apart.

    A convolution and a linear layer may read one activation; then its statistics are of the first one's channels.
    """
    if seen.channel_max is None or seen.channel_dim is None or layer.channels is None:
        return None
    rank = cast(int, source.meta["val"].dim())
    return layer.channels % rank if seen.channel_dim % rank == layer.channels % rank else None


class Observer(fx.Interpreter):
    """Computes the graph, and updates the statistics of the activations on the way."""

    def __init__(self, module: fx.GraphModule, layers: Sequence[Layer], observed: Mapping[str, Statistics]) -> None:
        super().__init__(module, garbage_collect_values=True)
        self.layers, self.observed = layers, observed
        self.batch = 0
        self.only_checks = False  # a batch that is held back

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        statistics = self.observed.get(n.name)
        if statistics is not None:
            try:
                (check_finite if self.only_checks else statistics.update)(result)
            except NonFiniteError:
                raise self._non_finite(n) from None
        return result

    def _non_finite(self, node: fx.Node) -> CalibrationError:
        reader = next(layer for layer in self.layers if any(_reads(self.module, read, node) for read in layer.reads))
        return CalibrationError(
            f"Batch {self.batch} gives NaN or infinity in the input of the layer {reader.name!r} "
            f"({describe(node)}), the first to see one. Look at the data, and at the float model's own results for "
            f"this batch; skip=({reader.name!r},) leaves the layer in floating point."
        )


def first_wrong_input(inputs: Sequence[Any], names: Sequence[str]) -> str | None:
    """The name of the first input that holds NaN or infinity."""
    for value, name in zip(inputs, names, strict=True):
        is_float = isinstance(value, torch.Tensor) and value.is_floating_point()
        if is_float and not bool(torch.isfinite(value).all()):
            return name
    return None


def _reads(module: Any, read: tuple[str, int], node: fx.Node) -> bool:
    return any(reader.name == read[0] and reader.args[read[1]] is node for reader in node.users)
