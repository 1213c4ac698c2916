"""The models of the benchmark: the same each time, and such that a mistake would show in their results."""

from __future__ import annotations

import pytest
import torch

from benchmarks.suite import models as suite
from benchmarks.suite.models import SUITE, build, names
from benchmarks.suite.speed import float_tensors, relative_error

FULL = ("minilm-l6", "mobilenet-v3-large")
REAL_SIZE = [pytest.param(name, marks=pytest.mark.full if name in FULL else pytest.mark.slow) for name in names()]


def results_of(name: str, batch: int = 2) -> list[torch.Tensor]:
    with torch.inference_mode():
        return float_tensors(build(SUITE[name])(**SUITE[name].inputs(batch)))


@pytest.mark.parametrize("name", [*names(tiny=True), *REAL_SIZE])
def test_results_are_finite_and_depend_on_the_inputs(name: str) -> None:
    results = results_of(name)
    assert all(bool(result.isfinite().all()) for result in results)
    assert all(relative_error([result[0]], [result[1]]) > 5e-3 for result in results)


def test_a_model_is_the_same_each_time() -> None:
    first, second = build(SUITE["tiny-cnn"]).state_dict(), build(SUITE["tiny-cnn"]).state_dict()
    assert all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize("name", names(tiny=True))
def test_no_weight_is_constant_and_none_wants_gradients(name: str) -> None:
    parameters = list(build(SUITE[name]).parameters())
    assert all(float(parameter.std()) > 0 for parameter in parameters if parameter.numel() > 1)
    assert not any(parameter.requires_grad for parameter in parameters)


def test_batch_norms_have_the_scale_of_their_inputs() -> None:
    model = build(SUITE["tiny-cnn"])
    convolution, norm = model.body[0], model.body[1]  # type: ignore[index, union-attr]
    with torch.no_grad():
        seen = convolution(SUITE["tiny-cnn"].inputs(4)["x"])
    torch.testing.assert_close(norm.running_var, 4 * seen.square().mean((0, 2, 3)))
    assert not norm._forward_pre_hooks


def test_padding_is_masked_and_inputs_have_the_batch_size() -> None:
    inputs = SUITE["bert-base"].inputs(3)
    assert inputs["input_ids"].shape == inputs["attention_mask"].shape == (3, 128)
    assert inputs["attention_mask"].sum(1).tolist() == [128, 128, 107]
    assert not inputs["input_ids"][inputs["attention_mask"] == 0].any()


def test_tiny_models_are_apart() -> None:
    assert names(tiny=True) == ("tiny-cnn", "tiny-bert")
    assert {*names(), *names(tiny=True)} == set(suite.SUITE)
