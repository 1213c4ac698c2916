"""Each family of Hugging Face models through both entry points: one engine, nothing in PyTorch, eager's results."""

from __future__ import annotations

import pytest

import torchtrt_bridge as trtb
from tests.huggingface.models import MODELS, Tiny
from tests.huggingface.serving import OPTIONS, assert_one_engine, assert_serves, compiled, exported

TRACED, OTHER = (2, 11), (5, 16)  # batch size and length; a batch of 3 would be taken for the number of channels

families = pytest.mark.parametrize("family", MODELS, ids=str)


@families
def test_compile(family: Tiny) -> None:
    model, inputs = family.build(), family.inputs(*TRACED)
    fast = compiled(model, inputs)
    assert_serves(fast, model, inputs)
    assert_one_engine(fast)


@families
def test_export_dynamic(family: Tiny) -> None:
    model, inputs = family.build(), family.inputs(*TRACED)
    program = trtb.export(model, (), kwargs=inputs, dynamic_shapes=family.dynamic_shapes(), **OPTIONS)
    assert_serves(program, model, inputs)
    assert_serves(program, model, family.inputs(*OTHER))
    assert_one_engine(program)


@pytest.mark.slow
@families
def test_compile_dynamic(family: Tiny) -> None:
    model = family.build()
    fast = trtb.compile(model, dynamic=True, **OPTIONS)
    assert_serves(fast, model, family.inputs(*TRACED))
    assert_serves(fast, model, family.inputs(*OTHER))
    assert_one_engine(fast)


@pytest.mark.slow
@families
def test_export(family: Tiny) -> None:
    model, inputs = family.build(), family.inputs(*TRACED)
    program = exported(model, inputs)
    assert_serves(program, model, inputs)
    assert_one_engine(program)
