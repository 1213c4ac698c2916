"""Errors that TensorRT reports: whose they are, and that telling of them holds nothing up."""

from __future__ import annotations

import subprocess
import sys
import threading

import pytest

from torchtrt_bridge.trt import library
from torchtrt_bridge.trt.library import TensorRTLibrary


@pytest.fixture
def rtx() -> TensorRTLibrary:
    return library.load("tensorrt_rtx")


def test_a_log_has_errors_only(rtx: TensorRTLibrary) -> None:
    log, severity = rtx.new_log(), rtx.trt.ILogger.Severity
    log.logger.log(severity.ERROR, "wrong")
    log.logger.log(severity.INTERNAL_ERROR, "very wrong")
    log.logger.log(severity.WARNING, "careful")
    log.logger.log(severity.ERROR, "CUDA initialization failure with error: 35")
    assert log.errors == ["wrong", "very wrong"]


def test_a_log_begins_when_it_is_made_and_when_it_is_cleared(rtx: TensorRTLibrary) -> None:
    first, error = rtx.new_log(), rtx.trt.ILogger.Severity.ERROR
    first.logger.log(error, "one")
    second = rtx.new_log()
    second.logger.log(error, "two")
    assert (first.errors, second.errors) == (["one", "two"], ["two"])
    first.clear()
    assert (first.errors, second.errors) == ([], ["two"])


def test_errors_of_another_python_thread_are_its_own(rtx: TensorRTLibrary) -> None:
    """Those of TensorRT's threads, which Python does not know, belong to whoever asks."""
    log, error = rtx.new_log(), rtx.trt.ILogger.Severity.ERROR
    ready, done = threading.Event(), threading.Event()
    seen: list[list[str]] = []

    def work() -> None:
        own = rtx.new_log()
        own.logger.log(error, "another's")
        seen.append(own.errors)
        ready.set()
        done.wait()

    thread = threading.Thread(target=work)
    thread.start()
    ready.wait()
    log.logger.log(error, "mine")
    assert (log.errors, seen) == (["mine"], [["another's"]])
    done.set()
    thread.join()
    log.logger.messages.append(type(log.logger.messages[-1])(next(log.logger.numbers), -1, "TensorRT's"))
    assert log.errors[-1] == "TensorRT's"


GARBAGE = """
import gc
from torchtrt_bridge.trt import library

rtx = library.load("tensorrt_rtx")
if {others}:  # as another package has
    class Logger(rtx.trt.ILogger):
        def log(self, severity, message): pass
    other = Logger()
    held = rtx.trt.Builder(other)
else:
    held = rtx.new_builder(rtx.new_log())

class Cycle:
    def __init__(self):
        self.builder, self.cycle = rtx.new_builder(rtx.new_log()), self

for count in range(40):  # one of these collects within the message
    gc.collect()
    gc.disable()
    Cycle()
    gc.set_threshold(gc.get_count()[0] + count)
    gc.enable()
    builder = rtx.new_builder(rtx.new_log())
    runtime = rtx.new_runtime(rtx.new_log())
print("done")
"""


@pytest.mark.full
@pytest.mark.parametrize("others", [False, True], ids=["alone", "beside another logger"])
def test_builders_among_the_garbage_hold_nothing_up(others: bool) -> None:
    """TensorRT frees a builder under the lock under which it tells of a second logger: a collection within waits."""
    command = [sys.executable, "-c", GARBAGE.format(others=others)]
    assert subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout == "done\n"
