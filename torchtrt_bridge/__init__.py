"""Run PyTorch models on TensorRT."""
