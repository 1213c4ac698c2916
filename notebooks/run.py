"""Execute the notebooks, clean what they show, and save it in them.

    python -m notebooks.run              # all notebooks
    python -m notebooks.run quickstart   # those that are named
    python -m notebooks.run --check      # saves nothing; says where stored outputs are not those of the code

Needs `pip install '.[test]'` and no GPU: it hides those of the machine, so that outputs are the same everywhere. The
kernel has one thread, 100 columns, an empty engine cache, and no network for Hugging Face.

`clean` removes what differs from run to run: folders of paths, addresses, dates, seconds of builds, colours, and the
earlier states of progress bars. A second run saves the same bytes.

`difference` compares the text of two runs. What differs between machines and versions counts as equal:

- versions of packages, and where lines are wrapped;
- numbers with a fraction, as errors and sizes in MB, within a factor of `FACTOR`, and below `ROUNDING`;
- percentages within `POINTS`;
- numbers of nodes within `SHARE`, as versions of PyTorch write a model in other operators; as many stay in PyTorch;
- styles of reports, and pixels of plots: each cell only has to show as many plots.

All else has to be equal, whole numbers too.
"""

from __future__ import annotations

import argparse
import copy
import difflib
import html
import json
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import matplotlib
import nbformat
from jupyter_client import AsyncKernelManager
from jupyter_client.kernelspec import KernelSpecManager
from nbclient import NotebookClient
from nbformat import NotebookNode

from notebooks.cleaning import LEFT_OUT, clean_text

FOLDER = Path(__file__).parent
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))

COLUMNS = 100  # as reports have where there is no terminal, and as a page of Jupyter shows without a scroll bar
FACTOR = 1.5  # without AVX2, an fp16 error of 7.4e-04 was 7.2e-04
ROUNDING = 1e-5  # of fp32: on an AMD processor with AVX-512, 6.7e-06 was 0
POINTS = 1.0
SHARE = 0.1  # a step of GPT-2 has 93 nodes with torch 2.11 and transformers 5.17, 90 with 2.14 and 5.24

METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    names = [path.stem for path in NOTEBOOKS]
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(names)}; without names all of them")
    parser.add_argument("--check", action="store_true", help="save nothing; fail if stored outputs are others")
    arguments = parser.parse_args()
    if unknown := [name for name in arguments.names if name not in names]:
        parser.error(f"there is no notebook {unknown[0]!r}; take of {', '.join(names)}")
    found = [update(FOLDER / f"{name}.ipynb", arguments.check) for name in arguments.names or names]
    if arguments.check and any(found):
        sys.exit("Run `python -m notebooks.run`, and look at what has changed.")


def update(path: Path, only_check: bool) -> str:
    """Execute a notebook and save it; with `only_check` print and return how its stored outputs differ."""
    stored = read(path)
    fresh = executed(stored)
    if only_check:
        text = difference(stored, fresh)
        print(f"{path.stem}: {text or 'as stored'}")
        return text
    is_same = write(path, fresh)
    print(f"{path.stem}: {'nothing changed' if is_same else 'saved'}")
    return ""


def read(path: Path) -> NotebookNode:
    return nbformat.read(path, as_version=4)


def write(path: Path, notebook: NotebookNode) -> bool:
    """Write a notebook, and return whether the file had the same text before."""
    before = path.read_text(encoding="utf-8") if path.exists() else ""
    text = nbformat.writes(notebook) + "\n"
    path.write_text(text, encoding="utf-8")
    return text == before


# Execution ------------------------------------------------------------------------------------------------------------


def executed(notebook: NotebookNode) -> NotebookNode:
    """Return a cleaned copy of a notebook with the outputs of its present code. Raises an error if a cell does."""
    fresh = copy.deepcopy(notebook)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        client = NotebookClient(
            fresh,
            timeout=600,
            record_timing=False,
            km=_kernel(folder),
            resources={"metadata": {"path": str(_new(folder / "files"))}},  # the kernel writes its files here
        )
        client.execute(env=_environment(folder))
    clean(fresh)
    return fresh


def _kernel(folder: Path) -> AsyncKernelManager:
    """Return a manager that knows one kernel, of this interpreter."""
    command = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}", "--log-level=ERROR"]
    spec = {"argv": command, "display_name": "Python 3", "language": "python"}
    (_new(folder / "kernels" / "python3") / "kernel.json").write_text(json.dumps(spec))
    specs = KernelSpecManager(kernel_dirs=[str(folder / "kernels")], ensure_native_kernel=False)
    return AsyncKernelManager(kernel_name="python3", kernel_spec_manager=specs)


def _environment(folder: Path) -> dict[str, str]:
    """Return the environment of a kernel: that of this process, without what could change an output."""
    unwanted = ("TORCH_LOGS", "TORCHTRT_BRIDGE_LOG", "FORCE_COLOR")
    kept = {name: value for name, value in os.environ.items() if name not in unwanted}
    return kept | {
        "COLUMNS": str(COLUMNS),
        "CUDA_VISIBLE_DEVICES": "",
        "HF_HUB_OFFLINE": "1",
        "IPYTHONDIR": str(_new(folder / "ipython")),
        "MPLBACKEND": "module://matplotlib_inline.backend_inline",
        "MPLCONFIGDIR": matplotlib.get_cachedir(),  # its list of fonts, and no settings of the user
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(FOLDER.parent), *filter(None, [os.environ.get("PYTHONPATH")])]),
        # Of tqdm without ipywidgets, and of torch 2.11 about its own code.
        "PYTHONWARNINGS": "ignore:IProgress not found,ignore:`isinstance(treespec",
        "XDG_CACHE_HOME": str(_new(folder / "cache")),
    }


