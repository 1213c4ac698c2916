"""Loops of a network: each becomes one step, which computes the layers within as often as its trip limit says."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from torchtrt_bridge.errors import LoweringError
from torchtrt_bridge.reference.layer import Layer
from torchtrt_bridge.reference.steps import NetworkTensor, Step, in_order, live

# The layers between a loop and the rest of the network.
BOUNDARIES = ("TRIP_LIMIT", "ITERATOR", "RECURRENCE", "LOOP_OUTPUT")


class Tensors(Protocol):
    """The tensors of a network by `ITensor`."""

    def __getitem__(self, tensor: Any) -> NetworkTensor: ...


@dataclass(frozen=True)
class Boundary:
    """A layer between a loop and the rest of the network.

    loop: the name of the loop, which no other has.
    mode: of a trip limit or an output, its kind there.
    """

    kind: str
    title: str
    loop: str
    inputs: tuple[int, ...]
    output: NetworkTensor | None
    axis: int = 0
    reverse: bool = False
    mode: str = ""

    @property
    def result(self) -> NetworkTensor:
        """The tensor that it gives; a trip limit has none."""
        assert self.output is not None
        return self.output


def boundary_from_layer(layer: Layer, tensors: Tensors) -> Boundary:
    """Read a layer of one of the kinds in BOUNDARIES."""
    layer.downcast()
    if layer.kind == "RECURRENCE" and not layer.has_input(1):
        raise LoweringError(f"{layer} is given nothing for the next step.")
    return Boundary(
        layer.kind,
        str(layer),
        layer.raw.loop.name,
        tuple(tensors[each].key for each in layer.inputs if each is not None),
        tensors[layer.outputs[0]] if layer.outputs else None,
        int(getattr(layer.raw, "axis", 0)),
        bool(getattr(layer.raw, "reverse", False)),
        layer.raw.kind.name if layer.kind in ("TRIP_LIMIT", "LOOP_OUTPUT") else "",
    )


def with_loops(steps: Sequence[Step], boundaries: Sequence[Boundary]) -> list[Step]:
    """Return the steps outside of loops, and one for each loop; LoweringError for a loop within another."""
    loops = dict.fromkeys(boundary.loop for boundary in boundaries)
    bodies = [_Body([each for each in boundaries if each.loop == loop], steps) for loop in loops]
    for body in bodies:
        for boundary in boundaries:
            if boundary.loop != body.loop and body.reached & set(boundary.inputs):
                raise LoweringError(
                    f"{boundary.title} is in a loop within another, which the reference cannot compute."
                )
    inside = {id(step) for body in bodies for step in body.within}
    return [*(step for step in steps if id(step) not in inside), *(body.as_step() for body in bodies)]


class _Body:
    """The boundaries of one loop, and the steps within: those that depend on an iterator or a recurrence.

    reached: the tensors that have another value in each step.
    within: the steps, of which `steps` are those that a result needs, in order.
    """

    def __init__(self, boundaries: Sequence[Boundary], steps: Sequence[Step]) -> None:
        self.loop = boundaries[0].loop
        by_kind = {kind: [each for each in boundaries if each.kind == kind] for kind in BOUNDARIES}
        self.iterators, self.recurrences, self.results = (by_kind[kind] for kind in BOUNDARIES[1:])
        if [limit.mode for limit in by_kind["TRIP_LIMIT"]] != ["COUNT"]:
            raise LoweringError(f"{boundaries[0].title} is in a loop that no count limits.")
        (self.limit,) = by_kind["TRIP_LIMIT"]
        starts = {each.result.key for each in (*self.iterators, *self.recurrences)}
        self.reached = set(starts)
        self.within = list(_dependent(steps, self.reached))
        made = {tensor.key for step in self.within for tensor in step.outputs} | starts
        ends = {key for each in self.recurrences for key in each.inputs[1:]} | {each.inputs[0] for each in self.results}
        needed = [key for step in self.within for key in step.inputs if key is not None]
        outer = [key for each in boundaries for key in each.inputs] + needed
        self.inputs = tuple(dict.fromkeys(key for key in outer if key not in made))
        self.steps = live(in_order(self.within, {*self.inputs, *starts}), ends)

    def as_step(self) -> Step:
        """Return the step that computes the loop, from all that it reads to all that it gives."""
        title = f"the loop of {self.limit.title}"
        return Step(title, self._compute, self.inputs, tuple(each.result for each in self.results))

    def _compute(self, *arguments: Tensor) -> tuple[Tensor, ...]:
        outer = dict(zip(self.inputs, arguments, strict=True))
        count = int(outer[self.limit.inputs[0]])
        states = {each.result.key: outer[each.inputs[0]] for each in self.recurrences}
        collected: list[list[Tensor]] = [[] for _ in self.results]
        for index in range(count):
            values = {**outer, **states, **self._parts(outer, index)}
            for step in self.steps:
                step.run(values)
            states = {each.result.key: values[each.inputs[1]] for each in self.recurrences}
            for found, each in zip(collected, self.results, strict=True):
                found.append(values[each.inputs[0]])
        return tuple(_result(*pair, states, outer) for pair in zip(self.results, collected, strict=True))

    def _parts(self, outer: Mapping[int, Tensor], index: int) -> dict[int, Tensor]:
        """Return what the iterators give in one step."""
        return {
            each.result.key: outer[each.inputs[0]].select(each.axis, -1 - index if each.reverse else index)
            for each in self.iterators
        }


def _dependent(steps: Sequence[Step], reached: set[int]) -> Iterator[Step]:
    """Yield the steps that depend on what is `reached`, to which their outputs are added."""
    waiting, is_new = list(steps), True
    while is_new:
        others = []
        for step in waiting:
            if reached.isdisjoint(key for key in step.inputs if key is not None):
                others.append(step)
            else:
                reached.update(tensor.key for tensor in step.outputs)
                yield step
        waiting, is_new = others, len(others) < len(waiting)


def _result(
    boundary: Boundary, found: list[Tensor], states: Mapping[int, Tensor], outer: Mapping[int, Tensor]
) -> Tensor:
    """Return an output of a loop: the last value of a recurrence, or those of all steps, in order or in reverse."""
    if boundary.mode == "LAST_VALUE":
        if boundary.inputs[0] not in states:
            raise LoweringError(f"{boundary.title} gives the last value of what is no recurrence.")
        return states[boundary.inputs[0]]
    length = int(outer[boundary.inputs[1]])
    if not found or length != len(found):
        raise LoweringError(f"{boundary.title} is to hold {length} steps, of a loop that has {len(found)}.")
    return torch.stack(found if boundary.mode == "CONCATENATE" else found[::-1], boundary.axis)
