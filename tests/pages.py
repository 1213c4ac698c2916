"""README.md and the pages of the documentation: their code, their links, and the names that the code uses."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import torch
import transformers

import torchtrt_bridge as trtb
from docs.gpu_report import Net, example_images

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
CONTRIBUTING = ROOT / "CONTRIBUTING.md"
PAGES = sorted((ROOT / "docs").glob("*.md"))

# A block of Python, with the HTML comment right above it that names the file that it is quoted from.
BLOCK = re.compile(r"(?:<!-- from (?P<source>[^\n]*) -->\n)?```python\n(?P<code>.*?)```", re.DOTALL)
FENCED = re.compile(r"^```.*?^```$", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\]\(([^)\s]+)\)")
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "fine", "film", "not", "for", "me", "too", "long"]


@dataclasses.dataclass(frozen=True)
class Block:
    """A block of Python on a page; source: the file that it is quoted from, or None for code that runs."""

    source: str | None
    code: str

    def __str__(self) -> str:
        return self.code.strip().splitlines()[0]


def blocks(page: Path) -> list[Block]:
    """Return the blocks of Python on a page, in order."""
    return [Block(found["source"], found["code"]) for found in BLOCK.finditer(text_of(page))]


def code_of(page: Path) -> list[Block]:
    """Return the blocks of a page that run."""
    return [block for block in blocks(page) if block.source is None]


def quoted(page: Path) -> list[Block]:
    """Return the blocks of a page that are quoted from a file."""
    return [block for block in blocks(page) if block.source is not None]


def links(page: Path) -> list[str]:
    """Return the relative links of a page."""
    found = LINK.findall(FENCED.sub("", text_of(page)))
    return sorted({link for link in found if "://" not in link})


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's titles, as GitHub makes them."""
    titles = re.findall(r"^#+ (.+)$", FENCED.sub("", text_of(page)), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def text_of(page: Path) -> str:
    """Return the text of a page."""
    return page.read_text(encoding="utf-8")


def names() -> dict[str, Any]:
    """Return the names that the code of each page takes as given."""
    model, images = Net().eval(), example_images()
    fast = trtb.compile(model, precision="fp16", engine="reference")
    config = transformers.BertConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24, initializer_range=0.5
    )
    classifier = transformers.BertForSequenceClassification(config).eval()
    tokenizer = transformers.BertTokenizer(vocab={word: number for number, word in enumerate(WORDS)})
    pipe = transformers.pipeline("text-classification", model=classifier, tokenizer=tokenizer, device="cpu")
    return {
        "torch": torch, "trtb": trtb, "model": model, "images": images, "fast": fast, "classifier": classifier,
        "loader": [(images, torch.zeros(4).long()), (images.flip(-1), torch.zeros(4).long())],
        "tokenizer": tokenizer, "pipe": pipe,
    }  # fmt: skip


def run(block: Block, namespace: dict[str, Any]) -> None:
    """Run a block of code with these names, which it may add to."""
    exec(compile(block.code, str(block), "exec"), namespace)
