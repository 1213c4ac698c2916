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
        """The results in a file. Raises OptionsError for a file that holds none."""
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            results = cls(path, content["environment"])
            results.runs = content["runs"]
            results._rows = {key_of(row): row for row in content["rows"]}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise OptionsError(f"{path} holds no results of the benchmark: {type(error).__name__}: {error}") from error
        return results

    @classmethod
    def open(cls, path: Path, environment: dict[str, Any]) -> Results:
        """The results to add to: those in the file, if it exists.

        Raises OptionsError if they are of another environment: rows of two cannot be compared.
        """
        if not path.exists():
            return cls(path, environment)
        results = cls.read(path)
        names = sorted({*environment, *results.environment})
        differing = [name for name in names if environment.get(name) != results.environment.get(name)]
        if differing:
            changes = "; ".join(
                f"{name} was {results.environment.get(name)!r} and is {environment.get(name)!r}" for name in differing
            )
            raise OptionsError(f"{path} is of another environment: {changes}. Name another file with --output.")
        return results

    @property
    def rows(self) -> list[Row]:
        return list(self._rows.values())

    def get(self, key: Key) -> Row | None:
        return self._rows.get(key)

    def add(self, rows: Sequence[Row]) -> None:
        """Add rows, in place of those with the same keys, and write the file."""
        self._rows |= {key_of(row): row for row in rows}
        self._write()

    def _write(self) -> None:
        """Written aside and renamed: who ends the run in the middle leaves a whole file."""
        with written_aside(self.path, mode=0o644) as aside:
            aside.write_text(self._text(), encoding="utf-8")

    def _text(self) -> str:
        """JSON with a line for each row."""
        head = json.dumps({"environment": self.environment, "runs": self.runs}, indent=1)
        rows = ",\n".join(f"  {json.dumps(row, allow_nan=False)}" for row in self._rows.values())
        return f'{head[:-2]},\n "rows": [\n{rows}\n ]\n}}\n'


def key_of(row: Row) -> Key:
    return tuple(row[name] for name in KEY)


def keep_rows(path: Path, device: str, rows: Sequence[Row]) -> None:
    """Write what a script of benchmarks/ found, with its date, command and environment."""
    command = shlex.join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]])
    date = datetime.date.today().isoformat()
    found = {"date": date, "command": command, "environment": environment(device, "auto"), "rows": rows}
    with written_aside(path, mode=0o644) as aside:
        aside.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
