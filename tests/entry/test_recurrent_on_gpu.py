"""Recurrent layers with real engines: the loop of TensorRT, and cuDNN where PyTorch computes the layer."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.export import Dim

import torchtrt_bridge as trtb
from tests.gpu import CALLS, assert_near, assert_one_right_engine
from tests.recurrent import Crnn, Encoder

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_an_encoder_of_400_frames(kind: type[nn.RNNBase]) -> None:
    model = Encoder(kind).cuda().eval()
    fast = trtb.compile(model, precision="fp16", trial="check")
    assert_one_right_engine(fast, model, torch.randn(4, 8, 800, device="cuda"))


def test_one_engine_takes_all_batches() -> None:
    model, x = Crnn().cuda().eval(), torch.randn(2, 1, 8, 40, device="cuda")
    shapes = ({0: Dim("batch", min=1, max=8)},)
    program = trtb.export(model, (x,), dynamic_shapes=shapes, precision="fp16", trial="check")
    with torch.inference_mode():
        for batch in (2, 1, 7):
            x = torch.randn(batch, 1, 8, 40, device="cuda")
            for _ in range(CALLS):
                assert_near(program(x), model(x))
    assert program.report.is_whole
    assert all(entry.is_ready for entry in program.report.engines)


def test_cudnn_computes_the_layers_of_sequences_of_all_lengths() -> None:
    model = Crnn().cuda().eval()
    fast = trtb.compile(model, precision="fp16", dynamic=True, trial="check")
    with torch.inference_mode():
        for frames in (20, 400, 31):
            x = torch.randn(2, 1, 8, frames, device="cuda")
            for _ in range(CALLS):
                assert_near(fast(x), model(x))
    assert [entry.op for entry in trtb.report(fast).in_torch] == ["torchtrt_bridge.lstm.default"]
    assert all(entry.is_ready for entry in trtb.report(fast).engines)


def test_a_saved_program(tmp_path: Path) -> None:
    model, x = Crnn().cuda().eval(), torch.randn(2, 1, 8, 40, device="cuda")
    trtb.save(trtb.export(model, (x,), precision="fp16"), tmp_path / "crnn.pt2")
    program = trtb.load(tmp_path / "crnn.pt2", trial="check")
    with torch.inference_mode():
        for _ in range(CALLS):
            assert_near(program(x), model(x))
    assert program.report.is_whole
    assert all(entry.is_ready for entry in program.report.engines)


def test_cudnn_computes_a_layer_that_is_left_to_pytorch() -> None:
    model, x = Encoder(nn.GRU).cuda().eval(), torch.randn(2, 8, 80, device="cuda")
    fast = trtb.compile(model, precision="fp16", torch_ops=("torchtrt_bridge.gru.default",))
    with torch.inference_mode(), warnings.catch_warnings():
        warnings.filterwarnings("error", message="RNN module weights are not part of single contiguous chunk")
        for _ in range(CALLS):
            assert_near(fast(x)[0], model(x)[0])
    assert [entry.op for entry in trtb.report(fast).in_torch] == ["torchtrt_bridge.gru.default"]
