"""The program of an engine: its steps in order, and the layers of the network that each is made of.

TensorRT-RTX writes it into the engine as text. A main program calls kernels, and a kernel that is generated when the
engine is loaded has a program of its own behind it. The names of layers, which begin with the name of a node and "/",
are part of the names of some steps and tensors.
"""

from __future__ import annotations

import collections
import dataclasses
import itertools
import re
from collections.abc import Iterable, Sequence

PROGRAM = re.compile(rb"\ndescriptors \{\n[\t\n -~]+")
_SIZES = "\nshape_main {"  # begins the part of a main program that computes sizes; a kernel's program has none
_STEP = re.compile(r'^ *(\w+)=\{ name=("?)(.+?)\2 (?:fqn|output|input|args|input_args)=')
_OUTPUTS = re.compile(r" output(?:_args)?=\{([^}]*)\}")
_INPUTS = re.compile(r" input(?:_args)?=\{([^}]*)\}")
_QUOTED = re.compile(r'"([^"\n]*)"')
_OWN_PROGRAM = re.compile(r"^ *(?:runtime_fusion=.* binary=|runtime_function=.* runtime_binary=)(\d+) ")
# What may stand in front of a layer's name in that of a step or tensor: a number, and the loop that the layer is in.
_IN_FRONT = re.compile(r"^(?:__mye\d+)?(?:.*\^)?")
_OWNER = re.compile(r"[A-Za-z_]\w*(?:\+[A-Za-z_]\w*)*(?=/)")
_RESULT = re.compile(r"out\d+:([A-Za-z_]\w*)(?:\.1)?")
_FACTOR = re.compile(r"_(?:alpha|beta)$")  # by which a product, and what is added to it, is multiplied
_PRODUCTS = frozenset({"fully_connected", "corrltn", "deconvolution"})


@dataclasses.dataclass(frozen=True)
class ProgramStep:
    """One step of an engine.

    name: that by which TensorRT's profiler calls it, without the number of the step.
    kind: "function" for a generated kernel, "runtime_fusion" for one with a program of its own, else the operation, as
        "fully_connected" for a product of matrices.
    nodes: the names of the nodes whose layers are part of it, as far as the text says so for certain.
    is_product: whether it computes a product of matrices, or a convolution.
    """

    name: str
    kind: str
    nodes: tuple[str, ...]
    is_product: bool


def program_steps(plan: bytes) -> list[ProgramStep]:
    """Return the steps of an engine of TensorRT-RTX, in order; nothing for one without the text of its program.

    Steps that compute sizes are left out.
    """
    groups: list[list[str]] = []
    for main, *own in _programs(plan):
        groups += [[line, *_own_lines(line, own)] for line in main]
    readers = collections.Counter(name for group in groups for name in set(_names(_INPUTS, group)))
    return [_step(group, readers) for group in groups]


def result_nodes(plan: bytes) -> set[str]:
    """Return the nodes whose values are the engine's results; nothing for one without the text of its program."""
    text = b"".join(PROGRAM.findall(plan)).decode("ascii")
    return {found[1] for name in set(_QUOTED.findall(text)) if (found := _RESULT.fullmatch(name)) is not None}


def nodes_in_name(name: str) -> list[str]:
    """Return the nodes in the name of a step that joins layers, as "conv/convolution_nd + relu/activation"."""
    return _nodes_in(name.split(" + "))


def _programs(plan: bytes) -> list[list[list[str]]]:
    """Return the lines of each main program, behind them those of its kernels."""
    found: list[list[list[str]]] = []
    for each in PROGRAM.findall(plan):
        text, separator, _ = each.decode("ascii").partition("\nmain {")[2].partition(_SIZES)
        lines = [line for line in text.splitlines() if _STEP.match(line)]
        if separator or not found:
            found.append([])
        found[-1].append(lines)
    return found


def _own_lines(line: str, programs: Sequence[list[str]]) -> list[str]:
    """Return the lines of the kernel's own program; none if it has none."""
    found = _OWN_PROGRAM.match(line)
    return programs[int(found[1])] if found is not None and int(found[1]) < len(programs) else []


def _step(group: Sequence[str], readers: collections.Counter[str]) -> ProgramStep:
    """Return the step of a line of a main program, with the lines of the kernel's own program behind it.

    A tensor in memory that was another one's before has that one's name, with a number behind it, so that it counts
    for nothing. Of inputs, only the constants say something.
    """
    found = [match for line in group if (match := _STEP.match(line)) is not None]
    names = itertools.chain(
        (match[3] for match in found),
        (name for name in _names(_OUTPUTS, group) if name.endswith(".1")),
        (name for name in _names(_INPUTS, group) if _is_own_constant(name, readers)),
    )
    is_product = any(match[1] in _PRODUCTS for match in found)
    return ProgramStep(found[0][3], found[0][1], tuple(_nodes_in(names)), is_product)


def _is_own_constant(name: str, readers: collections.Counter[str]) -> bool:
    """Return whether an input is a constant of the nodes that the step computes: one that others read may not be."""
    return bool(_FACTOR.search(name)) or ("/constant" in name and readers[name] == 1)


def _names(pattern: re.Pattern[str], group: Iterable[str]) -> list[str]:
    return [name for line in group for found in pattern.findall(line) for name in _QUOTED.findall(found)]


def _nodes_in(names: Iterable[str]) -> list[str]:
    """Return the nodes in names of layers, each once; a layer that several nodes share has all their names."""
    nodes = (node for name in names for node in _owner(name).split("+"))
    return [node for node in dict.fromkeys(nodes) if node]


def _owner(name: str) -> str:
    """Return what stands before "/" in the name of a layer; of a result of the engine, its node; "" for other names."""
    result = _RESULT.fullmatch(name)
    found = _OWNER.match(_IN_FRONT.sub("", name))
    return result[1] if result is not None else found[0] if found is not None else ""
