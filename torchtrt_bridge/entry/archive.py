"""Archive of a program, a `.pt2` file: the exported program of the normalized graph, with engines among its weights.

`torch.export.load` reads it anywhere and runs it in PyTorch; `torchtrt_bridge.load` puts the engines in place.
"""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

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

from torchtrt_bridge.cache import written_aside
from torchtrt_bridge.capture.export import CapturedGraph
from torchtrt_bridge.errors import EngineLoadError, OptionsError
from torchtrt_bridge.graph.edit import copy_graph
from torchtrt_bridge.graph.torch_internals import set_state_dict
from torchtrt_bridge.graph.version import __version__
from torchtrt_bridge.options import Options
from torchtrt_bridge.report.model import CompileReport, EngineEntry, TorchEntry

MANIFEST = "torchtrt_bridge.json"
FORMAT = 1
ENGINE_PREFIX = "engine_"


@dataclasses.dataclass
class Manifest:
    """Description of the engines of a file, written into it as JSON.

    nodes: for each subgraph, the names of the nodes that its engine computes.
    sha256: for each engine, the digest of its bytes.
    """

    format: int
    versions: dict[str, str]
    options: dict[str, Any]
    nodes: dict[str, list[str]]
    sha256: dict[str, str]
    engines: list[dict[str, Any]]
    in_torch: list[dict[str, Any]]
    in_float: list[dict[str, Any]] = dataclasses.field(default_factory=list)

    def report(self, options: Options) -> CompileReport:
        """Return the report of the export."""
        engines = [EngineEntry(**entry) for entry in self.engines]
        in_torch, in_float = ([TorchEntry(**node) for node in nodes] for nodes in (self.in_torch, self.in_float))
        return CompileReport(options, engines, in_torch, graphs=1, in_float=in_float)


def program_from_graph(original: ExportedProgram, captured: CapturedGraph, flat: fx.GraphModule) -> ExportedProgram:
    """Return an exported program that computes `flat`, with the calling convention of `original`."""
    module = fx.GraphModule(flat, copy_graph(flat.graph))
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
        range_constraints=dict(original.range_constraints),
        module_call_graph=_calling_convention(original, inputs, outputs),
        example_inputs=None,
        constants={},
    )


def _lift_constants(module: fx.GraphModule, flat: fx.GraphModule, state: dict[str, torch.Tensor]) -> list[InputSpec]:
    """Turn each constant into one buffer that is an input of the graph, however often it is read."""
    specs: list[InputSpec] = []
    placeholders: dict[str, fx.Node] = {}
    first = next(node for node in module.graph.nodes if node.op != "get_attr")
    for node in [n for n in module.graph.nodes if n.op == "get_attr"]:
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
        state[spec.target] = original.state_dict[spec.target].detach().clone()
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
    """Write a temporary file and rename it, so that a failure leaves an existing file as it was."""
    engines = {ENGINE_PREFIX + n: torch.frombuffer(bytearray(p), dtype=torch.uint8) for n, p in plans.items()}
    program = copy.copy(program)
    set_state_dict(program, {**program.state_dict, **engines})
    with written_aside(path, mode=0o644, suffix=".pt2") as aside:
        text = json.dumps(dataclasses.asdict(manifest), indent=1)
        try:
            torch.export.save(program, aside, extra_files={MANIFEST: text})
        except NotImplementedError as error:  # of the classes that arguments and results are nested in
            raise OptionsError(
                f"torch.export cannot write how the program's arguments and results are nested: {error} "
                "Register the class with torch.utils._pytree, with a serialized_type_name, before the export."
            ) from error


def read_archive(path: Path) -> tuple[ExportedProgram, Manifest, dict[str, bytes]]:
    """Return the program, its manifest and its engines; EngineLoadError for a missing, damaged or other file."""
    if path.is_dir():
        raise EngineLoadError(f"{path} is a folder; load() takes a .pt2 file that save() wrote.")
    if not path.is_file():
        raise EngineLoadError(f"There is no file {path}.")
    extra = {MANIFEST: ""}
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        if damaged is not None:
            raise EngineLoadError(f"{path} is damaged: {damaged} fails its checksum. Export the model again.")
        program = torch.export.load(path, extra_files=extra)
    except EngineLoadError:
        raise
    except Exception as error:
        raise EngineLoadError(f"{path} is not a readable .pt2 file: {type(error).__name__}: {error}") from error
    if not extra[MANIFEST]:
        raise EngineLoadError(
            f"{path} was not written by torchtrt_bridge.save: it has no {MANIFEST}. torch.export.load reads it."
        )
    manifest = _manifest(extra[MANIFEST], path)
    return program, manifest, _take_plans(program, manifest, path)


def _manifest(text: str, path: Path) -> Manifest:
    try:
        content = json.loads(text)
        if content["format"] != FORMAT:
            raise EngineLoadError(
                f"{path} has format {content['format']}, this version of torchtrt_bridge reads {FORMAT}. "
                f"It was written by {content['versions']}."
            )
        return Manifest(**content)
    except (ValueError, KeyError, TypeError) as error:
        raise EngineLoadError(f"{path} has a damaged {MANIFEST}: {error}") from error


def _take_plans(program: ExportedProgram, manifest: Manifest, path: Path) -> dict[str, bytes]:
    """Return the engines' bytes, and remove them from the program's state."""
    plans = {}
    for name, digest in manifest.sha256.items():
        plan = program.state_dict.pop(ENGINE_PREFIX + name).numpy().tobytes()
        if hashlib.sha256(plan).hexdigest() != digest:
            raise EngineLoadError(f"{path} is damaged: the digest of engine {name} differs. Export the model again.")
        plans[name] = plan
    return plans


def versions() -> dict[str, str]:
    return {"torchtrt_bridge": __version__, "torch": torch.__version__}
