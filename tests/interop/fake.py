"""Operators without a converter here, and a registry like torch_tensorrt's that has converters for them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import torch

import torchtrt_bridge as trtb
from torchtrt_bridge.interop.torch_tensorrt import PeerLibrary
from torchtrt_bridge.trt import library as libraries

NAMESPACE = "torchtrt_bridge_tests"


@torch.library.custom_op(f"{NAMESPACE}::cube", mutates_args=())
def cube(x: torch.Tensor) -> torch.Tensor:
    return x * x * x


@cube.register_fake
def _(x: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(x)


@torch.library.custom_op(f"{NAMESPACE}::square_and_cube", mutates_args=())
def square_and_cube(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return x * x, x * x * x


@square_and_cube.register_fake
def _(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.empty_like(x), torch.empty_like(x)


@torch.library.custom_op(f"{NAMESPACE}::times", mutates_args=())
def times(x: torch.Tensor, weight: torch.Tensor, number: int) -> torch.Tensor:
    return x * weight * number


@times.register_fake
def _(x: torch.Tensor, weight: torch.Tensor, number: int) -> torch.Tensor:
    return torch.empty_like(x)


OPS = getattr(torch.ops, NAMESPACE)
CUBE, SQUARE_AND_CUBE, TIMES = OPS.cube.default, OPS.square_and_cube.default, OPS.times.default


@dataclasses.dataclass
class Context:
    """Context that a converter takes, with the fields that the tests use."""

    net: Any
    compilation_settings: Any
    requires_output_allocator: bool = False


@dataclasses.dataclass
class Support:
    """Entry of the registry."""

    converter_implementation: Callable[..., Any]
    capability_validator: Callable[[Any, Any], bool] = lambda node, settings: True
    supports_dynamic_shapes: bool = True
    requires_output_allocator: bool = False


def library(supports: dict[Any, Sequence[Support]], version: str = "2.11.0", network_type: Any = None) -> PeerLibrary:
    network_type = network_type or libraries.load("tensorrt_rtx").trt.INetworkDefinition
    return PeerLibrary(version, network_type, supports, Context, dict)


def trt() -> Any:
    return libraries.load("tensorrt_rtx").trt


def product(ctx: Context, left: Any, right: Any) -> Any:
    return ctx.net.add_elementwise(left, right, trt().ElementWiseOperation.PROD).get_output(0)


def write_cube(ctx: Context, target: Any, args: Any, kwargs: Any, name: str) -> Any:
    return product(ctx, product(ctx, args[0], args[0]), args[0])


def write_square_and_cube(ctx: Context, target: Any, args: Any, kwargs: Any, name: str) -> Any:
    square = product(ctx, args[0], args[0])
    return square, product(ctx, square, args[0])


def write_square_alone(ctx: Context, target: Any, args: Any, kwargs: Any, name: str) -> Any:
    return product(ctx, args[0], args[0]), None


def write_times(ctx: Context, target: Any, args: Any, kwargs: Any, name: str) -> Any:
    """Multiply by a constant weight with one dimension less than `x`, and write into that weight."""
    x, weight, number = args
    weight.mul_(number)
    constant = ctx.net.add_constant((1, *weight.shape), trt().Weights(weight.numpy())).get_output(0)
    return product(ctx, x, constant)


def x_of(*shape: int) -> torch.Tensor:
    return torch.randn(*(shape or (3, 4)))


def call(x: torch.Tensor) -> torch.Tensor:
    """Compute an operator without a converter here, between two that have one."""
    return cube(x.sin()).exp()


def export(model: Any = call, *args: Any, **options: Any) -> Any:
    return trtb.export(model, args or (x_of(),), **{"engine": "reference", **options})
