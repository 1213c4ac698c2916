"""The calibration file: a rebuild needs no data, and no other model's file is taken."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import torchtrt_bridge as trtb
from tests.models import ConvNet, trained
from tests.quantize.nets import PLAIN, loader, quantized
from torchtrt_bridge.errors import CalibrationError


def net(seed: int = 3) -> nn.Module:
    torch.manual_seed(seed)
    return trained(ConvNet())


DATA = loader(4, 3, 8, 8)
X = torch.randn(4, 3, 8, 8)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "folder" / "calibration.json"


OPTIONS: dict[str, dict[str, Any]] = {
    "auto": {"table": False},
    "plain": PLAIN,
    "layers in floating point": {"table": False, "max_error": 1e-4, "sensitivity": True},
    "fp8": {"table": False, "dtype": "fp8"},
}


@pytest.mark.parametrize("options", OPTIONS)
def test_a_rebuild_needs_no_data(options: str, path: Path) -> None:
    first = trtb.quantize(net(), DATA, calibration=path, **OPTIONS[options])
    again = trtb.quantize(net(), calibration=path, **OPTIONS[options])
    torch.testing.assert_close(again(X), first(X), rtol=0, atol=0)
    after, before = again.quantization.to_dict(), first.quantization.to_dict()
    assert {**after, "notes": []} == {**before, "notes": []}


def test_a_file_that_has_it_all_leaves_the_loader_unread(path: Path) -> None:
    quantized(net(), DATA, calibration=path)

    def unread() -> Any:
        raise AssertionError("read")
        yield

    assert quantized(net(), unread(), calibration=path).quantization.quantized == 2


def test_another_method_takes_its_ranges_from_the_file(path: Path) -> None:
    quantized(net(), DATA, calibration=path, method="absmax")
    again = quantized(net(), None, calibration=path, method="mse")
    direct = quantized(net(), DATA, method="mse")
    torch.testing.assert_close(again(X), direct(X), rtol=0, atol=0)


@pytest.mark.full
def test_attention_switched_on_needs_the_loader(path: Path) -> None:
    """The model is the same, and its attention is decomposed in one of the two."""
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    data = [torch.randn(2, 4, 8) for _ in range(2)]
    for attention in (False, True, False):
        found = quantized(layer, data, calibration=path, attention=attention)
        assert (found.quantization.quantized > 4) is attention


def test_what_must_be_measured_anew_needs_the_loader(path: Path) -> None:
    quantized(net(), DATA, calibration=path)
    with pytest.raises(CalibrationError, match="does not have what these settings need"):
        trtb.quantize(net(), calibration=path, table=False)
    assert trtb.quantize(net(), DATA, calibration=path, table=False).quantization.tried
    assert trtb.quantize(net(), calibration=path, table=False).quantization.tried


def test_the_model_may_be_called_with_names(path: Path) -> None:
    class Two(nn.Linear):
        def forward(self, x: torch.Tensor, more: dict[str, torch.Tensor], flag: bool = False) -> torch.Tensor:
            return super().forward(x + more["y"] if flag else x)

    torch.manual_seed(0)
    model, batches = Two(8, 4), [{"x": x, "more": {"y": x * 2}, "flag": True} for x in loader(3, 8)]
    first = quantized(model, batches, calibration=path)
    again = quantized(model, None, calibration=path)
    torch.testing.assert_close(again(**batches[0]), first(**batches[0]), rtol=0, atol=0)


@pytest.mark.parametrize("change", ["weights", "graph"])
def test_another_model_s_file_is_refused(change: str, path: Path) -> None:
    quantized(net(), DATA, calibration=path)
    other = net(4) if change == "weights" else nn.Sequential(net(), nn.ReLU())
    with pytest.raises(CalibrationError, match=r"another graph or other weights.*Delete the file"):
        quantized(other, DATA, calibration=path)


BROKEN = {
    "no JSON": ("{", "cannot be read"),
    "another format": ('{"format": "something"}', "no calibration file of this version"),
    "a list": ("[]", "no calibration file"),
    "missing parts": ('{"format": "torchtrt_bridge calibration 1", "digest": "0"}', "is damaged"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_damaged_file_is_refused(kind: str, tmp_path: Path) -> None:
    content, message = BROKEN[kind]
    path = tmp_path / "calibration.json"
    path.write_text(content)
    with pytest.raises(CalibrationError, match=message):
        quantized(net(), DATA, calibration=path)
    assert path.read_text() == content


def of_statistics(name: str, value: Any) -> Any:
    return lambda content: next(iter(content["statistics"].values())).update({name: value})


def of_choice(name: str, value: Any) -> Any:
    return lambda content: content["found"]["choice"].update({name: value})


def of_example(shape: Any, dtype: Any = "float32") -> Any:
    return lambda content: content.update(example=[[{"tensor": [shape, dtype]}], {"dict": {}}])


def scaled(factor: float) -> Any:
    """Multiply all that statistics say of values, so that these fit each other."""

    def change(content: dict[str, Any]) -> None:
        for each in content["statistics"].values():
            for name in ("absmax", "moving", "limit"):
                each[name] *= factor
            for name in ("channel_max", "channel_sum"):
                each[name] = each[name] and [value * factor for value in each[name]]

    return change


INFINITY, NAN = float("inf"), float("nan")
ODD: dict[str, tuple[Any, str]] = {
    **{
        f"{name} {value}": (of_statistics(name, value), "statistics are damaged")
        for name in ("absmax", "moving", "limit")
        for value in (INFINITY, 1e300, NAN, -1.0, 0.0, None, "x", [], 10**400)
    },
    **{f"batches {value}": (of_statistics("batches", value), "statistics are damaged") for value in (0, -1, 1.5, None)},
    **{
        f"counts {kind}": (of_statistics("counts", value), "statistics are damaged")
        for kind, value in {
            "short": [1.0],
            "none": None,
            "NaN": [NAN] * 4096,
            "negative": [-1.0] * 4096,
            "zero": [0.0] * 4096,
            "ragged": [[1.0], [1.0, 2.0]],
        }.items()
    },
    "all infinite": (scaled(INFINITY), "statistics are damaged"),
    "all huge": (scaled(1e300), "statistics are damaged"),
    "all negative": (scaled(-1.0), "statistics are damaged"),
    "all NaN": (scaled(NAN), "statistics are damaged"),
    "channels of another dimension": (of_statistics("channel_dim", 3), "statistics are damaged"),
    "channels by name": (of_statistics("channel_dim", "x"), "statistics are damaged"),
    "fewer channels": (
        lambda c: [each.update(channel_max=[each["absmax"]], channel_sum=[0.0]) for each in c["statistics"].values()],
        "statistics are damaged: they are of 1 channels",
    ),
    "statistics a list": (lambda c: c.update(statistics=[]), "'statistics' of the file"),
    "statistics null": (lambda c: c.update(statistics={"x": None}), "'statistics' of the file"),
    "digest null": (lambda c: c.update(digest=None), "'digest' of the file"),
    "settings a number": (lambda c: c.update(settings=3), "'settings' of the file"),
    "found null": (lambda c: c.update(found=None), "'found' of the file"),
    "another field": (lambda c: c.update(hook=1), "unknown field 'hook'"),
    "choice null": (lambda c: c["found"].update(choice=None), "choice is damaged"),
    "method": (of_choice("method", "other"), "choice is damaged: 'method'"),
    "alpha": (of_choice("alpha", "x"), "choice is damaged: 'alpha'"),
    "layers": (of_choice("kept", [[]]), "choice is damaged: 'float_layers'"),
    "tried": (lambda c: c["found"].update(tried={"x": "y"}), "choice is damaged: 'tried'"),
    "example a list": (lambda c: c.update(example=[]), "arguments are damaged"),
    "example null": (lambda c: c.update(example=[None, None]), "arguments are damaged"),
    "keywords a list": (lambda c: c.update(example=[[], []]), "arguments are damaged"),
    "shape huge": (of_example([10**12]), "arguments are damaged"),
    "shape negative": (of_example([-1]), "arguments are damaged"),
    "shape a float": (of_example([1.5]), "arguments are damaged"),
    "shape null": (of_example(None), "arguments are damaged"),
    "dtype a function": (of_example([2], "load"), "arguments are damaged"),
    "another rank": (of_example([2]), "arguments that ConvNet does not take"),
    "another width": (of_example([4, 5, 8, 8]), "arguments that ConvNet does not take"),
    "no arguments": (lambda c: c.update(example=[[], {"dict": {}}]), "arguments that ConvNet does not take"),
}


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("calibration") / "calibration.json"
    quantized(net(), DATA, calibration=path)
    return path.read_text()


@pytest.mark.first(10)
@pytest.mark.parametrize("kind", ODD)
def test_an_odd_file_is_refused(kind: str, content: str, tmp_path: Path) -> None:
    change, message = ODD[kind]
    path, fields = tmp_path / "calibration.json", json.loads(content)
    change(fields)
    path.write_text(json.dumps(fields))
    with pytest.raises(CalibrationError, match=f"(?s){message}"):
        quantized(net(), DATA, calibration=path)


@pytest.mark.parametrize(
    "text", ["[" * 100_000, '{"format": "torchtrt_bridge calibration 1", "example": ' + "[" * 100_000]
)
def test_a_deep_file_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "calibration.json"
    path.write_text(text)
    with pytest.raises(CalibrationError, match="cannot be read"):
        quantized(net(), DATA, calibration=path)


def test_deep_arguments_are_refused(content: str, tmp_path: Path) -> None:
    path, fields = tmp_path / "calibration.json", json.loads(content)
    nested: list[Any] = []
    for _ in range(900):
        nested = [nested]
    path.write_text(json.dumps({**fields, "example": nested}))
    with pytest.raises(CalibrationError, match="arguments are damaged"):
        quantized(net(), DATA, calibration=path)


def test_the_file_keeps_its_mode(path: Path) -> None:
    quantized(net(), DATA, calibration=path)
    path.chmod(0o640)
    path.write_text(path.read_text())
    trtb.quantize(net(), DATA, calibration=path, table=False)
    assert path.stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize("part", ["statistics", "found", "example"])
def test_damaged_content_is_refused(part: str, path: Path) -> None:
    quantized(net(), DATA, calibration=path)
    content = json.loads(path.read_text())
    content[part] = {"x": {"absmax": 1}} if part == "statistics" else {"choice": {}} if part == "found" else 3
    path.write_text(json.dumps(content))
    with pytest.raises(CalibrationError, match="damaged"):
        quantized(net(), DATA, calibration=path)


def test_a_path_that_cannot_be_written_is_reported(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CalibrationError, match="cannot be written"):
        quantized(net(), DATA, calibration=tmp_path / "file" / "calibration.json")


def test_a_failure_leaves_the_old_file(path: Path) -> None:
    quantized(net(), DATA, calibration=path)
    before = path.read_bytes()
    broken = iter([DATA[0], torch.full((4, 3, 8, 8), float("nan"))])
    with pytest.raises(CalibrationError, match="NaN"):
        trtb.quantize(net(), broken, calibration=path, table=False)
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == [path.name]
