"""Too little memory: how it is told from a failure that will come again."""

from __future__ import annotations

import torch

# An engine that runs short of memory this often is let go, which gives its own memory back. Before that a later call
# may have more room: other tensors are gone, or its sizes are smaller.
MOST_SHORTAGES = 3

# How PyTorch's allocators and TensorRT say it, without spaces.
_WORDS = ("outofmemory", "allocatememory", "couldnotbeallocated")


def is_shortage(error: BaseException) -> bool:
    """Whether an error of PyTorch's or of TensorRT's says that there was too little memory."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or tells_of_shortage(str(error))


def tells_of_shortage(text: str) -> bool:
    """Whether a message says that there was too little memory."""
    dense = "".join(text.lower().split())
    return any(word in dense for word in _WORDS)
