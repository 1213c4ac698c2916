"""A job: one model in one batch size and precision, measured in one process, and the events that the process writes."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from torchtrt_bridge.options import EngineKind

Kind = Literal["speed", "start", "build"]
Row = dict[str, Any]

# A contender (or None) with the step that begins, or with its row.
Event = tuple["str | None", "str | Row"]

# The step before the first measurement of speed. Processes that compile side by side wait here for their turn.
READY = "waiting for its turn"

# The processes of each kind, one after the other. Their figures share a row, each behind the name of its part.
PARTS: dict[str, tuple[str, ...]] = {"speed": ("",), "start": ("cold", "warm"), "build": ("cold", "warm")}


@dataclasses.dataclass(frozen=True)
class Job:
    """The work of one process.

    calls: the largest number of calls queued for one time. rounds: the number of such times.
    turn_seconds: the limit for these calls; slow models are called less often.
    part: the part of the kind that this process is.
    cache_dir: the directory in which torchtrt_bridge keeps its engines.
    locks: the folder of the locks that processes side by side share; empty for a process that has the machine alone.
    """

    kind: Kind
    model: str
    batch: int
    precision: str
    contenders: tuple[str, ...]
    device: str = "cuda"
    engine: EngineKind = "auto"
    calls: int = 50
    rounds: int = 10
    turn_seconds: float = 0.25
    part: str = ""
    cache_dir: str = ""
    locks: str = ""

    def __str__(self) -> str:
        return f"{self.model}, batch {self.batch}, {self.precision}, {self.kind}"

    def key(self, contender: str) -> tuple[object, ...]:
        """Return the key of a contender's row, in the order of results.KEY."""
        return self.model, self.batch, self.precision, self.kind, contender

    @classmethod
    def on(cls, device: str, kind: Kind, model: str, batch: int, contenders: tuple[str, ...]) -> Job:
        """Return a job in fp16 on a GPU; on a CPU in fp32 with the reference interpreter."""
        if device == "cuda":
            return cls(kind, model, batch, "fp16", contenders)
        return cls(kind, model, batch, "fp32", contenders, device, "reference")

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Job:
        fields = json.loads(text)
        return cls(**{**fields, "contenders": tuple(fields["contenders"])})


def failure(error: BaseException) -> Row:
    """Return the row of a contender that failed, with the beginning of the message."""
    return {"failed": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}
