"""The operators of a quantized graph: their results, and PyTorch's export of them as single nodes."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.quantize.by_hand import FP8, INT8, net, own
from torchtrt_bridge.graph.ops import LARGEST, pack_int4, unpack_int4

FLOATS = [torch.float32, torch.float16, torch.bfloat16]
OPS = (own.quantize.default, own.dequantize.default, own.dequantize_int4.default)


def one(value: float) -> torch.Tensor:
    return torch.tensor([value])


# What they compute -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_halves_are_rounded_to_even_and_the_range_is_asymmetric(dtype: torch.dtype) -> None:
    x = torch.tensor([0.25, 0.75, 1.25, -0.25, -0.75, 63.5, 64.0, 1e4, -63.5, -64.0, -1e4], dtype=dtype)
    expected = [0, 2, 2, 0, -2, 127, 127, 127, -127, -128, -128]
    assert own.quantize(x, one(0.5), None, INT8).tolist() == expected


def test_float8_rounds_to_even_and_saturates() -> None:
    x = torch.tensor([1.0625, 1.1875, 447.0, 1e6, -1e6])
    assert own.quantize(x, one(1.0), None, FP8).float().tolist() == [1.0, 1.25, 448, 448, -448]


@pytest.mark.parametrize("axis", [0, 1, -1])
@pytest.mark.parametrize("dtype", [INT8, FP8], ids=str)
def test_channels_are_quantized_each_by_its_scale(dtype: torch.dtype, axis: int) -> None:
    x = torch.randn(3, 4)
    scale = torch.rand(x.shape[axis]) + 0.01
    narrow = own.quantize(x, scale, axis, dtype)
    parts = [own.quantize(part, scale[i : i + 1], None, dtype) for i, part in enumerate(x.unbind(axis))]
    torch.testing.assert_close(narrow.float(), torch.stack(parts, axis).float(), rtol=0, atol=0)
    real = own.dequantize(narrow, scale, axis, torch.float32)
    wide = [own.dequantize(part, scale[i : i + 1], None, torch.float32) for i, part in enumerate(parts)]
    torch.testing.assert_close(real, torch.stack(wide, axis), rtol=0, atol=0)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_a_product_with_the_scale_is_rounded_once(dtype: torch.dtype) -> None:
    values = torch.arange(-128, 128).to(INT8)
    expected = (values.double() * one(0.0123).double()).float().to(dtype)
    torch.testing.assert_close(own.dequantize(values, one(0.0123), None, dtype), expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("dtype", [INT8, FP8], ids=str)
def test_what_is_quantized_already_stays(dtype: torch.dtype) -> None:
    x = torch.randn(64)
    scale = (x.abs().amax() / LARGEST[dtype]).reshape(1)
    there = own.quantize(x, scale, None, dtype)
    again = own.quantize(own.dequantize(there, scale, None, torch.float32), scale, None, dtype)
    assert torch.equal(again.float(), there.float())


def test_four_bits_are_packed_two_by_two() -> None:
    values = torch.arange(-8, 8, dtype=INT8).reshape(2, 8)
    packed = pack_int4(values)
    assert packed.shape == (2, 4)
    assert packed[1].tolist() == [0x10, 0x32, 0x54, 0x76]
    assert torch.equal(unpack_int4(packed), values)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_blocks_of_4_bits_have_scales_of_their_own(dtype: torch.dtype) -> None:
    values, scale = torch.randint(-8, 8, (3, 32), dtype=INT8), torch.rand(3, 2)
    expected = (values.float() * scale.to(dtype).float().repeat_interleave(16, 1)).to(dtype)
    assert torch.equal(own.dequantize_int4(pack_int4(values), scale, 16, dtype), expected)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda x: own.quantize(x, torch.ones(4), None, INT8), r"whole tensor has the shape \(1,\), not \(4,\)"),
        (lambda x: own.quantize(x, torch.ones(3), 1, INT8), r"along dimension 1 of \(3, 4\) .* \(4,\), not \(3,\)"),
        (lambda x: own.quantize(x, torch.ones(()), None, INT8), r"shape \(1,\), not \(\)"),
        (lambda x: own.quantize(x, torch.ones(1), None, torch.uint8), "torch.uint8 is none of"),
        (lambda x: own.quantize(x.double(), torch.ones(1), None, INT8), "torch.float64 is none of"),
        (lambda x: own.dequantize(x, torch.ones(1), None, torch.float32), "torch.float32 is none of"),
        (lambda x: own.dequantize(x.to(INT8), torch.ones(1), None, INT8), "torch.int8 is none of"),
        (lambda x: own.dequantize_int4(x.to(INT8), torch.ones(3, 1), 8, torch.float32), "uint8 pairs"),
        (lambda x: own.dequantize_int4(x.to(torch.uint8), torch.ones(3, 1), 3, torch.float32), "blocks of 3"),
        (lambda x: own.dequantize_int4(x.to(torch.uint8), torch.ones(3, 2), 8, torch.float32), r"shape \(3, 1\)"),
    ],
)
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_wrong_arguments_are_refused(call: Any, words: str, device: str) -> None:
    with pytest.raises(ValueError, match=words), torch.device(device):
        call(torch.ones(3, 4))


# Export, dynamo and files ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("op", "args"),
    [
        (OPS[0], (torch.randn(2, 3), one(0.1), None, INT8)),
        (OPS[0], (torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last), torch.ones(3), 1, FP8)),
        (OPS[1], (torch.randint(-128, 128, (2, 3), dtype=INT8), torch.ones(3), 1, torch.float16)),
        (OPS[2], (torch.randint(0, 256, (4, 8), dtype=torch.uint8), torch.ones(4, 1), 16, torch.bfloat16)),
    ],
    ids=["int8", "channels last", "dequantize", "int4"],
)
def test_fake_results_are_as_the_real_ones(op: Any, args: tuple[Any, ...]) -> None:
    torch.library.opcheck(op, args)


@pytest.mark.parametrize(("name", "count"), [("convolutions", 5 * 3 + 2), ("linear layers", 2 * 3)])
def test_an_exported_network_keeps_them_through_a_file(name: str, count: int) -> None:
    model, x = net(name)
    batch = {0: torch.export.Dim("batch", min=1, max=8)}
    program = torch.export.export(model, (x,), dynamic_shapes=(batch,)).run_decompositions()
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    loaded = torch.export.load(file)
    assert sum(node.target in OPS for node in loaded.graph.nodes) == count
    assert torch.equal(loaded.module()(x[:1]), model(x[:1]))


def test_dynamo_traces_them_whole() -> None:
    model, x = net("linear layers")
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    with torch.no_grad():
        assert torch.equal(compiled(x), model(x))


@pytest.mark.full
def test_a_saved_program_loads_where_the_package_was_only_used(tmp_path: Path) -> None:
    """A use of any public name registers the operators."""
    model, x = net("linear layers")
    torch.export.save(torch.export.export(model, (x,)), tmp_path / "model.pt2")
    script = "import torch, torchtrt_bridge as trtb; trtb.export; print(torch.export.load('model.pt2').graph)"
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, check=True, capture_output=True, text=True)
    assert "torchtrt_bridge.dequantize.default" in done.stdout


@pytest.mark.full
@pytest.mark.parametrize("module", ["graph.ops", "lower", "passes.drop_quantization"])
def test_each_part_registers_them_by_itself(module: str) -> None:
    script = f"import torch, torchtrt_bridge.{module}; torch.ops.torchtrt_bridge.dequantize_int4.default"
    subprocess.run([sys.executable, "-c", script], check=True)
