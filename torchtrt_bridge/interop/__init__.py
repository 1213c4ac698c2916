"""Interoperability: torch_tensorrt's converters, for operators that have none here."""

from torchtrt_bridge.interop.torch_tensorrt import TorchTensorRT, provider_for

__all__ = ["TorchTensorRT", "provider_for"]
