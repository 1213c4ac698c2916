"""Tests of README.md: its code runs, its report is what is printed, its links and commands exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

import torchtrt_bridge as trtb
from tests.pages import CONTRIBUTING, README, ROOT, Block, anchors, code_of, links, names, quoted, run, text_of
from torchtrt_bridge.cli.command import main
from torchtrt_bridge.report.model import CompileReport

TEXT = text_of(README)
MOST_LINES = 150


@pytest.mark.parametrize("block", code_of(README), ids=str)
def test_code_runs(block: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run(block, names())


def test_the_readme_is_short() -> None:
    assert len(TEXT.splitlines()) <= MOST_LINES


def test_the_report_is_what_is_printed() -> None:
    """The README may show a report from a GPU, so times, errors, sizes and versions are not compared."""
    given = names()
    with torch.inference_mode():
        given["fast"](given["images"])
    report = trtb.report(given["fast"])
    shown = re.search(r"<!-- report -->\n```text\n(.*?)\n```", TEXT, re.DOTALL)
    assert shown is not None
    assert _subgraphs(shown[1]) == _subgraphs(str(report)) == _expected_subgraphs(report)
    assert _in_torch(shown[1]) == _in_torch(str(report))


def _subgraphs(text: str) -> list[tuple[str, str, str]]:
    """The name, the nodes and the dtypes of each engine in a report, whose cells may continue on the next line."""
    rows = re.findall(r"^(trt_\d+) +(\d+) +(.+(?:\n +.+)*)", text, re.MULTILINE)
    return [(name, nodes, ", ".join(re.findall(r"fp\d+ \d+", cells))) for name, nodes, cells in rows]


def _expected_subgraphs(report: CompileReport) -> list[tuple[str, str, str]]:
    short = {"float16": "fp16", "float32": "fp32"}
    listed = [(e.name, e.node_count, [f"{short[k]} {count}" for k, count in e.dtypes.items()]) for e in report.engines]
    return [(name, str(nodes), ", ".join(dtypes)) for name, nodes, dtypes in listed]


def _in_torch(text: str) -> list[str]:
    """The words of the table of what stays in PyTorch, without the line of the source and the names of folders."""
    table = text[text.index("In PyTorch") :].partition("\nnote: ")[0]
    return re.sub(r"\S*gpu_report\.py:\d+:", "LINE:", table).split()


@pytest.mark.parametrize("page", [README, CONTRIBUTING], ids=lambda page: page.name)
def test_links_exist(page: Path) -> None:
    assert broken_links(page) == []


def broken_links(page: Path) -> list[str]:
    """The links of a page that lead to no file, or to no title of a page."""
    broken = []
    for link in links(page):
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    return broken


@pytest.mark.parametrize("block", quoted(CONTRIBUTING), ids=str)
def test_quoted_code_is_the_file_s(block: Block) -> None:
    assert block.source is not None
    assert block.code.strip() in (ROOT / block.source).read_text(encoding="utf-8")


@pytest.mark.parametrize("command", sorted(set(re.findall(r"torchtrt-bridge ([a-z]+)", TEXT))))
def test_command_exists(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([command, "--help"])
    assert stopped.value.code == 0


def test_there_are_two_set_up_commands() -> None:
    commands = [line for line in TEXT.splitlines() if line.startswith("python3 -m venv")]
    assert [command.split(" && ")[-1].split("/")[-1] for command in commands] == [
        "torchtrt-bridge demo",
        "python -m pytest -n 2",
    ]
