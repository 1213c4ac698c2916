"""Run a network in the reference interpreter, on CPU tensors."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from torchtrt_bridge.lower.network import Network
from torchtrt_bridge.reference import NetworkInterpreter
from torchtrt_bridge.trt.library import TensorRTLibrary


class ReferenceRunner:
    """Computes a network that was lowered but never built."""

    device = torch.device("cpu")

    def __init__(self, network: Network, library: TensorRTLibrary) -> None:
        self._interpreter = NetworkInterpreter(library.trt, network.definition, network.constants)

    def __call__(self, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        return self._interpreter(*inputs)
