"""Registry like torch_tensorrt's, with converters that a test has chosen."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from tests.interop import fake
from torchtrt_bridge.interop import torch_tensorrt as interop


@pytest.fixture
def offer(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Return a function that puts converters in place of those of torch_tensorrt."""

    def found(supports: dict[Any, Sequence[fake.Support]], **more: Any) -> None:
        library = fake.library(supports, **more)
        monkeypatch.setattr(interop, "find", lambda: library)

    return found
