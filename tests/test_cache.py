"""Cache on disk: an entry is read as it was written or not at all, whatever happens to the disk."""

from __future__ import annotations

import errno
import hashlib
import json
import multiprocessing
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

import torchtrt_bridge as trtb
from tests.models import ConvNet, WithUnsupported, image, trained
from torchtrt_bridge import cache as caches
from torchtrt_bridge.cache import EngineCache, source_digest
from torchtrt_bridge.engine import builder
from torchtrt_bridge.options import Options

TARGETS = ("sm_89",)
PLAN = bytes(range(256)) * 4
default_directory = caches.default_directory  # which a fixture replaces in each test


@pytest.fixture
def cache(tmp_path: Path) -> EngineCache:
    return EngineCache(tmp_path / "cache", 10**6)


@pytest.fixture
def filled(cache: EngineCache) -> EngineCache:
    cache.put("key", PLAN)
    return cache


def files(cache: EngineCache) -> list[str]:
    return sorted(path.name for path in cache.directory.iterdir())


def test_hit(filled: EngineCache) -> None:
    assert filled.get("key") == PLAN


def test_miss(filled: EngineCache) -> None:
    assert filled.get("other") is None


def test_miss_without_a_directory(cache: EngineCache, caplog: pytest.LogCaptureFixture) -> None:
    assert cache.get("key") is None
    assert not caplog.records


def test_kinds_do_not_mix(filled: EngineCache) -> None:
    assert filled.get("key", "kernels") is None
    filled.put("key", b"kernels", "kernels")
    assert (filled.get("key"), filled.get("key", "kernels")) == (PLAN, b"kernels")


def test_a_second_put_replaces_the_first(filled: EngineCache) -> None:
    filled.put("key", b"new")
    assert filled.get("key") == b"new"


def test_the_record_is_json(filled: EngineCache) -> None:
    record = json.loads((filled.directory / "key.engine.json").read_text())
    assert record["digest"] == hashlib.sha256(hashlib.sha256(PLAN).digest()).hexdigest()
    assert record["bytes"] == len(PLAN)


def test_the_digest_of_a_large_file_is_that_of_its_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(caches, "PART_BYTES", 4)
    parts = [hashlib.sha256(part).digest() for part in (b"0123", b"4567", b"8")]
    assert caches.content_digest(b"012345678") == hashlib.sha256(b"".join(parts)).hexdigest()
    assert caches.content_digest(b"") == hashlib.sha256(b"").hexdigest()
    assert caches.content_digest(b"012376548") != caches.content_digest(b"012345678")


# Damage ------------------------------------------------------------------------------------------------------


def flip(directory: Path) -> None:
    path = directory / "key.engine"
    content = bytearray(path.read_bytes())
    content[100] ^= 1
    path.write_bytes(content)


