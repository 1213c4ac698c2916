"""Interop: operators that have no converter here, written by those of torch_tensorrt where it imports."""

from torchtrt_bridge.interop.torch_tensorrt import TorchTensorRT, provider_for

__all__ = ["TorchTensorRT", "provider_for"]
