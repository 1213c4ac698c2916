"""Files that are there whole or not at all, and a digest of the files of this package."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def written_aside(path: Path, mode: int = 0o600, suffix: str = "") -> Iterator[Path]:
    """An empty file beside `path`, to write to: it takes the place of `path` in the end, or goes where that fails.

    mode: who may read and write it. suffix: what its name ends with, for writers that look at that.
    OSError where there is no place for it.
    """
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=".writing-", suffix=suffix)
    os.close(handle)
    try:
        yield Path(name)
        os.chmod(name, mode)
        os.replace(name, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(name)
        raise


@functools.cache
def source_digest(*folders: str) -> str:
    """A digest of the source in these folders of the package: changed code shall not meet what the old one kept."""
    root = Path(__file__).parent
    digest = hashlib.sha256()
    for path in sorted({path for folder in folders for path in (root / folder).rglob("*.py")}):
        digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()
