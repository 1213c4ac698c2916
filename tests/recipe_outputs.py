"""Outputs of the recipes in docs/recipes.md: what they say today, and how that differs from what is stored.

    python -m tests.recipe_outputs              # runs all recipes, and stores what they print
    python -m tests.recipe_outputs serve        # those that are named

The page has the command of each recipe in a block of its own, and right below it what the command prints. Recipes run
without a GPU, on one thread, in an empty folder, with an empty engine cache. Words, whole numbers and most fractions
are compared as those of notebooks; seconds, milliseconds and what depends on them are not.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import os
import re
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

from notebooks.cleaning import LEFT_OUT, clean_text

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "recipes.md"

SHOWN = re.compile(
    r"```sh\npython recipes/(?P<name>\w+)\.py(?P<options> --tiny[^\n]*)\n```\n\n```text\n(?P<text>.*?)\n```", re.DOTALL
)
VARYING = (
    (re.compile(r"\bRTX \d[\d.]*"), LEFT_OUT),  # the version
    (re.compile(r" *\d[\d.]* (?:s|ms)\b"), f" {LEFT_OUT}"),
    (re.compile(r"\b\d+ per second|(?<=per second: ).*"), LEFT_OUT),
    # What `quantize` chose, which rounding decides: without AVX2 it was another way, of one node less.
    (re.compile(r"(?<=layers in int8: )[^;]+"), LEFT_OUT),
    (re.compile(r"(?<= int8) +[\d.]+$", re.MULTILINE), f" {LEFT_OUT}"),
    (re.compile(r"\b0 of \d+(?= nodes)"), "none of the"),
    (re.compile(r"\b\d+ kB"), LEFT_OUT),
    (re.compile(r"^\d+ batches, of [\d.]+", re.MULTILINE), f"{LEFT_OUT} batches, of {LEFT_OUT}"),
)


@dataclasses.dataclass(frozen=True)
class Output:
    """What the page says that a recipe prints, and the options with which it does."""

    name: str
    options: tuple[str, ...]
    text: str


def outputs() -> dict[str, Output]:
    """Return the outputs on the page, by the name of the recipe."""
    found = SHOWN.finditer(PAGE.read_text(encoding="utf-8"))
    return {one["name"]: Output(one["name"], tuple(shlex.split(one["options"])), one["text"]) for one in found}


def environment(folder: Path) -> dict[str, str]:
    """Return the environment of a process that has this package, no GPU, and its engine cache in `folder`.

    One thread: small networks gain nothing by more, and lose much beside another worker of the tests.
    """
    return environment_of_this_machine(folder) | {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}


def environment_of_this_machine(folder: Path) -> dict[str, str]:
    """Return such an environment with the GPUs and the processors that there are."""
    return os.environ | {
        "COLUMNS": "100",
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]),
        "PYTHONUNBUFFERED": "1",  # a process that the recipe starts prints into the same pipe
        "RAY_USAGE_STATS_ENABLED": "0",
        "XDG_CACHE_HOME": str(folder / "cache"),
    }


def said_by(output: Output, folder: Path) -> str:
    """Return what a recipe prints, cleaned of paths; it runs in `folder`, and writes its files there."""
    command = [sys.executable, str(ROOT / "recipes" / f"{output.name}.py"), *output.options]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=600, env=environment(folder), cwd=folder, check=False
    )
    assert done.returncode == 0, done.stderr
    return without_ends_of_lines(clean_text(done.stdout))


def without_ends_of_lines(text: str) -> str:
    """Return text without spaces at the ends of its lines, and without empty lines around it."""
    return "\n".join(line.rstrip() for line in text.strip("\n").split("\n"))


def difference(stored: str, fresh: str) -> str:
    """Return how two outputs differ, beyond what varies from run to run; nothing if they do not."""
    from notebooks.run import is_near  # here, as it needs the packages of notebooks

    for pattern, replacement in VARYING:
        stored, fresh = (pattern.sub(replacement, text) for text in (stored, fresh))
    if is_near(stored, fresh):
        return ""
    return "\n".join(difflib.unified_diff(stored.split("\n"), fresh.split("\n"), "stored", "fresh", lineterm="", n=1))


def store(name: str, text: str) -> None:
    """Write what a recipe prints into the page."""

    def replaced(found: re.Match[str]) -> str:
        command, _, end = found[0].rpartition(found["text"])
        return f"{command}{text}{end}" if found["name"] == name else found[0]

    PAGE.write_text(SHOWN.sub(replaced, PAGE.read_text(encoding="utf-8")), encoding="utf-8")


def main() -> None:
    known = outputs()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(known)}; without names all of them")
    names = parser.parse_args().names or list(known)
    if unknown := [name for name in names if name not in known]:
        parser.error(f"{PAGE.name} has no output of {unknown[0]!r}; take of {', '.join(known)}")
    for name in names:
        with tempfile.TemporaryDirectory() as folder:
            store(name, said_by(known[name], Path(folder)))
        print(f"stored {name}")


if __name__ == "__main__":
    main()
