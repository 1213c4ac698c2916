"""The notebooks are as a reader wants them, and show what their code gives; executing them takes `--full`."""

from __future__ import annotations

import ast
import base64
import copy
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

nbformat = pytest.importorskip("nbformat", reason="the extra test brings it")
pytest.importorskip("nbclient", reason="the extra test brings it")
pytest.importorskip("matplotlib", reason="the extra test brings it")

try:
    import tomllib
except ModuleNotFoundError:  # before Python 3.11, where pytest brings it
    import tomli as tomllib

from notebooks import run  # noqa: E402

ROOT = Path(__file__).parent.parent
NAMES = [path.stem for path in run.NOTEBOOKS]

MOST_BYTES = 400_000
MOST_BYTES_OF_A_PLOT = 60_000

# The distribution that brings a module; a module that is not here is Python's own, or a fault.
DISTRIBUTIONS = {
    "matplotlib": "matplotlib",
    "sklearn": "scikit-learn",
    "tokenizers": "transformers",
    "torch": "torch",
    "torchvision": "torchvision",
    "transformers": "transformers",
}
OF_PYTHON = {"collections", "logging"}

# How many plots each draws, and what it says at least.
SHOWN: dict[str, tuple[int, list[str]]] = {
    "quickstart": (1, ["51 of 51 nodes in TensorRT, 1 engine", "linalg_det", "the option torch_ops names it"]),
    "int8_accuracy": (3, ["6 of 6 layers in int8", "4 of 6 layers in int8", "in floating point: "]),
    "reading_a_report": (
        0,
        [
            "14 of 15 captured nodes would run in TensorRT, 3 engines, 2 graphs, 1 graph break",
            "14 of 15 captured nodes in TensorRT, 3 engines, 2 graphs, 1 graph break",
            "a max pooling with dilation",
            "PyTorch would run this line",
            "same results: True",
            "14 of 14 nodes in TensorRT, 1 engine",
            "targets sm_86, sm_120",
        ],
    ),
    "generate": (
        0,
        [
            "same tokens as PyTorch: True",
            "seed 1, same tokens as PyTorch: True",
            "seed 2, same tokens as PyTorch: True",
            "the first text alone gives the same tokens: True",
            "generate runs the loop of transformers: beams are searched",
            "beams, same tokens:  True",
        ],
    ),
}


def stored(name: str) -> Any:
    return run.read(run.FOLDER / f"{name}.ipynb")


# What a reader sees ---------------------------------------------------------------------------------------------------


def problems(notebook: Any) -> Iterator[str]:
    """Yield what is wrong with a notebook as it is kept, without executing it."""
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    title = notebook.cells[0]
    if title.cell_type != "markdown" or not re.match(r"# \w[^\n]*\n\n\w", title.source):
        yield "it does not begin with a title and a sentence"
    if not re.search(r"^# %pip install '\.\.\[\w+\]'$", code[0].source, re.MULTILINE):
        yield "its first cell of code does not say what to install"
    if [cell.execution_count for cell in code] != list(range(1, len(code) + 1)):
        yield "its cells were not executed one after the other"
    for cell in code:
        if has_to_show(cell.source) and not cell.outputs:
            yield f"{cell.id} has no output"
        if any(output.output_type == "error" for output in cell.outputs):
            yield f"{cell.id} ended in an error"
    yield from _traces(notebook)
    yield from _sizes(notebook)
    yield from _references(notebook)


def has_to_show(source: str) -> bool:
    """Return whether a cell prints or draws something, or ends in a value."""
    statements = ast.parse(source.replace("\n%", "\n# %")).body
    outside = [node for node in statements if not isinstance(node, (ast.FunctionDef, ast.ClassDef))]
    calls = [node for statement in outside for node in ast.walk(statement) if isinstance(node, ast.Call)]
    is_shown = any(ast.unparse(call.func) in ("print", "plt.show") for call in calls)
    return is_shown or bool(statements and isinstance(statements[-1], ast.Expr))


def _traces(notebook: Any) -> Iterator[str]:
    """Yield what a machine or a run has left."""
    cleaned = copy.deepcopy(notebook)
    run.clean(cleaned)
    if nbformat.writes(cleaned) != nbformat.writes(notebook):
        yield "it was not cleaned"
    for cell in notebook.cells:
        text = f"{cell.source}\n{run.shown(cell)}{_html(cell)}"
        if re.search(r"(?<![\w.:])/(?:work|tmp|home|root|usr|opt|var|Users)/", text):
            yield f"{cell.id} has a path of a machine"
        if re.search(r"\x1b|\r|\dit/s|[█▏━]|IProgress", text):
            yield f"{cell.id} has colours or a progress bar"
        if re.fullmatch(r"[0-9a-f]{8}|cell-\d+", cell.id):
            yield f"{cell.id} is no name of a cell"


