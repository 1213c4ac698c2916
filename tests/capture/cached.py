"""First calls of models whose captured graphs are cached, and changes of what is in the cache."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import torchtrt_bridge as trtb
from torchtrt_bridge import cache


def called(model: Any, *args: Any, **options: Any) -> tuple[Any, Any]:
    """Return the results of a first call, as in a process that has compiled nothing yet, and the report."""
    torch._dynamo.reset()
    fast = trtb.compile(model, **{"engine": "reference", "fallback": "pytorch", **options})
    with torch.no_grad():
        return fast(*args), trtb.report(fast)


def comparable(report: Any) -> dict[str, Any]:
    """Return a report without the fields that differ from run to run."""
    fields = report.to_dict()
    return {name: fields[name] for name in ("in_torch", "notes", "graphs")} | {
        "engines": [(engine["nodes"], engine["dtypes"], engine["state"]) for engine in fields["engines"]]
    }


def rewrite(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change the one graph that is cached below `folder`."""
    (path,) = folder.rglob("*.graph")
    content = json.loads(path.read_text())
    change(content)
    own = cache.EngineCache(path.parent, 2**30)
    own.put(path.name.partition(".")[0], json.dumps(content).encode(), "graph")
