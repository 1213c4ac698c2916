"""Manifest of a program's file: what its engines are, checked field by field when it is read."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator
from typing import Any

import torch

from torchtrt_bridge.errors import EngineLoadError, OptionsError
from torchtrt_bridge.graph.json_fields import faults_of
from torchtrt_bridge.graph.version import __version__
from torchtrt_bridge.options import AT_LOAD, Options
from torchtrt_bridge.report.model import CompileReport, EngineEntry, TorchEntry, named_version

FORMAT = 1
SUBGRAPH = re.compile(r"trt_\d+")
DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclasses.dataclass
class Manifest:
    """Description of the engines of a file, written into it as JSON.

    nodes: for each subgraph, the names of the nodes that its engine computes.
    sha256: for each engine, the digest of its bytes.
    records: for each other record of the file, the digest of its bytes; empty in files of 0.1.0.
    """

    format: int
    versions: dict[str, str]
    options: dict[str, Any]
    nodes: dict[str, list[str]]
    sha256: dict[str, str]
    engines: list[dict[str, Any]]
    in_torch: list[dict[str, Any]]
    in_float: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    records: dict[str, str] = dataclasses.field(default_factory=dict)

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), indent=1)

    @classmethod
    def from_json(cls, text: str) -> Manifest:
        """Read a manifest; EngineLoadError for one of another format, or that `to_json` could not have written."""
        content = json.loads(text)
        if isinstance(content, dict) and content.get("format", FORMAT) != FORMAT:
            raise EngineLoadError(
                f"it has format {content['format']!r}, this version of torchtrt_bridge reads {FORMAT}. "
                f"It was written by {content.get('versions')}: export the model again, or load it with that version."
            )
        faults = next(faults_of(content, cls, "the manifest"), None)
        if faults is None:
            made = cls(**content)
            faults = next(made._contradictions(), None)
        if faults is not None:
            raise EngineLoadError(f"its manifest is damaged: {faults}.")
        return made

    def settings(self) -> dict[str, Any]:
        """Return the options that shaped the engines; how a program runs is for the loading user to say."""
        return {name: value for name, value in self.options.items() if name not in AT_LOAD}

    def report(self, options: Options) -> CompileReport:
        """Return the report of the export."""
        engines = [EngineEntry(**entry) for entry in self.engines]
        in_torch, in_float = ([TorchEntry(**node) for node in nodes] for nodes in (self.in_torch, self.in_float))
        report = CompileReport(options, engines, in_torch, graphs=1, in_float=in_float)
        report.versions |= named_version(self.versions["tensorrt"])
        return report

    def _contradictions(self) -> Iterator[str]:
        """Yield what the fields say wrongly together, each fitting its type."""
        for kind, entries in ((EngineEntry, self.engines), (TorchEntry, self.in_torch), (TorchEntry, self.in_float)):
            for entry in entries:
                yield from faults_of(entry, kind, f"a {kind.__name__}")
        try:
            Options.from_mapping(self.settings())
        except OptionsError as error:
            yield f"options: {error}"
        yield from self._wrong_names()
        for name, digest in {**self.sha256, **self.records}.items():
            if not DIGEST.fullmatch(digest):
                yield f"the digest of {name} is {digest!r}"

    def _wrong_names(self) -> Iterator[str]:
        names = [entry["name"] for entry in self.engines]
        if "tensorrt" not in self.versions:
            yield "versions names no TensorRT"
        if len(set(names)) < len(names):
            yield "two engines have one name"
        for name in {*self.nodes, *names, *self.sha256}:
            if not SUBGRAPH.fullmatch(name) or name not in self.nodes:
                yield f"{name!r} is not the name of one of its subgraphs"
        nodes = [node for part in self.nodes.values() for node in part]
        if len(set(nodes)) < len(nodes):
            yield "two subgraphs share a node"
        for entry in [EngineEntry(**fields) for fields in self.engines]:
            if entry.is_ready and entry.engine != "reference" and entry.name not in self.sha256:
                yield f"the engine {entry.name} is ready, and has no digest"


def versions() -> dict[str, str]:
    return {"torchtrt_bridge": __version__, "torch": torch.__version__}
