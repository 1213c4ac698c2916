"""Search for torch_tensorrt, and the reasons why it is not available."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from tests.interop import fake
from tests.interop.fake import CUBE, Support, export
from torchtrt_bridge.interop import torch_tensorrt as interop
from torchtrt_bridge.interop.torch_tensorrt import PeerLibrary, find
from torchtrt_bridge.lower.registry import NO_CONVERTER


def torch_tensorrt_modules() -> list[str]:
    return [name for name in sys.modules if name.partition(".")[0] == "torch_tensorrt"]


@pytest.fixture
def fresh_search(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Search again in the test, and forget the result after it."""
    find.cache_clear()
    for name in torch_tensorrt_modules():
        monkeypatch.delitem(sys.modules, name)
    yield
    for name in torch_tensorrt_modules():
        del sys.modules[name]
    find.cache_clear()


def put(folder: Path, code: str) -> None:
    (folder / "torch_tensorrt").mkdir()
    (folder / "torch_tensorrt" / "__init__.py").write_text(code)


@pytest.mark.usefixtures("fresh_search")
@pytest.mark.parametrize(
    ("code", "gpu", "reason"),
    [
        (None, True, "not installed"),
        ("raise AssertionError('imported')", False, "not imported without a GPU"),
        ("raise OSError('libtorchtrt.so: undefined symbol')", True, "OSError: libtorchtrt.so: undefined symbol"),
        ("", True, "ModuleNotFoundError"),
    ],
    ids=["none", "no GPU", "broken", "another layout"],
)
def test_the_reason_why_it_is_not_available(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, code: str | None, gpu: bool, reason: str
) -> None:
    if code is None:
        monkeypatch.setitem(sys.modules, "torch_tensorrt", None)
    else:
        put(tmp_path, code)
        monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    found = find()
    assert isinstance(found, str)
    assert reason in found


def test_one_of_another_tensorrt_is_not_used(offer: Callable[..., None], caplog: pytest.LogCaptureFixture) -> None:
    offer({CUBE: [Support(fake.write_cube)]}, network_type=object)
    program = export()
    assert [entry.reason for entry in program.report.in_torch] == [NO_CONVERTER]
    assert "torch_tensorrt 2.11.0 writes networks of another TensorRT" in caplog.text


def test_a_model_without_need_for_it_does_not_look_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden() -> PeerLibrary:
        raise AssertionError("looked for")

    monkeypatch.setattr(interop, "find", forbidden)
    assert export(lambda x: x.sin().exp()).report.is_whole
