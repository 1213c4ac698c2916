"""Outputs of the recipes in full on a GPU: docs/recipes-gpu.md.

    python -m tests.gpu_recipe_outputs              # runs all recipes, and writes the page
    python -m tests.gpu_recipe_outputs serve        # those that are named; the page keeps the others

Each recipe runs in a process of its own, one after the other, in an empty folder, with an empty engine cache and
without a network for Hugging Face. One whose packages are missing is listed with them. One that fails or takes too long
has its exit status and the end of its stderr on the page, and the command goes on; its own exit status is then 1.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import dataclasses
import datetime
import importlib.util
import os
import platform
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from importlib import metadata
from pathlib import Path

import torch

from docs.gpu_report import versions
from notebooks.cleaning import without_paths
from tests.recipe_outputs import ROOT, environment_of_this_machine, without_ends_of_lines

RECIPES = ROOT / "recipes"
PAGE = ROOT / "docs" / "recipes-gpu.md"
LONGEST = 240.0  # seconds
LINES_OF_STDERR = 15
WIDTH = 120  # of lines on the page
PACKAGES = ("torchvision", "transformers")  # whose versions the page has, beside PyTorch and TensorRT

SECTION = re.compile(r"^## (?P<name>\w+)\.py\n.*?(?=^## |\Z)", re.DOTALL | re.MULTILINE)
OF_MACHINE = re.compile(r"^Made on \S+ with (?P<machine>.*)\.$", re.MULTILINE)
HEAD = """# Recipes on a GPU

What the [recipes](recipes.md) print in full, without `--tiny`. Weights are random where a recipe is given none.

Made on {date} with {machine}.

`python -m tests.gpu_recipe_outputs` runs them one by one, each with an empty engine cache, and writes this page.

"""


@dataclasses.dataclass(frozen=True)
class FullRun:
    """A recipe in full.

    options: as the page shows them; `{target}` is the compute capability of the GPU.
    about: a sentence for the page.
    by_client: True if `tests.recipe_clients` makes the recipe's input, starts it and looks at its results.
    """

    name: str
    options: str = ""
    about: str = ""
    by_client: bool = False

    def shown(self, target: str) -> str:
        """Return the command of the recipe, as a reader would type it."""
        return f"python recipes/{self.name}.py {self.options.format(target=target)}".rstrip()

    def command(self, target: str) -> list[str]:
        """Return the command that is run."""
        if self.by_client:
            return [sys.executable, "-m", "tests.recipe_clients", self.name]
        options = shlex.split(self.options.format(target=target))
        return [sys.executable, str(RECIPES / f"{self.name}.py"), *options]


PROGRAM = "`resnet50.pt2` is ResNet-50 in fp16 for batches of 1 to 16."
RUNS = (
    FullRun("resnet50_deploy", "--targets {target}", "The first report is of the build, the second of the server."),
    FullRun("timm_classifier", "--targets {target}", "ConvNeXt-T."),
    FullRun("detector_report"),
    FullRun("train_to_deploy", "--targets {target}", "The training and the search run on the CPU."),
    FullRun("train_and_validate"),
    FullRun("bert_pipeline", about="BERT-base."),
    FullRun("generate_text", about="GPT-2. In fp16, rounding may choose another token, and all behind it."),
    FullRun("minilm_embeddings", about="MiniLM has its trained weights."),
    FullRun(
        "serve",
        "resnet50.pt2 --port 8000",
        f"{PROGRAM} Another process sends the server images of 224 by 224 pixels, by 8 clients at once, and says:",
        by_client=True,
    ),
    FullRun(
        "batch_inference",
        "resnet50.pt2 images/ scores/",
        f"{PROGRAM} The table has images of 224 by 224 pixels in 8 files. The last lines compare the results.",
        by_client=True,
    ),
)
NAMES = tuple(run.name for run in RUNS)


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a process ended; status: None if it was ended as it took too long."""

    status: int | None
    stdout: str
    stderr: str
    seconds: float


