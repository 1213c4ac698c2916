"""The recipe that runs a program over a table: every row has one result, though workers fail and are killed."""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.export import Dim

import torchtrt_bridge as trtb

pa = pytest.importorskip("pyarrow", reason="no pyarrow: pip install 'torchtrt_bridge[batch]'")

from pyarrow import parquet  # noqa: E402

pytestmark = pytest.mark.full

ROOT = Path(__file__).parent.parent
PATH = ROOT / "recipes" / "batch_inference.py"
ROWS = 2000

# One worker is killed in the middle of its work, one batch fails twice; then a batch fails for good.
SCRIPT = """
import json, os, runpy, signal, sys
from pathlib import Path

import ray

recipe = runpy.run_path(sys.argv[1])
folder = Path(sys.argv[2])

class Troubled(recipe["Worker"]):
    done = 0

    def results(self, batch):
        self.trouble(batch["id"].to_pylist())
        self.done += 1
        return super().results(batch)

    def trouble(self, keys):
        (folder / f"worker_{os.getpid()}").touch()
        if self.done == 3 and not (folder / "killed").exists():
            (folder / "killed").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        if 1000 in keys and len(list(folder.glob("failed_*"))) < 2:
            (folder / f"failed_{len(list(folder.glob('failed_*')))}").touch()
            raise RuntimeError("no memory just now")

class Broken(recipe["Worker"]):
    def results(self, batch):
        if 1000 in batch["id"].to_pylist():
            raise RuntimeError("never")
        return super().results(batch)

ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False, object_store_memory=200 << 20)
places = [folder / "model.pt2", folder / "table"]
found = {"rows": recipe["run"](*places, folder / "results", "id", 2, Troubled)}
try:
    recipe["run"](*places, folder / "broken", "id", 1, Broken)
except Exception as error:
    found["error"] = str(error)
(folder / "found.json").write_text(json.dumps(found))
"""


@pytest.fixture(scope="module")
def recipe() -> dict[str, Any]:
    pytest.importorskip("ray.data", reason="no Ray: pip install 'torchtrt_bridge[batch]'")
    return runpy.run_path(str(PATH))


class Scaled(nn.Module):
    """Two inputs, of which one is a number for each row, and two results."""

    def forward(self, x: torch.Tensor, scale: torch.Tensor) -> dict[str, torch.Tensor]:
        y = x * scale[:, None, None]
        return {"scaled": y, "sum": y.sum((1, 2))}


def inputs(rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return inputs whose results differ from row to row."""
    return torch.arange(6.0 * rows).reshape(rows, 2, 3) % 601, 1 + torch.arange(rows) % 7 / 8


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a program and a table of several files, whose keys are in no order."""
    folder = tmp_path_factory.mktemp("batch")
    batch = Dim("batch", min=1, max=16)
    program = trtb.export(Scaled().eval(), inputs(3), dynamic_shapes=({0: batch}, {0: batch}), engine="reference")
    trtb.save(program, folder / "model.pt2")
    (folder / "table").mkdir()
    for number, keys in enumerate(torch.randperm(ROWS).chunk(4)):
        parquet.write_table(table_of(keys), folder / "table" / f"{number}.parquet")
    return folder


def table_of(keys: torch.Tensor) -> Any:
    x, scale = (value[keys] for value in inputs(ROWS))
    return pa.table({"id": keys.numpy(), "x": x.flatten(1).tolist(), "scale": scale.numpy(), "other": keys.numpy()})


def assert_right(results: Any, keys: list[int]) -> None:
    """Assert that a table has each of these keys once, with the results for it."""
    results = results.sort_by("id").to_pydict()
    assert results.pop("id") == sorted(keys)
    expected = Scaled()(*(value[sorted(keys)] for value in inputs(ROWS)))
    assert results.keys() == expected.keys()
    torch.testing.assert_close(torch.tensor(results["scaled"]), expected["scaled"].flatten(1))
    torch.testing.assert_close(torch.tensor(results["sum"]), expected["sum"])


@pytest.fixture(scope="module")
def found(folder: Path, recipe: dict[str, Any]) -> dict[str, Any]:
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = os.environ | {"PYTHONPATH": path, "RAY_USAGE_STATS_ENABLED": "0"}
    command = [sys.executable, "-c", SCRIPT, str(PATH), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads((folder / "found.json").read_text())
    return result


def test_no_row_is_lost_or_doubled_where_a_worker_is_killed(folder: Path, found: dict[str, Any]) -> None:
    assert (folder / "killed").exists()
    assert len(list(folder.glob("worker_*"))) == 3  # the two, and one for the killed one
    assert len(list(folder.glob("failed_*"))) == 2
    assert found["rows"] == ROWS
    assert_right(parquet.read_table(folder / "results"), list(range(ROWS)))


def test_a_batch_that_fails_for_good_ends_the_run(found: dict[str, Any]) -> None:
    assert "failed 3 times: never" in found["error"]


# One worker, in this process -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["lists", "nested", "fixed", "double"])
def test_columns_are_brought_into_the_sizes_of_an_input(kind: str, folder: Path, recipe: dict[str, Any]) -> None:
    keys = torch.arange(5, 15)
    table = table_of(keys)
    x = inputs(ROWS)[0][keys]
    values = pa.array(x.flatten().numpy(), pa.float64() if kind == "double" else pa.float32())
    column = pa.array(x.tolist()) if kind == "nested" else pa.FixedSizeListArray.from_arrays(values, 6)
    if kind != "lists":
        table = table.set_column(1, "x", column)
    worker = recipe["Worker"](str(folder / "model.pt2"), "id")
    assert_right(worker(table), keys.tolist())
    assert_right(worker(table.slice(2, 3)), keys[2:5].tolist())


def test_what_the_program_does_not_take_is_not_tried_again(folder: Path, recipe: dict[str, Any]) -> None:
    with pytest.raises(RuntimeError, match="from 0 to 16 failed 1 times: Argument x is"):
        recipe["Worker"](str(folder / "model.pt2"), "id")(table_of(torch.arange(17)))


def test_a_folder_with_files_is_left_alone(folder: Path, recipe: dict[str, Any]) -> None:
    with pytest.raises(SystemExit, match="has files already"):
        recipe["run"](folder / "model.pt2", folder / "table", folder / "table", "id", 1)


def test_keys_that_are_not_unique_are_refused(folder: Path, tmp_path: Path, recipe: dict[str, Any]) -> None:
    parquet.write_table(table_of(torch.tensor([1, 2, 1])), tmp_path / "twice.parquet")
    with pytest.raises(SystemExit, match="have the same id"):
        recipe["run"](folder / "model.pt2", tmp_path / "twice.parquet", tmp_path / "results", "id", 1)


def test_a_program_of_one_batch_size_is_refused(folder: Path, tmp_path: Path, recipe: dict[str, Any]) -> None:
    trtb.save(trtb.export(Scaled().eval(), inputs(3), engine="reference"), tmp_path / "fixed.pt2")
    with pytest.raises(SystemExit, match=r"takes float32\[3, 2, 3\], float32\[3\]\. Export it with Dim"):
        recipe["run"](tmp_path / "fixed.pt2", folder / "table", tmp_path / "results", "id", 1)
