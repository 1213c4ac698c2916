"""Dtypes that PyTorch and TensorRT share."""

from __future__ import annotations

from typing import Any

import torch

_NAMES = {
    torch.float32: "FLOAT",
    torch.float16: "HALF",
    torch.bfloat16: "BF16",
    torch.int64: "INT64",
    torch.int32: "INT32",
    torch.int8: "INT8",
    torch.uint8: "UINT8",
    torch.bool: "BOOL",
    torch.float8_e4m3fn: "FP8",
}
_TORCH = {name: dtype for dtype, name in _NAMES.items()}

# Dtypes that TensorRT's layers compute with; uint8 and int8 may only be cast or quantized.
COMPUTE_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.bool)


def trt_dtype_from_torch(trt: Any, dtype: torch.dtype) -> Any:
    """Return the `DataType` of a PyTorch dtype; KeyError if TensorRT has none."""
    return getattr(trt.DataType, _NAMES[dtype])


def torch_dtype_from_trt(dtype: Any) -> torch.dtype:
    """Return the PyTorch dtype of a `DataType`; KeyError if PyTorch has none."""
    return _TORCH[dtype.name]
