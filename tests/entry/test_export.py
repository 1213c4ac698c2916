"""Export: engines for named targets, saved, loaded and compared with PyTorch."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sympy
import torch
from torch import fx, nn
from torch._dynamo.exc import UserError, UserErrorType
from torch.export import Dim
from torch.fx.experimental.sym_node import SymNode
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.utils._sympy.functions import Max, Min, Mod

import torchtrt_bridge as trtb
from tests.models import ConvNet, WithUnsupported, image, trained
from torchtrt_bridge.capture import export as capture

TARGETS = ("sm_86", "sm_89", "sm_120")


def relative(result: torch.Tensor, expected: torch.Tensor) -> float:
    return float((result - expected).norm() / expected.norm())


@pytest.fixture
def program() -> trtb.Program:
    shapes = ({0: Dim("batch", min=1, max=8)},)
    return trtb.export(trained(ConvNet()), (image(),), dynamic_shapes=shapes, precision="fp16", targets=TARGETS)


def test_engines_are_built_without_a_gpu(program: trtb.Program) -> None:
    (engine,) = program.report.engines
    assert engine.is_ready
    assert engine.bytes > 1000
    assert engine.inputs == ["x: float32[1..8, 3, 8, 8]"]
    assert program.report.is_whole


def test_reference_engine_gives_eager_results() -> None:
    model, x = trained(ConvNet()), image()
    program = trtb.export(model, x, engine="reference")
    with torch.no_grad():
        torch.testing.assert_close(program(x), model(x), rtol=1e-5, atol=1e-5)
    assert program.report.engines[0].error is not None


def test_save_and_load(program: trtb.Program, tmp_path: Path) -> None:
    trtb.save(program, tmp_path / "model.pt2")
    loaded = trtb.load(tmp_path / "model.pt2", device="cpu")
    x = image(5)
    torch.testing.assert_close(loaded(x), program(x))
    assert [e.name for e in loaded.report.engines] == ["trt_0"]
    assert loaded.report.engines[0].bytes == program.report.engines[0].bytes


def test_a_saved_program_is_an_ordinary_one(program: trtb.Program, tmp_path: Path) -> None:
    trtb.save(program, tmp_path / "model.pt2")
    x = image(3)
    plain = torch.export.load(tmp_path / "model.pt2").module()
    torch.testing.assert_close(plain(x), program(x))


def test_a_loaded_program_can_be_saved_again(program: trtb.Program, tmp_path: Path) -> None:
    trtb.save(program, tmp_path / "one.pt2")
    trtb.save(trtb.load(tmp_path / "one.pt2"), tmp_path / "two.pt2")
    again = trtb.load(tmp_path / "two.pt2")
    x = image(3)
    torch.testing.assert_close(again(x).cpu(), program(x))
    assert again.report.engines[0].bytes == program.report.engines[0].bytes


@pytest.mark.full
def test_a_fresh_process_runs_the_file(program: trtb.Program, tmp_path: Path) -> None:
    trtb.save(program, tmp_path / "model.pt2")
    x = image(4)
    torch.save({"x": x, "expected": program(x)}, tmp_path / "data.pt")
    script = """
        import sys, torch, torchtrt_bridge as trtb
        data = torch.load(sys.argv[2])
        program = trtb.load(sys.argv[1], device="cpu")
        torch.testing.assert_close(program(data["x"]), data["expected"])
    """
    files = [str(tmp_path / "model.pt2"), str(tmp_path / "data.pt")]
    subprocess.run([sys.executable, "-c", textwrap.dedent(script), *files], check=True)


def test_fallback_survives_saving(tmp_path: Path) -> None:
    model, x = trained(WithUnsupported()), image()
    program = trtb.export(model, x, targets=TARGETS)
    assert len(program.report.engines) == 2
    trtb.save(program, tmp_path / "model.pt2")
    loaded = trtb.load(tmp_path / "model.pt2", device="cpu")
    with torch.no_grad():
        torch.testing.assert_close(loaded(x), model(x), rtol=1e-4, atol=1e-5)
    assert len(loaded.report.in_torch) == len(program.report.in_torch) > 0


class Counter(nn.Module):
    """Model that mutates a buffer, takes keyword arguments and None, and nests its results."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(1))

    def forward(self, x: torch.Tensor, *, scale: torch.Tensor, extra: None = None) -> Any:
        self.calls.add_(1)
        return {"y": (x.sigmoid() * scale, None), "calls": self.calls * 1}


