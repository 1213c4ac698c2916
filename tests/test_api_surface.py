"""Every TensorRT name that this package uses exists in every version that it supports.

`data/tensorrt_api.json` holds the names of eight versions' Python modules, as they were listed from their wheels.
The names in use are read from the source: `trt.X.Y`, members of enumerations given as strings, `add_...` methods of
the network, attributes of the layers that these return, and those of the objects of building and running.
"""

from __future__ import annotations

import ast
import functools
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import torchtrt_bridge

PACKAGE = Path(torchtrt_bridge.__file__).parent
DATA = json.loads((Path(__file__).parent / "data" / "tensorrt_api.json").read_text())

# Names that some supported version lacks, and the guard against their use there.
GUARDED = {
    "ComputeCapability": "TensorRTLibrary.set_targets returns before it for `tensorrt`, which builds for its own GPU",
    "IBuilderConfig.num_compute_capabilities": "only TensorRT-RTX gets past the return of TensorRTLibrary.set_targets",
    "IBuilderConfig.set_compute_capability": "only TensorRT-RTX gets past the return of TensorRTLibrary.set_targets",
    "IRuntimeConfig.create_runtime_cache": "TensorRTLibrary.context_config returns before it unless `is_rtx`",
    "IRuntimeConfig.set_runtime_cache": "TensorRTLibrary.context_config returns before it unless `is_rtx`",
    "IRuntimeCache": "TensorRTLibrary.context_config returns before it unless `is_rtx`",
    "IRuntimeCache.deserialize": "TensorRTLibrary.context_config returns before it unless `is_rtx`",
    "IRuntimeCache.serialize": "GpuRunner keeps kernels only where TensorRTLibrary.context_config gave it a cache",
}

# Methods of `Context` whose first argument names a member of an enumeration.
HELPERS = {
    "elementwise": "ElementWiseOperation",
    "unary": "UnaryOperation",
    "activation": "ActivationType",
    "reduce": "ReduceOperation",
}

# Variables that hold TensorRT objects, by file and by their name there.
OBJECTS = {
    ("engine/build.py", "config"): "IBuilderConfig",
    ("engine/build.py", "profile"): "IOptimizationProfile",
    ("engine/build.py", "builder"): "Builder",
    ("trt/library.py", "builder"): "Builder",
    ("trt/library.py", "cache"): "IRuntimeCache",
    ("trt/library.py", "engine"): "ICudaEngine",
    ("lower/network.py", "definition"): "INetworkDefinition",
    ("lower/context.py", "definition"): "INetworkDefinition",
    ("lower/loop.py", "loop"): "ILoop",
    ("runtime/runners.py", "_runtime"): "Runtime",
    ("runtime/runners.py", "_engine"): "ICudaEngine",
    ("runtime/runners.py", "_kernel_cache"): "IRuntimeCache",
    ("runtime/runners.py", "context"): "IExecutionContext",
}
# In this file `config` is one of two kinds, by function.
CONFIGS = {"set_targets": "IBuilderConfig", "context_config": "IRuntimeConfig"}

METHOD_NAME = re.compile(r"add_[a-z_]*[a-z]")
CONSTANT_NAME = re.compile(r"[A-Z][A-Z0-9]*(_[A-Z0-9]+)*")


@functools.cache
def surfaces() -> dict[str, set[str]]:
    """Return the names of each version, as `Class` and `Class.member`."""
    everywhere = set(DATA["everywhere"]) | {f"{c}.{m}" for c, members in DATA["everywhere"].items() for m in members}
    found = {version: set(everywhere) for version in DATA["versions"]}
    for group in DATA["somewhere"]:
        for index in group["versions"]:
            found[DATA["versions"][index]] |= set(group["names"])
    return found


def sources() -> list[Path]:
    folders = ("engine", "lower", "runtime", "trt")
    return sorted(path for folder in folders for path in (PACKAGE / folder).rglob("*.py"))


