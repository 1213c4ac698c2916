"""torchvision's models through both entry points, computed by the reference interpreter and compared with eager."""

from __future__ import annotations

import copy
import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.export import Dim

import torchtrt_bridge as trtb
from tests.gpu import CALLS, assert_one_right_engine
from tests.models import image, trained
from torchtrt_bridge.runtime.tolerance import BOUNDS, compare

models = pytest.importorskip("torchvision.models")

# Largest relative L2 distance to eager: what reordered fp32 sums add up to in networks of this depth.
BOUND = 1e-5


@dataclasses.dataclass(frozen=True)
class Vision:
    """A model, the smallest image that it takes, and the least batch for which it is exported."""

    name: str
    make: Callable[[], nn.Module]
    size: int = 64
    is_dynamic: bool = True


def _make(name: str, **kwargs: Any) -> Callable[[], nn.Module]:
    """torchvision's constructor of this name, with random weights."""
    return functools.partial(getattr(models, name), weights=None, **kwargs)


def _resnet(block: str, **kwargs: Any) -> nn.Module:
    return models.ResNet(getattr(models.resnet, block), [1, 1, 1, 1], **kwargs)


def _vgg() -> nn.Module:
    return models.VGG(models.vgg.make_layers([16, "M", 32, "M", 512, "M"], batch_norm=True), num_classes=10)


def _convnext() -> nn.Module:
    settings = [models.convnext.CNBlockConfig(16, 32, 1), models.convnext.CNBlockConfig(32, None, 1)]
    return models.ConvNeXt(settings, layer_scale=1.0)


def _maxvit() -> nn.Module:
    return models.MaxVit(
        input_size=(64, 64),
        stem_channels=16,
        partition_size=4,
        block_channels=[16, 32],
        block_layers=[1, 1],
        head_dim=8,
        stochastic_depth_prob=0.0,
    )


def _swin(block: Any = None) -> nn.Module:
    merge = models.swin_transformer.PatchMergingV2 if block else models.swin_transformer.PatchMerging
    kwargs = {"block": block, "downsample_layer": merge} if block else {}
    return models.SwinTransformer(
        patch_size=[4, 4], embed_dim=24, depths=[2, 1], num_heads=[2, 4], window_size=[4, 4], **kwargs
    )


def _vit() -> nn.Module:
    return models.VisionTransformer(
        image_size=64, patch_size=16, num_layers=2, num_heads=2, hidden_dim=32, mlp_dim=64, num_classes=10
    )


# One of each family, shallow where the constructor allows it.
FAMILIES = [
    Vision("alexnet", _make("alexnet", num_classes=10)),
    Vision("convnext", _convnext),
    Vision("densenet", lambda: models.DenseNet(block_config=(2, 2, 2, 2))),
    Vision("efficientnet_b0", _make("efficientnet_b0")),
    Vision("googlenet", _make("googlenet", aux_logits=False, init_weights=False), is_dynamic=False),
    Vision("inception_v3", _make("inception_v3", aux_logits=False, init_weights=False), 75, is_dynamic=False),
    Vision("maxvit", _maxvit),
    Vision("mnasnet", _make("mnasnet0_5")),
    Vision("mobilenet_v2", _make("mobilenet_v2")),
    Vision("mobilenet_v3", _make("mobilenet_v3_small")),
    Vision("regnet", _make("regnet_y_400mf"), is_dynamic=False),
    Vision("resnet", lambda: _resnet("BasicBlock")),
    Vision("resnext", lambda: _resnet("Bottleneck", groups=32, width_per_group=4)),
    Vision("shufflenet", _make("shufflenet_v2_x0_5")),
    Vision("squeezenet", _make("squeezenet1_1")),
    Vision("swin", _swin),
    Vision("swin_v2", lambda: _swin(models.swin_transformer.SwinTransformerBlockV2)),
    Vision("vgg", _vgg),
    Vision("vit", _vit),
    Vision("wide_resnet", lambda: _resnet("Bottleneck", width_per_group=128), is_dynamic=False),
]

STANDARD = [
    Vision("alexnet", _make("alexnet"), 224),
    Vision("convnext_tiny", _make("convnext_tiny"), 224),
    Vision("densenet121", _make("densenet121"), 224),
    Vision("efficientnet_b0", _make("efficientnet_b0"), 224),
    Vision("efficientnet_v2_s", _make("efficientnet_v2_s"), 224),
    Vision("googlenet", _make("googlenet", aux_logits=False, init_weights=False), 224),
    Vision("inception_v3", _make("inception_v3", aux_logits=False, init_weights=False), 299),
    Vision("maxvit_t", _make("maxvit_t"), 224),
    Vision("mnasnet0_5", _make("mnasnet0_5"), 224),
    Vision("mobilenet_v2", _make("mobilenet_v2"), 224),
    Vision("mobilenet_v3_small", _make("mobilenet_v3_small"), 224),
    Vision("regnet_y_400mf", _make("regnet_y_400mf"), 224),
    Vision("resnet18", _make("resnet18"), 224),
    Vision("resnext50_32x4d", _make("resnext50_32x4d"), 224),
    Vision("wide_resnet50_2", _make("wide_resnet50_2"), 224),
    Vision("shufflenet_v2_x0_5", _make("shufflenet_v2_x0_5"), 224),
    Vision("squeezenet1_1", _make("squeezenet1_1"), 224),
    Vision("swin_t", _make("swin_t"), 224),
    Vision("swin_v2_t", _make("swin_v2_t"), 224),
    Vision("vgg11", _make("vgg11"), 224),
    Vision("vit_b_16", _make("vit_b_16"), 224),
]


