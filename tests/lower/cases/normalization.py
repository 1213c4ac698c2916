"""Normalization over the last dimensions, over groups of channels, and with stored statistics."""

import functools

import torch
import torch.nn.functional as F
from torch import nn

from tests.lower.case import Case, Rejected

aten = torch.ops.aten
layer, group, instance = aten.layer_norm.default, aten.group_norm.default, aten.instance_norm.default
rms = aten.rms_norm.default
batch = aten._native_batch_norm_legit_no_training.default
unstored = aten._native_batch_norm_legit.no_stats
native_layer, native_group = aten.native_layer_norm.default, aten.native_group_norm.default


def rows(n: int) -> tuple[torch.Tensor]:
    return (torch.randn(n, 6),)


def sequence(n: int) -> tuple[torch.Tensor]:
    return (torch.randn(n, 6, 9 + n),)


def tokens(n: int) -> tuple[torch.Tensor]:
    return (torch.randn(n, 3 + n, 8),)


def image(n: int) -> tuple[torch.Tensor]:
    return (torch.randn(n, 6, 9 + n, 5),)


def volume(n: int) -> tuple[torch.Tensor]:
    return (torch.randn(n, 6, 3, 4, 5),)


def trained(norm: nn.Module) -> nn.Module:
    """The module with weights and statistics unlike those that it starts with."""
    torch.manual_seed(0)
    for tensor in (*norm.parameters(), *norm.buffers()):
        if tensor.is_floating_point():
            nn.init.uniform_(tensor, 0.5, 1.5)
    return norm


def with_statistics(n: int) -> tuple[torch.Tensor, ...]:
    return *image(n), torch.randn(6), torch.rand(6) + 0.5


