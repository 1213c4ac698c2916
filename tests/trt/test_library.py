"""TensorRT libraries: the choice of one, its limits, and its errors."""

from __future__ import annotations

import copy
import importlib.machinery
import sys
from collections.abc import Iterator
from types import ModuleType

import pytest
import torch

from torchtrt_bridge.errors import BuildError, EngineLoadError, OptionsError
from torchtrt_bridge.trt import library as library
from torchtrt_bridge.trt.library import TensorRTLibrary

rtx_only = pytest.mark.skipif(not library.installed("tensorrt_rtx"), reason="tensorrt-rtx is not installed")
no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")


@pytest.fixture(autouse=True)
def _nothing_loaded() -> Iterator[None]:
    """Forget libraries that were chosen before, as the choice depends on patches here."""
    library.choose.cache_clear()
    yield
    library.choose.cache_clear()


@pytest.fixture
def rtx() -> TensorRTLibrary:
    return library.load("tensorrt_rtx")


def pretend_installed(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    monkeypatch.setattr(library, "installed", lambda name: name in names)


def test_a_second_name_of_tensorrt_rtx_is_not_an_installed_tensorrt(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch_tensorrt gives TensorRT-RTX the name `tensorrt` when it is imported."""
    alias = ModuleType("tensorrt")
    alias.__package__, alias.__spec__ = "tensorrt_rtx", importlib.machinery.ModuleSpec("tensorrt", None)
    monkeypatch.setitem(sys.modules, "tensorrt", alias)
    assert not library.installed("tensorrt")


def test_load_names_package_and_version(rtx: TensorRTLibrary) -> None:
    assert rtx.is_rtx
    assert str(rtx) == f"TensorRT-RTX {rtx.trt.__version__}"


@pytest.mark.parametrize("name", library.LIBRARIES)
def test_the_error_of_a_missing_package_says_how_to_install_it(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_installed(monkeypatch)
    package = name.replace("_", "-")
    with pytest.raises(EngineLoadError, match=f"{package} is not installed. Run: pip install {package}$"):
        library.load.__wrapped__(name)


def test_the_error_of_a_broken_package_gives_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str) -> ModuleType:
        raise ImportError("libnvinfer.so.11: cannot open shared object file")

    pretend_installed(monkeypatch, "tensorrt")
    monkeypatch.setattr(library.importlib, "import_module", broken)
    with pytest.raises(EngineLoadError, match=r"does not import: libnvinfer\.so\.11.*--force-reinstall tensorrt"):
        library.load.__wrapped__("tensorrt")


def test_a_package_without_bindings_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_installed(monkeypatch, "tensorrt")
    monkeypatch.setattr(library.importlib, "import_module", ModuleType)
    with pytest.raises(EngineLoadError, match=r"does not import.*Builder"):
        library.load.__wrapped__("tensorrt")


@pytest.mark.parametrize("engine", ["auto", "reference"])
def test_no_tensorrt_at_all(engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_installed(monkeypatch)
    with pytest.raises(EngineLoadError, match=r"No TensorRT is installed\. Run: pip install tensorrt-rtx"):
        library.choose(engine)  # type: ignore[arg-type]


@rtx_only
@pytest.mark.parametrize("engine", ["auto", "reference", "tensorrt_rtx"])
def test_rtx_is_chosen_by_default(engine: str) -> None:
    if torch.cuda.is_available() and engine == "auto":
        pytest.skip("the GPU decides")
    assert library.choose(engine).name == "tensorrt_rtx"  # type: ignore[arg-type]


class Refusing:
    def __init__(self, name: str, refusal: str | None) -> None:
        self.name, self.refusal = name, refusal


@pytest.mark.parametrize(
    ("refusals", "chosen"),
    [
        ({"tensorrt_rtx": None, "tensorrt": None}, "tensorrt_rtx"),
        ({"tensorrt_rtx": "too old a GPU", "tensorrt": None}, "tensorrt"),
        ({"tensorrt_rtx": "too old a GPU", "tensorrt": "too old a driver"}, "tensorrt_rtx"),
        ({"tensorrt_rtx": "too old a GPU"}, "tensorrt_rtx"),
        ({"tensorrt": None}, "tensorrt"),
    ],
    ids=["both run", "rtx refuses", "both refuse", "rtx alone", "tensorrt alone"],
)
def test_auto_takes_the_library_that_runs_on_the_gpu(
    refusals: dict[str, str | None], chosen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend_installed(monkeypatch, *refusals)
    monkeypatch.setattr(library.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(library, "load", lambda name: Refusing(name, refusals[name]))
    assert library.choose("auto").name == chosen


@no_gpu
def test_refusal_without_a_gpu(rtx: TensorRTLibrary) -> None:
    assert TensorRTLibrary(rtx.name, rtx.trt).refusal == "no CUDA GPU is visible to PyTorch"


@no_gpu
def test_there_is_no_current_target_without_a_gpu() -> None:
    assert library.current_target() is None


def test_the_current_target(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(library.torch.cuda, "get_device_capability", lambda: (12, 0))
    assert library.current_target() == "sm_120"


class Config:
    """Builder configuration that records the targets that are set."""

    def __init__(self) -> None:
        self.num_compute_capabilities = 0
        self.set: list[tuple[int, str]] = []

    def set_compute_capability(self, capability: object, index: int) -> None:
        self.set.append((index, capability.name))  # type: ignore[attr-defined]


@rtx_only
@pytest.mark.parametrize(
    ("targets", "wanted"),
    [
        (("sm_86",), [(0, "SM86")]),
        (("sm_89", "sm_120"), [(0, "SM89"), (1, "SM120")]),
        ((), []),
    ],
    ids=str,
)
def test_targets(targets: tuple[str, ...], wanted: list[tuple[int, str]], rtx: TensorRTLibrary) -> None:
    config = Config()
    rtx.set_targets(config, targets)
    assert config.set == wanted
    assert config.num_compute_capabilities == len(wanted)


@rtx_only
@pytest.mark.parametrize("targets", [("sm_90",), ("sm_86", "sm_90")], ids=str)
def test_the_portable_engine_is_for_compute_capability_9_0_where_tensorrt_serves_it(
    targets: tuple[str, ...], rtx: TensorRTLibrary
) -> None:
    config, older, newer = Config(), copy.copy(rtx), copy.copy(rtx)
    older.version, newer.version = "1.6.0.1", "1.7.1.116"
    older.set_targets(config, targets)
    assert config.set == []
    older.check_targets(targets)
    with pytest.raises(OptionsError, match=r"runs on sm_90. Run: pip install \"tensorrt-rtx>=1.6,<1.7\""):
        newer.check_targets(targets)
    with pytest.raises(BuildError, match="runs on sm_90"):
        newer.set_targets(config, targets)


@rtx_only
def test_the_error_of_an_unknown_target_lists_the_known_ones(rtx: TensorRTLibrary) -> None:
    with pytest.raises(BuildError) as caught:
        rtx.set_targets(Config(), ("sm_86", "sm_42"))
    message = str(caught.value)
    with pytest.raises(OptionsError, match="cannot build for sm_42"):
        rtx.check_targets(("sm_42",))
    assert f"{rtx} cannot build for sm_42. It builds for: " in message
    listed = message.split("It builds for: ")[1].rstrip(".").split(", ")
    assert {"sm_75", "sm_86", "sm_89", "sm_120"} <= set(listed)
    assert all(name.startswith("sm_") and name[3:].isdigit() for name in listed)


@pytest.mark.parametrize(
    ("targets", "current", "words"),
    [
        ((), None, "only on a machine with a GPU. Use engine='tensorrt_rtx'"),
        (("sm_89",), "sm_86", r"only for the GPU it runs on \(sm_86\), not for sm_89"),
        (("sm_86", "sm_89"), "sm_86", "not for sm_86, sm_89"),
    ],
    ids=["no gpu", "another", "several"],
)
def test_tensorrt_builds_for_its_own_gpu_only(
    targets: tuple[str, ...], current: str | None, words: str, monkeypatch: pytest.MonkeyPatch, rtx: TensorRTLibrary
) -> None:
    monkeypatch.setattr(library, "current_target", lambda: current)
    with pytest.raises(BuildError, match=words):
        TensorRTLibrary("tensorrt", rtx.trt).set_targets(Config(), targets)


@pytest.mark.parametrize("targets", [(), ("sm_86",)], ids=str)
def test_tensorrt_builds_for_its_own_gpu(
    targets: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, rtx: TensorRTLibrary
) -> None:
    monkeypatch.setattr(library, "current_target", lambda: "sm_86")
    config = Config()
    TensorRTLibrary("tensorrt", rtx.trt).set_targets(config, targets)
    assert config.set == []


def test_networks_are_strongly_typed(rtx: TensorRTLibrary) -> None:
    network = rtx.new_network(rtx.new_builder(rtx.new_log()))
    assert network.get_flag(rtx.trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)


def test_an_allocator_takes_memory_and_says_where_there_is_none(rtx: TensorRTLibrary) -> None:
    def allocate(size: int) -> int:
        if size > 100:
            raise torch.OutOfMemoryError("no room")
        return 512

    allocator = rtx.allocator(allocate)
    assert isinstance(allocator, rtx.trt.IGpuAllocator)
    assert allocator.allocate_async(8, 256, 0, 0) == 512
    assert allocator.allocate_async(0, 256, 0, 0) is None
    assert allocator.allocate_async(101, 256, 0, 0) is None
    assert allocator.deallocate_async(512, 0)


@rtx_only
def test_capabilities_are_those_with_a_number(rtx: TensorRTLibrary) -> None:
    assert "sm_89" in rtx.capabilities
    assert all(name.startswith("sm_") and name[3:].isdigit() for name in rtx.capabilities)
