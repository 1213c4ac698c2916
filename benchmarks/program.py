"""The steps of the engines of a saved program, which needs no GPU: python -m benchmarks.program FILE.pt2

A name says what a kernel fuses, as "__myl_AddMulTanh". Copies ("Resh", "Tran", "Move") and what products are summed in
show before any GPU has run them; times do not.
"""

from __future__ import annotations

import collections
import re
import sys

from rich.console import Console
from rich.table import Table

import torchtrt_bridge as trtb
from torchtrt_bridge.trt.inspector import Step, steps


def main() -> int:
    if len(sys.argv) != 2:
        print(__doc__, file=sys.stderr)
        return 2
    for name, plan in trtb.load(sys.argv[1]).plans.items():
        found = steps(plan)
        table = Table("kind", "kernel", "count", "sums in", title=f"{name}: {len(found)} steps")
        for (kind, kernel, sums), count in collections.Counter(map(_row, found)).most_common():
            table.add_row(kind, kernel, str(count), sums)
        Console().print(table)
    return 0


def _row(step: Step) -> tuple[str, str, str]:
    """Return a step without what tells it from others of the same form."""
    name = "" if step.kind != "function" else re.sub("_0x[0-9a-f]+$", "", step.name)
    return step.kind, name, step.sums_in


if __name__ == "__main__":
    sys.exit(main())
