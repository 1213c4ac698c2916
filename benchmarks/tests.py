"""Run the tests and keep their counts, seconds and versions: python -m benchmarks.tests gpu|full [pytest arguments]."""

from __future__ import annotations

import datetime
import json
import os
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from torchtrt_bridge.trt import library as libraries

RESULTS = Path(__file__).parent / "results"
ARGUMENTS = {"gpu": ["-m", "gpu"], "full": ["--full", "-n", "2"]}
PACKAGES = ("torch", "torchvision", "transformers", "tensorrt_rtx", "pytest")
SLOWEST = 10


def main() -> int:
    kind, *more = sys.argv[1:]
    command = [sys.executable, "-m", "pytest", "-q", "--show-capture=no", "--tb=line", *ARGUMENTS[kind], *more]
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "junit.xml"
        started = time.monotonic()
        subprocess.run([*command, f"--junitxml={report}"], check=False)
        seconds = time.monotonic() - started
        cases = list(ElementTree.parse(report).getroot().iter("testcase"))
    result = {
        "date": datetime.date.today().isoformat(),
        "command": " ".join(["python", *command[1:]]),
        **_machine(kind),
        "seconds": round(seconds),
        **_counts(cases),
        "slowest": _slowest(cases),
    }
    where = torch.cuda.get_device_name().replace(" ", "_").lower() if kind == "gpu" else "host"
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{kind}_tests_{where}.json").write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))
    return 0


def _machine(kind: str) -> dict[str, Any]:
    machine = {"gpu": torch.cuda.get_device_name()} if kind == "gpu" else {"processors": os.cpu_count()}
    found = {name: _version(name) for name in PACKAGES}
    return {**machine, "tensorrt": str(libraries.choose("auto")), "versions": found}


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _counts(cases: list[ElementTree.Element]) -> dict[str, Any]:
    failures = {str(case.get("name")): problem for case in cases if (problem := _problem(case)) is not None}
    skipped = sum(case.find("skipped") is not None for case in cases)
    return {
        "passed": len(cases) - len(failures) - skipped,
        "failed": len(failures),
        "skipped": skipped,
        "failures": failures,
    }


def _slowest(cases: list[ElementTree.Element]) -> dict[str, float]:
    """Return the seconds of the slowest tests; those of a batch are counted for the first of its cases."""
    seconds = {f"{case.get('classname')}::{case.get('name')}": float(case.get("time") or 0) for case in cases}
    return dict(sorted(seconds.items(), key=lambda item: -item[1])[:SLOWEST])


def _problem(case: ElementTree.Element) -> str | None:
    """Return the first line of why a test failed; None if it did not."""
    for kind in ("failure", "error"):
        found = case.find(kind)
        if found is not None:
            return " ".join((found.get("message") or "").split())[:300]
    return None


if __name__ == "__main__":
    sys.exit(main())
