"""Packed sequences through both entry points: the usual classifiers are whole, and all else has PyTorch's results."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.export import Dim
from torch.nn.utils import rnn

import torchtrt_bridge as trtb
from tests.entry.reference import REFERENCE, assert_same
from tests.packed import (
    BATCH,
    IN_ENGINES,
    IN_PYTORCH,
    LENGTH,
    LENGTHS,
    Classifier,
    OfPacked,
    TextClassifier,
    pack,
    pad,
    sequences,
    tokens,
)

KINDS: list[Any] = [
    pytest.param(Classifier, {}, id="lstm"),
    pytest.param(Classifier, {"kind": nn.GRU, "total": True}, id="gru"),
    pytest.param(Classifier, {"kind": nn.RNN, "num_layers": 2}, id="rnn"),
    pytest.param(TextClassifier, {"num_layers": 2, "dropout": 0.5}, id="last-states"),
    pytest.param(TextClassifier, {"kind": nn.GRU}, id="last-state"),
]
BY_KIND = pytest.mark.parametrize(("kind", "options"), KINDS)
EACH_ENTRY = pytest.mark.parametrize("entry", ["compile", "export"])


@pytest.fixture(autouse=True)
def _no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


def fast_of(entry: str, model: nn.Module, inputs: tuple[Any, ...], **options: Any) -> Any:
    if entry == "compile":
        return trtb.compile(model, **REFERENCE, **options)
    return trtb.export(model, inputs, **REFERENCE, **options)


def assert_same_calls(fast: Any, original: nn.Module, all_lengths: list[torch.Tensor] = LENGTHS) -> None:
    for lengths in all_lengths:
        x = tokens(len(lengths))
        actual, expected = fast(x, lengths), original(x, lengths)
        assert_same(actual, expected)


@pytest.mark.first(2 * len(KINDS))
@BY_KIND
@EACH_ENTRY
def test_a_classifier_is_whole(kind: type[nn.Module], options: dict[str, Any], entry: str) -> None:
    original = kind(**options).eval()
    fast = fast_of(entry, original, (tokens(), LENGTHS[0]), fallback="error")
    assert_same_calls(fast, original)
    report = trtb.report(fast)
    assert report.is_whole
    assert report.breaks == report.in_torch == []
    assert len(report.engines) == report.graphs == 1
    assert report.engines[0].is_ready


@EACH_ENTRY
def test_other_lengths_build_nothing(entry: str, monkeypatch: pytest.MonkeyPatch) -> None:
    original = Classifier().eval()
    fast = fast_of(entry, original, (tokens(), LENGTHS[0]))
    assert_same_calls(fast, original, LENGTHS[:1])
    monkeypatch.setattr("torchtrt_bridge.engine.builder.Builder.begin", lambda *args: pytest.fail("it is built again"))
    assert_same_calls(fast, original, [torch.randint(1, LENGTH + 1, (BATCH,)) for _ in range(12)])
    assert len(trtb.report(fast).engines) == 1


@pytest.mark.first(len(IN_ENGINES))
@pytest.mark.parametrize("function", IN_ENGINES)
def test_functions_of_packed_sequences_are_whole(function: Callable[..., Any]) -> None:
    original = OfPacked(function).eval()
    fast = trtb.compile(original, **REFERENCE)
    for lengths in LENGTHS:
        x = sequences(lengths)
        assert_same(fast(x, lengths), original(x, lengths))
    report = trtb.report(fast)
    assert report.breaks == []
    assert not {entry.op for entry in report.in_torch if "torchtrt_bridge" in entry.op}
    assert all(engine.is_ready for engine in report.engines)


@pytest.mark.first(len(IN_PYTORCH))
@pytest.mark.parametrize(("function", "reader"), IN_PYTORCH)
def test_pytorch_runs_layers_whose_packed_elements_are_read(function: Callable[..., Any], reader: str) -> None:
    original = OfPacked(function).eval()
    fast = trtb.compile(original, **REFERENCE)
    for lengths in LENGTHS:
        x = sequences(lengths)
        assert_same(fast(x, lengths), original(x, lengths))
    reasons = {
        entry.reason for entry in trtb.report(fast).in_torch if entry.op == "torchtrt_bridge.packed_lstm.default"
    }
    assert reasons == {f"its packed elements are read by {reader}, and not only padded again"}


def test_results_lie_in_memory_as_pytorchs() -> None:
    def function(m: OfPacked, x: torch.Tensor, lengths: torch.Tensor) -> Any:
        ordered = rnn.pack_padded_sequence(x, lengths.sort(descending=True).values, batch_first=True)
        return pad(m.layer(ordered)[0])[0], pad(m.layer(pack(x, lengths))[0])[0], m.layer(pack(x, lengths))[1]

    original = OfPacked(function).eval()
    results = torch.utils._pytree.tree_leaves(trtb.compile(original, **REFERENCE)(sequences(), LENGTHS[0]))
    expected = torch.utils._pytree.tree_leaves(original(sequences(), LENGTHS[0]))
    assert [value.stride() for value in results] == [value.stride() for value in expected]


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_half_precision(precision: Any) -> None:
    original, x = Classifier(total=True).eval(), tokens()
    fast = trtb.compile(original, precision=precision, fallback="error", **REFERENCE)
    error = 5e-3 if precision == "fp16" else 3e-2
    for lengths in LENGTHS:
        torch.testing.assert_close(fast(x, lengths)[0], original(x, lengths)[0], rtol=0, atol=error)
    assert trtb.report(fast).engines[0].dtypes["float16" if precision == "fp16" else "bfloat16"] >= 2


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_pytorch_runs_layers_under_autocast_of_the_cpu(kind: type[nn.RNNBase]) -> None:
    def function(m: OfPacked, x: torch.Tensor, lengths: torch.Tensor) -> Any:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return pad(m.other(pack(x, lengths))[0])[0]

    original, x = OfPacked(function), sequences()
    original.other = kind(4, 8, batch_first=True)
    fast = trtb.compile(original.eval(), **REFERENCE)
    torch.testing.assert_close(fast(x, LENGTHS[1]), original(x, LENGTHS[1]))
    with pytest.raises(trtb.CaptureError, match="it packs sequences"):
        trtb.export(original, (x, LENGTHS[0]), **REFERENCE)


# Sizes ---------------------------------------------------------------------------------------------------------------


@EACH_ENTRY
def test_batches_of_all_sizes(entry: str) -> None:
    original, batch = Classifier().eval(), Dim("batch", min=1, max=8)
    options = {"dynamic": True} if entry == "compile" else {"dynamic_shapes": ({0: batch}, {0: batch})}
    example = (tokens(), LENGTHS[0])
    if entry == "compile":
        torch._dynamo.mark_static(example[0], 1)
    fast = fast_of(entry, original, example, **options)
    assert_same(fast(*example), original(*example))
    for count in (2, 5, 8):
        x = tokens(count)
        if entry == "compile":
            torch._dynamo.mark_static(x, 1)
        assert_same(fast(x, LENGTHS[0].repeat(3)[:count]), original(x, LENGTHS[0].repeat(3)[:count]))
    report = trtb.report(fast)
    assert report.breaks == []
    assert not {entry.op for entry in report.in_torch if "torchtrt_bridge" in entry.op}
    assert any("torchtrt_bridge.padded_lstm.default" in engine.nodes for engine in report.engines)


@EACH_ENTRY
def test_pytorch_runs_layers_of_padded_sequences_of_any_size(entry: str) -> None:
    original = Classifier(total=True).eval()
    length = Dim("length", min=2, max=20)
    options = {"dynamic": True} if entry == "compile" else {"dynamic_shapes": ({1: length}, None)}
    fast = fast_of(entry, original, (tokens(), LENGTHS[0]), **options)
    for size in (7, 9, 12):
        x, lengths = tokens(length=size), torch.tensor([size, 1, 4])
        assert_same(fast(x, lengths), original(x, lengths))
    entries = {entry.op: entry.reason for entry in trtb.report(fast).in_torch}
    assert "the length of its sequences is known only at run time" in entries["torchtrt_bridge.packed_lstm.default"]
    assert trtb.report(fast).breaks == []


# Lengths that are wrong, or come otherwise ---------------------------------------------------------------------------


@EACH_ENTRY
@pytest.mark.parametrize("lengths", [[4, 0, 2], [4, -1, 2], [8, 4, 2], [9, 9, 9]])
@pytest.mark.first(8)
def test_wrong_lengths_raise_pytorchs_error(entry: str, lengths: list[int]) -> None:
    original, x = Classifier().eval(), tokens()
    fast = fast_of(entry, original, (x, LENGTHS[0]))
    assert_same(fast(x, LENGTHS[0]), original(x, LENGTHS[0]))
    with pytest.raises(RuntimeError) as expected:
        original(x, torch.tensor(lengths))
    message = "Length of all samples has to be" if min(lengths) <= 0 else "Expected lengths of at most 7, which padded"
    with pytest.raises(RuntimeError, match=message) as raised:
        fast(x, torch.tensor(lengths))
    assert type(raised.value) is type(expected.value)
    assert_same(fast(x, LENGTHS[1]), original(x, LENGTHS[1]))


@EACH_ENTRY
def test_lengths_that_are_not_in_order_raise_pytorchs_error(entry: str) -> None:
    def function(m: OfPacked, x: torch.Tensor, lengths: torch.Tensor) -> Any:
        return pad(m.layer(rnn.pack_padded_sequence(x, lengths, batch_first=True))[0])[0]

    original, x, ordered = OfPacked(function).eval(), sequences(), torch.tensor([7, 4, 1])
    fast = fast_of(entry, original, (x, ordered))
    assert_same(fast(x, ordered), original(x, ordered))
    with pytest.raises(RuntimeError, match="must be sorted in decreasing order"):
        fast(x, ordered.flip(0))


def test_a_total_length_below_the_longest_sequence_raises_pytorchs_error() -> None:
    original = OfPacked(lambda m, x, lengths: pad(m.layer(pack(x, lengths))[0], total_length=5)[0]).eval()
    fast, x = trtb.compile(original, **REFERENCE), sequences()
    for lengths in (torch.tensor([2, 5, 1]), torch.tensor([3, 3, 3])):
        assert_same(fast(x, lengths), original(x, lengths))
    with pytest.raises(ValueError, match="Expected total_length to be at least the length of the longest sequence"):
        fast(x, torch.tensor([2, 6, 1]))


def test_an_export_with_a_small_total_length_says_what_to_do() -> None:
    original = OfPacked(lambda m, x, lengths: pad(m.layer(pack(x, lengths))[0], total_length=5)[0]).eval()
    with pytest.raises(trtb.CaptureError, match="it packs sequences") as raised:
        trtb.export(original, (sequences(), LENGTHS[0]), **REFERENCE)
    assert "no total_length below the size of the padded batch" in str(raised.value)


@EACH_ENTRY
def test_features_of_a_wrong_number_have_pytorchs_error(entry: str) -> None:
    model = OfPacked(lambda m, x, lengths: pad(m.layer(pack(x[..., :3], lengths))[0])[0]).eval()
    message = "mat1 and mat2 shapes" if entry == "compile" else r"input.size\(-1\) must be equal to input_size"
    with pytest.raises((RuntimeError, trtb.CaptureError), match=message):
        fast_of(entry, model, (sequences(), LENGTHS[0]))(sequences(), LENGTHS[0])


def test_lengths_in_a_list_have_results_and_advice() -> None:
    original, x = Classifier().eval(), tokens()
    fast = trtb.compile(original, **REFERENCE)
    for lengths in LENGTHS:
        assert_same(fast(x, lengths.tolist()), original(x, lengths.tolist()))
    report = trtb.report(fast)
    assert report.graphs < 5
    (found, *_) = report.breaks
    assert "pack_padded_sequence" in found.reason
    assert "for a padded batch with its lengths in a tensor on the CPU" in found.reason


def test_a_program_for_a_list_of_lengths_is_for_these() -> None:
    original, x = Classifier().eval(), tokens()
    program = trtb.export(original, (x, [4, 7, 1]), **REFERENCE)
    assert_same(program(x, [4, 7, 1]), original(x, [4, 7, 1]))
    with pytest.raises(trtb.ShapeRangeError, match="or with a tensor in its place"):
        program(x, [4, 6, 1])


@EACH_ENTRY
def test_lengths_that_the_model_counts(entry: str) -> None:
    def function(m: OfPacked, x: torch.Tensor, lengths: torch.Tensor) -> Any:
        counted = (torch.arange(LENGTH) < lengths[:, None]).sum(1).to(torch.int32).cpu()
        return pad(m.layer(pack(x, counted))[0])

    original, x = OfPacked(function).eval(), sequences()
    fast = fast_of(entry, original, (x, LENGTHS[0]))
    for lengths in LENGTHS:
        assert_same(fast(x, lengths), original(x, lengths))
    assert trtb.report(fast).in_torch == []


def test_sequences_that_were_packed_outside_run_in_pytorch() -> None:
    original = nn.LSTM(4, 8).eval()
    fast = trtb.compile(original, **REFERENCE)
    for lengths in LENGTHS:
        packed = rnn.pack_padded_sequence(sequences().transpose(0, 1), lengths, enforce_sorted=False)
        (output, _), (expected, _) = fast(packed), original(packed)
        assert_same(tuple(output), tuple(expected))


def test_a_list_of_sequences_is_packed_in_pytorch() -> None:
    def function(m: OfPacked, x: torch.Tensor, lengths: Any) -> Any:
        return pad(m.layer(rnn.pack_sequence([x[0], x[1, :3]]))[0])[0]

    original, x = OfPacked(function).eval(), sequences()
    fast = trtb.compile(original, **REFERENCE)
    assert_same(fast(x, None), original(x, None))
    assert any("pack_padded_sequence" in found.reason for found in trtb.report(fast).breaks)


# Beside engines ------------------------------------------------------------------------------------------------------


def test_gradients_are_pytorchs() -> None:
    with torch.enable_grad():
        original, x = Classifier(), tokens()
        fast = trtb.compile(original, **REFERENCE)
        fast(x, LENGTHS[0])[0].sum().backward()
        found = [parameter.grad.clone() for parameter in original.parameters() if parameter.grad is not None]
        original.zero_grad()
        original(x, LENGTHS[0])[0].sum().backward()
    torch.testing.assert_close(found, [parameter.grad for parameter in original.parameters()])


def test_hooks_of_a_layer_see_packed_sequences() -> None:
    original, x = Classifier().eval(), tokens()
    original.layer.register_forward_hook(
        lambda _, inputs, results: (results[0]._replace(data=results[0].data * 2), None)
    )
    fast = trtb.compile(original, fallback="error", **REFERENCE)
    assert_same(fast(x, LENGTHS[0]), original(x, LENGTHS[0]))


@pytest.mark.parametrize("kind", [Classifier, TextClassifier])
def test_a_saved_program(kind: type[nn.Module], tmp_path: Path) -> None:
    original = kind().eval()
    trtb.save(trtb.export(original, (tokens(), LENGTHS[0]), **REFERENCE), tmp_path / "model.pt2")
    program = trtb.load(tmp_path / "model.pt2", device="cpu")
    assert_same_calls(program, original)
    assert program.report.is_whole
    with pytest.raises(RuntimeError, match="Length of all samples has to be greater than 0"):
        program(tokens(), torch.tensor([1, 0, 2]))
    exported = torch.export.load(tmp_path / "model.pt2").module()
    assert_same_calls(exported, original)


def test_a_quantized_model() -> None:
    original = Classifier(total=True).eval()
    data = [(tokens(), lengths) for lengths in LENGTHS]
    found = trtb.quantize(original, data, method="absmax", table=False)
    assert {entry.name: entry.op for entry in found.quantization.layers}["layer"] == "recurrent layer"
    fast = trtb.compile(found, fallback="error", **REFERENCE)
    x, lengths = data[0]
    torch.testing.assert_close(fast(x, lengths)[0], found(x, lengths)[0], rtol=1e-4, atol=1e-4)


def test_other_backends_break_the_graph_as_ever() -> None:
    graphs: list[torch.fx.GraphModule] = []

    def backend(module: torch.fx.GraphModule, inputs: Any) -> Any:
        graphs.append(module)
        return module

    x = tokens()
    trtb.compile(Classifier().eval(), **REFERENCE)(x, LENGTHS[0])
    torch.compile(Classifier().eval(), backend=backend)(x, LENGTHS[0])
    assert not any("in_graph" in str(node.target) for module in graphs for node in module.graph.nodes)


def test_a_backend_by_its_name_in_one_graph() -> None:
    original, x = Classifier().eval(), tokens()
    fast = torch.compile(original, backend="torchtrt_bridge", options=REFERENCE, fullgraph=True)
    assert_same(fast(x, LENGTHS[0]), original(x, LENGTHS[0]))
    assert trtb.report(fast).is_whole


def test_an_explanation_has_the_layer_in_tensorrt() -> None:
    report = trtb.explain(Classifier().eval(), (tokens(), LENGTHS[0]), **REFERENCE)
    assert report.in_torch == report.breaks == []
    assert len(report.engines) == 1
