"""What goes on around a call that an engine cannot follow: transforms, a capture, another process."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.autograd import forward_ad


def is_transformed() -> bool:
    """Whether `torch.func` or forward-mode differentiation looks at each operator: an engine shows them none."""
    return forward_ad._current_level >= 0 or torch._C._functorch.peek_interpreter_stack() is not None


def is_capturing(values: Sequence[Any]) -> bool:
    """Whether the caller records a CUDA graph that a call with these values would be part of."""
    on_gpu = any(isinstance(value, torch.Tensor) and value.is_cuda for value in values)
    return on_gpu and torch.cuda.is_current_stream_capturing()