def _new(folder: Path) -> Path:
    folder.mkdir(parents=True)
    return folder


# Cleaning -------------------------------------------------------------------------------------------------------------


def clean(notebook: NotebookNode) -> None:
    """Remove what differs from run to run out of a notebook's outputs and metadata."""
    notebook.metadata = nbformat.from_dict(METADATA)
    for cell in notebook.cells:
        cell.metadata = nbformat.from_dict({})
        if cell.cell_type == "code":
            cell.outputs = _joined_streams(cell.outputs)
            for output in cell.outputs:
                _clean_output(output)


def _joined_streams(outputs: list[NotebookNode]) -> list[NotebookNode]:
    """Return outputs with one stream of each name, as a kernel may send two in either order, and in parts."""
    streams: dict[str, NotebookNode] = {}
    others = []
    for output in outputs:
        if output.output_type != "stream":
            others.append(output)
        elif output.name in streams:
            streams[output.name].text += output.text
        else:
            streams[output.name] = output
    return [streams[name] for name in sorted(streams)] + others


def _clean_output(output: NotebookNode) -> None:
    if output.output_type == "stream":
        output.text = clean_text(output.text)
    if output.output_type not in ("display_data", "execute_result"):
        return
    output.metadata = nbformat.from_dict({})
    if "text/html" in output.data:
        output.data.pop("text/plain", None)  # of a report its first line, which the page has too
    for kind, content in output.data.items():
        if kind.startswith("text/"):
            output.data[kind] = clean_text(content)
        elif kind == "image/png":
            output.data[kind] = content.strip()


# Comparison -----------------------------------------------------------------------------------------------------------

_VERSIONS = re.compile(
    r"(?:\b(?:torchtrt_bridge|PyTorch|Python|CUDA|TensorRT-RTX|TensorRT|RTX) \d[\w.+]*(?:, )?)+"  # any number of them
    r"|\b\d+(?:\.\d+){2,}(?:\+\w+)?"
)
_COVERAGE = re.compile(r"(\d+) of (\d+)(?= (?:captured )?nodes)")
_NUMBER = re.compile(
    r"(?P<nodes>(?:(?<=but \d of )|(?<=trt_\d )|(?<=\bfp\d\d )|(?<=\bbf16 )|(?<=\bint\d\d ))\d+(?![\d.]))"
    r"|\d+(?:\.\d+)?(?:e[+-]?\d+)?(?: ?%)?"
)
_STYLES = re.compile(r"<style>.*?</style>", re.DOTALL)
_TAGS = re.compile(r"<[^>]*>")


def difference(stored: NotebookNode, fresh: NotebookNode) -> str:
    """Return how the outputs of two runs of a notebook differ, cell by cell; nothing if they do not."""
    return "".join(
        f"\nthe outputs of cell {old.id!r} differ:\n{found}\n"
        for old, new in zip(stored.cells, fresh.cells, strict=True)
        if (found := _text_difference(shown(old), shown(new)))
    )


def shown(cell: NotebookNode) -> str:
    """Return as text what a cell shows: streams, results, the words of a page, and a line for each plot."""
    return "\n".join(part for output in cell.get("outputs", ()) for part in _parts(output))


def _parts(output: NotebookNode) -> Iterator[str]:
    if output.output_type == "stream":
        yield f"[{output.name}]\n{output.text}"
        return
    if output.output_type == "error":
        yield f"[error]\n{output.ename}: {output.evalue}"
        return
    yield f"[{output.output_type}]"
    for kind, content in sorted(output.data.items()):
        if kind == "text/html":
            yield html.unescape(_TAGS.sub("\n", _STYLES.sub("", content)))
        else:
            yield content if kind.startswith("text/") else kind


def _text_difference(stored: str, fresh: str) -> str:
    stored, fresh = (_VERSIONS.sub(LEFT_OUT, text) for text in (stored, fresh))
    if is_near(stored, fresh):
        return ""
    old, new = ([line.rstrip() for line in text.split("\n") if line.strip()] for text in (stored, fresh))
    return "\n".join(difflib.unified_diff(old, new, "stored", "fresh", lineterm="", n=2))


def is_near(stored: str, fresh: str) -> bool:
    """Return whether two texts have the same words, and numbers near each other."""
    old, new = (_comparable(text) for text in (stored, fresh))
    if _NUMBER.sub("#", old) != _NUMBER.sub("#", new):
        return False
    return all(map(_is_near_number, _NUMBER.finditer(old), _NUMBER.finditer(new)))


def _comparable(text: str) -> str:
    """Return text without the layout of tables, and with the number of nodes that TensorRT does not run."""
    words = " ".join(re.sub("─+", " ", text).split())
    return _COVERAGE.sub(lambda found: f"all but {int(found[2]) - int(found[1])} of {found[2]}", words)


def _is_near_number(stored: re.Match[str], fresh: re.Match[str]) -> bool:
    if stored[0] == fresh[0]:
        return True
    low, high = sorted(float(found[0].rstrip("% ")) for found in (stored, fresh))
    if stored[0].endswith("%") and fresh[0].endswith("%"):
        return high - low <= POINTS
    if stored["nodes"] and fresh["nodes"]:
        return high - low <= SHARE * high
    if low.is_integer() and high.is_integer():
        return False
    return high <= ROUNDING or high <= FACTOR * low


if __name__ == "__main__":
    main()
