"""Archive of a program, a `.pt2` file: the exported program of the normalized graph, with engines among its weights.

`torch.export.load` reads it anywhere and runs it in PyTorch; `torchtrt_bridge.load` puts the engines in place.
"""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import io
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import fx
from torch.export import ExportedProgram
from torch.export.graph_signature import (
    ExportGraphSignature,
    InputKind,
    InputSpec,
    OutputKind,
    OutputSpec,
    TensorArgument,
)
from torch.export.pt2_archive import PT2ArchiveReader
from torch.utils import _pytree as pytree

from torchtrt_bridge.cache import written_aside
from torchtrt_bridge.capture.export import CapturedGraph, tensor_of
from torchtrt_bridge.entry.archive_check import check_archive
from torchtrt_bridge.entry.manifest import Manifest
from torchtrt_bridge.errors import EngineLoadError, OptionsError
from torchtrt_bridge.graph.edit import copy_graph
from torchtrt_bridge.graph.nodes import describe, graph_of
from torchtrt_bridge.graph.recurrent import use_pytorchs
from torchtrt_bridge.graph.shapes import expression_of, is_symbolic
from torchtrt_bridge.graph.torch_internals import is_unbacked_symbol, set_state_dict

MANIFEST = "torchtrt_bridge.json"
ENGINE_PREFIX = "engine_"


def program_from_graph(original: ExportedProgram, captured: CapturedGraph, flat: fx.GraphModule) -> ExportedProgram:
    """Return an exported program that computes `flat`, with the calling convention of `original`."""
    module = fx.GraphModule(flat, copy_graph(flat.graph))
    use_pytorchs(module.graph)
    state: dict[str, torch.Tensor] = {}
    inputs = _lift_constants(module, flat, state)
    inputs += _input_specs(original, captured, state)
    outputs = _output_specs(module, captured, original)
    module.recompile()
    return ExportedProgram(
        root=module,
        graph=module.graph,
        graph_signature=ExportGraphSignature(inputs, outputs),
        state_dict=state,
        range_constraints=_ranges(original, module.graph),
        module_call_graph=_calling_convention(original, inputs, outputs),
        example_inputs=None,
        constants={},
    )


def _ranges(original: ExportedProgram, graph: fx.Graph) -> dict[Any, Any]:
    """Return the ranges of all symbols, without those of sizes from data that are no longer in the graph."""
    values = pytree.tree_leaves([node.meta.get("val") for node in graph.nodes])
    sizes = [size for value in values for size in (value.shape if isinstance(value, torch.Tensor) else [value])]
    used = {symbol for size in sizes if is_symbolic(size) for symbol in expression_of(size).free_symbols}
    ranges = original.range_constraints.items()
    return {size: known for size, known in ranges if not any(map(is_unbacked_symbol, size.free_symbols - used))}


def _lift_constants(module: fx.GraphModule, flat: fx.GraphModule, state: dict[str, torch.Tensor]) -> list[InputSpec]:
    """Turn each constant into one buffer that is an input of the graph, however often it is read."""
    specs: list[InputSpec] = []
    placeholders: dict[str, fx.Node] = {}
    first = next(node for node in module.graph.nodes if node.op != "get_attr")
    for node in [n for n in module.graph.nodes if n.op == "get_attr" and graph_of(n) is None]:
        target = str(node.target)
        if target not in placeholders:
            state[target] = flat.get_buffer(target)
            with module.graph.inserting_before(first):
                placeholders[target] = module.graph.placeholder(f"b_{target}")
            placeholders[target].meta = dict(node.meta)
            specs.append(
                InputSpec(InputKind.BUFFER, TensorArgument(placeholders[target].name), target, persistent=True)
            )
        node.replace_all_uses_with(placeholders[target])
        module.graph.erase_node(node)
    for name in list(state):
        delattr(module, name)
    return specs


