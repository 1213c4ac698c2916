"""The engine cache: built engines and captured graphs on disk, safe under concurrent processes and against damage."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import json
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import filelock
import platformdirs

from torchtrt_bridge.options import Options
from torchtrt_bridge.report.log import warn_once

# A process that builds this long is taken for dead; the others then build on their own.
LOCK_SECONDS = 600.0

# The files of an entry, by their names behind the key.
KINDS = ("engine", "engine.json", "kernels", "kernels.json", "graph", "graph.json")


def default_directory() -> Path:
    return Path(platformdirs.user_cache_dir("torchtrt_bridge")) / "engines"


@dataclasses.dataclass(frozen=True)
class EngineCache:
    """Engines by key: `<key>.engine` with its digest in `<key>.engine.json`, TensorRT-RTX's kernels in `<key>.kernels`.

    Captured graphs are `<key>.graph`, under keys of their own.

    Nothing here raises for the sake of the disk: a cache that cannot be read or written is told once and not used.
    """

    directory: Path
    limit_bytes: int

    @classmethod
    def from_options(cls, options: Options) -> EngineCache | None:
        """The cache that `options` asks for; None for ``cache_dir=""``."""
        if options.cache_dir == "":
            return None
        directory = default_directory() if options.cache_dir is None else Path(options.cache_dir)
        return cls(directory, options.cache_bytes)

    def get(self, key: str, kind: str = "engine") -> bytes | None:
        """The bytes kept under `key`; None if there are none, or if they are damaged (they are then removed)."""
        path, record = self._path(key, kind), self._path(key, f"{kind}.json")
        try:
            content = path.read_bytes()
            expected = json.loads(record.read_text())["sha256"]
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            self._discard(key, kind, f"{error}")
            return None
        if hashlib.sha256(content).hexdigest() != expected:
            self._discard(key, kind, "its digest differs")
            return None
        with contextlib.suppress(OSError):
            os.utime(path)
        return content

    def put(self, key: str, content: bytes, kind: str = "engine") -> None:
        """Keep `content` under `key`, and drop the entries longest unused beyond the limit."""
        if len(content) > self.limit_bytes:
            return
        record = {
            "sha256": hashlib.sha256(content).hexdigest(),
            "bytes": len(content),
            "created": time.time(),
        }
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            self._write(self._path(key, kind), content)
            self._write(self._path(key, f"{kind}.json"), json.dumps(record).encode())
            self._trim()
        except OSError as error:
            warn_once(
                f"the engine cache {self.directory} cannot be written ({error}); engines are built anew each time."
            )

    @contextlib.contextmanager
    def building(self, key: str) -> Iterator[None]:
        """Hold the right to build `key`: other processes wait, and find the engine when they go on."""
        lock: filelock.BaseFileLock | None = None
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            lock = filelock.FileLock(self._path(key, "lock"))
            lock.acquire(timeout=LOCK_SECONDS)
        except (OSError, filelock.Timeout):
            lock = None
        try:
            yield
        finally:
            if lock is not None:
                lock.release()

    def _path(self, key: str, kind: str) -> Path:
        return self.directory / f"{key}.{kind}"

    def _write(self, path: Path, content: bytes) -> None:
        """Write aside and rename, so that no reader ever sees half a file."""
        with written_aside(path) as aside:
            aside.write_bytes(content)

    def _discard(self, key: str, kind: str, why: str) -> None:
        warn_once(f"the cached {kind} {self._path(key, kind)} is damaged ({why}) and is made again.")
        for path in (self._path(key, kind), self._path(key, f"{kind}.json")):
            with contextlib.suppress(OSError):
                path.unlink()

    def _trim(self) -> None:
        """Drop whole entries, those longest unused first; locks and files being written are left alone."""
        entries: dict[str, list[tuple[Path, os.stat_result]]] = {}
        for path in self.directory.iterdir():
            key, _, kind = path.name.partition(".")
            if kind in KINDS:
                with contextlib.suppress(OSError):
                    entries.setdefault(key, []).append((path, path.stat()))
        total = sum(status.st_size for files in entries.values() for _, status in files)
        for files in sorted(entries.values(), key=lambda files: max(status.st_mtime for _, status in files)):
            if total <= self.limit_bytes:
                return
            for path, status in files:
                with contextlib.suppress(OSError):
                    path.unlink()
                    total -= status.st_size


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
def source_digest() -> str:
    """Return a digest of all source files of this package.

    It is part of every key on disk, so that changed code never reads what the old code kept.
    """
    root = Path(__file__).parent
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()
