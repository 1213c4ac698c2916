"""Speed: all contenders of a row in one process, in turns, so that a drift of the clocks meets each alike."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

from benchmarks.suite.entrant import Entrant, entrant, strict_torch, tensors
from benchmarks.suite.job import READY, Event, Job, failure
from benchmarks.suite.models import SUITE, Inputs, build
from benchmarks.suite.turns import take_turns


def measure(job: Job) -> Iterator[Event]:
    """Compile each contender, then give each a turn, round by round; a row for each at the end, or when it fails."""
    strict_torch()
    if job.lock:
        take_turns(job.lock)
    yield {"contender": None, "doing": "building the model"}
    original = build(SUITE[job.model], job.device)
    inputs = SUITE[job.model].inputs(job.batch)
    expected = reference(job, original, inputs)
    entrants: dict[str, Entrant] = {}
    for name in job.contenders:
        yield {"contender": name, "doing": "compiling"}
        try:
            entrants[name] = entrant(name, job, original, inputs, expected)
        except Exception as error:
            yield {"contender": name, "row": failure(error)}
    yield {"contender": None, "doing": READY}
    yield from rounds(entrants, job.rounds)
    for name, ready in entrants.items():
        yield {"contender": name, "row": ready.row()}


def rounds(entrants: dict[str, Entrant], count: int) -> Iterator[Event]:
    """A B C A B C; one that fails is taken out."""
    for index in range(count):
        for name in list(entrants):
            yield {"contender": name, "doing": f"round {index + 1} of {count}"}
            try:
                entrants[name].take_turn()
            except Exception as error:
                del entrants[name]
                yield {"contender": name, "row": failure(error)}


def reference(job: Job, original: nn.Module, inputs: Inputs) -> list[torch.Tensor]:
    """The fp32 results of PyTorch on the device, kept on the CPU; the model ends there too."""
    original.to(job.device)
    with torch.inference_mode():
        results = original(**{key: value.to(job.device) for key, value in inputs.items()})
        expected = [result.cpu() for result in tensors(results)]
    original.cpu()
    return expected
