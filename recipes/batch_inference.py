"""Run a saved program over Parquet files with Ray Data: a result for each key, though workers fail or are killed.

    python recipes/batch_inference.py model.pt2 images/ scores/ --key id --workers 2

Needs `pip install 'torchtrt_bridge[batch]'`. The file is one of `trtb.save`, whose batch size may vary from 1 on. Each
of its inputs is a column of the table: numbers, or lists whose values are brought into the input's sizes. A column of
the table tells its rows apart. The results are Parquet files with this key, and a column for each result. On a cluster
(`ray start`), every machine must see the paths.

Each worker is a process that loads the program once, on a GPU of its own if there are any. A batch that fails is tried
three times. If a worker dies, Ray starts another and gives it the batches that were not done. At the end the keys of
the results are compared with those of the table. A run that failed is started anew, into another folder.

Workers share nothing but the reading of files. ResNet-18 at 64x64, computed by PyTorch on the two cores of a CPU that
other processes used too: 170 and 378 rows per second by one worker, 451 and 685 by two, without the 20 to 45 s that Ray
and the workers take to start. More than that, a GPU or a cluster, has not been measured. `--tiny` makes a table and a
small network.
"""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset
import pyarrow.parquet
import ray.data
import torch
from torch import nn

import torchtrt_bridge as trtb

ATTEMPTS = 3
LOGGER = logging.getLogger(__name__)


class Worker:
    """Process that holds the program, and computes one batch of the table after another."""

    def __init__(self, path: str, key: str) -> None:
        self.key = key
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.program = trtb.load(path, device=self.device)

    def __call__(self, batch: pa.Table) -> pa.Table:
        for attempt in range(1, ATTEMPTS + 1):
            try:
                return self.results(batch)
            except Exception as error:
                keys = f"The batch from {batch[self.key][0]} to {batch[self.key][-1]}"
                if attempt == ATTEMPTS or isinstance(error, trtb.ShapeRangeError):
                    raise RuntimeError(f"{keys} failed {attempt} times: {error}") from error
                LOGGER.warning("%s failed and is tried again: %s", keys, error)
                time.sleep(attempt)
        raise AssertionError("not reached")

    @torch.inference_mode()
    def results(self, batch: pa.Table) -> pa.Table:
        inputs = {name: self.tensor_of(batch[name], name) for name in self.program.inputs}
        results = self.program(**inputs)
        if isinstance(results, torch.Tensor):
            results = {"output": results}
        elif not isinstance(results, Mapping):
            results = {f"output_{number}": result for number, result in enumerate(results)}
        return pa.table({self.key: batch[self.key], **{name: column_of(result) for name, result in results.items()}})

    def tensor_of(self, column: pa.ChunkedArray, name: str) -> torch.Tensor:
        """Return a column as the program takes it; sizes that vary are taken from the values' number."""
        spec = self.program.inputs[name]
        values = column.combine_chunks()
        while isinstance(values, pa.ExtensionArray) or hasattr(values, "flatten"):
            values = values.storage if isinstance(values, pa.ExtensionArray) else values.flatten()
        tensor = torch.as_tensor(values.to_numpy(zero_copy_only=False).copy()).to(spec.dtype)
        sizes = [low if low == high else -1 for low, high in spec.ranges[1:]]
        return tensor.reshape(len(column), *sizes).to(self.device)


def column_of(result: torch.Tensor) -> pa.Array:
    """Return a result as numbers, or as lists where it has more than one dimension."""
    result = result.cpu().float() if result.is_floating_point() else result.cpu()
    values = pa.array(result.flatten().numpy())
    return values if result.dim() == 1 else pa.FixedSizeListArray.from_arrays(values, result[0].numel())