def _html(cell: Any) -> str:
    return "".join(output.get("data", {}).get("text/html", "") for output in cell.get("outputs", ()))


def _sizes(notebook: Any) -> Iterator[str]:
    if len(nbformat.writes(notebook).encode()) > MOST_BYTES:
        yield "it is too large"
    for picture in pictures(notebook):
        if len(picture) > MOST_BYTES_OF_A_PLOT:
            yield "a plot is too large"


def pictures(notebook: Any) -> list[bytes]:
    """Return the plots as PNG files."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    return [base64.b64decode(o.data["image/png"]) for o in outputs if "image/png" in o.get("data", {})]


def _references(notebook: Any) -> Iterator[str]:
    """Yield the source lines and files that its text names and that are not there."""
    text = text_of(notebook)
    prose = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    yield from (f"{line} is in no output" for line in re.findall(r"In\[\d+\]:\d+", prose) if line not in text)
    yield from (
        f"{link} is no file" for link in re.findall(r"\]\(([^)#:]+)\)", prose) if not (run.FOLDER / link).exists()
    )


def text_of(notebook: Any) -> str:
    return "\n".join(run.shown(cell) for cell in notebook.cells)


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_is_as_a_reader_wants_it(name: str) -> None:
    assert list(problems(stored(name))) == []


def _set(cell: int, **values: Any) -> Callable[[Any], None]:
    return lambda notebook: notebook.cells[cell].update(values)


def _print(text: str) -> Callable[[Any], None]:
    """Return what lets the last cell of a notebook say something else."""
    return _set(-1, outputs=[nbformat.v4.new_output("stream", name="stdout", text=text)])


def _draw(notebook: Any) -> None:
    picture = base64.b64encode(bytes(MOST_BYTES_OF_A_PLOT + 1)).decode()
    notebook.cells[-1].outputs.append(nbformat.v4.new_output("display_data", data={"image/png": picture}))


def _fail(notebook: Any) -> None:
    notebook.cells[-1].outputs = [nbformat.v4.new_output("error", ename="ValueError", evalue="no", traceback=[])]


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (_set(0, source="Quickstart"), "begin with a title"),
        (_set(1, source="# Install it."), "what to install"),
        (_set(-1, execution_count=1), "one after the other"),
        (_set(-1, outputs=[]), "has no output"),
        (_fail, "ended in an error"),
        (lambda notebook: notebook.metadata.update(editor="vi"), "not cleaned"),
        (_set(-1, metadata=nbformat.from_dict({"scrolled": True})), "not cleaned"),
        (_print("at 0x7f0011223344\n"), "not cleaned"),
        (_print("since 2026-01-02 03:04:05\n"), "not cleaned"),
        (_print("/home/somebody/model.py:3\n"), "path of a machine"),
        (_set(0, source="# Title\n\nSee /home/somebody/main."), "path of a machine"),
        (_print("\x1b[31mred\x1b[0m\n"), "colours"),
        (_print(" 50%|█████     | 1/2\n"), "progress bar"),
        (_set(-1, id="0a1b2c3d"), "no name of a cell"),
        (_print("x" * MOST_BYTES), "it is too large"),
        (_draw, "a plot is too large"),
        (_set(0, source="# Title\n\nLook at `In[99]:1`."), "In[99]:1 is in no output"),
        (_set(0, source="# Title\n\n[Here](nowhere.ipynb)"), "nowhere.ipynb is no file"),
    ],
)
def test_the_problems_are_found(damage: Callable[[Any], None], problem: str) -> None:
    notebook = stored("quickstart")
    damage(notebook)
    assert problem in "\n".join(problems(notebook))


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("print(1)", True),
        ("for x in y:\n    print(x)", True),
        ("plt.show()", True),
        ("report", True),
        ("x = 1", False),
        ("# %pip install x", False),
        ("def f():\n    print(1)", False),
    ],
)
def test_which_cells_have_to_show_something(source: str, expected: bool) -> None:
    assert has_to_show(source) == expected


# What to install ------------------------------------------------------------------------------------------------------


def distributions(extra: str, project: dict[str, Any]) -> set[str]:
    """Return the distributions that the package brings with an extra."""
    requirements = [*project["dependencies"], *project["optional-dependencies"].get(extra, ())]
    found: set[str] = set()
    for requirement in requirements:
        name, extras = re.match(r"([\w.-]+)(?:\[([\w,-]+)\])?", requirement).groups()
        found.add(name)
        if name == project["name"]:
            found.update(*(distributions(each, project) for each in extras.split(",")))
    return found


def missing(notebook: Any, project: dict[str, Any]) -> set[str]:
    """Return the modules that a notebook imports and its line of installation does not bring."""
    source = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "code")
    extra = re.search(r"%pip install '\.\.\[(\w+)\]'", source)[1]
    if extra not in project["optional-dependencies"]:
        return {f"the extra {extra}"}
    modules = {match.partition(".")[0] for match in re.findall(r"^\s*(?:import|from) ([\w.]+)", source, re.MULTILINE)}
    there = distributions(extra, project) | {project["name"]}
    return {name for name in modules - OF_PYTHON if DISTRIBUTIONS.get(name, name) not in there}


@pytest.fixture
def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


@pytest.mark.parametrize("name", NAMES)
def test_the_extra_brings_what_a_notebook_imports(name: str, project: dict[str, Any]) -> None:
    assert missing(stored(name), project) == set()


def test_what_an_extra_lacks_is_found(project: dict[str, Any]) -> None:
    project["optional-dependencies"]["notebooks"] = ["torchtrt_bridge[huggingface]"]
    assert missing(stored("quickstart"), project) == {"matplotlib", "torchvision"}
    assert missing(stored("int8_accuracy"), project) == {"matplotlib", "sklearn"}
    assert missing(stored("generate"), project) == set()
    del project["optional-dependencies"]["notebooks"]
    assert missing(stored("generate"), project) == {"the extra notebooks"}


@pytest.mark.parametrize("name", NAMES)
def test_the_documentation_lists_a_notebook(name: str) -> None:
    assert f"(../notebooks/{name}.ipynb)" in (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")


# What they show -------------------------------------------------------------------------------------------------------


def check_shown(name: str, notebook: Any) -> None:
    """Assert what a notebook is there to show."""
    plots, sentences = SHOWN[name]
    text = text_of(notebook)
    assert [sentence for sentence in sentences if sentence not in text] == []
    assert len(pictures(notebook)) == plots
    if name == "quickstart":
        assert text.count("nodes in TensorRT, 1 engine") == 1
    if name == "int8_accuracy":
        errors = [float(value) for value in re.findall(r"relative error ([\d.]+)", text)]
        assert len(errors) == 6
        assert errors[-1] <= 1.1 * min(errors)  # what was chosen by measuring, and the five ways alone


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_shows_what_it_is_there_for(name: str) -> None:
    check_shown(name, stored(name))


@pytest.mark.full
@pytest.mark.parametrize("name", NAMES)
def test_the_stored_outputs_are_those_of_the_code(name: str) -> None:
    kept = stored(name)
    fresh = run.executed(kept)
    check_shown(name, fresh)
    if found := run.difference(kept, fresh):
        pytest.fail(f"{found}\nIf this is right, run `python -m notebooks.run {name}`.", pytrace=False)


@pytest.mark.full
def test_a_change_of_the_code_is_found() -> None:
    """Execute a short notebook, change its code, and compare."""
    notebook = nbformat.v4.new_notebook()
    cell = nbformat.v4.new_code_cell("import os\n\nprint(os.environ['COLUMNS'], 'columns')", id="columns")
    notebook.cells = [cell]
    before = run.executed(notebook)
    assert run.difference(before, run.executed(before)) == ""
    assert before.cells[0].outputs[0].text == "100 columns\n"
    cell.source = cell.source.replace("'columns'", "'rows'")
    found = run.difference(before, run.executed(notebook))
    assert "cell 'columns'" in found
    assert "-100 columns\n+100 rows" in found


# Cleaning and comparison ----------------------------------------------------------------------------------------------

TABLE = """\
Engines
name    engine          build s    MB   error
─────────────────────────────────────────────
trt_0   RTX 1.7.1.116      0.09   0.3       -
trt_1   RTX 1.7.1.116    cached   0.3       -

