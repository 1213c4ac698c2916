"""Quantize: 8-bit and 4-bit values in place of floats, as nodes of an ordinary graph."""