DAMAGES = {
    "engine flipped": flip,
    "engine truncated": lambda d: (d / "key.engine").write_bytes(PLAN[:-1]),
    "engine empty": lambda d: (d / "key.engine").write_bytes(b""),
    "record truncated": lambda d: (d / "key.engine.json").write_text('{"sha'),
    "record empty": lambda d: (d / "key.engine.json").write_text(""),
    "record is a list": lambda d: (d / "key.engine.json").write_text("[]"),
    "record without digest": lambda d: (d / "key.engine.json").write_text("{}"),
    "record is deep": lambda d: (d / "key.engine.json").write_text("[" * 100_000),
    "record is a number": lambda d: (d / "key.engine.json").write_text("3"),
    "digest is null": lambda d: (d / "key.engine.json").write_text('{"digest": null}'),
    "record is binary": lambda d: (d / "key.engine.json").write_bytes(b"\xff\xfe\x00"),
    "record of another": lambda d: (d / "key.engine.json").write_text(json.dumps({"digest": "0" * 64})),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_a_miss_with_a_warning_and_is_repaired(
    filled: EngineCache, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    DAMAGES[damage](filled.directory)
    assert filled.get("key") is None
    assert "damaged" in caplog.text
    assert files(filled) == []
    filled.put("key", PLAN)
    assert filled.get("key") == PLAN


@pytest.mark.parametrize("lost", ["key.engine", "key.engine.json"])
def test_a_lost_file_is_a_miss(filled: EngineCache, lost: str) -> None:
    (filled.directory / lost).unlink()
    assert filled.get("key") is None


@pytest.fixture
def blocked(tmp_path: Path) -> EngineCache:
    """Return a cache whose directory is a file, so that not even root can read or write it."""
    (tmp_path / "blocked").write_text("a file")
    return EngineCache(tmp_path / "blocked", 10**6)


def test_an_unwritable_directory_gives_a_warning_and_no_error(
    blocked: EngineCache, caplog: pytest.LogCaptureFixture
) -> None:
    blocked.put("key", PLAN)
    assert "cannot be written" in caplog.text
    assert blocked.get("key") is None
    with blocked.building("key"):
        pass


def test_export_works_without_a_writable_cache(blocked: EngineCache) -> None:
    program = trtb.export(trained(ConvNet()), image(), targets=TARGETS, cache_dir=blocked.directory)
    assert program.report.engines[0].is_ready
    assert program.plans["trt_0"]


def test_a_full_disk_leaves_nothing_half_written(
    cache: EngineCache, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        cache.put("key", PLAN)
    assert "No space left" in caplog.text
    assert files(cache) == []
    assert cache.get("key") is None


def test_an_interrupted_write_leaves_nothing_half_written(cache: EngineCache, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        cache.put("key", PLAN)
    assert files(cache) == []


def test_interrupted_between_engine_and_record_is_a_miss(cache: EngineCache, monkeypatch: pytest.MonkeyPatch) -> None:
    """The old record must not vouch for the new engine, nor the other way round."""
    cache.put("key", b"old")
    replace, calls = os.replace, []

    def once(*args: Any) -> None:
        calls.append(args)
        if len(calls) > 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        replace(*args)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", once)
        cache.put("key", PLAN)
    assert len(calls) == 2
    assert cache.get("key") is None


# Size --------------------------------------------------------------------------------------------------------


def aged(cache: EngineCache, key: str, seconds: float) -> None:
    """Set the time of the last use of the files of `key`."""
    then = time.time() - seconds
    for path in cache.directory.glob(f"{key}.*"):
        os.utime(path, (then, then))


@pytest.fixture
def three(tmp_path: Path) -> EngineCache:
    """Return a cache of three engines of 1000 bytes, `one` the oldest, without space for a fourth."""
    cache = EngineCache(tmp_path / "cache", 3800)
    for key, age in (("one", 300), ("two", 200), ("three", 100)):
        cache.put(key, bytes(1000))
        aged(cache, key, age)
    return cache


def kept(cache: EngineCache) -> list[str]:
    return [key for key in ("one", "two", "three", "four") if cache.get(key) is not None]


def test_within_its_limit_nothing_is_removed(three: EngineCache) -> None:
    assert kept(three) == ["one", "two", "three"]


def test_the_oldest_entry_is_removed_first(three: EngineCache) -> None:
    three.put("four", bytes(1000))
    assert kept(three) == ["two", "three", "four"]


def test_a_used_engine_is_not_removed(three: EngineCache) -> None:
    assert three.get("one") is not None
    three.put("four", bytes(1000))
    assert kept(three) == ["one", "three", "four"]


def test_the_limit_holds_for_all_files(three: EngineCache) -> None:
    three.put("four", bytes(1500))
    assert sum(path.stat().st_size for path in three.directory.iterdir()) <= three.limit_bytes
    assert "four" in kept(three)


def test_an_entry_beyond_the_limit_is_not_written(three: EngineCache) -> None:
    three.put("four", bytes(4000))
    assert kept(three) == ["one", "two", "three"]


# Processes ---------------------------------------------------------------------------------------------------


def build_once(directory: Path, barrier: Any, built: Any) -> None:
    """Build an engine unless it is cached, as each of several processes does."""
    cache = EngineCache(directory, 10**6)
    barrier.wait(60)
    with cache.building("key"):
        if cache.get("key") is None:
            time.sleep(0.5)
            with built.get_lock():
                built.value += 1
            cache.put("key", PLAN)


@pytest.mark.full
def test_two_processes_build_an_engine_once(cache: EngineCache) -> None:
    context = multiprocessing.get_context("spawn")
    barrier, built = context.Barrier(2), context.Value("i", 0)
    processes = [context.Process(target=build_once, args=(cache.directory, barrier, built)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0, 0]
    assert built.value == 1
    assert cache.get("key") == PLAN


def test_different_keys_do_not_wait_for_each_other(cache: EngineCache) -> None:
    with cache.building("one"), cache.building("other"):
        cache.put("other", PLAN)
    assert cache.get("other") == PLAN


def test_the_lock_is_released_after_an_error(cache: EngineCache, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RuntimeError, match="build failed"), cache.building("key"):
        raise RuntimeError("build failed")
    refused = []
    monkeypatch.setattr("torchtrt_bridge.cache.LOCK_SECONDS", 0.0)
    monkeypatch.setattr("filelock.Timeout.__init__", lambda self, path: refused.append(path))
    with cache.building("key"):
        assert refused == []


EXPORT = """
import sys
import torchtrt_bridge as trtb
import torch
from tests.llama import Llama
from tests.models import ConvNet, image, trained
torch.manual_seed(0)
models = {"convolutions": (trained(ConvNet()), image()), "projections": (Llama("buffer").eval(), torch.randn(2, 5, 16))}
program = trtb.export(*models[sys.argv[1]], targets=("sm_89",), cache_dir=sys.argv[2])
print([(entry.from_cache, entry.bytes > 0, entry.state) for entry in program.report.engines])
"""


@pytest.mark.full
@pytest.mark.parametrize("model", ["convolutions", "projections"])
def test_a_second_process_builds_nothing(model: str, tmp_path: Path) -> None:
    command = [sys.executable, "-c", EXPORT, model, str(tmp_path / "shared")]
    cold, warm = (subprocess.run(command, check=True, capture_output=True, text=True).stdout for _ in range(2))
    assert cold.strip() == "[(False, True, 'ready')]"
    assert warm.strip() == "[(True, True, 'ready')]"


# Options -----------------------------------------------------------------------------------------------------


def test_an_empty_cache_dir_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert EngineCache.from_options(Options(cache_dir="")) is None
    model = trained(ConvNet())
    first = trtb.export(model, image(), targets=TARGETS, cache_dir="")
    second = trtb.export(model, image(), targets=TARGETS, cache_dir="")
    assert not first.report.engines[0].from_cache
    assert not second.report.engines[0].from_cache
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_the_default_directory_is_the_users(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    cache = EngineCache.from_options(Options())
    assert cache is not None
    assert cache.directory == tmp_path / "engines"  # what the fixture of all tests puts there
    assert cache.limit_bytes == Options().cache_bytes


def test_the_environment_names_the_directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(caches, "default_directory", default_directory)
    monkeypatch.setenv("TORCHTRT_BRIDGE_CACHE_DIR", str(tmp_path / "named"))
    for options, directory in ((Options(), "named"), (Options(cache_dir=tmp_path / "given"), "given")):
        found = EngineCache.from_options(options)
        assert found is not None
        assert found.directory == tmp_path / directory
    monkeypatch.setenv("TORCHTRT_BRIDGE_CACHE_DIR", "")
    assert default_directory().name == "engines"


def test_a_warm_cache_builds_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model = trained(WithUnsupported())
    cold = trtb.export(model, image(), targets=TARGETS)

    def forbidden(*_: Any) -> bytes:
        raise AssertionError("an engine was built although the cache holds it")

    monkeypatch.setattr(builder, "engine_from_network", forbidden)
    warm = trtb.export(model, image(), targets=TARGETS)
    assert [entry.from_cache for entry in cold.report.engines] == [False, False]
    assert [entry.from_cache for entry in warm.report.engines] == [True, True]
    assert warm.plans == cold.plans


@pytest.mark.parametrize(
    "options", [{"precision": "fp16"}, {"targets": ("sm_86",)}, {"optimization_level": 0}], ids=str
)
def test_other_options_find_no_cached_engine(options: dict[str, Any]) -> None:
    model = trained(ConvNet())
    trtb.export(model, image(), targets=TARGETS)
    other = trtb.export(model, image(), **{"targets": TARGETS, **options})
    assert not other.report.engines[0].from_cache


def test_other_weights_find_no_cached_engine() -> None:
    model = trained(ConvNet())
    trtb.export(model, image(), targets=TARGETS)
    with torch.no_grad():
        model.head.bias[0] += 1e-3
    assert not trtb.export(model, image(), targets=TARGETS).report.engines[0].from_cache


def test_a_damaged_cache_builds_again() -> None:
    model = trained(ConvNet())
    first = trtb.export(model, image(), targets=TARGETS)
    directory = EngineCache.from_options(Options()).directory  # type: ignore[union-attr]
    (engine,) = directory.glob("*.engine")
    engine.write_bytes(engine.read_bytes()[:-1])
    second = trtb.export(model, image(), targets=TARGETS)
    assert not second.report.engines[0].from_cache
    assert second.report.engines[0].bytes == first.report.engines[0].bytes


def test_the_source_digest_follows_every_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "package"
    (package / "deep").mkdir(parents=True)
    (package / "cache.py").write_text("a")
    (package / "deep" / "other.py").write_text("b")
    monkeypatch.setattr("torchtrt_bridge.cache.__file__", str(package / "cache.py"))
    before = source_digest.__wrapped__()
    assert source_digest.__wrapped__() == before
    (package / "deep" / "other.py").write_text("c")
    assert source_digest.__wrapped__() != before
