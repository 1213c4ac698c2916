"""Cleaning of printed text: out goes what differs from run to run, as folders of paths, dates and colours.

It needs no package, so that recipes can be run and cleaned where those of notebooks are missing.
"""

from __future__ import annotations

import re

LEFT_OUT = "…"

CLEANED = (
    (re.compile(r"\x1b\[[0-9;?]*[A-Za-z]"), ""),  # colours, and movements of the cursor
    (re.compile(r"^[^\n]*\r(?!\n)", re.MULTILINE), ""),  # states of a progress bar, which the next one overwrites
    (re.compile(r"(?<![\w.:/<])/(?:[^\s/:\"'<>]+/)*(?:site|dist)-packages/"), ""),
    (re.compile(r"(?<![\w.:/<])/(?:[^\s/:\"'<>]+/)+(?=[^\s/:\"'<>])"), ""),  # folders, up to the name of a file
    (re.compile(r"\b0x[0-9a-f]{6,}\b"), f"0x{LEFT_OUT}"),
    (re.compile(r"\b\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(?:[+-]\d\d:?\d\d|Z)?"), LEFT_OUT),
)


def clean_text(text: str) -> str:
    """Return text without what differs from run to run, which the seconds of builds do too."""
    return _without_seconds(without_paths(text))


def without_paths(text: str) -> str:
    """Return text without folders of paths, addresses, dates, colours, and states of a progress bar."""
    for pattern, replacement in CLEANED:
        text = pattern.sub(replacement, text)
    return text


def _without_seconds(text: str) -> str:
    """Leave out the seconds of builds in the tables of a report, and keep their columns."""
    lines = text.split("\n")
    end = -1  # of the column of seconds, while in a table that has one
    for index, line in enumerate(lines):
        if "build s" in line:
            end = line.index("build s") + len("build s")
        elif not line.strip():
            end = -1
        elif end > 0:
            cells, rest = line[:end], line[end:]
            lines[index] = re.sub(r"\d+\.\d\d$", lambda found: LEFT_OUT.rjust(len(found[0])), cells) + rest
    return "\n".join(lines)