def test_mutated_buffers_keyword_arguments_and_nested_outputs(tmp_path: Path) -> None:
    x, scale = torch.randn(3), torch.tensor(2.0)
    program = trtb.export(Counter(), (x,), kwargs={"scale": scale, "extra": None}, engine="reference")
    trtb.save(program, tmp_path / "model.pt2")
    for model in (program, trtb.load(tmp_path / "model.pt2", device="cpu")):
        first, second = model(x, extra=None, scale=scale), model(x, scale=scale, extra=None)
        torch.testing.assert_close(first["y"][0], x.sigmoid() * 2)
        assert first["y"][1] is None
        assert (float(first["calls"]), float(second["calls"])) == (1.0, 2.0)


class Last(nn.Module):
    """Returns what it was called with before, from a buffer that is in no state_dict."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("last", torch.zeros(3), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        before = self.last * 2
        self.last.copy_(x)
        return before


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_mutated_buffer_that_is_not_persistent(precision: Any, tmp_path: Path) -> None:
    program = trtb.export(Last(), torch.ones(3), engine="reference", precision=precision)
    trtb.save(program, tmp_path / "model.pt2")
    for model in (program, trtb.load(tmp_path / "model.pt2", device="cpu")):
        assert [model(torch.full((3,), value)).tolist() for value in (1.0, 5.0, 7.0)] == [[0] * 3, [2] * 3, [10] * 3]


class Turned(nn.Module):
    """Holds a weight whose elements are negated only when they are read."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = negated_when_read()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.weight


def negated_when_read() -> torch.Tensor:
    torch.manual_seed(0)
    value = torch.randn(4, 4, dtype=torch.complex64).conj().imag
    assert value.is_neg()
    return value


def test_a_weight_that_is_negated_when_it_is_read() -> None:
    x = torch.randn(2, 4)
    program = trtb.export(Turned(), x, engine="reference", fallback="error")
    torch.testing.assert_close(program(x), Turned()(x))


def test_a_function_is_exported() -> None:
    x = torch.randn(3)
    program = trtb.export(lambda x: x.sigmoid() * 2, x, engine="reference")
    torch.testing.assert_close(program(x), x.sigmoid() * 2)


@pytest.mark.parametrize("options", [{"engine": "reference"}, {"targets": TARGETS}], ids=["reference", "built"])
def test_later_changes_of_the_model_do_not_reach_the_program(options: dict[str, Any]) -> None:
    model, x = trained(WithUnsupported()), image()
    program = trtb.export(model, x, **options)
    before = program(x)
    with torch.no_grad():
        model.head.weight.zero_()
        model.norm.weight.zero_()
    torch.testing.assert_close(program(x), before)


