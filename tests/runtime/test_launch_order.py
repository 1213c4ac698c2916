"""The order of an engine's kernels, with a stand-in for the CUDA driver that has one graph."""

from __future__ import annotations

import ctypes
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from torchtrt_bridge.runtime import launch_order, runners
from torchtrt_bridge.runtime.launch_order import order_captured_kernels

FULL = bytes(8)
PROGRAMMATIC = bytes([1, 0, 1, 0, 0, 0, 0, 0])
Edge = tuple[int, int, bytes]


class Driver:
    """A driver that captures a graph of these edges: nodes are numbers, and the kind of an edge is eight bytes."""

    def __init__(self, edges: list[Edge], status: int = 1, error: int = 0) -> None:
        self.edges, self.status, self.error = edges, status, error

    def cuStreamGetCaptureInfo_v3(self, stream: Any, status: Any, identity: Any, graph: Any, *rest: Any) -> int:  # noqa: N802
        status._obj.value, graph._obj.value = self.status, 77
        return 0

    def cuGraphGetEdges_v2(self, graph: Any, sources: Any, targets: Any, kinds: Any, count: Any) -> int:  # noqa: N802
        assert graph.value == 77
        if sources is None:
            count._obj.value = len(self.edges)
        else:
            for i, (source, target, kind) in enumerate(self.edges):
                sources[i], targets[i], kinds[8 * i : 8 * i + 8] = source, target, list(kind)
        return 0

    def cuGraphRemoveDependencies_v2(self, graph: Any, sources: Any, targets: Any, kinds: Any, count: Any) -> int:  # noqa: N802
        for i in range(count.value):
            self.edges.remove((sources[i], targets[i], bytes(kinds[8 * i : 8 * i + 8])))
        return self.error

    def cuGraphAddDependencies_v2(self, graph: Any, sources: Any, targets: Any, kinds: Any, count: Any) -> int:  # noqa: N802
        assert kinds is None
        self.edges += [(sources[i], targets[i], FULL) for i in range(count.value)]
        return 0


def drive(monkeypatch: pytest.MonkeyPatch, *edges: Edge, **settings: int) -> Driver:
    driver = Driver(list(edges), **settings)
    monkeypatch.setattr(launch_order, "_driver", lambda: driver)
    return driver


def test_each_programmatic_dependency_becomes_a_full_one(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = drive(monkeypatch, (1, 2, PROGRAMMATIC), (2, 3, FULL), (1, 3, PROGRAMMATIC))
    assert order_captured_kernels(5) == 2
    assert sorted(driver.edges) == [(1, 2, FULL), (1, 3, FULL), (2, 3, FULL)]


@pytest.mark.parametrize("edges", [[], [(1, 2, FULL)]], ids=["no edges", "full ones only"])
def test_a_graph_in_order_stays_as_it_is(edges: list[Edge], monkeypatch: pytest.MonkeyPatch) -> None:
    driver = drive(monkeypatch, *edges, error=1)  # which removing an edge would raise
    assert order_captured_kernels(5) == 0
    assert driver.edges == edges


def test_an_error_of_cuda_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    drive(monkeypatch, (1, 2, PROGRAMMATIC), error=801)
    with pytest.raises(RuntimeError, match="cuGraphRemoveDependencies_v2 failed with error 801"):
        order_captured_kernels(5)


def test_a_stream_that_is_not_captured_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    drive(monkeypatch, status=0)
    with pytest.raises(RuntimeError, match="not being captured"):
        order_captured_kernels(5)


@pytest.mark.parametrize(("capability", "expected"), [((8, 9), False), ((9, 0), True), ((12, 0), True)])
def test_only_newer_gpus_overlap_kernels(
    capability: tuple[int, int], expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert launch_order.may_overlap(torch.device("cuda", 0)) is expected
    assert not launch_order.may_overlap(torch.device("cpu"))


class Context:
    """An execution context that notes the streams on which it was queued."""

    def __init__(self) -> None:
        self.streams: list[int] = []

    def execute_async_v3(self, stream: int) -> bool:
        self.streams.append(stream)
        return True


@pytest.fixture
def session(monkeypatch: pytest.MonkeyPatch) -> runners.Session:
    """A session whose ordered queue uses stream 9."""
    monkeypatch.setattr(runners, "OrderedQueue", lambda device: lambda queue: queue(9))
    library: Any = SimpleNamespace(allocator=lambda allocate: None)
    return runners.Session(SimpleNamespace(is_ordered=True, device=None), Context(), library)  # type: ignore[arg-type]


def test_the_first_run_loads_kernels_and_each_run_is_ordered(
    session: runners.Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    assert session._queue(4)
    assert session._queue(4)
    assert session.context.streams == [4, 9, 9]


def test_a_captured_run_is_ordered_where_it_is(session: runners.Session, monkeypatch: pytest.MonkeyPatch) -> None:
    ordered: list[int] = []
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    monkeypatch.setattr(runners, "order_captured_kernels", ordered.append)
    assert session._queue(4)
    assert session.context.streams == ordered == [4]


def test_a_graph_of_real_edges_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """The eight bytes of an edge are ports, type and reserved ones, as in `CUgraphEdgeData`."""
    drive(monkeypatch, (1, 2, PROGRAMMATIC))
    sources, targets, kinds = launch_order._edges(ctypes.c_void_p(77))
    assert (list(sources), list(targets), bytes(kinds)) == ([1], [2], PROGRAMMATIC)
