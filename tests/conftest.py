"""Which tests run, and fixtures of all: fixed seeds, a cache directory of their own, each warning anew."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from torchtrt_bridge import cache
from torchtrt_bridge.graph.torch_internals import mode_counts
from torchtrt_bridge.report import log

# Their assertions say what differs, as those of tests do.
pytest.register_assert_rewrite("tests.compare", "tests.lower.lowering")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--full", action="store_true", help="run the tests that are marked full, too")


def pytest_configure(config: pytest.Config) -> None:
    """Let workers compute on one thread each; with more, small networks wait for each other's threads.

    All tests of an `xdist_group` go to one worker, as those that share a graph do.
    """
    if "PYTEST_XDIST_WORKER" in os.environ:
        os.environ.setdefault("OMP_NUM_THREADS", "1")  # of the processes that tests start
        torch.set_num_threads(1)


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> None:
    """Keep the tests of an `xdist_group` on one worker, where pytest-xdist is asked for workers and nothing else."""
    if getattr(config.option, "numprocesses", None) and config.option.dist in ("no", "load"):
        config.option.dist = "loadgroup"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out the tests that are marked gpu or slow, and without `--full` those marked full; `-m` overrules it."""
    if config.option.markexpr:
        return
    marks = ["gpu", "slow"] if config.option.full else ["gpu", "slow", "full"]
    left_out = {item for item in items if any(map(item.get_closest_marker, marks))}
    if not config.option.full:
        left_out |= _only_in_full([item for item in items if item not in left_out])
    config.hook.pytest_deselected(items=list(left_out))
    items[:] = [item for item in items if item not in left_out]


# In these directories most cases of a test capture a model: without `--full`, three of them run.
CAPTURING = ("capture", "entry", "huggingface", "partition", "passes", "quantize")


def _only_in_full(items: list[pytest.Item]) -> set[pytest.Item]:
    """Return the cases of tests that wait for `--full`.

    Of a function that is marked `first(n)` the first n run, of another that captures the first, the middle and the
    last one.
    """
    cases: dict[str, list[pytest.Item]] = {}
    for item in items:
        cases.setdefault(item.nodeid.partition("[")[0], []).append(item)
    found: set[pytest.Item] = set()
    for own in cases.values():
        mark = own[0].get_closest_marker("first")
        if mark is not None:
            found.update(own[mark.args[0] :])
        elif own[0].path.relative_to(Path(__file__).parent).parts[0] in CAPTURING:
            found.update(set(own) - {own[0], own[len(own) // 2], own[-1]})
    return found


def pytest_collectstart() -> None:
    """Networks made while a test module is imported have the same weights whichever modules came before."""
    torch.manual_seed(0)


def pytest_collection_finish() -> None:
    """Keep what was imported out of the garbage collector's way: going through it took a sixth of a small test."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _fresh_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    # Until CUDA is initialized, torch.manual_seed notes the whole stack for each GPU: a third of an empty test.
    (torch if torch.cuda.is_available() else torch.default_generator).manual_seed(0)
    monkeypatch.setattr(cache, "default_directory", lambda: tmp_path / "engines")
    monkeypatch.setattr(log, "_warned", set())
    monkeypatch.setenv("COLUMNS", "100")  # reports fit the terminal, and tests may have none
    yield
    torch._dynamo.reset()
    assert not any(mode_counts()), "a mode that looks at each function was entered and not left"
