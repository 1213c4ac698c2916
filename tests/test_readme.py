"""The README holds: its code runs, its report is what is printed, its links exist, its tables are up to date."""

from __future__ import annotations

import dataclasses
import inspect
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers
from torch import nn

import torchtrt_bridge as trtb
from tests.huggingface.models import MODELS
from torchtrt_bridge.cli.command import main
from torchtrt_bridge.lower.op_table import with_table

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")

# Each block of Python, with the HTML comment right above it that says where it comes from or why it is not run.
BLOCK = re.compile(r"(?:<!-- (?P<comment>(?:from|not run:) [^\n]*) -->\n)?```python\n(?P<code>.*?)```", re.DOTALL)
BLOCKS = [(match["comment"] or "", match["code"]) for match in BLOCK.finditer(README)]
RUN = [code for comment, code in BLOCKS if not comment]
QUOTED = [(comment.removeprefix("from "), code) for comment, code in BLOCKS if comment.startswith("from ")]
LINKS = sorted(set(re.findall(r"\]\(([^)#]+?)\)", README)))
COMMANDS = sorted(set(re.findall(r"torchtrt-bridge ([a-z]+)", README)))
DEFAULTS = dict(re.findall(r"^\| `(\w+)` \| `(.+?)` \|", README, re.MULTILINE))


class Net(nn.Module):
    """What the README's report is about: TensorRT has no dilated pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(16)
        self.conv2 = nn.Conv2d(16, 32, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(32)
        self.head = nn.Linear(32, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.norm1(self.conv1(x)))
        x = F.max_pool2d(x, 3, stride=2, dilation=2)
        x = F.relu(self.norm2(self.conv2(x)))
        return self.head(x.mean((2, 3))).softmax(-1)


@pytest.fixture
def names() -> dict[str, Any]:
    """What the README's code takes as given."""
    model, images = Net().eval(), torch.randn(4, 3, 32, 32)
    fast = trtb.compile(model, precision="fp16", engine="reference")
    config = transformers.BertConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24, initializer_range=0.5
    )
    classifier = transformers.BertForSequenceClassification(config).eval()
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "fine", "film", "not", "for", "me", "too", "long"]
    tokenizer = transformers.BertTokenizer(vocab={word: number for number, word in enumerate(words)})
    pipe = transformers.pipeline("text-classification", model=classifier, tokenizer=tokenizer, device="cpu")
    return {
        "torch": torch, "trtb": trtb, "model": model, "images": images, "fast": fast, "classifier": classifier,
        "loader": [(images, torch.zeros(4).long()), (images.flip(-1), torch.zeros(4).long())],
        "tokenizer": tokenizer, "pipe": pipe,
    }  # fmt: skip


@pytest.mark.parametrize("code", RUN, ids=lambda code: code.strip().splitlines()[0])
def test_code_runs(code: str, names: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "README.md", "exec"), names)


def test_changed_weights_are_served_as_told(names: dict[str, Any]) -> None:
    code = next(code for code in RUN if "mul_(2)" in code)
    exec(code, names)
    with torch.no_grad():
        expected, found = names["model"](names["images"]), names["fast"](names["images"])
    torch.testing.assert_close(found, expected, rtol=1e-2, atol=1e-3)  # fp16
    assert trtb.report(names["fast"]).trt_nodes > 0


def test_the_pipeline_is_served_as_told(names: dict[str, Any]) -> None:
    texts = ["A fine film.", "Not for me: too long."]
    expected = names["pipe"](texts)
    code = next(code for code in RUN if "trtb.accelerate(" in code)
    exec(code.replace("trtb.accelerate(pipe,", 'trtb.accelerate(pipe, engine="reference",'), names)
    assert [answer["label"] for answer in names["answers"]] == [answer["label"] for answer in expected]
    assert trtb.report(names["pipe"]).is_whole
    names["pipe"](texts)
    names["pipe"](texts * 3, batch_size=6)
    assert len(trtb.report(names["pipe"]).engines) == 2  # batches, and a batch of one


def test_the_families_are_those_tested() -> None:
    shown = re.search(r"<!-- families -->\n(.*)\n", README)
    assert shown is not None
    assert re.findall(r"`(.+?)`", shown[1]) == [model.name for model in MODELS]


@pytest.mark.parametrize(("path", "code"), QUOTED)
def test_quoted_code_is_the_file_s(path: str, code: str) -> None:
    assert code.strip() in (ROOT / path).read_text(encoding="utf-8")


def test_the_report_is_what_is_printed(names: dict[str, Any]) -> None:
    compiled = names["fast"]
    with torch.inference_mode():
        compiled(names["images"])
    shown = re.search(r"<!-- report -->\n```text\n(.*?)\n```", README, re.DOTALL)
    assert shown is not None
    assert _without_measurements(shown[1]) == _without_measurements(str(trtb.report(compiled)))


def _without_measurements(text: str) -> list[str]:
    """The words of a report without its errors, and without line numbers and the names of folders."""
    text = re.sub(r"\d\.\de-\d\d", "ERROR", text)
    return re.sub(r"\S*test_readme\.py:\d+:", "LINE:", text).split()


def test_the_op_table_is_up_to_date() -> None:
    assert with_table(README) == README, "run: python -m torchtrt_bridge.lower.op_table README.md"


@pytest.mark.parametrize("link", [link for link in LINKS if "://" not in link])
def test_link_exists(link: str) -> None:
    assert (ROOT / link).exists()


@pytest.mark.parametrize("anchor", sorted(set(re.findall(r"\]\(#([^)]+)\)", README))))
def test_anchor_exists(anchor: str) -> None:
    titles = re.findall(r"^#+ (.+)$", README, re.MULTILINE)
    assert anchor in [title.lower().replace(" ", "-") for title in titles]


@pytest.mark.parametrize("command", COMMANDS)
def test_command_exists(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([command, "--help"])
    assert stopped.value.code == 0


@pytest.mark.parametrize("field", dataclasses.fields(trtb.Options), ids=lambda field: field.name)
def test_option_is_documented(field: dataclasses.Field[Any]) -> None:
    assert f"\n    {field.name}: " in (trtb.Options.__doc__ or "")
    assert eval(DEFAULTS[field.name]) == field.default


ARGUMENTS = re.findall(r"^\| (`.+?`) \| `(.+?)` \|", README[README.index("## INT8") :].split("\n## ")[0], re.MULTILINE)


@pytest.mark.parametrize(("names", "default"), ARGUMENTS, ids=lambda cell: cell)
def test_argument_of_quantize_has_this_default(names: str, default: str) -> None:
    parameters = inspect.signature(trtb.quantize).parameters
    assert {parameters[name].default for name in re.findall(r"`(\w+)`", names)} == {eval(default)}


def test_the_arguments_of_quantize_are_shown() -> None:
    assert len(ARGUMENTS) == 8


def test_there_are_two_set_up_commands() -> None:
    commands = [line for line in README.splitlines() if line.startswith("python3 -m venv")]
    assert [command.split(" && ")[-1].split("/")[-1] for command in commands] == [
        "torchtrt-bridge demo",
        "python -m pytest -n 2",
    ]
