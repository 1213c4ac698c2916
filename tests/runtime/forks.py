"""Forked processes: what a function gives in one."""

from __future__ import annotations

import multiprocessing
import os
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch

# A child that takes longer waits for something that no thread of its will do.
SECONDS = 60

with_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")


def in_child(function: Callable[[], Any]) -> Any:
    """Return what `function` gives in a forked process, which must end in time; its exception comes back as text."""
    context: Any = multiprocessing.get_context("fork")
    parent_end, child_end = context.Pipe()

    def work() -> None:
        torch.set_num_threads(1)  # the threads of OpenMP do not survive either; a DataLoader does the same
        try:
            answer = function()
        except BaseException as error:
            answer = f"{type(error).__name__}: {error}"
        child_end.send_bytes(pickle.dumps(answer))

    process = context.Process(target=work)
    process.start()
    try:
        assert parent_end.poll(SECONDS), "the child waits for something that no thread will do"
        return pickle.loads(parent_end.recv_bytes())
    finally:
        process.kill()
        process.join()
