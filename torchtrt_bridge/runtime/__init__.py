"""Run: engines as PyTorch modules with the same subgraphs in PyTorch beside them, and whole calls as CUDA graphs."""

from torchtrt_bridge.runtime.engine_module import EngineModule
from torchtrt_bridge.runtime.execution import Execution
from torchtrt_bridge.runtime.torch_subgraph import TorchSubgraph

__all__ = ["EngineModule", "Execution", "TorchSubgraph"]
