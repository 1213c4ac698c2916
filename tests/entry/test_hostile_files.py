"""Files that would run code in `torch.export.load`, or that differ from what `save` wrote: `load` refuses them."""

from __future__ import annotations

import contextlib
import io
import json
import pickle
import zipfile
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.export import Dim

import torchtrt_bridge as trtb
from tests.models import ConvNet, image, trained

Records = dict[str, bytes]
GRAPH = "models/model.json"
WEIGHTS = "data/weights/model_weights_config.json"
CONSTANTS = "data/constants/model_constants_config.json"
SAMPLES = "data/sample_inputs/model.pt"
MANIFEST = "extra/torchtrt_bridge.json"


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a file that `save` wrote."""
    path = tmp_path_factory.mktemp("saved") / "model.pt2"
    shapes = ({0: Dim("batch", min=1, max=8)},)
    trtb.save(trtb.export(trained(ConvNet()), (image(),), dynamic_shapes=shapes, engine="reference"), path)
    return path


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    """Return a path at which the code of a hostile file makes a file."""
    return tmp_path / "marker"


def records_of(path: Path) -> Records:
    with zipfile.ZipFile(path) as file:
        return {name.partition("/")[2]: file.read(name) for name in file.namelist()}


def written(records: Records, path: Path, keep_digests: bool = False) -> Path:
    """Write an archive; without digests, as files of 0.1.0 have none and a hostile one has its own."""
    if not keep_digests:
        manifest = json.loads(records[MANIFEST])
        manifest.pop("records", None)
        records = {**records, MANIFEST: json.dumps(manifest).encode()}
    with zipfile.ZipFile(path, "w") as file:
        for name, content in records.items():
            file.writestr(f"archive/{name}", content)
    return path


class Touch:
    """Object whose pickle makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def pickled(marker: Path) -> bytes:
    buffer = io.BytesIO()
    torch.save(Touch(marker), buffer)
    return buffer.getvalue()


def code(marker: Path) -> str:
    return f"__import__('pathlib').Path('{marker}').touch()"


def edited(records: Records, name: str, change: Callable[[Any], Any]) -> None:
    """Change a record of JSON in place."""
    content = json.loads(records[name])
    change(content)
    records[name] = json.dumps(content).encode()


def with_samples(records: Records, marker: Path) -> None:
    records[SAMPLES] = pickled(marker)


def with_pickled_weight(records: Records, marker: Path) -> None:
    edited(records, WEIGHTS, lambda c: next(iter(c["config"].values())).update(use_pickle=True))
    records["data/weights/weight_0"] = pickled(marker)


def constant(records: Records, path_name: str, content: bytes, use_pickle: bool) -> None:
    meta = next(iter(json.loads(records[WEIGHTS])["config"].values()))
    meta |= {"path_name": path_name, "use_pickle": use_pickle}
    edited(records, CONSTANTS, lambda c: c["config"].update(evil=meta))
    records[f"data/constants/{path_name}"] = content


def with_pickled_constant(records: Records, marker: Path) -> None:
    constant(records, "tensor_0", pickled(marker), use_pickle=True)


def with_opaque_object(records: Records, marker: Path) -> None:
    constant(records, "opaque_obj_0", pickle.dumps(Touch(marker)), use_pickle=False)


def with_custom_object(records: Records, marker: Path) -> None:
    constant(records, "custom_obj_0", pickle.dumps(Touch(marker)), use_pickle=False)


def with_older_constants(records: Records, marker: Path) -> None:
    records["data/constants/model.pt"] = pickled(marker)


def with_older_weights(records: Records, marker: Path) -> None:
    records["data/weights/model.pt"] = pickled(marker)


def with_library(records: Records, marker: Path) -> None:
    records["data/aotinductor/model/model.so"] = b"\x7fELF"


def with_second_model(records: Records, marker: Path) -> None:
    records["models/other.json"] = records[GRAPH]
    records["data/sample_inputs/other.pt"] = pickled(marker)


def sizes(content: Any) -> list[Any]:
    values = content["graph_module"]["graph"]["tensor_values"].values()
    return [size["as_expr"] for value in values for size in value["sizes"] if "as_expr" in size]


def with_size(records: Records, marker: Path) -> None:
    edited(records, GRAPH, lambda c: [size.update(expr_str=code(marker)) for size in sizes(c)])


def with_size_of_metadata(records: Records, marker: Path) -> None:
    """A tensor with the name of a field that is not looked into."""
    records[GRAPH] = records[GRAPH].replace(b'"relu"', b'"metadata"')
    edited(records, GRAPH, lambda c: sizes(c)[0].update(expr_str=code(marker)))


def with_size_function(records: Records, marker: Path) -> None:
    edited(records, GRAPH, lambda c: sizes(c)[0].update(expr_str="preview(Symbol('s0'))"))


