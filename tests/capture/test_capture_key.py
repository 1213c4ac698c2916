"""Key of a captured graph: graphs share one only if their captures are the same."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import fx, nn
from torch.fx.experimental import _config as size_settings

from torchtrt_bridge.capture import capture_key as keys
from torchtrt_bridge.capture import dynamo
from torchtrt_bridge.capture.capture_key import capture_key


def key_of(function: Any, *args: Any, dynamic: bool | None = None) -> str | None:
    """Return the key of the one graph that Dynamo makes of a call."""
    found: list[str | None] = []

    def backend(module: fx.GraphModule, inputs: list[Any]) -> Callable[..., Any]:
        weights, numbers = dynamo.weight_positions(module, inputs), dynamo.number_positions(module, inputs)
        found.append(capture_key(module, inputs, weights, numbers))
        return module.forward

    torch._dynamo.reset()
    with torch.no_grad():
        torch.compile(function, backend=backend, dynamic=dynamic)(*args)
    (key,) = found
    return key


def square() -> torch.Tensor:
    return torch.randn(4, 4)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (lambda x: x.softmax(0), lambda x: x.softmax(1)),
        (lambda x: x - x.sin(), lambda x: x.sin() - x),
        (lambda x: x.clamp(0, 1), lambda x: x.clamp(0, 6)),
        (lambda x: x * 0.1, lambda x: x * 0.10000001),
        (lambda x: x.to(torch.float16), lambda x: x.to(torch.bfloat16)),
        (lambda x: torch.nn.functional.gelu(x), lambda x: torch.nn.functional.gelu(x, approximate="tanh")),
        (lambda x: x[1:], lambda x: x[:-1]),
        (lambda x: (x.sin(), x.cos()), lambda x: (x.cos(), x.sin())),
        (lambda x: x + torch.tensor([1.0, 2, 3, 4]), lambda x: x + torch.tensor([1.0, 2, 3, 5])),
    ],
    ids=["dim", "operands", "limits", "a digit", "dtype", "keyword", "slice", "results", "constant"],
)
def test_another_computation_has_another_key(one: Any, other: Any) -> None:
    x = square()
    assert key_of(one, x) == key_of(one, x)
    assert key_of(one, x) != key_of(other, x)


def test_another_source_line_has_another_key() -> None:
    """The report names the lines."""

    def one(x: torch.Tensor) -> torch.Tensor:
        return x.relu()

    def other(x: torch.Tensor) -> torch.Tensor:
        return x.relu()

    assert key_of(one, square()) != key_of(other, square())


INPUTS: dict[str, Callable[[], torch.Tensor]] = {
    "shape": lambda: torch.randn(4, 5),
    "stride": lambda: torch.randn(4, 4).t(),
    "dtype": lambda: torch.randn(4, 4, dtype=torch.float64),
    "offset": lambda: torch.randn(5, 4)[1:],
    "gradients": lambda: torch.randn(4, 4, requires_grad=True),
    "conjugate": lambda: torch.randn(4, 4, dtype=torch.complex64).conj(),
}


@pytest.mark.parametrize("name", INPUTS)
def test_another_kind_of_input_has_another_key(name: str) -> None:
    assert key_of(torch.sin, INPUTS[name]()) != key_of(torch.sin, square())


def test_inputs_of_one_memory_have_another_key() -> None:
    x = torch.randn(2, 4, 4)
    assert key_of(torch.add, x[0], square()) != key_of(torch.add, x[0], x[0].view(16).view(4, 4))


def test_values_of_weights_are_not_in_the_key_and_their_shapes_are() -> None:
    assert key_of(linear(4), square()) == key_of(linear(4), square())
    assert key_of(linear(4), square()) != key_of(linear(5), square())
    assert key_of(linear(4), square()) != key_of(linear(4).requires_grad_(False), square())


def linear(size: int) -> nn.Module:
    return nn.Linear(4, size).eval()


def test_numbers_are_in_the_key() -> None:
    def scaled(x: torch.Tensor, count: int, scale: float) -> torch.Tensor:
        return x.relu()[:, -count:] * scale

    x = square()
    torch._dynamo.mark_static(x)
    found = {key_of(scaled, x, *numbers, dynamic=True) for numbers in ((2, 0.5), (3, 0.5), (2, 0.25), (2, 0.5))}
    assert len(found - {None}) == 3


def free(dim: int | None = 0, **limits: int) -> torch.Tensor:
    """Return a square of which one dimension is free."""
    x = square()
    if dim is not None:
        torch._dynamo.mark_dynamic(x, dim, **limits)
    return x


def pair(x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return x.sin(), y.cos()


SIZES: dict[str, Callable[[], tuple[torch.Tensor, torch.Tensor]]] = {
    "none": lambda: (free(None), free(None)),
    "another dimension": lambda: (free(1), free()),
    "one more": lambda: (free(), free(None)),
    "a range": lambda: (free(min=2, max=64), free()),
    "another smallest size": lambda: (free(min=3, max=64), free()),
    "another largest size": lambda: (free(min=2, max=65), free()),
    "another size in the example": lambda: (torch.cat([free(None)] * 2), free()),
}


def test_free_sizes_and_their_ranges_are_in_the_key() -> None:
    keys = [key_of(pair, *make()) for make in ((lambda: (free(), free())), *SIZES.values())]
    assert None not in keys
    assert len(set(keys)) == len(keys)
    assert keys == [key_of(pair, *make()) for make in ((lambda: (free(), free())), *SIZES.values())]


def test_sizes_that_are_equal_have_another_key_than_those_that_happen_to_be() -> None:
    equal, apart = (key_of(pair, free(dim), free(None), dynamic=True) for dim in (None, 0))
    assert None not in (equal, apart)
    assert equal != apart


def test_a_number_that_is_no_size_is_in_the_key() -> None:
    def counting(x: torch.Tensor, count: int) -> tuple[torch.Tensor, int]:
        return x.sin(), x.shape[0] * count

    keys = [key_of(counting, square(), count, dynamic=True) for count in (5, 6, 5)]
    assert None not in keys
    assert keys[0] == keys[2] != keys[1]


@contextlib.contextmanager
def default_dtype() -> Any:
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


@contextlib.contextmanager
def deterministic() -> Any:
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


@contextlib.contextmanager
def attribute(owner: Any, name: str, value: Any) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, name, value)
        yield


SETTINGS: dict[str, Callable[[], Any]] = {
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "default dtype": default_dtype,
    "inference mode": torch.inference_mode,
    "deterministic": deterministic,
    "sizes that are equal by chance": lambda: size_settings.patch(use_duck_shape=False),
    "attention": lambda: torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH),
    "order of products": lambda: attribute(torch.backends.opt_einsum, "is_available", lambda: "changed"),
    "PyTorch's version": lambda: attribute(torch, "__version__", "2.99"),
    "source of this package": lambda: attribute(keys, "source_digest", lambda: "changed"),
    "a converter": lambda: attribute(keys, "CONVERTERS", {}),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_other_settings_have_another_key(name: str) -> None:
    module = fx.symbolic_trace(lambda x: torch.relu(x))
    args = [square()]
    before = capture_key(module, args, [], [])
    with SETTINGS[name]():
        other = capture_key(module, args, [], [])
    assert other != before
    assert capture_key(module, args, [], []) == before


class Subclass(torch.Tensor):
    pass


@torch.library.custom_op("torchtrt_bridge_tests::cached", mutates_args=())
def custom(x: torch.Tensor) -> torch.Tensor:
    return x.sin()


@custom.register_fake
def _(x: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(x)


@torch.compiler.allow_in_graph
def opaque(x: torch.Tensor) -> torch.Tensor:
    return x.sin()


def branches(x: torch.Tensor) -> torch.Tensor:
    return torch.cond(x.sum() > 0, torch.sin, torch.cos, (x,))


def unbacked() -> torch.Tensor:
    x = square()
    torch._dynamo.decorators.mark_unbacked(x, 0)
    return x


def hinted() -> torch.Tensor:
    x = square()
    torch._dynamo.mark_dynamic(x, 0, hint_override=16)
    return x


WITHOUT_KEY: dict[str, tuple[Any, torch.Tensor, bool | None]] = {
    "a size that depends on data": (torch.sin, unbacked(), None),
    "a size for the trace alone": (torch.sin, hinted(), None),
    "a custom operator": (custom, square(), None),
    "a function of the user's": (opaque, square(), None),
    "graphs in the graph": (branches, square(), None),
    "a subclass": (torch.sin, square().as_subclass(Subclass), None),
}


@pytest.mark.parametrize("name", WITHOUT_KEY)
def test_a_graph_whose_code_may_change_has_no_key(name: str) -> None:
    function, x, dynamic = WITHOUT_KEY[name]
    assert key_of(lambda x: function(x) * 2, x, dynamic=dynamic) is None


@pytest.mark.parametrize(
    "value",
    [square().to_sparse(), torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]), 4],
    ids=["sparse", "nested", "size"],
)
def test_only_dense_tensors_have_a_key(value: Any) -> None:
    module = fx.symbolic_trace(lambda x: torch.neg(x))
    assert capture_key(module, [square()], [], []) is not None
    assert capture_key(module, [value], [], []) is None
