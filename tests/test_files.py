"""The digest of the package's source."""

from __future__ import annotations

import pytest

from torchtrt_bridge.files import source_digest


def test_the_digest_is_of_the_files_that_are_named() -> None:
    digests = [source_digest("files.py"), source_digest("lower/**/*.py"), source_digest("**/*.py")]
    assert len({*digests, source_digest("**/*.py", without="bench")}) == 4


def test_each_file_counts_once() -> None:
    assert source_digest("files.py", "files.py") == source_digest("files.py")


def test_a_pattern_that_names_no_file_is_noticed() -> None:
    with pytest.raises(AssertionError, match="one names no file"):
        source_digest("files.py", "moved/**/*.py")