def with_huge_size(records: Records, marker: Path) -> None:
    edited(records, GRAPH, lambda c: sizes(c)[0].update(expr_str="9**9**9"))


def with_power_of_sizes(records: Records, marker: Path) -> None:
    power = "Pow(Integer(9), Pow(Integer(9), Integer(9)))"
    edited(records, GRAPH, lambda c: sizes(c)[0].update(expr_str=power))


def node(target: str, argument: Any) -> dict[str, Any]:
    inputs = [{"name": "", "arg": argument, "kind": 1}]
    return {"target": target, "inputs": inputs, "outputs": [], "metadata": {}, "name": "evil"}


def with_node(target: str, argument: Any) -> Callable[[Records, Path], None]:
    def change(records: Records, marker: Path) -> None:
        nodes = [node(target, argument)]
        edited(records, GRAPH, lambda c: c["graph_module"]["graph"]["nodes"].extend(nodes))

    return change


def with_name(records: Records, marker: Path) -> None:
    records[GRAPH] = records[GRAPH].replace(b'"x"', json.dumps(f"x={code(marker)}").encode())


def with_weight_name(records: Records, marker: Path) -> None:
    name = json.dumps(f"p.{code(marker)}").encode()
    for record in (WEIGHTS, GRAPH):
        records[record] = records[record].replace(b'"p_head_weight"', name)


def with_guards(records: Records, marker: Path) -> None:
    edited(records, GRAPH, lambda c: c.update(guards_code=[code(marker)]))


def nested(content: Any, field: str, spec: Any) -> None:
    for entry in content["graph_module"]["module_call_graph"]:
        entry["signature"][field] = json.dumps([1, spec])


LEAF = {"type": None, "context": None, "children_spec": []}


def with_defaultdict(records: Records, marker: Path) -> None:
    context = {"default_factory_module": "antigravity", "default_factory_name": "x", "dict_context": ["a"]}
    spec = {"type": "collections.defaultdict", "context": context, "children_spec": [LEAF]}
    edited(records, GRAPH, lambda c: nested(c, "out_spec", spec))


def with_enumeration(records: Records, marker: Path) -> None:
    key = {"__enum__": True, "fqn": "antigravity:X", "name": "a"}
    spec = {"type": "builtins.dict", "context": json.dumps([key]), "children_spec": [LEAF]}
    edited(records, GRAPH, lambda c: nested(c, "out_spec", spec))


def with_keyword(records: Records, marker: Path) -> None:
    args = {"type": "builtins.tuple", "context": "null", "children_spec": []}
    context = json.dumps([f"x={code(marker).replace(chr(39), '')}"])
    kwargs = {"type": "builtins.dict", "context": context, "children_spec": [LEAF]}
    spec = {"type": "builtins.tuple", "context": "null", "children_spec": [args, kwargs]}
    edited(records, GRAPH, lambda c: nested(c, "in_spec", spec))


