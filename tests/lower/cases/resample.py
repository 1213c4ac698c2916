"""Upsampling and downsampling of one, two and three dimensions."""

import functools

import torch
import torch.nn.functional as F
from torch import nn

from tests.lower.case import Case, Rejected

aten = torch.ops.aten
nearest1, nearest2, nearest3 = (
    aten.upsample_nearest1d.vec,
    aten.upsample_nearest2d.vec,
    aten.upsample_nearest3d.vec,
)
exact1, exact2, exact3 = (
    aten._upsample_nearest_exact1d.vec,
    aten._upsample_nearest_exact2d.vec,
    aten._upsample_nearest_exact3d.vec,
)
linear, bilinear, trilinear = (
    aten.upsample_linear1d.vec,
    aten.upsample_bilinear2d.vec,
    aten.upsample_trilinear3d.vec,
)
bicubic = aten.upsample_bicubic2d.vec
bilinear_aa, bicubic_aa = aten._upsample_bilinear2d_aa.vec, aten._upsample_bicubic2d_aa.vec


def sequence(n: int) -> tuple[torch.Tensor]:
    return (torch.randn(n, 3, 5 + n),)


def image(n: int) -> tuple[torch.Tensor]:
    return (torch.randn(n, 3, 5 + n, 6),)


def batch_of_images(n: int) -> tuple[torch.Tensor]:
    return (torch.randn(n, 3, 7, 10),)


def volume(n: int) -> tuple[torch.Tensor]:
    return (torch.randn(n, 2, 3, 4 + n, 5),)


def resized(mode: str, **how):
    return functools.partial(F.interpolate, mode=mode, **how)


def doubled(x: torch.Tensor) -> torch.Tensor:
    return F.interpolate(x, size=[2 * size for size in x.shape[2:]])


CASES: list[Case] = [
    Case(nearest1, resized("nearest", scale_factor=2), sequence),
    Case(nearest2, nn.Upsample(scale_factor=2), image, name="scale"),
    Case(nearest2, nn.Upsample(size=(9, 8)), image, name="size"),
    Case(nearest2, doubled, image, name="size-at-run-time"),
    Case(nearest2, resized("nearest", scale_factor=0.5), image, name="half"),
    Case(nearest2, resized("nearest", scale_factor=1.7), batch_of_images, name="odd-scale"),
    Case(
        nearest2,
        resized("nearest", scale_factor=1.7, recompute_scale_factor=True),
        batch_of_images,
        name="recomputed-scale",
    ),
    Case(nearest2, resized("nearest", scale_factor=(2.0, 0.4)), batch_of_images, name="two-scales"),
    Case(nearest3, resized("nearest", scale_factor=2), volume),
    Case(exact1, resized("nearest-exact", size=13), sequence),
    Case(exact2, resized("nearest-exact", scale_factor=2), image, name="scale"),
    Case(exact2, resized("nearest-exact", scale_factor=0.3), batch_of_images, name="odd-scale"),
    Case(exact3, resized("nearest-exact", scale_factor=2), volume),
    Case(linear, resized("linear", scale_factor=3), sequence),
    Case(linear, resized("linear", size=1, align_corners=True), sequence, name="to-one"),
    Case(bilinear, nn.Upsample(scale_factor=2, mode="bilinear"), image, name="scale"),
    Case(bilinear, nn.UpsamplingBilinear2d(scale_factor=2), image, name="align"),
    Case(bilinear, resized("bilinear", size=(4, 9)), image, name="size"),
    Case(bilinear, resized("bilinear", size=(4, 9), align_corners=True), image, name="size-align"),
    Case(bilinear, resized("bilinear", scale_factor=0.5), image, name="half"),
    Case(bilinear, resized("bilinear", scale_factor=0.5, align_corners=True), image, name="half-align"),
    Case(bilinear, resized("bilinear", scale_factor=1.7), batch_of_images, name="odd-scale"),
    Case(bilinear, resized("bilinear", scale_factor=1.7, align_corners=True), batch_of_images, name="odd-align"),
    Case(trilinear, resized("trilinear", scale_factor=2), volume),
    Case(
        trilinear,
        resized("trilinear", scale_factor=1.3),
        lambda n: (torch.randn(n, 2, 3, 4, 5),),
        name="odd-scale",
    ),
    Case(bicubic, resized("bicubic", scale_factor=2), image, name="scale"),
    Case(bicubic, resized("bicubic", size=(9, 4)), image, name="size"),
    Case(bicubic, resized("bicubic", scale_factor=2, align_corners=True), image, name="align"),
    Case(bicubic, resized("bicubic", scale_factor=1.7), batch_of_images, name="odd-scale"),
    Case(bilinear_aa, resized("bilinear", scale_factor=0.5, antialias=True), batch_of_images, half=False),
    Case(
        bilinear_aa,
        resized("bilinear", size=(9, 4), antialias=True),
        batch_of_images,
        name="size",
        half=False,
    ),
    Case(bicubic_aa, resized("bicubic", scale_factor=0.6, antialias=True), batch_of_images, half=False),
    Case(aten.adaptive_avg_pool2d.default, resized("area", size=(3, 5)), batch_of_images, name="area"),
]


def of_run_time_size(op, mode: str, make, **how) -> Rejected:
    return Rejected(op, resized(mode, **how), make, "run time", dynamic=True)


REJECTED: list[Rejected] = [
    of_run_time_size(nearest1, "nearest", sequence, scale_factor=1.7),
    of_run_time_size(nearest2, "nearest", image, scale_factor=1.7),
    of_run_time_size(nearest3, "nearest", volume, scale_factor=1.7),
    of_run_time_size(exact1, "nearest-exact", sequence, scale_factor=1.7),
    of_run_time_size(exact2, "nearest-exact", image, scale_factor=1.7),
    of_run_time_size(exact3, "nearest-exact", volume, scale_factor=1.7),
    of_run_time_size(linear, "linear", sequence, scale_factor=1.7),
    of_run_time_size(bilinear, "bilinear", image, scale_factor=1.7),
    of_run_time_size(trilinear, "trilinear", volume, scale_factor=1.7),
    of_run_time_size(bicubic, "bicubic", image, scale_factor=0.5),
    of_run_time_size(bilinear_aa, "bilinear", image, scale_factor=0.5, antialias=True),
    of_run_time_size(bicubic_aa, "bicubic", image, scale_factor=0.5, antialias=True),
]
