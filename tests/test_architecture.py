"""The layout: one order of floors, the cost of an import, and the length of files."""

from __future__ import annotations

import ast
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

import torchtrt_bridge

PACKAGE = Path(torchtrt_bridge.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))

# From the ground up; a room imports only rooms of lower floors.
FLOORS = (
    ("errors", "graph"),
    ("options",),
    ("report",),
    ("cache",),
    ("trt",),
    ("lower", "reference"),
    ("capture", "passes", "partition", "interop", "runtime"),
    ("engine", "quantize"),
    ("pipeline",),
    ("entry",),
    ("cli",),
)
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}

# The longest a file may be.
MOST_LINES = 400


def imports_of(path: Path) -> set[str]:
    """Return the modules that a file imports, anywhere in it; `from a import b` counts as `a.b` too."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name} imports relatively"
            found |= {node.module or ""} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def rooms_of(path: Path) -> set[str]:
    """Return the rooms of this package that a file imports: `torchtrt_bridge.engine.build` is in `engine`."""
    names = (name.split(".") for name in imports_of(path))
    return {name[1] for name in names if name[0] == "torchtrt_bridge" and len(name) > 1 and name[1] in FLOOR}


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def test_every_room_has_its_floor() -> None:
    assert {room_of(path) for path in FILES} - {"__init__", "__main__"} == set(FLOOR)
    assert len(FLOOR) <= 18


def offences(files: list[Path]) -> list[str]:
    """Return the imports of rooms that are not on a lower floor."""
    return [
        f"{path.relative_to(PACKAGE)} imports {room}"
        for path in files
        if (here := room_of(path)) in FLOOR
        for room in sorted(rooms_of(path) - {here})
        if FLOOR[room] >= FLOOR[here]
    ]


def test_a_room_imports_only_rooms_below_it() -> None:
    assert offences(FILES) == []


def test_a_wrong_import_would_be_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[__name__], "PACKAGE", tmp_path)
    path = tmp_path / "lower" / "wrong.py"
    path.parent.mkdir()
    path.write_text("from torchtrt_bridge import runtime, trt\ndef f():\n    import torchtrt_bridge.pipeline\n")
    assert offences([path]) == ["lower/wrong.py imports pipeline", "lower/wrong.py imports runtime"]


def test_only_the_library_imports_tensorrt() -> None:
    """`trt/library.py` imports it by name when it is used, so no file has an import statement of it."""
    tensorrt = {"tensorrt", "tensorrt_rtx", "tensorrt_bindings"}
    assert [path for path in FILES if {name.split(".")[0] for name in imports_of(path)} & tensorrt] == []


# Who imports torch_tensorrt, each in a function.
PEER = {"interop/torch_tensorrt.py"}


def test_only_these_import_torch_tensorrt() -> None:
    importing = {path.relative_to(PACKAGE).as_posix() for path in FILES if imports_peer(path)}
    assert importing == PEER


def imports_peer(path: Path) -> bool:
    return any(name.split(".")[0] == "torch_tensorrt" for name in imports_of(path))


# Who imports modules by a name in a string, and which.
BY_NAME = {
    "__init__.py": "the home of a public name",
    "cli/command.py": "the benchmark suite of a checkout",
    "cli/user_code.py": "the user's model and data",
    "cli/doctor.py": "the packages that it examines",
    "trt/library.py": "TensorRT",
    "lower/converters/__init__.py": "the files of converters",
}


def test_only_these_import_modules_by_name() -> None:
    importing = {path.relative_to(PACKAGE).as_posix() for path in FILES if "import_module" in attributes_of(path)}
    assert importing == set(BY_NAME)


def attributes_of(path: Path) -> set[str]:
    return {node.attr for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Attribute)}


def test_files_are_short() -> None:
    lengths = {path.relative_to(PACKAGE).as_posix(): len(path.read_text().splitlines()) for path in FILES}
    assert {name: lines for name, lines in lengths.items() if lines > MOST_LINES} == {}


# What imports cost -------------------------------------------------------------------------------------------------


def modules_after(statement: str) -> set[str]:
    """Return the modules that are loaded once `statement` has run in a process of its own."""
    script = f"{statement}\nimport sys\nprint(' '.join(sys.modules))"
    result = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    return {name.split(".")[0] for name in result.stdout.split()}


HEAVY = {"torch", "torch_tensorrt", "torchvision", "numpy", "rich", "tensorrt", "tensorrt_rtx", "transformers"}


@pytest.mark.parametrize(
    "statement",
    [
        "import torchtrt_bridge",
        "import torchtrt_bridge; dir(torchtrt_bridge); torchtrt_bridge.__version__",
        "from torchtrt_bridge import OptionsError",
    ],
    ids=["import", "names", "an error"],
)
def test_importing_the_package_loads_nothing_heavy(statement: str) -> None:
    assert modules_after(statement) & HEAVY == set()


@pytest.mark.full
def test_a_public_name_loads_what_it_needs() -> None:
    assert "torch" in modules_after("from torchtrt_bridge import compile")


def test_importing_the_backend_loads_no_tensorrt_and_leaves_cuda_alone() -> None:
    statement = """
import torch
def forbidden(*args, **kwargs):
    raise AssertionError("importing the backend initialises CUDA")
torch.cuda._lazy_init = forbidden
torch.cuda.is_available = forbidden
torch.cuda.device_count = forbidden
import torchtrt_bridge.entry.torch_compile
assert not torch.cuda.is_initialized()
"""
    unwanted = {"tensorrt", "tensorrt_rtx", "tensorrt_bindings", "torch_tensorrt"}
    assert modules_after(statement) & unwanted == set()


def test_public_names_exist_and_say_what_they_are() -> None:
    assert [name for name in torchtrt_bridge.__all__ if not getattr(torchtrt_bridge, name).__doc__] == []


def test_a_pickle_of_the_package_is_the_package() -> None:
    """Cloudpickle pickles the modules that a function refers to, as Ray does for what it sends to workers."""
    assert pickle.loads(pickle.dumps(torchtrt_bridge)) is torchtrt_bridge


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'compyle'"):
        _ = torchtrt_bridge.compyle