class Tied(nn.Module):
    """Model whose head shares its weight with the embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(50, 6)
        self.head = nn.Linear(6, 50, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.embedding(ids).relu())


@pytest.mark.parametrize("options", [{"engine": "reference"}, {"targets": TARGETS}], ids=["reference", "built"])
def test_a_weight_with_two_names_is_copied_once(options: dict[str, Any]) -> None:
    model = Tied()
    program = trtb.export(model, torch.arange(4), **options)
    memories = {value.data_ptr() for value in program.exported.state_dict.values()}
    assert len(memories) == 1
    assert memories.isdisjoint({model.head.weight.data_ptr()})


def test_training_mode_gives_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    trtb.export(nn.Sequential(nn.ReLU()).train(), torch.randn(3), engine="reference")
    assert "training mode" in caplog.text


# Bad input ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (
            lambda p: p(image(9)),
            r"float32\[9, 3, 8, 8\]; the program was exported for float32\[1..8, 3, 8, 8\]",
        ),
        (lambda p: p(image().double()), "float64"),
        (lambda p: p(image(2, 9)), r"\[2, 3, 9, 9\]"),
        (
            lambda p: p(image(), image()),
            "takes x by position, .* this call gives 2 arguments by position",
        ),
        (lambda p: p(x=image(), y=1), "takes x by position, as it was exported; this call gives x, y by name"),
        (lambda p: p([1, 2]), "Argument x is a list"),
        (lambda p: p(), "this call gives no arguments"),
        (lambda p: p(3), "the int 3"),
    ],
)
def test_wrong_arguments(program: trtb.Program, call: Any, words: str) -> None:
    with pytest.raises(trtb.ShapeRangeError, match=words):
        call(program)


def test_data_dependent_control_flow_cannot_be_exported() -> None:
    with pytest.raises(trtb.CaptureError, match=r"torch\.compile"):
        trtb.export(lambda x: x + 1 if x.sum() > 0 else x - 1, torch.randn(3))


def test_a_range_in_which_the_graph_does_not_hold_cannot_be_exported() -> None:
    with pytest.raises(trtb.CaptureError, match=r"(?s)Constraints violated.*% 4\) == 0"):
        trtb.export(lambda x: x.view(-1, 4).relu(), torch.randn(8), dynamic_shapes=({0: Dim("n", min=2, max=64)},))


def test_a_condition_that_pytorch_cannot_prove_may_be_proved(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch 2.11 refuses most decoders of Hugging Face, since min(8 * n, 16 * n) == 8 * n would restrict n."""
    real = torch.export.export

    def export(*args: Any, **kwargs: Any) -> Any:
        if not kwargs.get("prefer_deferred_runtime_asserts_over_guards"):
            raise UserError(UserErrorType.CONSTRAINT_VIOLATION, "planted")
        return real(*args, **kwargs)

    def model(x: torch.Tensor) -> torch.Tensor:
        n = x.shape[0]
        torch._check(torch.sym_min(8 * n, 16 * n) == 8 * n)
        return x.relu().view(n, -1) * 2

    monkeypatch.setattr(torch.export, "export", export)
    shapes = ({0: Dim("n", min=2, max=64)},)
    program = trtb.export(model, torch.randn(8), dynamic_shapes=shapes, engine="reference", fallback="error")
    x = torch.randn(5)
    torch.testing.assert_close(program(x), model(x))
    assert program.report.is_whole


SIZE = sympy.Symbol("s", positive=True, integer=True)


@pytest.mark.parametrize(
    ("condition", "is_proved"),
    [
        (sympy.Eq(Min(8 * SIZE, 16 * SIZE, evaluate=False), 8 * SIZE, evaluate=False), True),
        (sympy.Eq(Max(SIZE, 4 * SIZE, evaluate=False), 4 * SIZE, evaluate=False), True),
        (sympy.Eq(Min(SIZE, 16, evaluate=False), SIZE, evaluate=False), False),
        (sympy.Eq(sympy.Mod(SIZE, 4), 0), False),
        (SIZE * (8 + SIZE - Mod(SIZE, 8)) > 15, True),  # 2 * 8 is the least
        (SIZE * (8 + SIZE - Mod(SIZE, 8)) > 16, False),
        (SIZE * (8 + SIZE - Mod(SIZE, 8)) >= 16, True),
        (sympy.Integer(32) >= SIZE, True),
        (sympy.Integer(32) > SIZE, False),
    ],
)
def test_conditions_on_sizes_that_are_proved(condition: sympy.Expr, is_proved: bool) -> None:
    symbolic = torch.SymBool(SymNode(condition, ShapeEnv(), bool, hint=True))
    node = fx.Graph().placeholder("condition")
    node.meta["val"] = symbolic
    assert capture._is_proved(node, {SIZE: (2, 32)}) is is_proved


def test_what_cannot_be_exported() -> None:
    with pytest.raises(trtb.CaptureError, match="a module or a function"):
        trtb.export(3, torch.randn(3))  # type: ignore[arg-type]