def _input_specs(original: ExportedProgram, captured: CapturedGraph, state: dict[str, torch.Tensor]) -> list[InputSpec]:
    """Return the user's inputs, followed by the buffers that the model changes."""
    user = [spec for spec in original.graph_signature.input_specs if spec.kind is InputKind.USER_INPUT]
    mutated = [spec for spec in original.graph_signature.input_specs if spec.target in captured.state]
    for spec in mutated:
        assert spec.target is not None
        state[spec.target] = tensor_of(original, spec.target).detach().clone()
    buffers = [InputSpec(InputKind.BUFFER, spec.arg, spec.target, persistent=True) for spec in mutated]
    return [*copy.deepcopy(user), *buffers]


def _output_specs(module: fx.GraphModule, captured: CapturedGraph, original: ExportedProgram) -> list[OutputSpec]:
    """Return the mutated values, which an exported program has first, then the outputs that the caller gets."""
    output = next(n for n in reversed(module.graph.nodes) if n.op == "output")
    values = list(output.args[0])
    returned, mutated = values[: captured.outputs], values[captured.outputs :]
    output.args = ((*mutated, *returned),)
    old = original.graph_signature.output_specs
    changes = [spec for spec in old if spec.kind is not OutputKind.USER_OUTPUT]
    results = [spec for spec in old if spec.kind is OutputKind.USER_OUTPUT]
    specs = []
    for value, spec in zip(mutated, changes, strict=True):
        specs.append(OutputSpec(spec.kind, TensorArgument(value.name), spec.target))
    for value, spec in zip(returned, results, strict=True):
        arg = type(spec.arg)(value.name) if isinstance(value, fx.Node) else spec.arg
        specs.append(OutputSpec(OutputKind.USER_OUTPUT, arg, None))
    return specs


def _calling_convention(original: ExportedProgram, inputs: list[InputSpec], outputs: list[OutputSpec]) -> list[Any]:
    """Return the entry of the whole module, which says how arguments and results are nested."""
    root = copy.deepcopy(original.module_call_graph[0])
    assert root.signature is not None
    root.signature.inputs = [spec.arg for spec in inputs if spec.kind is InputKind.USER_INPUT]
    root.signature.outputs = [spec.arg for spec in outputs if spec.kind is OutputKind.USER_OUTPUT]
    return [root]


def write_archive(program: ExportedProgram, plans: Mapping[str, bytes], manifest: Manifest, path: Path) -> None:
    """Write a temporary file and rename it, so that a failure leaves an existing file as it was.

    The manifest comes last, as it holds the digest of each other record. Equal contents give equal files.
    """
    engines = {ENGINE_PREFIX + n: torch.frombuffer(bytearray(p), dtype=torch.uint8) for n, p in plans.items()}
    program = copy.copy(program)
    set_state_dict(program, {**program.state_dict, **engines})
    with written_aside(path, mode=None, suffix=".pt2") as aside:
        with open(aside, "wb") as file:
            _write_program(program, file)
        with open(aside, "rb") as file:
            records = _checked_records(PT2ArchiveReader(file))
        with zipfile.ZipFile(aside, "a") as archive:
            root = archive.namelist()[0].partition("/")[0]
            text = dataclasses.replace(manifest, records=records).to_json()
            archive.writestr(zipfile.ZipInfo(f"{root}/extra/{MANIFEST}"), text)  # of the year 1980


def _write_program(program: ExportedProgram, file: BinaryIO) -> None:
    stream: Any = _CheckedStream(file)
    try:
        torch.export.save(program, stream)
    except NotImplementedError as error:  # of the classes that arguments and results are nested in
        raise OptionsError(
            f"torch.export cannot write how the program's arguments and results are nested: {error} "
            "Register the class with torch.utils._pytree, with a serialized_type_name, before the export."
        ) from error
    except (OSError, MemoryError):
        raise
    except Exception as error:  # SerializeError, or what else PyTorch's writer raises for an operator or its arguments
        raise OptionsError(_unwritable(program, error)) from error
    if stream.failure is not None:
        raise stream.failure
    file.flush()


def _unwritable(program: ExportedProgram, error: Exception) -> str:
    """Return the message for a program that PyTorch does not write: the node, the reason and what to do."""
    found = re.search(r"Failed serializing node (\w+)", str(error))
    named = [node for node in program.graph.nodes if found is not None and node.name == found[1]]
    what = describe(named[0]) if named else "this program"
    cause: BaseException = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    reason = str(cause).strip().partition("\n")[0].rstrip(".")
    return (
        f"torch.export cannot write {what}: {type(cause).__name__}: {reason}. The program runs in this process; "
        "export the model again in each process that needs it, or write that part with other operators, as "
        "scaled_dot_product_attention with a mask in place of flex_attention."
    )