def chain_of(node: ast.AST) -> list[str]:
    """Return `["ctx", "trt", "DataType", "FLOAT"]` of an attribute expression; an empty list for any other."""
    if isinstance(node, ast.Name):
        return [node.id]
    if isinstance(node, ast.Attribute):
        before = chain_of(node.value)
        return [*before, node.attr] if before else []
    return []


def after_trt(node: ast.AST) -> list[str]:
    """Return the names behind `trt` in an attribute expression."""
    chain = chain_of(node)
    if "trt" not in chain:
        return []
    return [part for part in chain[chain.index("trt") + 1 :] if not part.startswith("__")]


def strings_in(node: ast.AST) -> list[str]:
    """Return the strings that an expression may give, also those of `"A" if ... else "B"`, but not of comparisons."""
    if isinstance(node, ast.IfExp):
        return strings_in(node.body) + strings_in(node.orelse)
    if isinstance(node, ast.BoolOp):
        return [word for value in node.values for word in strings_in(value)]
    return [node.value] if isinstance(node, ast.Constant) and isinstance(node.value, str) else []


def layer_of(node: ast.AST) -> str | None:
    """Return the class of the layer that a call of `add_...` returns."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        found: str | None = DATA["returns"].get(node.func.attr)
        return found
    return None


def names_of_call(node: ast.Call) -> Iterator[str]:
    function = node.func
    if isinstance(function, ast.Attribute):
        if function.attr.startswith("add_") and chain_of(function.value)[-1:] != ["config"]:
            yield f"INetworkDefinition.{function.attr}"
        if function.attr in HELPERS and node.args:
            yield from (f"{HELPERS[function.attr]}.{word}" for word in strings_in(node.args[0]))
        if layer_of(function.value):
            yield f"{layer_of(function.value)}.{function.attr}"
    elif isinstance(function, ast.Name) and function.id == "getattr" and len(node.args) > 1:
        chain = after_trt(node.args[0])
        yield from (".".join([*chain, word]) for word in strings_in(node.args[1]) if chain)


def names_of_function(function: ast.AST) -> Iterator[str]:
    """Return the attributes of local variables that hold layers."""
    layers: dict[str, str] = {}
    for node in ast.walk(function):
        kind = layer_of(node.value) if isinstance(node, ast.Assign) else None
        if isinstance(node, ast.Assign) and kind and isinstance(node.targets[0], ast.Name):
            layers[node.targets[0].id] = kind
    for node in ast.walk(function):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in layers:
            yield f"{layers[node.value.id]}.{node.attr}"


def names_of_objects(tree: ast.AST, file: str) -> Iterator[str]:
    for function in (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)):
        for node in ast.walk(function):
            if not isinstance(node, ast.Attribute) or not chain_of(node.value):
                continue
            name = chain_of(node.value)[-1]
            kind = OBJECTS.get((file, name))
            if file == "trt/library.py" and name == "config":
                kind = CONFIGS.get(function.name)
            if kind:
                yield f"{kind}.{node.attr}"


def names_in(path: Path) -> set[str]:
    """Return the TensorRT names that one file uses."""
    tree = ast.parse(path.read_text())
    names: set[str] = set(names_of_objects(tree, path.relative_to(PACKAGE).as_posix()))
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and after_trt(node):
            chain = after_trt(node)
            names.add(".".join(chain[:2]))
        elif isinstance(node, ast.Call):
            names |= set(names_of_call(node))
        elif isinstance(node, ast.Constant) and METHOD_NAME.fullmatch(str(node.value)):
            names.add(f"INetworkDefinition.{node.value}")
        if isinstance(node, ast.FunctionDef):
            names |= set(names_of_function(node))
    return names


@functools.cache
def used() -> dict[str, str]:
    """Return each name in use, with a file that uses it."""
    return {name: path.name for path in sources() for name in names_in(path)}


def absent(name: str) -> list[str]:
    return [version for version, names in surfaces().items() if name not in names]


def test_names_exist_in_every_version() -> None:
    missing = {name: absent(name) for name in sorted(set(used()) - set(GUARDED))}
    assert {f"{name} ({used()[name]})": versions for name, versions in missing.items() if versions} == {}


def test_guarded_names_are_in_use() -> None:
    unused = [name for name in GUARDED if not any(f"{other}.".startswith(f"{name}.") for other in used())]
    assert unused == [], "no guard is needed any more"


def test_guarded_names_exist_somewhere_and_not_everywhere() -> None:
    assert [name for name in GUARDED if not 0 < len(absent(name)) < len(surfaces())] == []


def words_in(path: Path) -> set[str]:
    """Return the strings written like members of TensorRT's enumerations."""
    strings = (node.value for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Constant))
    return {s for s in strings if isinstance(s, str) and len(s) > 1 and CONSTANT_NAME.fullmatch(s)}


