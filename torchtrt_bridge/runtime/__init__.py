"""Run: an engine as a PyTorch module, with the same subgraph in PyTorch beside it."""

from torchtrt_bridge.runtime.module import EngineModule

__all__ = ["EngineModule"]