def missing(recipe: Path) -> list[str]:
    """Return the packages that a recipe imports and that are not installed."""
    tree = ast.parse(recipe.read_text(encoding="utf-8"))
    names = [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
    names += [node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    packages = sorted({name.partition(".")[0] for name in names})
    specs = {package: importlib.util.find_spec(package) for package in packages}
    return [package for package, spec in specs.items() if spec is None or spec.origin is None]  # a mere folder has none


def ran(command: list[str], folder: Path, longest: float) -> Outcome:
    """Run a command in a folder, with what it starts; end all of it after `longest` seconds."""
    out, err = folder.parent / "stdout", folder.parent / "stderr"
    environment = environment_of_this_machine(folder.parent)
    started = time.monotonic()
    with out.open("w") as stdout, err.open("w") as stderr:  # files, which no process that is left keeps open
        process = subprocess.Popen(
            command, stdout=stdout, stderr=stderr, cwd=folder, env=environment, start_new_session=True
        )
        status: int | None = None
        try:
            status = process.wait(longest)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        else:
            with contextlib.suppress(ProcessLookupError):  # nothing is left of what it started
                os.killpg(process.pid, signal.SIGKILL)
    seconds = time.monotonic() - started
    return Outcome(status, *(path.read_text(encoding="utf-8", errors="replace") for path in (out, err)), seconds)


def outcome_of(run: FullRun, target: str, longest: float) -> Outcome:
    """Run a recipe in an empty folder."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "files"
        folder.mkdir()
        return ran(run.command(target), folder, longest)


def section(run: FullRun, target: str, outcome: Outcome | None, absent: list[str]) -> str:
    """Return the section of a recipe; outcome: None if it was not run, as packages are absent."""
    parts = [f"## {run.name}.py", f"```sh\n{run.shown(target)}\n```"]
    if outcome is None:
        parts.append(f"Not run: this machine has no {', '.join(f'`{package}`' for package in absent)}.")
        return "\n\n".join(parts) + "\n\n"
    parts += [run.about] if run.about else []
    parts += [_block(outcome.stdout)] if outcome.stdout.strip() else []
    if outcome.status != 0:
        ended = "It was ended, as it took too long" if outcome.status is None else f"Exit status {outcome.status}"
        end = "\n".join(outcome.stderr.rstrip().split("\n")[-LINES_OF_STDERR:])
        parts.append(f"**{ended}.** The end of its stderr:\n\n{_block(end)}")
    parts.append(f"It took {outcome.seconds:.0f} s, with the start of Python.")
    return "\n\n".join(parts) + "\n\n"


def _block(text: str) -> str:
    """Return text as a block of the page, cleaned of paths."""
    lines = without_ends_of_lines(without_paths(text)).split("\n")
    return "\n".join(["```text", *(part for line in lines for part in _wrapped(line)), "```"])


def _wrapped(line: str) -> list[str]:
    return [line] if len(line) <= WIDTH else textwrap.wrap(line, WIDTH, break_on_hyphens=False)


def machine() -> str:
    """Return the GPU and the versions that the page has."""
    found = [f"{package} {metadata.version(package)}" for package in PACKAGES if importlib.util.find_spec(package)]
    return ", ".join([versions(), f"Python {platform.python_version()}", *found])


def sections_of(page: Path) -> dict[str, str]:
    """Return the sections of a page, by the name of the recipe; none if there is no page."""
    text = page.read_text(encoding="utf-8") if page.exists() else ""
    return {found["name"]: found[0] for found in SECTION.finditer(text)}


def machine_of(page: Path) -> str | None:
    """Return the GPU and the versions of a page, if there is one."""
    found = OF_MACHINE.search(page.read_text(encoding="utf-8")) if page.exists() else None
    return None if found is None else found["machine"]


def write(page: Path, here: str, sections: dict[str, str]) -> None:
    """Write the page, with the sections in the order of RUNS."""
    head = HEAD.format(machine=here, date=datetime.date.today().isoformat())
    text = head + "".join(sections[name] for name in NAMES if name in sections)
    page.write_text(text.rstrip("\n") + "\n", encoding="utf-8")


def written(page: Path, names: list[str], here: str, target: str, longest: float) -> list[str]:
    """Run recipes and write the page after each; return the names of those that failed."""
    failed = []
    sections = sections_of(page) if set(names) != set(NAMES) else {}
    for run in RUNS:
        if run.name not in names:
            continue
        absent = missing(RECIPES / f"{run.name}.py")
        outcome = None if absent else outcome_of(run, target, longest)
        if outcome is not None and outcome.status != 0:
            failed.append(run.name)
        sections[run.name] = section(run, target, outcome, absent)
        write(page, here, sections)
        print(sections[run.name], flush=True)
    return failed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(NAMES)}; without names all of them")
    parser.add_argument("--page", type=Path, default=PAGE, help="the file to write")
    parser.add_argument("--longest", type=float, default=LONGEST, help="seconds that a recipe may take")
    arguments = parser.parse_args()
    if unknown := [name for name in arguments.names if name not in NAMES]:
        parser.error(f"there is no recipe {unknown[0]!r}; take of {', '.join(NAMES)}")
    if not torch.cuda.is_available():
        print("tests.gpu_recipe_outputs: PyTorch sees no CUDA GPU. Run it on a machine with one.", file=sys.stderr)
        return 1
    here, before = machine(), machine_of(arguments.page)
    if arguments.names and before not in (None, here):
        parser.error(f"{arguments.page.name} is of {before}, and here is {here}; run all recipes")
    major, minor = torch.cuda.get_device_capability()
    failed = written(arguments.page, arguments.names or list(NAMES), here, f"sm_{major}{minor}", arguments.longest)
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
