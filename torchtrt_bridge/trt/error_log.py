"""TensorRT's error messages: one logger for each TensorRT of a process, and views of it for each piece of work.

TensorRT keeps one logger. While it registers another, it holds a lock that freeing a builder or a runtime takes, and
sends a message. That runs Python, which may collect garbage or let another thread run: where this frees a builder, the
process hangs.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import functools
import gc
import itertools
import threading
from collections.abc import Iterator
from typing import Any

# Messages that TensorRT logs on a machine without a GPU beside the error that matters.
_NOISE = ("catchCudaError", "CUDA initialization failure", "cudaGetDeviceCount", "cudaErrorNoDevice")

# Messages that are kept: an engine that fails sends a few.
_MOST_MESSAGES = 256

_one_at_a_time = threading.Lock()


@dataclasses.dataclass(frozen=True)
class _Message:
    number: int
    thread: int
    text: str


class ErrorLog:
    """The errors that TensorRT reports in this thread, or in one of its own, since the log was made or cleared.

    logger: what TensorRT takes, the same for all.
    """

    def __init__(self, trt: Any) -> None:
        self.logger = _logger(trt)
        self.clear()

    def clear(self) -> None:
        """Forget all errors so far."""
        self._first = next(self.logger.numbers)

    @property
    def errors(self) -> list[str]:
        """The messages, the first one first."""
        new = [message for message in list(self.logger.messages) if message.number > self._first]
        others = {thread.ident for thread in threading.enumerate()} - {threading.get_ident()} if new else set()
        return [message.text for message in new if message.thread not in others]


@functools.cache
def _logger(trt: Any) -> Any:
    class Logger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.numbers = itertools.count()
            self.messages: collections.deque[_Message] = collections.deque(maxlen=_MOST_MESSAGES)

        def log(self, severity: Any, message: str) -> None:
            if severity <= trt.ILogger.Severity.ERROR and not any(noise in message for noise in _NOISE):
                self.messages.append(_Message(next(self.numbers), threading.get_ident(), message))

    return Logger()


@contextlib.contextmanager
def no_collection() -> Iterator[None]:
    """Keep Python from collecting garbage, for a call in which TensorRT may find the logger of another package."""
    with _one_at_a_time:  # so that none ends what another thread still needs
        was_enabled = gc.isenabled()
        gc.disable()
        try:
            yield
        finally:
            if was_enabled:
                gc.enable()