def _checked_records(archive: PT2ArchiveReader) -> dict[str, str]:
    """Return the digests of what was written; OptionsError for what `load` would refuse."""
    try:
        check_archive(archive)
    except EngineLoadError as error:
        raise OptionsError(f"load() would not read this program: {error}") from error
    return _digests(archive)


class _CheckedStream(io.RawIOBase):
    """File that keeps its first error in place of raising it.

    PyTorch's writer of archives ends the process when a write fails: its destructor writes again, and throws.
    """

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.failure: OSError | None = None

    def write(self, content: Any) -> int:
        """Write `content`, or nothing after a failure."""
        if self.failure is None:
            try:
                self.file.write(content)
            except OSError as error:
                self.failure = error
        return memoryview(content).nbytes

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Do nothing: PyTorch goes back to the start once all is written."""
        return offset


def read_archive(path: Path) -> tuple[ExportedProgram, Manifest, dict[str, bytes]]:
    """Return the program, its manifest and its engines.

    Raises EngineLoadError for a file that is missing or damaged, that `save` did not write, or that could run code.
    """
    if path.is_dir():
        raise EngineLoadError(f"{path} is a folder; load() takes a .pt2 file that save() wrote.")
    if not path.is_file():
        raise EngineLoadError(f"There is no file {path}.")
    try:
        with open(path, "rb") as file:  # one file for all readers, so that none gets another
            manifest = _checked_manifest(file)
            file.seek(0)
            program = torch.export.load(file)
            return program, manifest, _take_plans(program, manifest)
    except EngineLoadError as error:
        raise EngineLoadError(f"{path} cannot be loaded: {error}") from error.__cause__
    except Exception as error:
        raise EngineLoadError(f"{path} is not a readable .pt2 file: {type(error).__name__}: {error}") from error


def _checked_manifest(file: BinaryIO) -> Manifest:
    """Return the manifest of a file whose content is whole and can be read without running code."""
    archive = PT2ArchiveReader(file)
    names = archive.get_file_names()
    with zipfile.ZipFile(file) as entries:
        root = entries.namelist()[0].partition("/")[0]
        if sorted(entries.namelist()) != sorted(f"{root}/{name}" for name in {*names}):
            raise EngineLoadError("it is damaged: two readers of archives find different records.")
        damaged = entries.testzip()
    if damaged is not None:
        raise EngineLoadError(f"it is damaged: {damaged} fails its checksum. Export the model again.")
    if f"extra/{MANIFEST}" not in names:
        raise EngineLoadError(
            f"it was not written by torchtrt_bridge.save: it has no {MANIFEST}. torch.export.load reads it."
        )
    check_archive(archive)
    manifest = Manifest.from_json(archive.read_string(f"extra/{MANIFEST}"))
    if manifest.records and manifest.records != _digests(archive):
        raise EngineLoadError("it is damaged: a record differs from its digest. Export the model again.")
    return manifest


def _digests(archive: PT2ArchiveReader) -> dict[str, str]:
    """Return the digest of each record but the manifest, which holds them."""
    names = [name for name in archive.get_file_names() if name != f"extra/{MANIFEST}"]
    return {name: hashlib.sha256(archive.read_bytes(name)).hexdigest() for name in names}


def _take_plans(program: ExportedProgram, manifest: Manifest) -> dict[str, bytes]:
    """Return the engines' bytes, and remove them from the program's state."""
    plans = {}
    for name in manifest.nodes:
        plan = program.state_dict.pop(ENGINE_PREFIX + name, None)
        if name not in manifest.sha256:
            continue
        plans[name] = b"" if plan is None else plan.numpy().tobytes()
        if hashlib.sha256(plans[name]).hexdigest() != manifest.sha256[name]:
            raise EngineLoadError(f"it is damaged: the digest of engine {name} differs. Export the model again.")
    return plans
