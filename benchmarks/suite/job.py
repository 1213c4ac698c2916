"""A job: what one process measures, and what it tells while it does."""

from __future__ import annotations

import dataclasses
import json
from typing import Any, Literal

Kind = Literal["speed", "start", "build"]
Row = dict[str, Any]

# What the process tells: {"contender": NAME or None, "doing": TEXT}, or {"contender": NAME, "row": ROW}.
Event = dict[str, Any]

# What it is doing when all that is left is to measure: it waits for the end of its input then.
READY = "waiting for its turn"

# A kind whose jobs take several processes names them. Their figures stand in one row, each behind its part's name.
PARTS: dict[str, tuple[str, ...]] = {"speed": ("",), "start": ("cold", "warm"), "build": ("stages", "cold", "warm")}


@dataclasses.dataclass(frozen=True)
class Job:
    """One model in one batch size and precision, measured in one process.

    part: which of the kind's processes this is.
    calls: how many calls are queued for one time, at most; `rounds`: how many such times.
    turn_seconds: how long these calls may take; slow models are called less often.
    cache_dir: where torchtrt_bridge keeps its engines.
    lock: the file whose lock gives a turn on the GPU, where other processes get ready beside this one; else empty.
    """

    kind: Kind
    model: str
    batch: int
    precision: str
    contenders: tuple[str, ...]
    device: str = "cuda"
    engine: str = "auto"
    calls: int = 50
    rounds: int = 10
    turn_seconds: float = 0.25
    part: str = ""
    cache_dir: str = ""
    lock: str = ""

    def __str__(self) -> str:
        return f"{self.model}, batch {self.batch}, {self.precision}, {self.kind}"

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Job:
        fields = json.loads(text)
        return cls(**{**fields, "contenders": tuple(fields["contenders"])})


def failure(error: BaseException) -> Row:
    """The row of what did not work, with the first lines of why."""
    return {"failed": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}