def test_strings_that_name_members_name_existing_ones() -> None:
    """Check members that reach TensorRT through tables and variables, of which the source shows no enumeration."""
    members = {name.partition(".")[2] for name in set.intersection(*surfaces().values())}
    files = [path for path in sources() if "lower" in path.parts and path.name != "__init__.py"]
    assert len(files) > 20
    unknown = {path.relative_to(PACKAGE).as_posix(): words_in(path) - members for path in files}
    assert {file: words for file, words in unknown.items() if words} == {}


# Reading the source -------------------------------------------------------------------------------------------------


# One of each way in which a name is read.
IN_USE = {
    "INetworkDefinition.add_convolution_nd",
    "ISliceLayer.set_input",
    "IShuffleLayer.first_transpose",
    "IShuffleLayer.get_output",
    "ElementWiseOperation.FLOOR_DIV",
    "UnaryOperation.SQRT",
    "BuilderFlag.TF32",
    "IBuilderConfig.progress_monitor",
    "IOptimizationProfile.set_shape",
    "IExecutionContext.set_tensor_address",
    "ICudaEngine.create_runtime_config",
    "ILogger.Severity",
    "Weights",
}


def test_names_are_found_in_the_source() -> None:
    assert IN_USE - set(used()) == set()


def test_the_files_of_objects_exist() -> None:
    assert [file for file, _ in OBJECTS if not (PACKAGE / file).exists()] == []


def read(source: str) -> set[str]:
    path = PACKAGE / "lower" / "imagined.py"  # never written: only its place counts
    tree = ast.parse(source)
    names = set(names_of_objects(tree, path.relative_to(PACKAGE).as_posix()))
    for node in ast.walk(tree):
        names |= set(names_of_call(node)) if isinstance(node, ast.Call) else set()
        names |= set(names_of_function(node)) if isinstance(node, ast.FunctionDef) else set()
        names |= {".".join(after_trt(node)[:2])} if isinstance(node, ast.Attribute) and after_trt(node) else set()
    return names


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("ctx.trt.UnaryOperation.CBRT", "UnaryOperation.CBRT"),
        ("ctx.unary('CBRT', x)", "UnaryOperation.CBRT"),
        ("ctx.reduce('SUM' if a == 'mean' else 'MEDIAN', x)", "ReduceOperation.MEDIAN"),
        ("getattr(ctx.trt.SampleMode, 'MIRROR')", "SampleMode.MIRROR"),
        ("ctx.network.add_median(x)", "INetworkDefinition.add_median"),
        ("ctx.network.add_softmax(x).temperature()", "ISoftMaxLayer.temperature"),
        ("def f():\n    layer = net.add_softmax(x)\n    layer.temperature = 2", "ISoftMaxLayer.temperature"),
    ],
)
def test_a_name_that_no_version_has_is_found(source: str, name: str) -> None:
    assert name in read(source)
    assert len(absent(name)) == len(surfaces())


def test_the_installed_version_agrees_with_its_listing() -> None:
    trt: Any = pytest.importorskip("tensorrt_rtx")
    version = next((v for v in DATA["versions"] if v.startswith(f"tensorrt_rtx-{trt.__version__}")), None)
    if version is None:
        pytest.skip(f"no listing of tensorrt_rtx {trt.__version__}")
    lacking = [n for n in used() if not functools.reduce(lambda at, part: getattr(at, part, None), n.split("."), trt)]
    assert sorted(set(lacking) - {"int32"}) == [n for n in sorted(used()) if version in absent(n)]
