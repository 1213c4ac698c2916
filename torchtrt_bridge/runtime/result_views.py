"""Inputs and views among the results of a graph, made behind its engines and CUDA graphs.

A CUDA graph that returned an input, or a view of one, would return its own buffer, and copies of two results that share
memory would share none.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import fx, nn

from torchtrt_bridge.graph.views import base_of, views_from


class ResultViews:
    """The calls that make the results of a graph from what it returns, and from its inputs."""

    def __init__(self, module: fx.GraphModule, inputs: Sequence[int]) -> None:
        self._run = module.forward
        self._inputs = tuple(inputs)

    def __call__(self, results: Sequence[Any], inputs: Sequence[Any]) -> Sequence[Any]:
        made: Sequence[Any] = self._run(*results, *[inputs[index] for index in self._inputs])
        return made


def take_result_views(module: fx.GraphModule, outputs: int, mutations: Sequence[int]) -> tuple[ResultViews | None, int]:
    """Let `module` return what its results are views of; return what makes the views, and the number of results left.

    A result that is an input is the caller's tensor itself.
    outputs, mutations: as in `CapturedGraph`. A view of a value that is written to an input is one of that input.
    """
    (output,) = module.graph.find_nodes(op="output")
    results: list[Any] = list(output.args[0])
    returned, written = results[:outputs], results[outputs:]
    placeholders = module.graph.find_nodes(op="placeholder")
    if all(base_of(node) is None and node not in placeholders for node in returned):
        return None, outputs
    inputs = {node: index for index, node in enumerate(placeholders)}
    inputs |= dict(zip(written, mutations, strict=True))
    graph = fx.Graph()
    needed = {n: None for node in returned for n in _sources(node)}
    kept = [node for node in needed if node not in inputs]
    made = {node: graph.placeholder(node.name) for node in (*kept, *(n for n in needed if n in inputs))}
    chains = [node for result in returned if isinstance(result, fx.Node) for node in reversed(views_from(result))]
    for node in chains:
        if node not in made:
            made[node] = graph.node_copy(node, made.__getitem__)
    graph.output(fx.map_arg(tuple(returned), made.__getitem__))
    output.args = ((*kept, *written),)
    module.graph.eliminate_dead_code()
    module.recompile()
    order = [inputs[node] for node in needed if node in inputs]
    return ResultViews(fx.GraphModule(nn.Module(), graph), order), len(kept)


def _sources(result: Any) -> list[fx.Node]:
    """Return what a result is made from: what it is a view of, and the sizes of the view."""
    if not isinstance(result, fx.Node):
        return []
    *views, source = views_from(result)
    return [source, *(n for view in views for n in view.all_input_nodes if n not in views and n is not source)]
