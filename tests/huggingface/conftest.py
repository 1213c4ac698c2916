"""What the tests of Hugging Face's models share."""

from __future__ import annotations

from typing import Any

import pytest

from torchtrt_bridge.runtime.runners import ReferenceRunner


@pytest.fixture
def engine_calls(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """Return the sizes of the first input of each call that an engine computed."""
    calls: list[list[int]] = []
    compute = ReferenceRunner.__call__

    def count(runner: ReferenceRunner, inputs: Any) -> Any:
        calls.append(list(inputs[0].shape))
        return compute(runner, inputs)

    monkeypatch.setattr(ReferenceRunner, "__call__", count)
    return calls