@pytest.mark.parametrize("fallback", ["pytorch", "error"])
def test_an_unknown_target_is_refused_at_once(fallback: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torchtrt_bridge.entry.export.export_program", None)  # nothing is captured before
    with pytest.raises(trtb.OptionsError, match="cannot build for sm_42"):
        trtb.export(trained(ConvNet()), image(), targets=("sm_42",), fallback=fallback)


def test_a_program_without_an_engine_is_an_error_where_errors_are_asked_for() -> None:
    model, x = nn.Identity(), torch.ones(2)
    assert trtb.export(model, x, targets=("sm_86",)).report.engines == []
    with pytest.raises(trtb.UnsupportedOpError, match="has no engine"):
        trtb.export(model, x, targets=("sm_86",), fallback="error")


def test_a_program_says_what_it_is() -> None:
    program = trtb.export(trained(ConvNet()), image(), targets=("sm_86",))
    assert repr(program).startswith("<torchtrt_bridge.Program: ")
    assert "nodes in TensorRT, 1 engine" in repr(program)
    assert "nodes in TensorRT" in program._repr_html_()


# Layouts of the example ---------------------------------------------------------------------------------------------

ROWS, COLUMNS = Dim("rows", min=1, max=8), Dim("columns", min=2, max=16)
LAYOUTS: dict[str, tuple[Callable[..., torch.Tensor], dict[int, Any]]] = {
    "transposed": (lambda rows: torch.randn(8, rows).t(), {0: ROWS}),
    "transposed, both": (lambda rows: torch.randn(rows + 3, rows).t(), {0: ROWS, 1: COLUMNS}),
    "permuted": (lambda rows: torch.randn(rows + 1, 6, rows).permute(2, 0, 1), {0: ROWS, 1: COLUMNS}),
    "channels last": (
        lambda rows: torch.randn(rows, 3, rows + 3, 8).to(memory_format=torch.channels_last),
        {0: ROWS, 2: COLUMNS},
    ),
    "every other row": (lambda rows: torch.randn(2 * rows, 8)[::2], {0: ROWS}),
    "every other column": (lambda rows: torch.randn(rows, 16)[:, ::2], {0: ROWS}),
    "some of 16 columns": (lambda rows: torch.randn(rows, 16)[:, : rows + 3], {0: ROWS, 1: COLUMNS}),
    "expanded": (lambda rows: torch.randn(1, 8).expand(rows, 8), {0: ROWS}),
    "windows that overlap": (lambda rows: torch.randn(2 * rows + 2).unfold(0, 4, 2), {0: ROWS}),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_an_example_may_have_any_strides(name: str) -> None:
    example, dims = LAYOUTS[name]
    model = Rows()
    program = trtb.export(model, example(4), dynamic_shapes=({**dims},), engine="reference")
    assert program.report.is_whole
    for x in (example(4), example(7), example(7).contiguous()):
        torch.testing.assert_close(program(x), model(x))


class Rows(nn.Module):
    """Each row of the input as one."""

    def __init__(self) -> None:
        super().__init__()
        self.eval()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.reshape(x.shape[0], -1).relu() * 2


class Written(nn.Module):
    """Writes to its input."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x[:, 0] = 7.0
        return x.exp()


def test_what_is_written_to_a_part_is_in_the_whole() -> None:
    program = trtb.export(
        Written().eval(), torch.randn(4, 16)[:, :7], dynamic_shapes=({0: ROWS, 1: COLUMNS},), engine="reference"
    )
    whole = torch.zeros(5, 16)
    torch.testing.assert_close(program(whole[:, 2:11]), Written()(torch.zeros(5, 9)))
    assert whole.sum() == 5 * 7.0
    assert bool((whole[:, 2] == 7.0).all())


class ByOffsets(nn.Module):
    """Reads memory of its input by offsets, and its columns."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.reshape(-1).exp().sum() + x.as_strided((2, 2), (16, 1))


def test_memory_that_is_read_by_offsets_is_not_copied() -> None:
    with pytest.raises(trtb.CaptureError, match="dynamic_shapes"):
        trtb.export(ByOffsets().eval(), torch.randn(4, 16)[:, :7], dynamic_shapes=({0: ROWS, 1: COLUMNS},))