CASES: list[Case] = [
    Case(layer, trained(nn.LayerNorm(8)), tokens),
    Case(layer, trained(nn.LayerNorm(8, bias=False)), tokens, name="no-bias"),
    Case(layer, nn.LayerNorm(8, elementwise_affine=False, eps=1e-3), tokens, name="no-weight"),
    Case(layer, trained(nn.LayerNorm([5, 4])), lambda n: (torch.randn(n, 3, 5, 4),), name="two-dimensions"),
    Case(layer, trained(nn.LayerNorm(8)), lambda n: (torch.randn(8),), name="1d"),
    Case(
        layer,
        lambda x, w, b: F.layer_norm(x, [8], w, b),
        lambda n: (*tokens(n), torch.randn(8), torch.randn(8)),
        name="weights-at-run-time",
    ),
    Case(layer, nn.LayerNorm(8), lambda n: (100 + torch.randn(n, 8),), name="far-from-zero"),
    Case(group, trained(nn.GroupNorm(3, 6)), image),
    Case(group, nn.GroupNorm(1, 6, affine=False), image, name="one-group"),
    Case(group, trained(nn.GroupNorm(1, 6)), image, name="one-group-affine"),
    Case(group, trained(nn.GroupNorm(6, 6)), sequence, name="each-channel"),
    Case(group, trained(nn.GroupNorm(2, 6)), rows, name="2d"),
    Case(group, trained(nn.GroupNorm(2, 6)), volume, name="5d"),
    Case(
        group,
        lambda x, w, b: F.group_norm(x, 2, w, b),
        lambda n: (*image(n), torch.randn(6), torch.randn(6)),
        name="weights-at-run-time",
    ),
    Case(instance, trained(nn.InstanceNorm1d(6, affine=True)), sequence, name="1d"),
    Case(instance, nn.InstanceNorm2d(6), image, name="2d"),
    Case(instance, trained(nn.InstanceNorm2d(6, track_running_stats=True)), image, name="running"),
    Case(
        instance,
        trained(nn.InstanceNorm3d(6, affine=True, track_running_stats=True)),
        volume,
        name="running-affine",
    ),
    Case(rms, trained(nn.RMSNorm(8)), tokens),
    Case(
        rms,
        nn.RMSNorm([5, 4], eps=1e-3, elementwise_affine=False),
        lambda n: (torch.randn(n, 5, 4),),
        name="eps",
    ),
    Case(rms, nn.RMSNorm(8), lambda n: (1e-3 * torch.randn(n, 8),), name="small"),
    Case(aten.mul.Tensor, trained(nn.BatchNorm1d(6)), rows, name="batch-norm-2d"),
    Case(aten.mul.Tensor, trained(nn.BatchNorm1d(6)), sequence, name="batch-norm-1d"),
    Case(aten.mul.Tensor, trained(nn.BatchNorm2d(6, affine=False)), image, name="batch-norm"),
    Case(aten.mul.Tensor, trained(nn.BatchNorm3d(6)), volume, name="batch-norm-3d"),
    Case(batch, F.batch_norm, with_statistics),
    Case(
        batch,
        lambda x, mean, var, w, b: F.batch_norm(x, mean, var, w, b, eps=1e-3),
        lambda n: (*with_statistics(n), torch.randn(6), torch.randn(6)),
        name="affine",
    ),
    Case(unstored, lambda x: F.batch_norm(x, None, None, training=True), image),
    Case(unstored, nn.BatchNorm1d(6, track_running_stats=False), rows, name="module"),
    Case(unstored, lambda x: aten._native_batch_norm_legit.no_stats(x, None, None, True, 0.1, 1e-3), image, name="all"),
    Case(native_layer, lambda x: torch.native_layer_norm(x, x.shape[-1:], None, None, 1e-5), image),
    Case(
        native_layer,
        lambda x: torch.native_layer_norm(x, x.shape[1:], x[0] + 1, x[1], 1e-3),
        lambda n: (torch.randn(n, 6, 5),),
        name="affine",
    ),
    Case(
        native_group,
        lambda x: torch.native_group_norm(x, None, None, x.shape[0], 6, x.shape[2] * x.shape[3], 3, 1e-5),
        image,
    ),
    Case(
        native_group,
        lambda x: torch.native_group_norm(x, *x[:2, :, 0].contiguous(), x.shape[0], 6, x.shape[2], 1, 1e-5),
        sequence,  # PyTorch's kernel on a GPU reads scales and shifts as if they were contiguous
        name="affine",
    ),
    Case(aten.avg_pool3d.default, nn.LocalResponseNorm(3), image, name="local-response-norm", half=False),
    Case(aten.avg_pool2d.default, nn.LocalResponseNorm(2), sequence, name="local-response-norm"),
]

REJECTED: list[Rejected] = [
    Rejected(
        native_layer,
        lambda x: torch.native_layer_norm(x, x.shape[1:], None, None, 1e-5),
        sequence,
        "known only at run time",
        dynamic=True,
    ),
    Rejected(
        native_group,
        lambda x: torch.native_group_norm(x, None, None, 2, x.shape[1], 5, 1, 1e-5),
        lambda n: (torch.randn(2, n, 5),),
        "known only at run time",
        dynamic=True,
    ),
    Rejected(layer, lambda x: F.layer_norm(x, x.shape[1:]), sequence, "known only at run time", dynamic=True),
    Rejected(rms, lambda x: F.rms_norm(x, x.shape[1:]), sequence, "known only at run time", dynamic=True),
    Rejected(
        group,
        functools.partial(F.group_norm, num_groups=1),
        lambda n: (torch.randn(2, n, 5),),
        "known only at run time",
        dynamic=True,
    ),
    Rejected(
        instance,
        F.instance_norm,
        lambda n: (torch.randn(2, n, 5),),
        "known only at run time",
        name="channels",
        dynamic=True,
    ),
    Rejected(
        instance,
        lambda x, mean, var: F.instance_norm(x, mean, var, use_input_stats=True),
        with_statistics,
        "training mode",
        name="training",
    ),
]
