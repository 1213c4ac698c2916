"""Run PyTorch models on TensorRT."""

__version__ = "0.1.0"
