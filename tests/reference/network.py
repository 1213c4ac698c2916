"""A small TensorRT network under test: written through TensorRT's API, built, then run in the reference."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from typing import Any

import torch

from torchtrt_bridge.reference import NetworkInterpreter
from torchtrt_bridge.trt import library as library
from torchtrt_bridge.trt.dtypes import trt_dtype_from_torch


class Network:
    """An empty network `net`, and the values of its inputs as they are added."""

    def __init__(self) -> None:
        self.library = library.load("tensorrt_rtx")
        self.trt = self.library.trt
        self._log = self.library.new_log()
        self._builder = self.library.new_builder(self._log)
        self.net = self.library.new_network(self._builder)
        self.values: list[torch.Tensor] = []
        self.constants: dict[str, torch.Tensor] = {}
        self._dynamic: list[tuple[str, tuple[int, ...]]] = []

    def input(self, value: torch.Tensor, dynamic: Sequence[int] = ()) -> Any:
        """Add a network input that gets `value`; the dimensions in `dynamic` are dynamic."""
        name = f"input{len(self.values)}"
        dims = [-1 if dim in dynamic else size for dim, size in enumerate(value.shape)]
        self.values.append(value)
        if dynamic:
            self._dynamic.append((name, tuple(value.shape)))
        return self.net.add_input(name, trt_dtype_from_torch(self.trt, value.dtype), dims)

    def constant(self, value: torch.Tensor, kind: str | None = None) -> Any:
        """Add a constant; `kind` overrides the TensorRT dtype. Its value is among `constants` too."""
        value = value.contiguous()
        dtype = getattr(self.trt, kind) if kind else trt_dtype_from_torch(self.trt, value.dtype)
        layer = self.net.add_constant(tuple(value.shape), self.trt.Weights(dtype, value.data_ptr(), value.numel()))
        layer.name = f"constant{len(self.constants)}"
        self.constants[layer.name] = value
        return layer.get_output(0)

    def unreadable(self, name: str, value: torch.Tensor) -> None:
        self.constants[name] = value

    def build(self) -> None:
        """Let TensorRT build an engine, which shows that the network is valid."""
        config = self._builder.create_builder_config()
        self.library.set_targets(config, ("sm_89",))
        if self._dynamic:
            profile = self._builder.create_optimization_profile()
            for name, shape in self._dynamic:
                profile.set_shape(name, shape, shape, shape)
            config.add_optimization_profile(profile)
        plan = self._builder.build_serialized_network(self.net, config)
        assert plan is not None, self._log.errors
        assert not self._log.errors, self._log.errors

    def interpreter(self, *outputs: Any, side_table: bool = True) -> NetworkInterpreter:
        for output in outputs:
            self.net.mark_output(output)
        return NetworkInterpreter(self.trt, self.net, self.constants if side_table else None)

    def run(self, *outputs: Any, build: bool = True) -> list[torch.Tensor]:
        """Return the results of the reference for `outputs`, after TensorRT built the network and it was destroyed."""
        interpreter = self.interpreter(*outputs)
        if build:
            self.build()
        del outputs, self.net
        gc.collect(1)  # what this test made; a look at all objects of a long run takes seconds
        return interpreter(*self.values)


def only_output(network: Network, layer: Any, **options: Any) -> torch.Tensor:
    """Run a network of one output, that of `layer`."""
    (result,) = network.run(layer.get_output(0), **options)
    return result