took 0.09 s
"""


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("\x1b[1;31mred\x1b[0m", "red"),
        ("0%\r50%\rdone\n", "done\n"),
        ("two\r\nlines", "two\r\nlines"),
        ("/tmp/a_1/x.py:3: y = f(x)", "x.py:3: y = f(x)"),
        ('File "/opt/v/lib/python3.11/site-packages/a/b.py"', 'File "a/b.py"'),
        ('title="/home/me/work/model.py">', 'title="model.py">'),
        ("https://example.org/a/b.html", "https://example.org/a/b.html"),
        ("and/or, </code></p>, 1 / 2 / 3", "and/or, </code></p>, 1 / 2 / 3"),
        ("<A at 0x7f8a3c2b1d90>", "<A at 0x…>"),
        ("<dd>2026-01-02 03:04:05+01:00</dd>", "<dd>…</dd>"),
        ("In[4]:8: x = y", "In[4]:8: x = y"),
        (TABLE, TABLE.replace("   0.09", "      …")),
    ],
)
def test_cleaning(text: str, cleaned: str) -> None:
    assert run.clean_text(text) == cleaned
    assert run.clean_text(cleaned) == cleaned


def test_cleaning_joins_streams_and_drops_the_text_beside_a_page() -> None:
    new = nbformat.v4.new_output
    notebook = nbformat.v4.new_notebook(metadata={"widgets": {}})
    outputs = [
        new("stream", name="stdout", text="a"),
        new("display_data", data={"text/html": "<p>x</p>", "text/plain": "Report(...)"}, metadata={"isolated": True}),
        new("stream", name="stderr", text="w"),
        new("stream", name="stdout", text="b"),
    ]
    notebook.cells = [
        nbformat.v4.new_code_cell("1", outputs=outputs, metadata={"execution": {"iopub.execute_input": "now"}})
    ]
    run.clean(notebook)
    (cell,) = notebook.cells
    assert [(output.output_type, output.get("text")) for output in cell.outputs] == [
        ("stream", "w"),
        ("stream", "ab"),
        ("display_data", None),
    ]
    assert cell.outputs[-1].data == {"text/html": "<p>x</p>"}
    assert cell.metadata == cell.outputs[-1].metadata == {}
    assert notebook.metadata == run.METADATA


@pytest.mark.parametrize(
    ("before", "after", "is_same"),
    [
        ("error 7.4e-04", "error 7.1e-04", True),
        ("error 7.4e-04", "error 2.9e-03", False),
        ("error 0", "error 5.2e-08", True),
        ("error 0", "error 6.7e-06", True),
        ("error 0", "error 1.1e-05", False),
        ("error 0", "error 5.2e-04", False),
        ("fp32 0.0e+00", "fp32 3.1e-07", True),
        ("accuracy 97.3%", "accuracy 96.8%", True),
        ("accuracy 97.3%", "accuracy 91.0%", False),
        ("size 0.4", "size 0.5", True),
        ("51 of 51 nodes", "50 of 51 nodes", False),
        ("90 of 90 nodes in TensorRT, 1 engine", "93 of 93 nodes in TensorRT, 1 engine", True),
        ("90 of 90 nodes in TensorRT, 1 engine", "60 of 60 nodes in TensorRT, 1 engine", False),
        ("90 of 91 captured nodes", "93 of 94 captured nodes", True),
        ("trt_0      90   fp32 81, int64 9", "trt_0    93   fp32 84, int64 9", True),
        ("trt_0       4   fp16 3, fp32 1", "trt_0       5   fp16 4, fp32 1", False),
        ("2 engines, 2 graphs", "3 engines, 3 graphs", False),
        ("float32[2, 3, 64, 64]", "float32[4, 3, 64, 64]", False),
        ("same tokens: True", "same tokens: False", False),
        ("In[4]:8: y", "In[4]:9: y", False),
        ("RTX 1.7.1.116", "RTX 1.6.1.120", True),
        ("torch 2.14.1+cu130", "torch 2.11.0", True),
        ("Versions PyTorch 2.14.1+cu130, CUDA 13.0, Python 3.11.7", "Versions PyTorch 2.11.0, Python 3.12.1", True),
        ("trt_0   a long    - \n        reason", "trt_0 a long - reason", True),
        ("name  ms\n─────────", "name  ms\n──────────────", True),
        ("a\nb", "a\nb\nc", False),
    ],
)
def test_comparison(before: str, after: str, is_same: bool) -> None:
    def notebook(text: str) -> Any:
        cell = nbformat.v4.new_code_cell("f()", id="cell", outputs=[nbformat.v4.new_output("stream", text=text)])
        return nbformat.v4.new_notebook(cells=[cell])

    assert (run.difference(notebook(before), notebook(after)) == "") == is_same


@pytest.mark.parametrize(
    ("before", "after", "is_same"),
    [
        ({"image/png": "AAAA"}, {"image/png": "BBBB"}, True),
        ({"image/png": "AAAA"}, {"text/plain": "<Figure>"}, False),
        ({"text/html": "<style>.a {}</style><p>4 nodes</p>"}, {"text/html": "<p class='b'>4 nodes</p>"}, True),
        ({"text/html": "<p>4 nodes</p>"}, {"text/html": "<p>5 nodes</p>"}, False),
    ],
    ids=["pixels", "no plot", "styles", "words"],
)
def test_comparison_of_plots_and_pages(before: dict[str, str], after: dict[str, str], is_same: bool) -> None:
    def notebook(data: dict[str, str]) -> Any:
        cell = nbformat.v4.new_code_cell("f()", id="cell", outputs=[nbformat.v4.new_output("display_data", data=data)])
        return nbformat.v4.new_notebook(cells=[cell])

    assert (run.difference(notebook(before), notebook(after)) == "") == is_same
