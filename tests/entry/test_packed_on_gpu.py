"""Packed sequences with real engines: lengths on the CPU, and the loop of TensorRT over padded sequences."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.export import Dim

import torchtrt_bridge as trtb
from tests.gpu import CALLS, assert_near
from tests.packed import BATCH, LENGTH, LENGTHS, Classifier, OfPacked, TextClassifier, pack, pad, sequences, tokens

pytestmark = pytest.mark.gpu

EACH_KIND = pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])


class Tagger(Classifier):
    """A classifier that keeps the lengths to itself."""

    def forward(self, tokens: torch.Tensor, lengths: Any) -> Any:
        return super().forward(tokens, lengths)[0]


def assert_right(fast: Any, model: nn.Module, device: str = "cpu") -> None:
    """Assert that results are right for all lengths, in the trial and after it."""
    with torch.inference_mode():
        for _ in range(CALLS):
            for lengths in LENGTHS:
                x = tokens().cuda()
                assert_near(fast(x, lengths.to(device)), model(x, lengths))


def assert_layer_in_engine(report: Any) -> None:
    found = [engine for engine in report.engines if any("padded_" in op for op in engine.nodes)]
    assert found, str(report)
    assert all(engine.is_ready for engine in report.engines), str(report)


@EACH_KIND
def test_a_classifier_by_the_last_states_is_whole(kind: type[nn.RNNBase]) -> None:
    model = TextClassifier(kind, num_layers=2).cuda().eval()
    fast = trtb.compile(model, precision="fp16", trial="check")
    assert_right(fast, model)
    report = trtb.report(fast)
    assert report.is_whole, str(report)
    assert len(report.engines) == report.graphs == 1
    assert_layer_in_engine(report)


@EACH_KIND
@pytest.mark.parametrize("total", [False, True])
def test_a_tagger(kind: type[nn.RNNBase], total: bool) -> None:
    model = Tagger(kind, total=total).cuda().eval()
    fast = trtb.compile(model, precision="fp16", trial="check")
    assert_right(fast, model)
    report = trtb.report(fast)
    assert report.breaks == []
    assert report.is_whole == total, str(report)
    assert_layer_in_engine(report)


def test_the_lengths_are_returned_where_they_were() -> None:
    model = Classifier(total=True).cuda().eval()
    fast = trtb.compile(model, precision="fp16", trial="check")
    with torch.inference_mode():
        for lengths in LENGTHS:
            _, found = fast(tokens().cuda(), lengths)
            assert found.device.type == "cpu"
            assert found.tolist() == lengths.tolist()


def test_values_beyond_the_ends_mean_nothing() -> None:
    model = OfPacked(lambda m, x, lengths: pad(m.layer(pack(x, lengths))[0])[0]).cuda().eval()
    fast = trtb.compile(model, precision="fp16", trial="check")
    with torch.inference_mode():
        for beyond in (1.0, 6e4, float("inf"), float("nan")):
            for lengths in LENGTHS:
                x = sequences(lengths, beyond).cuda()
                assert_near(fast(x, lengths), model(x, lengths))
    assert_layer_in_engine(trtb.report(fast))


def test_one_engine_takes_all_batches() -> None:
    model, batch = Tagger(total=True).cuda().eval(), Dim("batch", min=1, max=8)
    example = (tokens().cuda(), LENGTHS[0])
    program = trtb.export(model, example, dynamic_shapes=({0: batch}, {0: batch}), precision="fp16", trial="check")
    with torch.inference_mode():
        for count in (2, 1, 8):
            x, lengths = tokens(count).cuda(), LENGTHS[0].repeat(3)[:count]
            for _ in range(CALLS):
                assert_near(program(x, lengths), model(x, lengths))
    assert program.report.is_whole
    assert_layer_in_engine(program.report)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_saved_program_takes_lengths_on_both_devices(device: str, tmp_path: Path) -> None:
    model = Tagger(total=True).cuda().eval()
    program = trtb.export(model, (tokens().cuda(), LENGTHS[0]), precision="fp16")
    trtb.save(program, tmp_path / "tagger.pt2")
    loaded = trtb.load(tmp_path / "tagger.pt2", trial="check")
    assert_right(loaded, model, device)
    assert_layer_in_engine(loaded.report)
    with pytest.raises(RuntimeError, match="Length of all samples has to be greater than 0"):
        loaded(tokens().cuda(), torch.tensor([1, 0, 2], device=device))


def test_a_program_from_the_cpu_runs_on_a_gpu(tmp_path: Path) -> None:
    model = Tagger(total=True).eval()
    capability = "".join(map(str, torch.cuda.get_device_capability()))
    program = trtb.export(model, (tokens(), LENGTHS[0]), precision="fp16", targets=(f"sm_{capability}",))
    trtb.save(program, tmp_path / "tagger.pt2")
    loaded = trtb.load(tmp_path / "tagger.pt2", trial="check")
    assert_right(loaded, model.cuda())
    assert_layer_in_engine(loaded.report)


@pytest.mark.parametrize("lengths", [[1, 0, 2], [LENGTH + 1, 1, 2]])
def test_wrong_lengths_raise(lengths: list[int]) -> None:
    model = TextClassifier().cuda().eval()
    fast, x = trtb.compile(model, precision="fp16", trial="check"), tokens().cuda()
    wrong = torch.tensor(lengths)  # made where those before are: Dynamo has another graph for tensors of inference mode
    with torch.inference_mode():
        assert_near(fast(x, LENGTHS[0]), model(x, LENGTHS[0]))
        with pytest.raises(RuntimeError, match=r"Length of all samples|Expected lengths of at most 7"):
            fast(x, wrong)
        assert_near(fast(x, LENGTHS[1]), model(x, LENGTHS[1]))


def test_lengths_on_the_gpu_raise_pytorchs_error() -> None:
    model = TextClassifier().cuda().eval()
    fast = trtb.compile(model, precision="fp16")
    with torch.inference_mode(), pytest.raises(RuntimeError, match="should be a 1D CPU int64 tensor"):
        fast(tokens().cuda(), LENGTHS[0].cuda())


def test_cudnn_computes_layers_whose_packed_elements_are_read() -> None:
    model = OfPacked(lambda m, x, lengths: m.layer(pack(x, lengths))[0].data).cuda().eval()
    fast = trtb.compile(model, precision="fp16", trial="check")
    with torch.inference_mode(), warnings.catch_warnings():
        warnings.filterwarnings("error", message="RNN module weights are not part of single contiguous chunk")
        for _ in range(CALLS):
            for lengths in LENGTHS:
                x = sequences().cuda()
                assert_near(fast(x, lengths), model(x, lengths))
    report = trtb.report(fast)
    assert "torchtrt_bridge.packed_lstm.default" in {entry.op for entry in report.in_torch}
    assert report.breaks == []


def test_the_faster_one_serves() -> None:
    model = TextClassifier(num_layers=2).cuda().eval()
    fast = trtb.compile(model, precision="fp16")
    with torch.inference_mode():
        for _ in range(CALLS):
            x, lengths = torch.randint(20, (BATCH, LENGTH), device="cuda"), LENGTHS[0]
            assert_near(fast(x, lengths), model(x, lengths))