def lively(model: nn.Module) -> nn.Module:
    """Return the model in evaluation mode, with random statistics, and no weight of zero that would hide a layer."""
    for module in trained(model).modules():
        if isinstance(module, nn.Linear):  # vit's head is zero, swin's are near it
            nn.init.normal_(module.weight, std=module.in_features**-0.5)
        for name in ("layer_scale", "relative_position_bias_table"):
            if isinstance(getattr(module, name, None), nn.Parameter):
                nn.init.uniform_(getattr(module, name), 0.5, 1.0)
    return model


def assert_equals_eager(actual: Any, expected: Any) -> None:
    assert actual.shape == expected.shape
    assert float(expected.std()) > 0, "an output that is constant hides errors"
    assert float((actual - expected).norm() / expected.norm()) < BOUND


def check_compile(vision: Vision) -> None:
    model, x = lively(vision.make()), image(2, vision.size)
    fast = trtb.compile(model, engine="reference", fullgraph=True)
    with torch.inference_mode():
        assert_equals_eager(fast(x), model(x))
    report = trtb.report(fast)
    assert report.is_whole, str(report)
    assert len(report.engines) == 1


def check_export(vision: Vision, other_batch: int = 3) -> None:
    model, x = lively(vision.make()), image(2, vision.size)
    shapes = ({0: Dim("batch", min=1, max=4)},) if vision.is_dynamic else None
    program = trtb.export(model, x, dynamic_shapes=shapes, engine="reference")
    assert program.report.is_whole, str(program.report)
    assert len(program.report.engines) == 1
    x = image(other_batch if vision.is_dynamic else 2, vision.size)
    with torch.inference_mode():
        assert_equals_eager(program(x), model(x))


# One of each kind: residual, with channels that are shuffled, a transformer. The others run with `--full`.
KINDS = {"resnet", "shufflenet", "vit"}

families = pytest.mark.parametrize(
    "vision", [pytest.param(v, id=v.name, marks=[pytest.mark.full] * (v.name not in KINDS)) for v in FAMILIES]
)


@pytest.mark.first(2)
@families
def test_compile(vision: Vision) -> None:
    check_compile(vision)


@pytest.mark.first(1)
@families
def test_export(vision: Vision) -> None:
    check_export(vision)


@pytest.mark.slow
@pytest.mark.parametrize("vision", STANDARD, ids=lambda vision: vision.name)
def test_compile_standard(vision: Vision) -> None:
    check_compile(vision)


@pytest.mark.slow
@pytest.mark.parametrize("vision", STANDARD, ids=lambda vision: vision.name)
def test_export_standard(vision: Vision) -> None:
    check_export(vision)


# On a GPU ----------------------------------------------------------------------------------------------------


# PyTorch may be faster than the engine of so small a model: it is checked, not timed.
ON_GPU: dict[str, Any] = {"precision": "fp16", "fallback": "error", "trial": "check"}


@pytest.mark.gpu
@pytest.mark.parametrize("vision", [*FAMILIES, *STANDARD], ids=lambda vision: f"{vision.name}-{vision.size}")
def test_compile_on_a_gpu(vision: Vision) -> None:
    model, x = lively(vision.make()).cuda(), image(2, vision.size).cuda()
    assert_one_right_engine(trtb.compile(model, fullgraph=True, **ON_GPU), model, x)


@pytest.mark.gpu
@families
def test_export_on_a_gpu(vision: Vision) -> None:
    model, x = lively(vision.make()).cuda(), image(2, vision.size).cuda()
    shapes = ({0: Dim("batch", min=1, max=4)},) if vision.is_dynamic else None
    program = trtb.export(model, x, dynamic_shapes=shapes, **ON_GPU)
    assert_one_right_engine(program, model, x)
    if vision.is_dynamic:
        assert_one_right_engine(program, model, image(3, vision.size).cuda())


# Segmentation ------------------------------------------------------------------------------------------------

SEGMENTATION = ["lraspp_mobilenet_v3_large", "deeplabv3_mobilenet_v3_large", "fcn_resnet50"]


@pytest.fixture(params=SEGMENTATION)
def segmenter(request: pytest.FixtureRequest) -> nn.Module:
    make = getattr(models.segmentation, request.param)
    return lively(make(weights=None, weights_backbone=None, num_classes=4))


