"""A registry like torch_tensorrt's, of converters that a test has chosen."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from tests.interop import fake
from torchtrt_bridge.interop import torch_tensorrt as interop


@pytest.fixture
def offer(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Have these converters found where torch_tensorrt would be looked for."""

    def found(supports: dict[Any, Sequence[fake.Support]], **more: Any) -> None:
        library = fake.library(supports, **more)
        monkeypatch.setattr(interop, "find", lambda: library)

    return found
