"""Graph breaks: where Dynamo ends a graph and leaves code to Python, each with its reason and source line."""

from __future__ import annotations

import dataclasses
import re
import types
import weakref
from collections.abc import Iterable, Sequence
from typing import Any

from torch import nn

from torchtrt_bridge.graph.dynamo_internals import function_of_backend, is_at_the_limit, watch_graph_breaks
from torchtrt_bridge.graph.nodes import shown_file, source_of_trace
from torchtrt_bridge.report.model import GraphBreak

# Dynamo passes over a function that it left to Python before, whichever model calls it, and logs nothing then.
_left_to_python: weakref.WeakKeyDictionary[types.CodeType, GraphBreak] = weakref.WeakKeyDictionary()

_PREFIXES = ("Encountered graph break", "Failed to handle graph break")
_EXPLANATION = re.compile(r"Explanation:\s*(.*)")
_ADDRESS = re.compile(r" at 0x[0-9a-f]+")
_RECURRENT_TITLE = "RNN, GRU, or LSTM"
_RESUMED = re.compile(r"torch_dynamo_resume_in_(.+?)_at_\d+")


# Dynamo traces recurrent layers for this package, but not in a function that it left to Python before.
RECURRENT = (
    "; another backend met it first. torch._dynamo.reset() lets Dynamo trace it here, and "
    "torch._dynamo.config.allow_rnn = True for all backends"
)

# Dynamo traces packed sequences for this package, but no list of lengths, of which each would be another graph.
PACKED = "; it is part of the graph for a padded batch with its lengths in a tensor on the CPU"


# Dynamo counts what it compiled of a function for all models of a class and all their options.
AT_THE_LIMIT = (
    "PyTorch has compiled this function as often as torch._dynamo.config.recompile_limit allows, for other models or "
    "options; torch.compiler.reset() lets it begin anew"
)


def watch() -> None:
    """Report graph breaks from now on to backends that have `on_graph_break`, a method or another attribute.

    It also takes Dynamo's object for one use of the backend, as a backend with a name is one function for all models.
    """
    watch_graph_breaks(_report)


def _report(backend: Any, code: types.CodeType, message: str, trace: str) -> None:
    found = graph_break(code, message, trace)
    if "kipping the function" in message:
        _left_to_python[code] = found
    receive = getattr(function_of_backend(backend), "on_graph_break", None)
    if receive is not None:
        receive(found, backend)


def graph_break(code: types.CodeType, message: str, trace: str) -> GraphBreak:
    """Return a graph break as Dynamo's message and stack trace have it."""
    source = source_of_trace(trace) or _first_line(code)
    return GraphBreak(_reason(message), source, _left(code, message))


def placed(breaks: Iterable[GraphBreak], numbers: Sequence[int], ends: Sequence[bool]) -> list[GraphBreak]:
    """Return breaks with the number of the model's graphs that come before each.

    breaks: in their order, `after` being how many graphs, of any model, had been captured when Dynamo came to the line.
    numbers: of the model's graphs, how many of any model were captured before each.
    ends: whether each graph ends in a break: Dynamo comes to the line first, and then compiles what is before it.
    """
    found = [dataclasses.replace(each, after=sum(n < each.after for n in numbers)) for each in breaks]
    last = {each.after: each.source for each in found}
    ended = {(line, before) for before, line in last.items() if before < len(ends) and ends[before]}
    return [dataclasses.replace(each, after=each.after + ((each.source, each.after) in ended)) for each in found]


def known_break(target: Any) -> GraphBreak | None:
    """Return why Dynamo passes over a model or function, without a word in its log; None if it does not."""
    function = type(target).forward if isinstance(target, nn.Module) else target
    code = getattr(function, "__code__", None)
    if code is None:
        return None
    if is_at_the_limit(code):
        return GraphBreak(AT_THE_LIMIT, _first_line(code), f"all of {code.co_name}")
    return _left_to_python.get(code)


def _first_line(code: types.CodeType) -> str:
    return f"{shown_file(code.co_filename)}:{code.co_firstlineno}"


def _reason(message: str) -> str:
    """Return Dynamo's reason in one line: its title and its explanation; of a break that led to another, the first."""
    paragraphs = [part.strip() for part in message.split("\n\n") if part.strip()]
    explained = [part for part in paragraphs if "Explanation:" in part]
    text = next(iter(explained or [part for part in paragraphs if not part.startswith(_PREFIXES)] or paragraphs))
    title = text.splitlines()[0].rstrip(".: ")
    explanation = _EXPLANATION.search(text)
    reason = f"{title}: {explanation[1].strip().rstrip('.')}" if explanation else title
    reason += RECURRENT if _RECURRENT_TITLE in title else ""
    reason += PACKED if "`pack_padded_sequence`" in reason else ""
    return _ADDRESS.sub("", reason)


def _left(code: types.CodeType, message: str) -> str:
    """Return what of the code PyTorch runs, as Dynamo's message says."""
    resumed = _RESUMED.match(code.co_name)
    name = resumed[1] if resumed else code.co_name
    if "kipping the function" in message:
        why = ", as the line is in a loop" if "graph break in loop" in message else ""
        return (f"the rest of {name}" if resumed else f"all of {name}") + why
    return f"the rest of {name}" if "kipping the rest" in message else "this line"
