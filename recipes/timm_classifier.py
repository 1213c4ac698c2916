"""Classify photographs with a model of timm, prepared as its own configuration says, and save it for GPU hosts.

    python recipes/timm_classifier.py --model convnext_tiny --weights convnext_tiny.pth --targets sm_89,sm_120

Needs `pip install 'torchtrt_bridge[demo,timm]'`. timm knows for each model the size of its pictures, how they are cut
out, and the mean and deviation of their colours. `--weights` takes a state_dict, or a file of safetensors; without it
weights are random, and so are the names of the classes.

On a GPU TensorRT computes, in fp16. Without one the lowered network is computed by the reference interpreter: the same
scores, slowly. `--tiny` takes a small model.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import timm
import torch
from PIL import Image
from sklearn.datasets import load_sample_images
from timm.data import ImageNetInfo, create_transform, resolve_model_data_config
from torch import nn

import torchtrt_bridge as trtb


def main() -> None:
    arguments = parse()
    device = "cuda" if torch.cuda.is_available() and arguments.engine != "reference" else "cpu"

    # 1. The model. In place of a file: timm.create_model(name, pretrained=True), which downloads the weights.
    model = classifier(arguments.model, arguments.weights).eval().to(device)

    # 2. Its own preprocessing. It runs before the engine, in PIL and PyTorch.
    config = resolve_model_data_config(model)
    prepare = create_transform(**config, is_training=False)
    names, photographs = samples()
    images = torch.stack([prepare(photograph) for photograph in photographs]).to(device)
    print(f"{arguments.model}: {images.shape[-1]} pixels, cut out of {images.shape[-1] / config['crop_pct']:.0f}")
    print(f"mean {config['mean']}, deviation {config['std']}\n")

    # 3. Compile and call. The engine computes in fp16; images and scores stay fp32.
    fast = trtb.compile(model, precision=arguments.precision, engine=arguments.engine)
    with torch.inference_mode():
        expected, found = model(images), fast(images)
    print(f"{trtb.report(fast)}\n")

    # 4. The five best classes of each photograph, beside PyTorch's.
    for name, ours, theirs in zip(names, found.softmax(1), expected.softmax(1), strict=True):
        print(f"{name:28}  {'compiled':>8}  {'PyTorch':>8}")
        for index in ours.topk(5).indices.tolist():
            print(f"  {class_name(index):26}  {ours[index]:8.4%}  {theirs[index]:8.4%}")
    same = int((found.topk(5).indices == expected.topk(5).indices).sum())
    print(f"\n{same} of {found.shape[0] * 5} places are PyTorch's")

    # 5. Build for the GPUs that you name, on this machine, and save one file. The batch may vary from 1 to 32.
    batch = torch.export.Dim("batch", min=1, max=32)
    program = trtb.export(
        model,
        images,
        dynamic_shapes=({0: batch},),
        precision=arguments.precision,
        targets=tuple(arguments.targets.split(",")),
    )
    trtb.save(program, arguments.output)
    print(f"wrote {arguments.output} for {arguments.targets}")

    # 6. Load it as a server would, which needs neither timm nor the model, and call it with one photograph.
    loaded = trtb.load(arguments.output, device=device)
    with torch.inference_mode():
        alone = loaded(images[:1])
    runs = "engine" if any(entry.serves for entry in loaded.report.engines) else "PyTorch"
    error = max(relative_error(found, expected), relative_error(alone, expected[:1]))
    print(f"loaded it, where it runs in {runs}; relative error to the model: at most {error:.1e}")
    if error > 1e-2:
        sys.exit("The scores differ by more than fp16 explains.")


def classifier(name: str, weights: Path | None) -> nn.Module:
    """Return a model of timm with the weights of a file, or with random ones whose scores tell classes apart."""
    torch.manual_seed(0)
    model = timm.create_model(name, pretrained=False)
    if weights:
        timm.models.load_checkpoint(model, str(weights))
        return model
    for values in model.get_classifier().parameters():
        if values.dim() > 1:
            nn.init.normal_(values, std=0.3)
    return model


def samples() -> tuple[list[str], list[Image.Image]]:
    """Return the two photographs that scikit-learn brings, with their names."""
    data = load_sample_images()
    return [Path(name).name for name in data.filenames], [Image.fromarray(image) for image in data.images]


def class_name(index: int) -> str:
    """Return the first name of one of ImageNet's 1000 classes."""
    return str(ImageNetInfo().index_to_description(index)).partition(",")[0][:26]


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def parse() -> argparse.Namespace:
    has_gpu = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="a model of timm; convnext_tiny unless you name another")
    parser.add_argument("--weights", type=Path, help="a state_dict, or a file of safetensors")
    parser.add_argument("--engine", default="auto" if has_gpu else "reference", help="as in Options")
    parser.add_argument("--precision", default="fp16", help="what the engines compute in")
    parser.add_argument("--targets", default="sm_86,sm_89,sm_120", help="compute capabilities to build for")
    parser.add_argument("--output", type=Path, default=Path("classifier.pt2"))
    parser.add_argument("--tiny", action="store_true", help="a small model")
    arguments = parser.parse_args()
    arguments.model = arguments.model or ("test_resnet" if arguments.tiny else "convnext_tiny")
    return arguments


if __name__ == "__main__":
    main()
