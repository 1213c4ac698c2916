"""The user's own code: objects by their names, called with their output on stderr and their errors as messages."""

from __future__ import annotations

import contextlib
import importlib
import sys
import traceback
from collections.abc import Callable, Iterator
from typing import Any

from torchtrt_bridge.errors import BridgeError, OptionsError


def object_from(name: str, wanted: str) -> Any:
    """Return the object of ``package.module:name``.

    wanted: the right syntax, for the message. Raises OptionsError where there is no such object, and where the module
    raises an error.
    """
    home, _, attribute = name.partition(":")
    if not home or not attribute:
        raise OptionsError(f"{name!r} names nothing. Write {wanted}.")
    if "" not in sys.path:
        sys.path.insert(0, "")  # the user's own modules, as with `python -m`
    with guarded(f"{name}: importing {home}", wanted):
        found: Any = importlib.import_module(home)
    try:
        for part in attribute.split("."):
            found = getattr(found, part)
    except AttributeError as error:
        raise OptionsError(f"{name}: {error}. Write {wanted}.") from error
    return found


def call(function: Callable[..., Any], name: str, *args: Any) -> Any:
    """Return the result of a function of the user's."""
    with guarded(f"{name}: calling it"):
        return function(*args)


@contextlib.contextmanager
def guarded(what: str, wanted: str = "") -> Iterator[None]:
    """Run code of the user's: what it prints goes to stderr, and what it raises becomes an OptionsError."""
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    except BridgeError:
        raise
    except ImportError as error:
        raise OptionsError(f"{what} fails: {error}." + (f" Write {wanted}." if wanted else "")) from error
    except (Exception, SystemExit) as error:
        raise OptionsError(f"{what} fails{place_of(error)}: {reason_of(error)}") from error


def reason_of(error: BaseException) -> str:
    """Return class and message of an error."""
    return f"{type(error).__name__}: {str(error).strip()}"


def place_of(error: BaseException) -> str:
    """Return the line that raised an error, as " in models.py, line 12"."""
    frames = traceback.extract_tb(error.__traceback__)
    return f" in {frames[-1].filename}, line {frames[-1].lineno}" if frames else ""
