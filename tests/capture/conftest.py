"""What the tests of captures share."""

from __future__ import annotations

from typing import Any

import pytest

from torchtrt_bridge.capture import dynamo


@pytest.fixture
def captures(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Return the list of graphs that are captured from now on."""
    seen: list[Any] = []
    own = dynamo.capture

    def capture(*args: Any) -> Any:
        seen.append(args[0])
        return own(*args)

    monkeypatch.setattr(dynamo, "capture", capture)
    return seen
