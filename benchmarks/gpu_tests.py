"""Run the tests that need a GPU, and keep what they gave: python benchmarks/gpu_tests.py [pytest arguments]."""

from __future__ import annotations

import datetime
import json
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import torch

from torchtrt_bridge.trt import library as library

RESULTS = Path(__file__).parent / "results"


def main() -> int:
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "--show-capture=no", "--tb=line", *sys.argv[1:]]
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "junit.xml"
        subprocess.run([*command, f"--junitxml={report}"], check=False)
        cases = list(ElementTree.parse(report).getroot().iter("testcase"))
    result = {
        "date": datetime.date.today().isoformat(),
        "command": " ".join(["python", *command[1:]]),
        "gpu": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "tensorrt": str(library.choose("auto")),
        **_counts(cases),
    }
    path = RESULTS / f"gpu_tests_{torch.cuda.get_device_name().replace(' ', '_').lower()}.json"
    RESULTS.mkdir(exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))
    return 0


def _counts(cases: list[ElementTree.Element]) -> dict[str, Any]:
    failures = {str(case.get("name")): problem for case in cases if (problem := _problem(case)) is not None}
    skipped = sum(case.find("skipped") is not None for case in cases)
    return {
        "passed": len(cases) - len(failures) - skipped,
        "failed": len(failures),
        "skipped": skipped,
        "failures": failures,
    }


def _problem(case: ElementTree.Element) -> str | None:
    """Return the first line of why a test failed; None if it did not."""
    for kind in ("failure", "error"):
        found = case.find(kind)
        if found is not None:
            return " ".join((found.get("message") or "").split())[:300]
    return None


if __name__ == "__main__":
    sys.exit(main())
