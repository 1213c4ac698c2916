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
def source_digest(*patterns: str, without: str = "") -> str:
    """A digest of this package's source files, so that changed code never meets what the old one kept.

    patterns: which files, from the package's root, as ``"lower/**/*.py"``. without: a folder that is left out.
    """
    root = Path(__file__).parent
    found = [list(root.glob(pattern)) for pattern in patterns]
    assert all(found), f"of {patterns} one names no file"  # else its digest would stay whatever changes
    digest = hashlib.sha256()
    for path in sorted({path for paths in found for path in paths}):
        name = path.relative_to(root)
        if not without or Path(without) not in name.parents:
            digest.update(name.as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()
