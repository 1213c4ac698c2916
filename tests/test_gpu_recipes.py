"""The command that writes docs/recipes-gpu.md, tried with recipes of this file; and what uses saved programs."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from tests import gpu_recipe_outputs as outputs
from tests.gpu_recipe_outputs import NAMES, PAGE, RUNS, FullRun
from tests.recipe_outputs import ROOT, environment

HERE = "NVIDIA H200, PyTorch 2.11.0+cu130, TensorRT-RTX 1.6.1.120, Python 3.12.3"

RECIPES = {
    "good": "import sys\nprint(sys.argv[1:])\nprint('/somewhere/deep/model.py:3: y = f(x)   ')\nprint('word ' * 40)",
    "bad": "import sys\nprint('begun')\nfor n in range(30): print('/tmp/x/line.py', n, file=sys.stderr)\nsys.exit(3)",
    "absent": "import json\nimport no_such_package.data\nfrom another_one import thing",
    "slow": (
        "import subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        "print('child', child.pid)\ntime.sleep(60)"
    ),
}


@pytest.fixture
def page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put recipes of this file in place of the others, and return where the page will be."""
    folder = tmp_path / "recipes"
    folder.mkdir()
    for name, code in RECIPES.items():
        (folder / f"{name}.py").write_text(code)
    monkeypatch.setattr(outputs, "RECIPES", folder)
    monkeypatch.setattr(outputs, "RUNS", tuple(FullRun(name, "--targets {target}", "About it.") for name in RECIPES))
    monkeypatch.setattr(outputs, "NAMES", tuple(RECIPES))
    return tmp_path / "page.md"


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    monkeypatch.setattr(outputs, "machine", lambda: HERE)


def called(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["gpu_recipe_outputs", *map(str, arguments)])
    return outputs.main()


@pytest.mark.full
def test_the_page_has_each_recipe_as_it_ended(page: Path, gpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    assert called(monkeypatch, "--page", page, "--longest", 2) == 1
    assert f"with {HERE}.\n" in page.read_text()
    sections = outputs.sections_of(page)
    assert list(sections) == list(RECIPES)
    assert (
        "```sh\npython recipes/good.py --targets sm_90\n```\n\nAbout it.\n\n```text\n['--targets'" in sections["good"]
    )
    assert "\nmodel.py:3: y = f(x)\nword word" in sections["good"]
    assert max(map(len, sections["good"].split("\n"))) <= outputs.WIDTH
    assert "**" not in sections["good"]
    assert (
        "```text\nbegun\n```\n\n**Exit status 3.** The end of its stderr:\n\n```text\nline.py 15\n" in sections["bad"]
    )
    assert "line.py 29\n```" in sections["bad"]
    assert "Not run: this machine has no `another_one`, `no_such_package`." in sections["absent"]
    assert "About it" not in sections["absent"]
    assert "**It was ended, as it took too long.**" in sections["slow"]
    assert has_ended(int(re.findall(r"child (\d+)", sections["slow"])[0]))


def has_ended(process: int) -> bool:
    """Return whether a process has ended, or does within seconds; one that nobody waits for is left as a zombie."""
    for _ in range(50):
        try:
            state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
        except FileNotFoundError:
            return True
        if state == "Z":
            return True
        time.sleep(0.1)
    return False


@pytest.mark.full
def test_a_named_recipe_runs_anew_and_the_others_stay(page: Path, gpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    assert called(monkeypatch, "--page", page, "good") == 0
    assert called(monkeypatch, "--page", page, "absent") == 0
    before = outputs.sections_of(page)
    assert list(before) == ["good", "absent"]
    (outputs.RECIPES / "good.py").write_text("print('other words')")
    assert called(monkeypatch, "--page", page, "good") == 0
    after = outputs.sections_of(page)
    assert "other words" in after["good"]
    assert "other words" not in before["good"]
    assert after["absent"] == before["absent"]


def test_a_page_is_of_one_machine(
    page: Path, gpu: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert called(monkeypatch, "--page", page, "absent") == 0
    monkeypatch.setattr(outputs, "machine", lambda: "another")
    text = page.read_text()
    with pytest.raises(SystemExit):
        called(monkeypatch, "--page", page, "absent")
    assert f"page.md is of {HERE}, and here is another; run all recipes" in capsys.readouterr().err
    assert page.read_text() == text


def test_an_unknown_recipe_is_named(
    page: Path, gpu: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        called(monkeypatch, "--page", page, "nothing")
    assert "there is no recipe 'nothing'; take of good, bad, absent, slow" in capsys.readouterr().err


def test_it_needs_a_gpu(page: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert called(monkeypatch, "--page", page) == 1
    assert "sees no CUDA GPU" in capsys.readouterr().err
    assert not page.exists()


def test_all_recipes_run_in_full() -> None:
    assert sorted(NAMES) == sorted(path.stem for path in (ROOT / "recipes").glob("*.py"))
    assert [run.name for run in RUNS if "--tiny" in " ".join([run.shown("sm_90"), *run.command("sm_90")])] == []


@pytest.mark.skipif(not PAGE.exists(), reason="the page is written on a GPU")
def test_the_page_is_as_a_reader_wants_it() -> None:
    assert list(outputs.sections_of(PAGE)) == list(NAMES)
    text = PAGE.read_text(encoding="utf-8")
    assert not re.search(r"(?<![\w.:])/(?:work|tmp|home|root|usr|opt|var)/|\x1b|\r|0x[0-9a-f]{6}", text)


# What uses the recipes of saved programs ------------------------------------------------------------------------------


@pytest.mark.full
@pytest.mark.parametrize(
    ("name", "packages", "said"),
    [
        ("serve", ("fastapi", "uvicorn", "prometheus_client", "safetensors"), r"^40 requests by 8 clients in "),
        ("batch_inference", ("ray.data", "pyarrow"), r"^wrote 80 rows to scores$\n^80 rows in "),
    ],
)
def test_results_are_compared(name: str, packages: tuple[str, ...], said: str, tmp_path: Path) -> None:
    for package in packages:
        pytest.importorskip(package)
    folder = tmp_path / "files"
    folder.mkdir()
    command = [sys.executable, "-m", "tests.recipe_clients", name, "--tiny"]
    done = subprocess.run(
        command, cwd=folder, env=environment(tmp_path), capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    assert re.search(said, done.stdout, re.MULTILINE), done.stdout
    error = re.search(r"^relative error against PyTorch fp32: (\S+)$", done.stdout, re.MULTILINE)
    assert error is not None
    assert 0 < float(error[1]) < 5e-3