@pytest.mark.full
def test_compile_segmentation(segmenter: nn.Module) -> None:
    fast, x = trtb.compile(segmenter, engine="reference"), image(1, 64)
    with torch.inference_mode():
        assert_equals_eager(fast(x)["out"], segmenter(x)["out"])
    report = trtb.report(fast)
    assert report.trt_nodes > 100
    assert all(entry.is_ready for entry in report.engines)


@pytest.mark.full
def test_export_segmentation(segmenter: nn.Module) -> None:
    x = image(2, 64)
    program = trtb.export(segmenter, x, engine="reference")
    with torch.inference_mode():
        assert_equals_eager(program(x)["out"], segmenter(x)["out"])
    assert all(entry.is_ready for entry in program.report.engines)


@pytest.mark.gpu
def test_compile_segmentation_on_a_gpu(segmenter: nn.Module) -> None:
    model, x = segmenter.cuda(), image(1, 64).cuda()
    fast = trtb.compile(model, precision="fp16", trial="check")
    assert_same_maps(fast, model, x)
    assert trtb.report(fast).trt_nodes > 100
    assert_engines_serve(trtb.report(fast))


@pytest.mark.gpu
def test_export_segmentation_on_a_gpu(segmenter: nn.Module) -> None:
    model, x = segmenter.cuda(), image(2, 64).cuda()
    program = trtb.export(model, x, precision="fp16", trial="check")
    assert_same_maps(program, model, x)
    assert_engines_serve(program.report)


@torch.inference_mode()
def assert_same_maps(fast: Callable[..., Any], model: nn.Module, x: torch.Tensor) -> None:
    expected = model(x)["out"]
    for _ in range(CALLS):
        assert compare([fast(x)["out"]], [expected], BOUNDS[torch.float16]).problem is None


def assert_engines_serve(report: trtb.CompileReport) -> None:
    assert report.engines
    assert all(entry.is_ready and entry.serves for entry in report.engines), str(report)
    assert not [note for note in report.notes if "whole graph" in note], str(report)


# Detection ---------------------------------------------------------------------------------------------------


def _ssd() -> nn.Module:
    model = lively(
        models.detection.ssdlite320_mobilenet_v3_large(weights_backbone=None, num_classes=5, score_thresh=0.0)
    )
    for module in model.modules():
        if isinstance(module, nn.Conv2d):  # else the picture's signal fades, scores tie, and rounding orders them
            nn.init.kaiming_normal_(module.weight, nonlinearity="linear")
    return model


def _faster_rcnn() -> nn.Module:
    make = models.detection.fasterrcnn_mobilenet_v3_large_320_fpn
    sizes = {"min_size": 96, "max_size": 96}
    return lively(make(weights_backbone=None, num_classes=5, box_score_thresh=0.0, **sizes))


@pytest.mark.full
@pytest.mark.parametrize("make", [_ssd, _faster_rcnn], ids=["ssdlite320", "fasterrcnn"])
def test_compile_detection(make: Callable[[], nn.Module]) -> None:
    model = make()
    pictures = [torch.rand(3, 96, 96), torch.rand(3, 80, 96)]
    fast = trtb.compile(copy.deepcopy(model), engine="reference")
    with torch.inference_mode():
        expected, actual = model(pictures), fast(pictures)
    for found, wanted in zip(actual, expected, strict=True):
        assert len(wanted["boxes"]) > 50
        torch.testing.assert_close(found["scores"], wanted["scores"], rtol=1e-4, atol=1e-5)
        same = (found["boxes"] - wanted["boxes"]).abs().amax(1).lt(1e-2) & (found["labels"] == wanted["labels"])
        assert float(same.float().mean()) > 0.97, "more than a few detections with equal scores have changed places"
    report = trtb.report(fast)
    assert report.trt_nodes > 50
    assert all(entry.is_ready for entry in report.engines), str(report)


@pytest.mark.gpu
@pytest.mark.parametrize("make", [_ssd, _faster_rcnn], ids=["ssdlite320", "fasterrcnn"])
def test_compile_detection_on_a_gpu(make: Callable[[], nn.Module]) -> None:
    """The best scores are the same; TF32, which an H100 computes in, orders detections that are nearly equal."""
    model = make().cuda()
    pictures = [torch.rand(3, 96, 96).cuda(), torch.rand(3, 80, 96).cuda()]
    fast = trtb.compile(copy.deepcopy(model), tf32=True, trial="check")
    with torch.inference_mode():
        expected = model(pictures)
        for _ in range(CALLS):
            actual = fast(pictures)
    for found, wanted in zip(actual, expected, strict=True):
        torch.testing.assert_close(found["scores"][:20], wanted["scores"][:20], rtol=5e-2, atol=5e-3)
        assert found["boxes"].device.type == "cuda"
    assert trtb.report(fast).trt_nodes > 50
    assert_engines_serve(trtb.report(fast))
