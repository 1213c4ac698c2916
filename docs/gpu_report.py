"""The report of README.md: a small model with one call that TensorRT cannot run, compiled in fp16.

python -m docs.gpu_report

It needs a GPU, and prints the report and a line with the GPU and the versions. README.md shows both.
"""

from __future__ import annotations

import sys

import torch
import torch.nn.functional as F
from torch import nn

import torchtrt_bridge as trtb


class Net(nn.Module):
    """A small network. TensorRT has no dilated pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(16)
        self.conv2 = nn.Conv2d(16, 32, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(32)
        self.head = nn.Linear(32, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.norm1(self.conv1(x)))
        x = F.max_pool2d(x, 3, stride=2, dilation=2)
        x = F.relu(self.norm2(self.conv2(x)))
        return self.head(x.mean((2, 3))).softmax(-1)


def example_images() -> torch.Tensor:
    """Return the images that the model of the report is called with."""
    return torch.randn(4, 3, 32, 32)


def versions() -> str:
    """Return the GPU and the versions of PyTorch and TensorRT, in one line."""
    from torchtrt_bridge.trt import library

    return f"{torch.cuda.get_device_name()}, PyTorch {torch.__version__}, {library.choose('auto')}"


def main() -> int:
    """Print the report and the versions; return 1 without a GPU."""
    if not torch.cuda.is_available():
        print("docs.gpu_report: PyTorch sees no CUDA GPU. Run it on a machine with one.", file=sys.stderr)
        return 1
    torch.manual_seed(0)
    model, images = Net().eval().cuda(), example_images().cuda()
    fast = torch.compile(model, backend="torchtrt_bridge", options={"precision": "fp16"})
    with torch.inference_mode():
        for _ in range(3):
            fast(images)
    print(trtb.report(fast))
    print(f"\n{versions()}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
