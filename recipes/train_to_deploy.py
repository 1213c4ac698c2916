"""From training to an INT8 engine: train a classifier, quantize it from its own DataLoader, save it, serve it.

    python recipes/train_to_deploy.py --targets sm_89,sm_120 --output digits.pt2

Needs scikit-learn, whose digits (1797 images of 8x8) are the data, and no GPU. `--tiny` trains for seconds.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset, random_split

import torchtrt_bridge as trtb

# What your server does: nothing but load and call. It runs here as a process of its own.
SERVER = """
import sys, torch
import torchtrt_bridge as trtb

program = trtb.load(sys.argv[1])          # on the GPU, where there is one
device = "cuda" if torch.cuda.is_available() else "cpu"
images = torch.load(sys.argv[2], weights_only=True).to(device)
torch.save(program(images).cpu(), sys.argv[3])
print(program.report)                     # says what runs in TensorRT on this machine, and why not the rest
"""


class Residual(nn.Module):
    """Two convolutions beside the identity."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first, self.second = (nn.Conv2d(channels, channels, 3, padding=1, bias=False) for _ in range(2))
        self.first_norm, self.second_norm = nn.BatchNorm2d(channels), nn.BatchNorm2d(channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.relu(self.first_norm(self.first(x)))
        return F.relu(self.second_norm(self.second(y)) + x)


def main() -> None:
    arguments = parse()
    torch.manual_seed(0)

    # 1. Data and training, as anywhere.
    training, testing = digits()
    model = nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), Residual(32), nn.MaxPool2d(2), Residual(32),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10),
    )  # fmt: skip
    train(model, DataLoader(training, batch_size=64, shuffle=True), epochs=3 if arguments.tiny else 15)
    model.eval()

    # 2. Quantize. The loader is read once, for the ranges of activations; labels are left out.
    loader = DataLoader(training, batch_size=64)
    quantized = trtb.quantize(
        model,
        loader,
        num_batches=8,
        evaluate=lambda candidate: accuracy(candidate, loader),  # of data that the test below does not see
        max_drop=0.005,  # as few layers as possible stay in floating point to lose no more than half a point
    )

    # 3. The quantized model rounds as TensorRT will: its accuracy is known before anything is built.
    test_loader = DataLoader(testing, batch_size=64)
    before, after = accuracy(model, test_loader), accuracy(quantized, test_loader)
    print(f"\naccuracy on {len(testing)} test images: {before:.2%} in fp32, {after:.2%} in INT8")

    # 4. Build and save. What is not INT8 computes in fp16.
    images = torch.stack([image for image, _ in testing])
    program = trtb.export(
        quantized,
        images[:2],
        dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=1024)},),
        precision="fp16",
        targets=tuple(arguments.targets.split(",")),
    )
    trtb.save(program, arguments.output)
    print(f"wrote {arguments.output}, {arguments.output.stat().st_size / 1e3:.0f} kB\n")

    # 5. Load it in a fresh process, and serve one batch of all test images.
    results = serve(arguments.output, images)
    labels = torch.tensor([label for _, label in testing])
    served = float((results.argmax(1) == labels).double().mean())
    print(f"\naccuracy of what was served: {served:.2%}")
    if served < before - 0.01:
        sys.exit("The served model lost more than a point.")


def digits() -> tuple[TensorDataset, TensorDataset]:
    """1200 images to train with, and the other 597."""
    data = load_digits()
    images = torch.tensor(data.images, dtype=torch.float32).unsqueeze(1) / 16
    dataset = TensorDataset(images, torch.tensor(data.target))
    training, testing = random_split(dataset, [1200, len(dataset) - 1200], torch.Generator().manual_seed(0))
    return training, testing


def train(model: nn.Module, loader: DataLoader, epochs: int) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=epochs * len(loader))
    for _ in range(epochs):
        for images, labels in loader:
            optimizer.zero_grad()
            F.cross_entropy(model(images), labels).backward()
            optimizer.step()
            schedule.step()


@torch.inference_mode()
def accuracy(model: nn.Module, loader: DataLoader) -> float:
    right = sum(int((model(images).argmax(1) == labels).sum()) for images, labels in loader)
    return right / len(loader.dataset)


def serve(path: Path, images: torch.Tensor) -> torch.Tensor:
    """Run the saved program in a process that has never seen the model."""
    with tempfile.TemporaryDirectory() as name:
        inputs, outputs = Path(name) / "images.pt", Path(name) / "results.pt"
        torch.save(images, inputs)
        subprocess.run([sys.executable, "-c", SERVER, str(path), str(inputs), str(outputs)], check=True)
        results: torch.Tensor = torch.load(outputs, weights_only=True)
    return results


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--targets", default="sm_86,sm_89,sm_120", help="compute capabilities to build for")
    parser.add_argument("--output", type=Path, default=Path("digits.pt2"))
    parser.add_argument("--tiny", action="store_true", help="train for three epochs only")
    return parser.parse_args()


if __name__ == "__main__":
    main()
