"""The file of results: the environment, and a row for each model, batch, precision, kind and contender."""

from __future__ import annotations

import datetime
import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.suite.environment import environment
from benchmarks.suite.job import Row
from torchtrt_bridge.cache import written_aside
from torchtrt_bridge.errors import OptionsError

KEY = ("model", "batch", "precision", "kind", "contender")
Key = tuple[Any, ...]


class Results:
    """Rows by their keys, kept in a file.

    environment: GPU and versions, the same for all rows. runs: date and command line of each run that added some.
    """

    def __init__(self, path: Path, environment: dict[str, Any]) -> None:
        self.path = path
        self.environment = environment
        self.runs: list[dict[str, str]] = []
        self._rows: dict[Key, Row] = {}

    @classmethod
    def read(cls, path: Path) -> Results:
        """Read the results in a file. Raises OptionsError for a file that holds none."""
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            results = cls(path, content["environment"])
            results.runs = content["runs"]
            results._rows = {_key(row): row for row in content["rows"]}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise OptionsError(f"{path} holds no results of the benchmark: {type(error).__name__}: {error}") from error
        return results

    @classmethod
    def open(cls, path: Path, environment: dict[str, Any]) -> Results:
        """Return the results to add to: those in the file, if it exists.

        Raises OptionsError if they are of another environment: rows of two cannot be compared.
        """
        if not path.exists():
            return cls(path, environment)
        results = cls.read(path)
        before = results.environment
        changed = [name for name in sorted({*environment, *before}) if environment.get(name) != before.get(name)]
        if changed:
            changes = "; ".join(f"{name} was {before.get(name)!r} and is {environment.get(name)!r}" for name in changed)
            raise OptionsError(f"{path} is of another environment: {changes}. Name another file with --output.")
        return results

    @property
    def rows(self) -> list[Row]:
        return list(self._rows.values())

    def get(self, key: Key) -> Row | None:
        return self._rows.get(key)

    def add(self, rows: Sequence[Row]) -> None:
        """Add rows, in place of those with the same keys, and write the file: JSON with a line for each row."""
        self._rows |= {_key(row): row for row in rows}
        head = json.dumps({"environment": self.environment, "runs": self.runs}, indent=1)
        lines = ",\n".join(f"  {json.dumps(row, allow_nan=False)}" for row in self._rows.values())
        _write(self.path, f'{head[:-2]},\n "rows": [\n{lines}\n ]\n}}\n')


def _key(row: Row) -> Key:
    return tuple(row[name] for name in KEY)


def _write(path: Path, text: str) -> None:
    """Write aside and rename, so that a run that is killed leaves a whole file."""
    with written_aside(path, mode=0o644) as aside:
        aside.write_text(text, encoding="utf-8")


def keep_rows(path: Path, device: str, rows: Sequence[Row]) -> None:
    """Write the rows of a script of benchmarks/, with date, command and environment."""
    command = shlex.join(["python", "-m", f"benchmarks.{Path(sys.argv[0]).stem}", *sys.argv[1:]])
    date = datetime.date.today().isoformat()
    kept = {"date": date, "command": command, "environment": environment(device, "auto"), "rows": rows}
    _write(path, json.dumps(kept, indent=1) + "\n")
