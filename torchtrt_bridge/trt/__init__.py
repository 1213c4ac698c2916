"""The installed TensorRT: its library, dtypes, probes and inspector."""
