"""The reference interpreter: computes a TensorRT network in PyTorch on the CPU, as TensorRT's documentation says."""

from torchtrt_bridge.reference.interpreter import NetworkInterpreter

__all__ = ["NetworkInterpreter"]
