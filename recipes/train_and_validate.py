"""Train in PyTorch, validate with engines after each epoch, and see what that costs.

    python recipes/train_and_validate.py --epochs 15

Needs scikit-learn, whose digits (1797 images of 8x8) are the data. Weights are constants of an engine, so each epoch
needs a new engine. PyTorch runs the first batch after a change of the weights; the second batch finds the same weights
again, and waits for the new engine. A validation of one batch alone never gets one.

A build of a real model takes seconds. It leaves an engine of the size of its weights in the cache, which no later run
can use, so the recipe has a cache of its own that ends with it. All this pays only where a validation takes far longer
than a build. Otherwise validate in PyTorch, and compile after training: the recipe does both and prints their seconds.

On a GPU TensorRT computes. Without one the lowered networks are computed by the reference interpreter, which builds
nothing. `--tiny` trains for three epochs.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import torchtrt_bridge as trtb

Batches = Iterable[tuple[torch.Tensor, torch.Tensor]]


def main() -> None:
    arguments = parse()
    with tempfile.TemporaryDirectory() as cache:
        run(arguments.epochs, {"precision": arguments.precision, "engine": arguments.engine, "cache_dir": cache})


def run(epochs: int, options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() and options["engine"] != "reference" else "cpu"

    # 1. Data, model and optimizer, as anywhere.
    training, testing = batches(device)
    model = nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.1), nn.Linear(64, 10),
    ).to(device)  # fmt: skip
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)

    # 2. Compile once. `fast` has the weights of `model`, and only `model` is trained: `fast` never needs gradients.
    fast = torch.compile(model, backend="torchtrt_bridge", options=options)

    # 3. Train and validate. `eval()` matters: in training mode dropout is active, and batch norms use their batch.
    print("epoch  PyTorch   engine  same answers  in PyTorch  in engines  slowest batch")
    spent, wrong = 0.0, 0
    for epoch in range(1, epochs + 1):
        model.train()
        for images, labels in training:
            optimizer.zero_grad()
            F.cross_entropy(model(images), labels).backward()
            optimizer.step()
        model.eval()
        (expected, plain), (found, engine) = answers(model, testing), answers(fast, testing)
        same = int((found == expected).sum())
        wrong += len(found) - same
        spent += sum(engine) - sum(plain)
        accuracies = f"{accuracy(expected, testing):6.2%}   {accuracy(found, testing):6.2%}"
        seconds = f"{sum(plain):.3f} s     {sum(engine):.3f} s  {max(engine):.3f} s, number {slowest(engine)}"
        print(f"{epoch:5}   {accuracies}    {same} of {len(found)}     {seconds}")
    print(f"\n{trtb.report(fast)}\n")  # of the last engine; it does not count the ones before
    print(f"validating with engines took {spent:.2f} s more than in PyTorch, for {epochs} epochs")

    # 4. The other way: compile after training, once, for the weights that stay.
    final = trtb.compile(model, **options)
    found, seconds = answers(final, testing)
    again, later = answers(final, testing)
    same = int((found == expected).sum()) + int((again == expected).sum())
    print(f"compiling after training takes {sum(seconds):.2f} s once, and a validation then {sum(later):.3f} s")
    print(f"same answers: {same} of {2 * len(expected)}")
    if options["precision"] == "fp32" and (wrong or same < 2 * len(expected)):
        sys.exit("Engines gave other answers than PyTorch.")


def batches(device: str) -> tuple[Batches, list[tuple[torch.Tensor, torch.Tensor]]]:
    """Return a loader of 1157 images to train with, and the other 640 in ten batches of one size.

    A last batch of another size would have PyTorch capture the model again, with a batch size that may vary.
    """
    data = load_digits()
    images = torch.tensor(data.images, dtype=torch.float32, device=device).unsqueeze(1) / 16
    labels = torch.tensor(data.target, device=device)
    mixed = torch.randperm(len(images), generator=torch.Generator().manual_seed(0)).to(device)
    training, testing = mixed[:1157], mixed[1157:]
    loader = DataLoader(TensorDataset(images[training], labels[training]), batch_size=32, shuffle=True)
    return loader, list(zip(images[testing].split(64), labels[testing].split(64), strict=True))


@torch.inference_mode()
def answers(model: Callable[[torch.Tensor], torch.Tensor], testing: Batches) -> tuple[torch.Tensor, list[float]]:
    """Return the class of each image, and the seconds of each batch."""
    found, seconds = [], []
    for images, _ in testing:
        started = time.perf_counter()
        found.append(model(images).argmax(1).cpu())  # on the host: a GPU is done by then
        seconds.append(time.perf_counter() - started)
    return torch.cat(found), seconds


def slowest(seconds: list[float]) -> int:
    return 1 + seconds.index(max(seconds))


def accuracy(found: torch.Tensor, testing: Batches) -> float:
    labels = torch.cat([labels for _, labels in testing]).cpu()
    return float((found == labels).double().mean())


def parse() -> argparse.Namespace:
    has_gpu = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--engine", default="auto" if has_gpu else "reference", help="as in Options")
    parser.add_argument("--precision", default="fp32", help="what the engines compute in")
    parser.add_argument("--tiny", action="store_true", help="train for three epochs")
    arguments = parser.parse_args()
    if arguments.tiny:
        arguments.epochs = 3
    return arguments


if __name__ == "__main__":
    main()
