"""Run: engines as PyTorch modules with the same subgraphs in PyTorch beside them, and whole calls as CUDA graphs."""

from torchtrt_bridge.runtime.execution import Execution
from torchtrt_bridge.runtime.module import EngineModule
from torchtrt_bridge.runtime.piece import Piece
from torchtrt_bridge.runtime.quantized import QuantizedEngineModule

__all__ = ["EngineModule", "Execution", "Piece", "QuantizedEngineModule"]
