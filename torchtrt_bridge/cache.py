"""Cache on disk of engines, probes and captured graphs, safe under concurrent processes and against damage."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import json
import os
import secrets
import stat
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import filelock
import platformdirs

from torchtrt_bridge.options import Options
from torchtrt_bridge.report.log import warn_once

# A process that builds for longer is taken for dead; the others then build without the lock.
LOCK_SECONDS = 600.0

# Digests are computed in so many threads; of a large file, in parts of so many bytes. One thread takes 2 s for the
# 2.5 GB of a decoder of 1.2e9 parameters in fp16.
DIGEST_THREADS = min(8, os.cpu_count() or 1)
PART_BYTES = 64 * 2**20

T = TypeVar("T")

# The files of an entry, by the ends of their names.
KINDS = ("engine", "engine.json", "kernels", "kernels.json", "graph", "graph.json")


def default_directory() -> Path:
    """Return the directory that TORCHTRT_BRIDGE_CACHE_DIR names in the environment, else the per-user one."""
    named = os.environ.get("TORCHTRT_BRIDGE_CACHE_DIR")
    return Path(named) if named else Path(platformdirs.user_cache_dir("torchtrt_bridge")) / "engines"


@dataclasses.dataclass(frozen=True)
class EngineCache:
    """Engines by key: `<key>.engine` with its digest in `<key>.engine.json`, TensorRT-RTX's kernels in `<key>.kernels`.

    Captured graphs are `<key>.graph`, under keys of their own.
    No method raises an error of the disk: a cache that cannot be read or written gives one warning and is not used.
    """

    directory: Path
    limit_bytes: int

    @classmethod
    def from_options(cls, options: Options) -> EngineCache | None:
        """Return the cache of `options`; None for ``cache_dir=""``."""
        if options.cache_dir == "":
            return None
        directory = default_directory() if options.cache_dir is None else Path(options.cache_dir)
        return cls(directory, options.cache_bytes)

    def get(self, key: str, kind: str = "engine") -> bytes | None:
        """Return the bytes under `key`; None if there are none. Damaged ones are removed."""
        path, record = self._path(key, kind), self._path(key, f"{kind}.json")
        try:
            content = path.read_bytes()
            expected = json.loads(record.read_text())["digest"]
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            self._discard(key, kind, f"{error}")
            return None
        if content_digest(content) != expected:
            self._discard(key, kind, "its digest differs")
            return None
        with contextlib.suppress(OSError):
            os.utime(path)
        return content

    def put(self, key: str, content: bytes, kind: str = "engine") -> None:
        """Write `content` under `key`, and remove the least recently used entries beyond the limit."""
        if len(content) > self.limit_bytes:
            return
        record = {
            "digest": content_digest(content),
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
                f"the engine cache {self.directory} cannot be written ({error}); engines are built anew each time. "
                "cache_dir=... names another directory."
            )

    @contextlib.contextmanager
    def building(self, key: str) -> Iterator[None]:
        """Hold the lock for building `key`: other processes wait, and then find the engine."""
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
        """Write a temporary file and rename it, so that no reader ever sees half a file."""
        with written_aside(path) as temporary:
            temporary.write_bytes(content)

    def _discard(self, key: str, kind: str, why: str) -> None:
        warn_once(f"the cached {kind} {self._path(key, kind)} is damaged ({why}) and is made again.")
        for path in (self._path(key, kind), self._path(key, f"{kind}.json")):
            with contextlib.suppress(OSError):
                path.unlink()

    def _trim(self) -> None:
        """Remove whole entries, the least recently used first, but no locks and no files that are being written."""
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


def content_digest(content: bytes) -> str:
    """Return a digest of bytes: SHA-256 of the SHA-256 of their parts, which threads compute side by side."""
    view = memoryview(content)
    parts = [view[start : start + PART_BYTES] for start in range(0, len(view), PART_BYTES)]
    return combined_digest(parts, lambda part: hashlib.sha256(part).digest())


def combined_digest(values: Iterable[T], digest: Callable[[T], bytes]) -> str:
    """Return the SHA-256, in hexadecimal, of the digests of values, which threads compute side by side."""
    with ThreadPoolExecutor(DIGEST_THREADS, thread_name_prefix="torchtrt_bridge-digest") as threads:
        return hashlib.sha256(b"".join(threads.map(digest, values))).hexdigest()


@contextlib.contextmanager
def written_aside(path: Path, mode: int | None = 0o600, suffix: str = "") -> Iterator[Path]:
    """Yield an empty temporary file beside `path`, which replaces `path` at the end, or is removed after an error.

    mode: permissions of the file; None for a file of the user's, which keeps the permissions and the symbolic link
        that are there, and follows the umask where there is none.
    suffix: end of its name, for writers that look at it.
    Raises OSError if the file cannot be created.
    """
    if mode is None:
        path = path.resolve()
        mode = stat.S_IMODE(path.stat().st_mode) if path.exists() else None
    aside = path.parent / f".writing-{secrets.token_hex(8)}{suffix}"
    os.close(os.open(aside, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666 if mode is None else 0o600))
    try:
        yield aside
        if mode is not None:
            os.chmod(aside, mode)
        os.replace(aside, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(aside)
        raise


@functools.cache
def source_digest() -> str:
    """Return a digest of all source files of this package.

    It is part of every key on disk, so that changed code never reads an entry of the old code.
    """
    root = Path(__file__).parent
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()
