"""Fixtures of all tests: fixed seeds, a cache directory of their own, warnings told anew."""

from __future__ import annotations

import functools
import gc
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch.export import exported_program

from torchtrt_bridge import cache
from torchtrt_bridge.report import log


def pytest_configure() -> None:
    """Workers side by side compute on one thread each; with more, small networks wait for each other's threads."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        os.environ.setdefault("OMP_NUM_THREADS", "1")  # of the processes that tests start
        torch.set_num_threads(1)


def pytest_collectstart() -> None:
    """Networks made while a test module is imported have the same weights whichever modules came before."""
    torch.manual_seed(0)


def pytest_collection_finish() -> None:
    """What was imported stays: the garbage collector going through it took a sixth of a small test."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True, scope="session")
def _operators_collected_once() -> None:
    """`run_decompositions` lists all composite operators anew each time, which takes a third of a small test."""
    exported_program._collect_all_valid_cia_ops = functools.cache(exported_program._collect_all_valid_cia_ops)


@pytest.fixture(autouse=True)
def _fresh_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    torch.manual_seed(0)
    monkeypatch.setattr(cache, "default_directory", lambda: tmp_path / "engines")
    monkeypatch.setattr(log, "_warned", set())
    yield
    torch._dynamo.reset()
