"""A model of transformers with a recurrent layer, which PyTorch runs for texts of any length; engines run the rest."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import torchtrt_bridge as trtb

transformers = pytest.importorskip("transformers")


class TaggerConfig(transformers.PretrainedConfig):  # type: ignore[misc, name-defined]
    model_type = "recurrent_tagger"


class Tagger(transformers.PreTrainedModel):  # type: ignore[misc, name-defined]
    """Tags of the tokens of a text."""

    config_class = TaggerConfig
    main_input_name = "input_ids"

    def __init__(self, config: TaggerConfig) -> None:
        super().__init__(config)
        self.embeddings = nn.Embedding(50, 8)
        self.layer = nn.GRU(8, 6, batch_first=True, bidirectional=True)
        self.head = nn.Linear(12, 5)
        self.post_init()

    def forward(self, input_ids: torch.Tensor) -> tuple[torch.Tensor]:
        hidden, _ = self.layer(self.embeddings(input_ids))
        return (self.head(hidden),)


def test_an_accelerated_model_takes_any_batch_and_length() -> None:
    model = Tagger(TaggerConfig()).eval()
    with torch.no_grad():
        inputs = [torch.randint(0, 50, (batch, length)) for batch, length in ((2, 9), (3, 40), (5, 17))]
        expected = [model(ids)[0] for ids in inputs]
        fast = trtb.accelerate(model, engine="reference")
        for ids, value in zip(inputs, expected, strict=True):
            torch.testing.assert_close(fast(ids)[0], value, rtol=1e-4, atol=1e-5)
    report = trtb.report(fast)
    (entry,) = report.in_torch
    assert entry.op == "torchtrt_bridge.gru.default"
    assert "known only at run time" in entry.reason
    assert all(entry.is_ready for entry in report.engines)
    assert report.engines
