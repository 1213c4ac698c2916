"""The picture of the speed-ups."""

from __future__ import annotations

import struct
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.suite.plot import plot
from tests.benchmarks.rows import results, row, side_by_side, timed
from torchtrt_bridge.errors import OptionsError


def rows(models: tuple[str, ...], batches: tuple[int, ...]) -> list[dict[str, Any]]:
    return [
        each
        for index, model in enumerate(models)
        for batch in batches
        for each in side_by_side(model, batch, 1.0 + index, 4.0, 2.0, 3.0)
    ]


def size(path: Path) -> tuple[int, int]:
    """Width and height in the header of a PNG file."""
    content = path.read_bytes()
    assert content.startswith(b"\x89PNG\r\n")
    width, height = struct.unpack(">II", content[16:24])
    return width, height


def drawn(tmp_path: Path, some: list[dict[str, Any]]) -> tuple[int, int]:
    plot(results(tmp_path / "bench.json", some), tmp_path / "speed.png")
    return size(tmp_path / "speed.png")


def test_it_grows_with_models_and_batches(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    small = drawn(tmp_path, rows(("resnet50",), (1,)))
    wide = drawn(tmp_path, rows(("resnet50",), (1, 32)))
    high = drawn(tmp_path, rows(("resnet50", "gpt2", "unknown"), (1,)))
    assert wide[0] > small[0] > 300
    assert wide[1] == small[1]
    assert high[1] > small[1] > 200


def test_rows_that_failed_and_other_contenders_of_ours_are_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    some = rows(("resnet50", "gpt2"), (1, 8))
    bare = drawn(tmp_path, some)
    some = [each for each in some if (each["model"], each["contender"]) != ("gpt2", "eager")]
    some += [row("torchtrt_bridge", "vit-b-16", failed="no"), timed("inductor", 1.0, "vit-b-16")]
    some += [timed("torchtrt_bridge-cast", 0.5)]
    assert drawn(tmp_path, some)[1] > bare[1]


@pytest.mark.parametrize(
    "some", [[], [timed("eager", 1.0), timed("inductor", 1.0)], [timed("torchtrt_bridge", 1.0)]],
    ids=["no row", "none of ours", "no inductor"],
)  # fmt: skip
def test_where_nothing_can_be_compared_it_says_so(some: list[dict[str, Any]], tmp_path: Path) -> None:
    with pytest.raises(OptionsError, match=r"bench\.json has no row of torchtrt_bridge beside one of inductor"):
        drawn(tmp_path, some)


def test_without_matplotlib_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(OptionsError, match=r"pip install .torchtrt_bridge\[bench\]"):
        drawn(tmp_path, rows(("resnet50",), (1,)))


def test_a_name_of_no_image_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    with pytest.raises(OptionsError, match=r"speed\.doc cannot be drawn"):
        plot(results(tmp_path / "bench.json", rows(("resnet50",), (1,))), tmp_path / "speed.doc")
