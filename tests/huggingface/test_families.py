"""Each family of Hugging Face models through both entry points: one engine, nothing in PyTorch, eager's results."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import torchtrt_bridge as trtb
from tests.gpu import assert_one_right_engine
from tests.huggingface.models import MODELS, Tiny
from tests.huggingface.serving import OPTIONS, assert_one_engine, assert_serves, compiled, exported

TRACED, OTHER = (2, 11), (5, 16)  # batch size and length; a batch of 3 would be taken for the number of channels

# One of each kind: encoder, decoder, decoder with rotated positions, encoder and decoder of a pair, vision, sound.
KINDS = {"bert", "gpt2", "llama", "t5-encoder", "t5-decoder", "vit", "whisper-encoder"}


def parametrized(kinds: set[str]) -> Any:
    """Let a test run for each family, for those that are none of `kinds` with `--full` only."""
    return pytest.mark.parametrize(
        "family", [pytest.param(m, id=m.name, marks=[pytest.mark.full] * (m.name not in kinds)) for m in MODELS]
    )


families = parametrized(KINDS)
pytestmark = pytest.mark.first(len(MODELS))


@families
def test_compile(family: Tiny) -> None:
    model, inputs = family.build(), family.inputs(*TRACED)
    fast = compiled(model, inputs)
    assert_serves(fast, model, inputs)
    assert_one_engine(fast)


@parametrized({"bert", "gpt2", "vit"})
def test_export_dynamic(family: Tiny) -> None:
    model, inputs = family.build(), family.inputs(*TRACED)
    program = trtb.export(model, (), kwargs=inputs, dynamic_shapes=family.dynamic_shapes(), **OPTIONS)
    assert_serves(program, model, inputs)
    assert_serves(program, model, family.inputs(*OTHER))
    assert_one_engine(program)


@pytest.mark.full
@families
def test_compile_dynamic(family: Tiny) -> None:
    model = family.build()
    fast = trtb.compile(model, dynamic=True, **OPTIONS)
    assert_serves(fast, model, family.inputs(*TRACED))
    assert_serves(fast, model, family.inputs(*OTHER))
    assert_one_engine(fast)


@pytest.mark.full
@families
def test_export(family: Tiny) -> None:
    model, inputs = family.build(), family.inputs(*TRACED)
    program = exported(model, inputs)
    assert_serves(program, model, inputs)
    assert_one_engine(program)


# On a GPU -----------------------------------------------------------------------------------------------------------


def on_gpu(inputs: dict[str, torch.Tensor]) -> dict[str, Any]:
    return {name: value.cuda() for name, value in inputs.items()}


@pytest.mark.gpu
@families
def test_compile_on_a_gpu(family: Tiny) -> None:
    model, inputs = family.build().cuda(), on_gpu(family.inputs(*TRACED))
    with torch.no_grad():
        model(**inputs)  # as in `compiled`
    fast = trtb.compile(
        model, dynamic=False, precision="fp16", fallback="error", trial="check"
    )  # PyTorch may be faster
    assert_one_right_engine(fast, model, **inputs)


@pytest.mark.gpu
@families
def test_export_dynamic_on_a_gpu(family: Tiny) -> None:
    model, inputs = family.build().cuda(), on_gpu(family.inputs(*TRACED))
    shapes = family.dynamic_shapes()
    options: dict[str, Any] = {"precision": "fp16", "fallback": "error", "trial": "check"}
    program = trtb.export(model, (), kwargs=inputs, dynamic_shapes=shapes, **options)
    assert_one_right_engine(program, model, **inputs)
    assert_one_right_engine(program, model, **on_gpu(family.inputs(*OTHER)))
