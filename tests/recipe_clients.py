"""What uses the recipes that take a saved program: python -m tests.recipe_clients serve|batch_inference [--tiny]

Saves ResNet-50 for batches of 1 to 16, gives it to the recipe, and compares the results with PyTorch in fp32. All files
are written into the present folder. `--tiny` takes ResNet-18, and few and small images.
"""

from __future__ import annotations

import argparse
import http.client
import re
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn
from torchvision import models

import torchtrt_bridge as trtb

RECIPES = Path(__file__).parent.parent / "recipes"
PROGRAM = Path("resnet50.pt2")
CLIENTS = 8
FILES = 8
LONGEST_START = 120.0  # seconds
MOST_ERROR = 5e-3  # fp16 rounds at 5e-4; over many layers that adds up


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", choices=("serve", "batch_inference"))
    parser.add_argument("--tiny", action="store_true")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    model = models.get_model("resnet18" if arguments.tiny else "resnet50", weights=None).eval()
    count = (40 if arguments.tiny else 400) if arguments.name == "serve" else (80 if arguments.tiny else 1000)
    size = 64 if arguments.tiny else 224
    images = torch.rand(count, 3, size, size)
    save(model, images[:2])
    results = (served if arguments.name == "serve" else computed)(images)
    error = relative_error(model, images, results)
    print(f"relative error against PyTorch fp32: {error:.1e}")
    return int(not error <= MOST_ERROR)


def save(model: nn.Module, images: torch.Tensor) -> None:
    """Save a model with engines for the GPU of this machine; its only input is called `x`."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    batch = torch.export.Dim("batch", min=1, max=16)
    program = trtb.export(
        model.to(device), images.to(device), dynamic_shapes=({0: batch},), precision="fp16", cache_dir=""
    )
    trtb.save(program, PROGRAM)


@torch.inference_mode()
def relative_error(model: nn.Module, images: torch.Tensor, results: torch.Tensor) -> float:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.backends.cudnn.allow_tf32 = False
    expected = torch.cat([model.to(device)(part.to(device)).cpu() for part in images.split(16)])
    return float((results - expected).norm() / expected.norm())


# A server -------------------------------------------------------------------------------------------------------------


def served(images: torch.Tensor) -> torch.Tensor:
    """Have the recipe serve each image as a request of its own, from several clients, and return the answers."""
    with server() as port:
        started = time.perf_counter()
        with ThreadPoolExecutor(CLIENTS) as threads:
            parts = list(threads.map(lambda part: answers(port, part), images.chunk(CLIENTS)))
        duration = time.perf_counter() - started
        metrics = got(port, "/metrics")
    rows, batches = (
        float(re.findall(rf"^trtb_batch_rows_{kind} (\S+)", metrics, re.M)[0]) for kind in ("sum", "count")
    )
    cuts = statistics.quantiles([seconds for _, times in parts for seconds in times], n=100)
    print(f"{len(images)} requests by {CLIENTS} clients in {duration:.2f} s, {len(images) / duration:.0f} per second")
    print(f"p50 {cuts[49] * 1e3:.1f} ms, p99 {cuts[98] * 1e3:.1f} ms")
    print(f"{batches:.0f} batches, of {rows / batches:.1f} images on average")
    return torch.cat([results for results, _ in parts])


@contextmanager
def server() -> Iterator[int]:
    """Run the recipe as a server, yield its port once it is ready, and stop it by SIGTERM."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, str(RECIPES / "serve.py"), str(PROGRAM), "--port", str(port)]
    process = subprocess.Popen(command, stdout=sys.stderr)
    try:
        wait_until_ready(process, port)
        yield port
    finally:
        process.terminate()
        started = time.monotonic()
        process.wait(60)
        print(f"ended {time.monotonic() - started:.1f} s after SIGTERM")


def wait_until_ready(process: subprocess.Popen[bytes], port: int) -> None:
    deadline = time.monotonic() + LONGEST_START
    while time.monotonic() < deadline and process.poll() is None:
        try:
            print(f"/health: {got(port, '/health')}")
            return
        except OSError:
            time.sleep(0.1)
    raise RuntimeError(f"the server was not ready in {LONGEST_START:.0f} s; its exit status is {process.poll()}")


def got(port: int, path: str) -> str:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("GET", path)
    return connection.getresponse().read().decode()


def answers(port: int, images: torch.Tensor) -> tuple[torch.Tensor, list[float]]:
    """Send images one by one; return the results and the seconds of each request."""
    import safetensors.torch  # here, as the other recipe does not need it

    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    results, seconds = [], []
    for image in images:
        body = safetensors.torch.save({"x": image[None]})
        started = time.perf_counter()
        connection.request("POST", "/predict", body)
        response = connection.getresponse()
        answer = response.read()
        seconds.append(time.perf_counter() - started)
        if response.status != 200:
            raise RuntimeError(f"A request was answered {response.status}: {answer!r}")
        results.append(safetensors.torch.load(answer)["output"])
    return torch.cat(results), seconds


# A table --------------------------------------------------------------------------------------------------------------


def computed(images: torch.Tensor) -> torch.Tensor:
    """Have the recipe compute a table of images, and return the results in the order of the images."""
    from pyarrow import dataset  # here, as the other recipe does not need it

    write_table(images, Path("images"))
    started = time.perf_counter()
    command = [sys.executable, str(RECIPES / "batch_inference.py"), str(PROGRAM), "images", "scores", "--key", "id"]
    subprocess.run(command, check=True)
    seconds = time.perf_counter() - started
    print(f"{len(images)} rows in {seconds:.1f} s, with the start of Ray and of a worker")
    found = dataset.dataset("scores", format="parquet").to_table().sort_by("id")
    values = found["output"].combine_chunks().flatten().to_numpy()
    return torch.as_tensor(values.copy()).reshape(len(images), -1)


def write_table(images: torch.Tensor, folder: Path) -> None:
    """Write images to several Parquet files, with a number for each."""
    import pyarrow as pa
    from pyarrow import parquet

    folder.mkdir()
    for number, (part, keys) in enumerate(
        zip(images.chunk(FILES), torch.arange(len(images)).chunk(FILES), strict=True)
    ):
        values = pa.FixedSizeListArray.from_arrays(pa.array(part.flatten().numpy()), part[0].numel())
        table = pa.table({"id": pa.array(keys.numpy()), "x": values})
        parquet.write_table(table, folder / f"{number}.parquet")


if __name__ == "__main__":
    sys.exit(main())