def run(path: Path, table: Path, output: Path, key: str, workers: int, worker: type[Worker] = Worker) -> int:
    """Write the results for every row of a table, and return their number."""
    program = trtb.load(path, device="cpu")
    rows = [spec.ranges[0] if spec.ranges else (0, 0) for spec in program.inputs.values()]
    most_rows = min(high for _, high in rows)
    if max(low for low, _ in rows) > 1 or not 1 < most_rows < 1 << 20:
        takes = ", ".join(map(str, program.inputs.values()))
        sys.exit(f"{path} takes {takes}. Export it with Dim('batch', min=1, max=...) as the first of each input.")
    if output.exists() and any(output.iterdir()):
        sys.exit(f"{output} has files already; results would be mixed with them.")
    expected = keys_of(table, key)
    if len(pc.unique(expected)) < len(expected):
        sys.exit(f"Two rows of {table} have the same {key}.")
    data = ray.data.read_parquet(str(table.resolve()), columns=[key, *program.inputs])
    # What a worker is given at a time, which is computed again if it dies.
    results = data.repartition(target_num_rows_per_block=8 * most_rows).map_batches(
        worker,
        fn_constructor_args=(str(path.resolve()), key),
        batch_size=most_rows,
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(size=workers),
        num_cpus=1,
        num_gpus=1 if torch.cuda.is_available() else 0,
    )
    results.write_parquet(str(output.resolve()))
    if not keys_of(output, key).equals(expected):
        sys.exit(f"The keys of {output} are not those of {table}.")
    return len(expected)


def keys_of(folder: Path, key: str) -> pa.ChunkedArray:
    return pa.dataset.dataset(folder, format="parquet").to_table(columns=[key]).sort_by(key)[key]


def tiny(workers: int) -> None:
    """Write a table of 4,000 images to eight files, run a small network over it, and compare the results."""
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 16, 3, 2), nn.ReLU(), nn.Conv2d(16, 32, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(1568, 10)
    )
    images = torch.rand(4000, 3, 32, 32)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "images").mkdir()
        for number, part in enumerate(images.chunk(8)):
            keys = pa.array([f"{number}-{index:03}" for index in range(len(part))])
            values = pa.FixedSizeListArray.from_arrays(pa.array(part.flatten().numpy()), part[0].numel())
            table = pa.table({"id": keys, "input": values})
            pyarrow.parquet.write_table(table, folder / "images" / f"{number}.parquet")
        batch = torch.export.Dim("batch", min=1, max=64)
        program = trtb.export(network.eval(), images[:2], dynamic_shapes=({0: batch},), precision="fp16")
        trtb.save(program, folder / "tiny.pt2")
        started = time.perf_counter()
        rows = run(folder / "tiny.pt2", folder / "images", folder / "scores", "id", workers)
        seconds = time.perf_counter() - started
        results = pa.dataset.dataset(folder / "scores").to_table().sort_by("id")
    scores = torch.as_tensor(results["output"].combine_chunks().flatten().to_numpy().copy()).reshape(rows, 10)
    with torch.inference_mode():
        right = int(torch.isclose(scores, network(images), rtol=1e-2, atol=1e-3).all(1).sum())  # fp16
    print(f"{rows} rows in {seconds:.1f} s, with the start of the workers ({workers})")
    print(f"{right} of {rows} results are the network's")
    if right < len(images):
        sys.exit("The results differ by more than fp16 explains.")


def main() -> None:
    arguments = parse()
    if arguments.tiny:
        # Two more than the workers, which read and write.
        settings: dict[str, Any] = {"num_cpus": arguments.workers + 2, "object_store_memory": 200 << 20}
        ray.init(address="local", include_dashboard=False, log_to_driver=False, **settings)
        tiny(arguments.workers)
        return
    ray.init()
    rows = run(arguments.path, arguments.table, arguments.output, arguments.key, arguments.workers)
    print(f"wrote {rows} rows to {arguments.output}")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("path", type=Path, nargs="?", help="a file of trtb.save")
    parser.add_argument("table", type=Path, nargs="?", help="a Parquet file, or a folder of them")
    parser.add_argument("output", type=Path, nargs="?", help="a new folder for the results")
    parser.add_argument("--key", default="id", help="the column that tells rows apart")
    parser.add_argument("--workers", type=int, default=1, help="processes that hold the program")
    parser.add_argument("--tiny", action="store_true", help="a small network and a table of 4,000 rows")
    arguments = parser.parse_args()
    if arguments.output is None and not arguments.tiny:
        parser.error("give a file of trtb.save, a table and a folder for the results, or --tiny")
    return arguments


if __name__ == "__main__":
    main()
