"""Manifests that `save` did not write: one EngineLoadError each, which says what is wrong."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import torchtrt_bridge as trtb
from tests.entry.test_hostile_files import MANIFEST, edited, records_of, written
from tests.models import ConvNet, image, trained
from torchtrt_bridge.entry.manifest import Manifest


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a file with one engine."""
    path = tmp_path_factory.mktemp("saved") / "model.pt2"
    trtb.save(trtb.export(trained(ConvNet()), (image(),), targets=("sm_86",)), path)
    return path


def field(name: str, value: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda content: content.update({name: value})


def of_engine(name: str, value: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda content: content["engines"][0].update({name: value})


def renamed(name: str) -> Callable[[dict[str, Any]], Any]:
    def change(content: dict[str, Any]) -> None:
        content["engines"][0]["name"] = name
        for part in ("nodes", "sha256"):
            content[part] = {name: content[part]["trt_0"]}

    return change


CHANGES: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    **{f"without {name}": (lambda c, name=name: c.pop(name), f"lacks '{name}'") for name in ("nodes", "sha256")},
    "without options": (lambda c: c.pop("options"), "lacks 'options'"),
    "another format": (field("format", 2), "format 2, this version"),
    "format of another type": (field("format", [1]), r"format \[1\]"),
    "unknown field": (field("hook", "x"), "unknown field 'hook'"),
    "digests a list": (field("sha256", []), "'sha256' of the manifest is '\\[\\]'"),
    "digests empty": (field("sha256", {}), "engine trt_0 is ready, and has no digest"),
    "digest empty": (field("sha256", {"trt_0": ""}), "the digest of trt_0 is ''"),
    "digest null": (field("sha256", {"trt_0": None}), "'sha256'"),
    "digest a path": (field("sha256", {"trt_0": "../../x"}), r"the digest of trt_0 is '\.\./\.\./x'"),
    "digest of another": (field("sha256", {"trt_0": "0" * 64}), "the digest of engine trt_0 differs"),
    "digest of no engine": (lambda c: c["sha256"].update(trt_7="0" * 64), "'trt_7' is not the name"),
    "nodes null": (field("nodes", {"trt_0": None}), "'nodes'"),
    "node unknown": (field("nodes", {"trt_0": ["nothing"]}), "do not fit each other: KeyError: 'nothing'"),
    "node an input": (field("nodes", {"trt_0": ["x"]}), "do not fit each other"),
    "node twice": (field("nodes", {"trt_0": ["relu", "relu"]}), "share a node"),
    "no nodes": (field("nodes", {}), "'trt_0' is not the name"),
    "name of a subgraph as code": (renamed("x'+str(1)"), "is not the name"),
    "engines a dict": (field("engines", {}), "'engines' of the manifest"),
    "engine a number": (field("engines", [3]), "'engines' of the manifest"),
    "engine twice": (lambda c: c["engines"].append(c["engines"][0]), "two engines have one name"),
    "engine without a name": (lambda c: c["engines"][0].pop("name"), "a EngineEntry lacks 'name'"),
    "engine with a field": (of_engine("x", 1), "a EngineEntry has an unknown field 'x'"),
    "engine's nodes": (of_engine("nodes", {"relu": "many"}), "'nodes' of a EngineEntry"),
    "engine's state": (of_engine("state", None), "'state' of a EngineEntry"),
    "engine's bytes": (of_engine("bytes", "1e3"), "'bytes' of a EngineEntry"),
    "engine's times": (of_engine("milliseconds", {"engine": "1"}), "'milliseconds' of a EngineEntry"),
    "node in PyTorch": (
        field("in_torch", [{"op": 1, "node": "", "reason": "", "source": None}]),
        "'op' of a TorchEntry",
    ),
    "node in PyTorch half": (field("in_torch", [{"op": ""}]), "a TorchEntry lacks 'node'"),
    "options a list": (field("options", []), "'options' of the manifest"),
    "unknown option": (lambda c: c["options"].update(hook=1), "Unknown option 'hook'"),
    "option out of range": (lambda c: c["options"].update(optimization_level=99), "optimization_level=99"),
    "option of a type": (lambda c: c["options"].update(precision=[1]), "precision"),
    "options that contradict": (lambda c: c["options"].update(tf32=True, precision="fp16"), "tf32=True"),
    "versions null": (field("versions", None), "'versions' of the manifest"),
    "no TensorRT": (field("versions", {}), "versions names no TensorRT"),
    "records of a type": (field("records", {"a": 1}), "'records' of the manifest"),
}


@pytest.mark.parametrize("kind", CHANGES)
def test_an_odd_manifest_is_refused(kind: str, saved: Path, tmp_path: Path) -> None:
    change, message = CHANGES[kind]
    records = records_of(saved)
    edited(records, MANIFEST, change)
    path = written(records, tmp_path / "model.pt2", keep_digests=kind.startswith("records"))
    with pytest.raises(trtb.EngineLoadError, match=f"(?s){message}"):
        trtb.load(path, device="cpu")


@pytest.mark.parametrize(
    "text", ["", "null", "[]", "3", "{", "[" * 100_000, '{"format": 1}', "\x00", '{"format": NaN}']
)
def test_what_is_no_manifest_is_refused(text: str, saved: Path, tmp_path: Path) -> None:
    records = records_of(saved) | {MANIFEST: text.encode()}
    with pytest.raises(trtb.EngineLoadError, match=r"damaged|not a readable|has format nan"):
        trtb.load(written(records, tmp_path / "model.pt2", keep_digests=True), device="cpu")


@pytest.mark.parametrize(
    "field", ["graph_module", "signature", "nodes", "tensor_values", "sizes", "config", "module_call_graph"]
)
@pytest.mark.parametrize("value", [None, 3, [], [[]], {}, "x"])
def test_an_odd_graph_is_refused(field: str, value: Any, saved: Path, tmp_path: Path) -> None:
    records = records_of(saved)
    name = "data/weights/model_weights_config.json" if field == "config" else "models/model.json"
    content = json.loads(records[name])
    replace(content, field, value)
    records[name] = json.dumps(content).encode()
    with pytest.raises(trtb.EngineLoadError):
        trtb.load(written(records, tmp_path / "model.pt2"), device="cpu")


def replace(content: Any, field: str, value: Any) -> None:
    """Replace all fields of a name, at any depth."""
    for part in content.values() if isinstance(content, dict) else content if isinstance(content, list) else ():
        replace(part, field, value)
    if isinstance(content, dict) and field in content:
        content[field] = value


def test_options_of_running_are_the_caller_s(saved: Path, tmp_path: Path) -> None:
    records = records_of(saved)
    of_file = {"cache_dir": str(tmp_path / "other"), "trial": "off", "fallback": "error", "inductor": "compete"}
    edited(records, MANIFEST, lambda content: content["options"].update(of_file))
    program = trtb.load(written(records, tmp_path / "model.pt2"), device="cpu", cuda_graphs="off")
    options = program.report.options
    assert (options.cache_dir, options.trial, options.fallback, options.inductor) == (
        None,
        "check+time",
        "pytorch",
        "off",
    )
    assert options.cuda_graphs == "off"
    assert not (tmp_path / "other").exists()


def test_a_manifest_is_read_as_it_was_written(saved: Path) -> None:
    program = trtb.load(saved, device="cpu")
    assert Manifest.from_json(program.manifest.to_json()) == program.manifest
    assert program(image(2)).shape == torch.Size([2, 5])