HOSTILE: dict[str, tuple[Callable[[Records, Path], None], str]] = {
    "sample inputs": (with_samples, "a pickle in data/sample_inputs"),
    "pickled weight": (with_pickled_weight, "as a pickled object"),
    "pickled constant": (with_pickled_constant, "as a pickled object"),
    "opaque object": (with_opaque_object, "opaque_obj_0"),
    "custom object": (with_custom_object, "custom_obj_0"),
    "older constants": (with_older_constants, r"data/constants/model\.pt"),
    "older weights": (with_older_weights, r"data/weights/model\.pt"),
    "library": (with_library, r"model\.so"),
    "second model": (with_second_model, r"other\.(json|pt)"),
    "size": (with_size, "the size '__import__|the size \"__import__"),
    "size of a tensor called metadata": (with_size_of_metadata, "the size"),
    "function in a size": (with_size_function, "the size .preview"),
    "huge size": (with_huge_size, "the size .9"),
    "huge power": (with_power_of_sizes, "the size .Pow"),
    "function of os": (with_node("torch.os.system", {"as_string": "true"}), r"a call of 'torch\.os\.system'"),
    "torch.load": (with_node("torch.load", {"as_string": "x.pt"}), r"a call of 'torch\.load'"),
    "no operator": (with_node("torch.ops.load_library", {"as_string": "x.so"}), r"torch\.ops\.load_library"),
    "method of an operator": (with_node("torch.ops.aten.relu.__init__", {"as_none": True}), r"relu\.__init__"),
    "operator that opens files": (with_node("torch.ops.aten.from_file.default", {"as_string": "x"}), "from_file"),
    "operator as argument": (with_node("torch.ops.higher_order.wrap", {"as_operator": "torch.load"}), r"torch\.load"),
    "name of an input": (with_name, "the name .x=__import__"),
    "name of a weight": (with_weight_name, r"the name .p\.__import__"),
    "guards": (with_guards, "the condition .__import__"),
    "defaultdict": (with_defaultdict, r"a defaultdict of 'antigravity\.x'"),
    "enumeration": (with_enumeration, "the enumeration 'antigravity:X'"),
    "keyword": (with_keyword, "the keyword argument .x=__import__"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_file_that_would_run_code_is_refused(kind: str, saved: Path, tmp_path: Path, marker: Path) -> None:
    change, message = HOSTILE[kind]
    records = records_of(saved)
    change(records, marker)
    assert records != records_of(saved)
    with pytest.raises(trtb.EngineLoadError, match=rf"(?s)model\.pt2 cannot be loaded: it holds .*({message})"):
        trtb.load(written(records, tmp_path / "model.pt2"), device="cpu")
    assert not marker.exists()


@pytest.mark.parametrize("kind", ["sample inputs", "pickled weight", "pickled constant", "size", "name of an input"])
def test_such_a_file_does_run_code_in_pytorch(kind: str, saved: Path, tmp_path: Path, marker: Path) -> None:
    records = records_of(saved)
    HOSTILE[kind][0](records, marker)
    path = written(records, tmp_path / "model.pt2")
    with contextlib.suppress(Exception):  # of what its code returned
        torch.export.load(path)
    assert marker.exists()


def test_records_of_two_readers(saved: Path, tmp_path: Path) -> None:
    """Two records of one name: Python's reader takes the last, another may take the first."""
    path = written(records_of(saved), tmp_path / "model.pt2")
    with zipfile.ZipFile(path, "a") as file, pytest.warns(UserWarning, match="Duplicate"):
        file.writestr(f"archive/{SAMPLES}", b"")
    with pytest.raises(trtb.EngineLoadError, match="different records"):
        trtb.load(path, device="cpu")


# Honest files ----------------------------------------------------------------------------------------------------


def test_a_file_of_an_earlier_version_loads(saved: Path, tmp_path: Path) -> None:
    loaded = trtb.load(written(records_of(saved), tmp_path / "model.pt2"), device="cpu")
    x = image(3)
    torch.testing.assert_close(loaded(x), trtb.load(saved, device="cpu")(x))


class Sizes(nn.Module):
    """Model with many kinds of sizes in its graph."""

    def forward(self, x: torch.Tensor, *, more: dict[str, torch.Tensor], flag: bool, mode: str) -> Any:
        n, m = x.shape
        result: dict[str, Any] = defaultdict(list)
        result["a"] = x.new_zeros(max(n, m), min(n, 7) + m // 3, (n + m) % 5 + 2 * n - 1).relu()
        result["b"] = x[: n // 2, 1:].reshape(-1) if mode == "it's" else x
        result["c"] = (more["the y"] * n**2, flag, torch.einsum("ij,kj->ik", x, x))
        return result


def test_sizes_and_nesting_are_read_as_they_were_written(tmp_path: Path) -> None:
    x, y = torch.randn(4, 6), {"the y": torch.randn(4)}
    rows = Dim("n", max=64)
    shapes = {"x": {0: rows, 1: Dim("m", max=64)}, "more": {"the y": {0: rows}}, "flag": None, "mode": None}
    kwargs = {"more": y, "flag": True, "mode": "its"}
    program = trtb.export(Sizes(), (x,), kwargs=kwargs, dynamic_shapes=shapes, engine="reference")
    trtb.save(program, tmp_path / "model.pt2")
    loaded = trtb.load(tmp_path / "model.pt2", device="cpu")
    x, kwargs["more"] = torch.randn(9, 5), {"the y": torch.randn(9)}
    torch.testing.assert_close(loaded(x, **kwargs), program(x, **kwargs))
    assert loaded(x, **kwargs)["a"].shape == (9, 6 + 2, 21)


class Counter(nn.Module):
    """Model that changes a buffer, whose name is no identifier."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("the calls", torch.zeros(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.get_buffer("the calls").add_(1)


def test_what_load_would_refuse_is_not_saved(tmp_path: Path) -> None:
    program = trtb.export(Counter(), (torch.ones(2),), engine="reference")
    with pytest.raises(trtb.OptionsError, match=r"load\(\) would not read this program: it holds .*'the calls'"):
        trtb.save(program, tmp_path / "model.pt2")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("record", ["data/weights/weight_0", GRAPH])
def test_a_record_of_another_file_is_noticed(record: str, saved: Path, tmp_path: Path) -> None:
    records = records_of(saved)
    changed = bytes(len(records[record])) if record != GRAPH else records[record].replace(b"relu", b"silu")
    records[record] = changed
    with pytest.raises(trtb.EngineLoadError, match="a record differs from its digest"):
        trtb.load(written(records, tmp_path / "model.pt2", keep_digests=True), device="cpu")
