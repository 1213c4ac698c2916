"""Complex numbers as pairs of reals: what the graph computes, and what is left complex."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import torchtrt_bridge as trtb
from tests.llama import Llama, frequencies
from tests.passes.case import Called, calls, passed
from torchtrt_bridge.capture.export import export_program, graph_from_program
from torchtrt_bridge.graph.views import AT_BORDER
from torchtrt_bridge.options import Options
from torchtrt_bridge.partition import propose
from torchtrt_bridge.passes import normalize
from torchtrt_bridge.passes.cleanup import drop_metadata_checks
from torchtrt_bridge.passes.complex_pairs import use_complex_pairs

aten = torch.ops.aten
ON_CPU = {"engine": "reference", "cache_dir": ""}
# Every combination of these is a complex number, so that each product of an infinity is among the tests.
NUMBERS = torch.tensor([0.0, 1.0, -2.5, math.inf, -math.inf, math.nan])
GRID = torch.complex(*torch.meshgrid(NUMBERS, NUMBERS, indexing="ij")).flatten()


def given(*shape: int) -> torch.Tensor:
    """Return the real and imaginary parts of a complex tensor, in the last dimension."""
    return torch.randn(*(shape or (3, 4)), 2)


def complex_nodes(module: torch.fx.GraphModule) -> list[torch.fx.Node]:
    values = [(node, node.meta.get("val")) for node in module.graph.nodes]
    return [node for node, value in values if isinstance(value, torch.Tensor) and value.is_complex()]


def in_pairs(function: Callable[..., Any], x: torch.Tensor) -> torch.fx.GraphModule:
    """Return the graph of a function of one complex tensor, whose result is real; compare what it computes."""

    def model(x: torch.Tensor) -> Any:
        result = function(torch.view_as_complex(x))
        return torch.view_as_real(result) if result.is_complex() else result

    module = passed(model, x, drop_metadata_checks, use_complex_pairs)
    torch.testing.assert_close(module(x)[0], model(x), equal_nan=True)
    return module


W = torch.randn(3, 4, dtype=torch.complex64)
REAL = torch.randn(3, 4)

FUNCTIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "product": lambda z: z * W,
    "product with a real tensor": lambda z: z * REAL,
    "real tensor times": lambda z: REAL * z,
    "product with integers": lambda z: z * torch.arange(4),
    "product with a number": lambda z: z * 3,
    "product with i": lambda z: z * 1j,
    "broadcast": lambda z: z[:, None] * W[:1, None, :],
    "square": lambda z: z * z,
    "sum": lambda z: z + W,
    "sum with a real tensor": lambda z: z + REAL,
    "real tensor plus": lambda z: REAL[0, 0] + z,
    "broadcast real tensor plus": lambda z: REAL[:, None] + z[0],
    "sum with a number": lambda z: z + 2,
    "sum with a complex number": lambda z: z + (1 - 2j),
    "real tensor plus a complex number": lambda z: z.real + (1 - 2j),
    "alpha": lambda z: torch.add(z, W, alpha=0.5),
    "difference": lambda z: z - W,
    "number minus": lambda z: 2 - z,
    "real tensor minus": lambda z: REAL - z,
    "negative": lambda z: -z,
    "conjugate": lambda z: z.conj() * z,
    "resolved conjugate": lambda z: z.conj().resolve_conj(),
    "physical conjugate": lambda z: torch.conj_physical(z),
    "real part": lambda z: z.real,
    "imaginary part": lambda z: z.imag,
    "imaginary part of a conjugate": lambda z: z.conj().imag,
    "absolute value": torch.abs,
    "angle": torch.angle,
    "of parts": lambda z: torch.complex(z.real, z.imag + 1),
    "of parts to be broadcast": lambda z: torch.complex(z.real, z.imag[:1]),
    "polar": lambda z: torch.polar(z.real, z.imag),
    "cast": lambda z: z.real.to(torch.complex64) * z,
    "copied": lambda z: z.clone().to(torch.complex64, copy=True),
    "where": lambda z: torch.where(z.real > 0, z, W),
    "reshape": lambda z: z.reshape(2, -1),
    "flatten": lambda z: z.flatten(),
    "view": lambda z: z.view(4, 3),
    "unsqueeze": lambda z: z.unsqueeze(-1) * W[:, :, None],
    "squeeze": lambda z: z[:, None].squeeze(-2),
    "expand": lambda z: z.expand(2, 3, 4),
    "repeat": lambda z: z.repeat(1, 2),
    "permute": lambda z: z[None].permute(2, 0, 1),
    "transpose": lambda z: z.transpose(-1, -2),
    "adjoint": lambda z: z.mH.resolve_conj(),
    "slice": lambda z: z[:, 1:-1:2],
    "select": lambda z: z[..., -1],
    "cat": lambda z: torch.cat([z, W], -1),
    "stack": lambda z: torch.stack([z, W], -1),
    "split": lambda z: z.split(2, -1)[1] * z.chunk(2, -1)[0],
    "unbind": lambda z: z.unbind(-1)[2],
    "flip": lambda z: z.flip(-1),
    "roll": lambda z: z.roll(1, -1),
    "index": lambda z: z[torch.tensor([2, 0])],
    "index of the last": lambda z: z[:, torch.tensor([2, 0])],
    "index_select": lambda z: z.index_select(-1, torch.tensor([2, 0])),
}


@pytest.mark.first(15)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_no_complex_tensor_is_left(name: str) -> None:
    module = in_pairs(FUNCTIONS[name], given())
    assert complex_nodes(module) == []
    assert propose(module, Options()).rejections == []


PRODUCTS: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "product": lambda z, w: z * w,
    "product with a real tensor": lambda z, w: z * w.real,
    "real tensor times": lambda z, w: z.real * w,
    "product with a number": lambda z, w: z * 0,
    "product with i": lambda z, w: z * 1j,
    "sum": lambda z, w: z + w,
    "sum with a real tensor": lambda z, w: z + w.real,
    "real tensor plus": lambda z, w: z.real + w,
    "difference": lambda z, w: z - w,
    "number minus": lambda z, w: 2 - z + w * 0,
    "absolute value": lambda z, w: z.abs() + w.abs(),
    "angle": lambda z, w: z.angle(),
    "polar": lambda z, w: torch.polar(z.real, w.real),
}


@pytest.mark.parametrize("name", PRODUCTS)
def test_infinities_and_nan_are_those_of_pytorch(name: str) -> None:
    function = PRODUCTS[name]
    x = torch.view_as_real(torch.stack([*torch.meshgrid(GRID, GRID, indexing="ij")]).contiguous())
    in_pairs(lambda z: function(z[0], z[1]), x)


LEFT: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "fft": lambda z: torch.fft.fft(z * W) * W,
    "real fft": lambda z: torch.fft.irfft(torch.fft.rfft(z.real) * W[:, :3]),
    "quotient": lambda z: z / W * W,
    "exponential": lambda z: torch.exp(z) * W,
    "unequal ranks": lambda z: torch.cat([z * W, torch.fft.fft(z).conj()]) * 2,
    "a part that is left, and its pieces": lambda z: torch.fft.fft(z).split(2, 1)[1] * 2,
}


@pytest.mark.parametrize("name", LEFT)
def test_what_has_no_rule_stays_complex_between_views(name: str) -> None:
    module = in_pairs(LEFT[name], given())
    left = [node for node in module.graph.nodes if node.op == "call_function" and not node.meta.get(AT_BORDER)]
    touching = {n.target for n in left if n in complex_nodes(module) or {*n.all_input_nodes} & {*complex_nodes(module)}}
    assert touching
    assert aten.mul.Tensor not in touching
    assert aten.view_as_complex.default not in touching


def test_complex128_stays_in_pytorch() -> None:
    def model(x: torch.Tensor) -> torch.Tensor:
        return torch.view_as_real(torch.view_as_complex(x).conj() * 2)

    module = passed(model, given().double(), use_complex_pairs)
    assert aten.view_as_complex.default in calls(module)
    assert module(given().double())[0].dtype == torch.float64


# Llama's reference code ----------------------------------------------------------------------------------------


def assert_whole(fast: Any, tolerance: float, model: nn.Module, *calls: tuple[torch.Tensor, ...]) -> None:
    with torch.no_grad():
        for args in calls:
            torch.testing.assert_close(fast(*args), model(*args), rtol=tolerance, atol=tolerance)
    report = trtb.report(fast)
    assert report.is_whole, str(report)


TOLERANCES = {"fp32": 1e-5, "fp16": 2e-2}


@pytest.mark.first(2)
@pytest.mark.parametrize("precision", TOLERANCES)
@pytest.mark.parametrize("is_dynamic", [False, True], ids=["static", "dynamic"])
@pytest.mark.parametrize("kind", ["attribute", "buffer"])
def test_compiled_llama_is_whole(kind: str, is_dynamic: bool, precision: Any) -> None:
    model = Llama(kind).eval()
    fast = trtb.compile(model, dynamic=is_dynamic, precision=precision, **ON_CPU)
    lengths = (6, 9) if is_dynamic else (6, 6)
    assert_whole(fast, TOLERANCES[precision], model, *[(torch.randn(2, length, 16),) for length in lengths])


@pytest.mark.first(1)
@pytest.mark.parametrize("precision", TOLERANCES)
@pytest.mark.parametrize("is_dynamic", [False, True], ids=["static", "dynamic"])
def test_exported_llama_is_whole(is_dynamic: bool, precision: Any) -> None:
    model = Llama("buffer").eval()
    length = {1: torch.export.Dim("length", min=2, max=32)} if is_dynamic else None
    shapes = {"x": length} if is_dynamic else None
    args = (torch.randn(2, 6, 16),)
    fast = trtb.export(model, args, dynamic_shapes=shapes, precision=precision, **ON_CPU)
    lengths = (6, 9) if is_dynamic else (6,)
    assert_whole(fast, TOLERANCES[precision], model, *[(torch.randn(2, length, 16),) for length in lengths])


@pytest.mark.parametrize("is_conjugate", [False, True], ids=["plain", "conjugate"])
def test_rotations_as_an_argument(is_conjugate: bool) -> None:
    """A conjugate that the caller gives is a lazy one."""
    model = Llama().eval()
    rotations = frequencies(8, 6)
    fast = trtb.export(model, (torch.randn(2, 6, 16), rotations), **ON_CPU)
    given = rotations.conj() if is_conjugate else rotations
    assert_whole(fast, 1e-5, model, (torch.randn(2, 6, 16), given))


def test_complex_results_are_complex() -> None:
    class Model(nn.Module):
        def forward(self, z: torch.Tensor) -> Any:
            w = z * (1 + 2j)
            return w, w.conj(), w.real, w.mT, z.conj()

    model, z = Model(), torch.randn(3, 4, dtype=torch.complex64)
    fast = trtb.compile(model, **ON_CPU)
    found, expected = fast(z), model(z)
    torch.testing.assert_close(found, expected)
    assert [value.is_conj() for value in found] == [value.is_conj() for value in expected]
    assert [value.stride() for value in found] == [value.stride() for value in expected]
    found[2].fill_(1)
    torch.testing.assert_close(found[0].real, found[2])
    report = trtb.report(fast)
    assert report.is_whole, str(report)


def test_complex_results_have_the_tolerance_of_floats() -> None:
    """Rounding in fp16 moves each of them."""
    model = nn.Sequential(nn.Linear(8, 8), Called(lambda x: torch.view_as_complex(x.view(-1, 4, 2)) * 2j)).eval()
    fast = trtb.compile(model, precision="fp16", **ON_CPU)
    x = torch.randn(3, 8)
    with torch.no_grad():
        torch.testing.assert_close(fast(x), model(x), rtol=1e-2, atol=1e-2)
    report = trtb.report(fast)
    assert report.is_whole, str(report)
    assert report.error


def test_a_buffer_that_the_model_writes_to() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("state", torch.ones(4, dtype=torch.complex64))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.state.mul_(torch.view_as_complex(x))
            return self.state.abs()

    model, other = Model(), Model()
    fast = trtb.compile(model, **ON_CPU)
    for _ in range(3):
        x = given(4)
        torch.testing.assert_close(fast(x), other(x))
    torch.testing.assert_close(model.state, other.state)


def test_dynamic_sizes_of_parts_that_are_broadcast() -> None:
    class Model(nn.Module):
        def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            return torch.view_as_real(torch.complex(x[:, None], y[None])) + torch.view_as_real(x[:, None] + 1j * y)

    args = torch.randn(3), torch.randn(5)
    shapes = ({0: torch.export.Dim.AUTO}, {0: torch.export.Dim.AUTO})
    captured = graph_from_program(export_program(Model(), args, dynamic_shapes=shapes))
    module = normalize(captured.module, Options())
    assert complex_nodes(module) == []
    for sizes in ((3, 5), (4, 7)):
        inputs = [torch.randn(size) for size in sizes]
        torch.testing.assert_close(module(*inputs)[0], Model()(*inputs))
