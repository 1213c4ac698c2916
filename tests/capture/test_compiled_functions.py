"""A capture leaves to Dynamo what it has compiled, although `torch.export` in strict mode lets it forget all."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import fx, nn

import torchtrt_bridge as trtb
from tests.packed import LENGTHS, TextClassifier, tokens


class TimesLargest(nn.Module):
    """A model that only strict mode captures: it takes an int of data for a number."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.exp() * int(x.max().item())


@pytest.fixture(autouse=True)
def _fresh_dynamo() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def test_an_export_lets_no_other_model_be_compiled_again() -> None:
    graphs = []

    def backend(module: fx.GraphModule, inputs: Any) -> Any:
        graphs.append(module)
        return module.forward

    @torch.compile(backend=backend)
    def other(x: torch.Tensor) -> torch.Tensor:
        return x + 1

    x = torch.full((2, 3), 3.5)
    other(x)
    program = trtb.export(TimesLargest(), (x,), engine="reference")
    torch.testing.assert_close(program(x + 2), (x + 2).exp() * 5)
    other(x)
    assert len(graphs) == 1


@pytest.mark.filterwarnings("ignore::UserWarning")
@torch.inference_mode()
def test_a_graph_that_cannot_be_captured_leaves_the_others_of_its_function() -> None:
    first, second = TextClassifier().eval(), TextClassifier().eval()
    x, lengths = tokens(), LENGTHS[0]
    fast = [trtb.compile(model, engine="reference") for model in (first, second)]
    expected = first(x, lengths)
    torch.testing.assert_close(fast[0](x, lengths), expected)
    with pytest.raises(RuntimeError):
        fast[1](x, torch.tensor([x.size(1) + 1, 1, 2]))  # the lengths of its first call contradict the graph
    torch.testing.assert_close(fast[1](x, lengths), second(x, lengths))
    torch.testing.assert_close(fast[0](x, lengths), expected)
    assert trtb.report(fast[0]).graphs == 1
