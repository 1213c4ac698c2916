"""The layout: which part imports which, what an import costs, and how long a file may be."""

from __future__ import annotations

import ast
import statistics
import subprocess
import sys
import time
from pathlib import Path

import pytest

import torchtrt_bridge

PACKAGE = Path(torchtrt_bridge.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))
FOLDERS = sorted(path.name for path in PACKAGE.iterdir() if (path / "__init__.py").exists())

# The longest a file may be: `doctor.py` and the context of the converters come near it.
MOST_LINES = 320

# What a stage must not import: the stages behind it, and what joins them.
JOINS = ("pipeline", "builder", "backend", "exporter", "served", "explaining", "cli", "demo", "doctor", "bench")
FORBIDDEN = {
    "normalize": ("partition", "engine", "runtime", "reference", *JOINS),
    "quantize": ("partition", "engine", "runtime", *JOINS),
    "partition": ("engine", "runtime", "reference", "interop", *JOINS),
    "lower": ("partition", "runtime", "reference", "interop", *JOINS),
    "reference": ("normalize", "partition", "engine", "runtime", *JOINS),
    "engine": ("normalize", "partition", "runtime", "reference", "interop", *JOINS),
    "runtime": ("normalize", "partition", "interop", *JOINS),
    "interop": ("normalize", "partition", "runtime", "reference", *JOINS),
    "recall": ("normalize", "partition", "runtime", "reference", "interop", *JOINS),
}

# The ground that everything stands on: it imports no stage.
GROUND = (
    "arguments", "check", "compile_report", "errors", "files", "options", "progress", "schema", "shapes", "source"
)  # fmt: skip


def imports_of(path: Path) -> set[str]:
    """The modules that a file imports, anywhere in it; `from a import b` counts as `a.b` too."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name} imports relatively"
            found |= {node.module or ""} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def parts_of(path: Path) -> set[str]:
    """The parts of this package that a file imports: `torchtrt_bridge.engine.build` is `engine`."""
    names = (name.split(".") for name in imports_of(path))
    return {name[1] for name in names if name[0] == "torchtrt_bridge" and len(name) > 1}


def test_every_folder_has_its_rule() -> None:
    assert set(FOLDERS) - set(FORBIDDEN) - {"bench", "huggingface"} == set()


@pytest.mark.parametrize("folder", [folder for folder in FORBIDDEN if folder in FOLDERS])
def test_a_stage_imports_nothing_from_behind_it(folder: str) -> None:
    imported = {path.name: parts_of(path) & set(FORBIDDEN[folder]) for path in (PACKAGE / folder).rglob("*.py")}
    assert {name: parts for name, parts in imported.items() if parts} == {}


@pytest.mark.parametrize("name", GROUND)
def test_the_ground_imports_no_stage(name: str) -> None:
    assert parts_of(PACKAGE / f"{name}.py") & {*FORBIDDEN, *JOINS} == set()


def test_the_rules_would_be_noticed(tmp_path: Path) -> None:
    path = tmp_path / "wrong.py"
    path.write_text("from torchtrt_bridge import runtime\ndef f():\n    import torchtrt_bridge.pipeline\n")
    assert parts_of(path) == {"runtime", "pipeline"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_only_the_flavour_imports_tensorrt(path: Path) -> None:
    """`engine/flavour.py` imports it by name when it is used, so no file has an import statement of it."""
    names = {name.split(".")[0] for name in imports_of(path)}
    assert names & {"tensorrt", "tensorrt_rtx", "tensorrt_bindings"} == set()


# Who imports torch_tensorrt, each in a function.
PEER = {"bench/contenders.py", "interop/torch_tensorrt.py"}


def test_only_these_import_torch_tensorrt() -> None:
    importing = {path.relative_to(PACKAGE).as_posix() for path in FILES if imports_peer(path)}
    assert importing == PEER


def imports_peer(path: Path) -> bool:
    return any(name.split(".")[0] == "torch_tensorrt" for name in imports_of(path))


# Who imports modules by a name in a string, and which.
BY_NAME = {
    "__init__.py": "the home of a public name",
    "cli.py": "the user's model",
    "doctor.py": "the packages that it examines",
    "engine/flavour.py": "TensorRT",
    "lower/converters/__init__.py": "the files of converters",
}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_only_these_import_modules_by_name(path: Path) -> None:
    calls = {node.attr for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Attribute)}
    assert "import_module" not in calls or path.relative_to(PACKAGE).as_posix() in BY_NAME


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_files_are_short(path: Path) -> None:
    assert len(path.read_text().splitlines()) < MOST_LINES


# What imports cost -------------------------------------------------------------------------------------------------


def modules_after(statement: str) -> set[str]:
    """The modules that are loaded once `statement` has run in a process of its own."""
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
import torchtrt_bridge.backend
assert not torch.cuda.is_initialized()
"""
    unwanted = {"tensorrt", "tensorrt_rtx", "tensorrt_bindings", "torch_tensorrt"}
    assert modules_after(statement) & unwanted == set()


def seconds(statement: str) -> float:
    """The median time of a process that runs `statement`."""
    times = []
    for _ in range(3):
        started = time.perf_counter()
        subprocess.run([sys.executable, "-c", statement], check=True)
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def test_importing_the_package_is_quick() -> None:
    assert seconds("import torchtrt_bridge") - seconds("pass") < 0.3


@pytest.mark.parametrize("name", torchtrt_bridge.__all__)
def test_public_names_exist(name: str) -> None:
    assert getattr(torchtrt_bridge, name).__doc__


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'compyle'"):
        _ = torchtrt_bridge.compyle
