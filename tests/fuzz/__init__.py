"""Random programs, compiled and compared with eager PyTorch."""
