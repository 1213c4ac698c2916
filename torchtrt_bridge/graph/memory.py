"""Where tensors lie in memory."""

from __future__ import annotations

from typing import Any

import torch


def place_of(value: torch.Tensor) -> tuple[Any, ...]:
    """Return where the elements of a tensor lie and how they are read; equal for tensors of one shape that are one.

    A lazy conjugate, or negative, lies where its positive does: only its flag tells that it has other elements.
    """
    return value.data_ptr(), value.stride(), value.is_conj(), value.is_neg()


def memory_of(value: torch.Tensor) -> int:
    """Return the address of a tensor's storage, equal for tensors that share it."""
    return value.untyped_storage().data_ptr()
