"""Deploy ResNet-50: build it here for the GPUs that you name, save one file, use it in another process.

    python recipes/resnet50_deploy.py --targets sm_89,sm_120 --output resnet50.pt2

No GPU is needed to build. `--tiny` takes resnet18 at 64x64, to see the steps in seconds.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from torchvision import models

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


def main() -> None:
    arguments = parse()
    name, size = ("resnet18", 64) if arguments.tiny else ("resnet50", 224)

    # 1. The model. Give it your own weights: model.load_state_dict(torch.load(file, weights_only=True)).
    torch.manual_seed(0)
    model = models.get_model(name, weights=None).eval()

    # 2. Build. The batch may vary between 1 and 16, so that one engine serves all of these sizes.
    images = torch.rand(2, 3, size, size)
    batch = torch.export.Dim("batch", min=1, max=16)
    program = trtb.export(
        model,
        images,
        dynamic_shapes=({0: batch},),
        precision="fp16",  # the engine computes in fp16; inputs and results stay fp32
        targets=tuple(arguments.targets.split(",")),  # one file for all of these GPUs
    )
    print(program.report)

    # 3. Save. The file holds the engines, and the same computation in PyTorch for other machines.
    path = arguments.output
    trtb.save(program, path)
    print(f"\nwrote {path}, {path.stat().st_size / 1e6:.1f} MB\n")

    # 4. Load and run it in a fresh process, with another batch size than the one it was exported with.
    more = torch.rand(5, 3, size, size)
    results = serve(path, more)

    # 5. Compare with the model as it was. fp16 rounds at 5e-4; over many layers that adds up.
    with torch.inference_mode():
        expected = model(more)
    error = float((results - expected).norm() / expected.norm())
    agree = int((results.argmax(1) == expected.argmax(1)).sum())
    print(f"\nrelative error against PyTorch fp32: {error:.1e}")
    print(f"same best class for {agree} of {len(more)} images")
    if error > 5e-3:
        sys.exit("The program differs from the model by more than fp16 explains.")


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
    parser.add_argument("--output", type=Path, default=Path("resnet50.pt2"))
    parser.add_argument("--tiny", action="store_true", help="resnet18 at 64x64")
    return parser.parse_args()


if __name__ == "__main__":
    main()
