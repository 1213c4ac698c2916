"""Options: one declaration for each; a value that is unknown, out of range or contradictory raises."""

from __future__ import annotations

import dataclasses
import inspect
import textwrap
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
import torch

import torchtrt_bridge as trtb
from tests.models import ConvNet, image
from torchtrt_bridge.options import (
    AT_LOAD,
    DECLARATIONS,
    Declaration,
    KeywordOptions,
    LoadOptions,
    Shapes,
    defaults,
    names_text,
    options_from_text,
    options_table,
    type_hints,
)

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"precison": "fp16"}, "Did you mean 'precision'"),
        ({"torch_ops": ("aten.softmax",)}, "Did you mean 'aten.softmax.int'"),
        ({"torch_ops": ("aten.relu.default", "no.such.operator")}, "'no.such.operator' is no operator of PyTorch"),
        ({"enabled_precisions": {torch.half}}, "Unknown option 'enabled_precisions'"),
        ({"precision": "float16"}, "precision='float16' is not a choice"),
        ({"fallback": "raise"}, "Known: pytorch, error"),
        ({"torch_tensorrt": False}, "Known: auto, off"),
        ({"targets": ("8.9",)}, "sm_89"),
        ({"targets": 89}, "tuple of strings"),
        ({"optimization_level": 9}, "0 to 5"),
        ({"min_subgraph_nodes": 0}, "1 or more"),
        ({"min_subgraph_nodes": 2.5}, "must be an integer"),
        ({"tf32": 1}, "tf32 must be bool"),
        ({"release_weights": "yes"}, "release_weights must be bool"),
        ({"engine": "reference", "targets": ("sm_89",)}, "Leave out one"),
        ({"tf32": True, "precision": "fp16"}, "Leave out one"),
        ({"cache_dir": 7}, "cache_dir must be a path"),
    ],
)
def test_wrong_options_raise(options: dict[str, Any], words: str) -> None:
    with pytest.raises(trtb.OptionsError, match=words.replace("(", r"\(")):
        trtb.Options.from_mapping(options)


def test_every_option_is_declared() -> None:
    """A field without a declaration, and a declaration without its part in an engine, fail at the import."""
    assert list(DECLARATIONS) == [field.name for field in dataclasses.fields(trtb.Options)]
    assert [name for name, declared in DECLARATIONS.items() if declared.shapes not in get_args(Shapes)] == []
    with pytest.raises(TypeError, match="shapes"):
        Declaration("An option.")  # type: ignore[call-arg]


def test_every_option_has_a_meaning_in_sentences() -> None:
    assert [name for name, declared in DECLARATIONS.items() if len(declared.meaning) < 20] == []
    assert [name for name, declared in DECLARATIONS.items() if not declared.meaning.endswith(".")] == []


def test_integers_have_a_range() -> None:
    kinds = {name: (get_args(hint) or (hint,))[0] for name, hint in type_hints().items()}
    assert [name for name, kind in kinds.items() if kind is int and DECLARATIONS[name].least is None] == []


def test_load_takes_no_option_that_shapes_an_engine() -> None:
    assert {DECLARATIONS[name].shapes for name in AT_LOAD} == {"run"}


def test_keyword_options_equal_the_fields() -> None:
    """`KeywordOptions` and `LoadOptions` are written for type checkers, which read no generated class."""
    assert get_type_hints(KeywordOptions) == get_type_hints(trtb.Options)
    assert get_type_hints(LoadOptions) == {name: type_hints()[name] for name in AT_LOAD}


@pytest.mark.parametrize("entry", [trtb.compile, trtb.export, trtb.explain, trtb.accelerate, trtb.load])
def test_help_shows_the_options(entry: Any) -> None:
    names = AT_LOAD if entry is trtb.load else tuple(DECLARATIONS)
    parameters = inspect.signature(entry).parameters
    assert list(parameters)[-len(names) :] == list(names)
    assert {name: parameters[name].default for name in names} == {
        field.name: field.default for field in dataclasses.fields(trtb.Options) if field.name in names
    }
    assert [name for name in names if f"    {name}: " not in inspect.getdoc(entry)] == []  # type: ignore[operator]


def test_the_table_has_a_row_for_each_option() -> None:
    rows = options_table().splitlines()[2:]
    assert [row.split("`")[1] for row in rows] == list(DECLARATIONS)
    assert "| `optimization_level` | integer, 0 to 5 | `3` |" in options_table()
    assert "| `cache_dir` | path, or `None` | `None` |" in options_table()
    assert '| `fallback` | `"pytorch"`, `"error"` | `"pytorch"` |' in options_table()


@pytest.mark.full
def test_a_type_checker_knows_the_options(tmp_path: Path) -> None:
    from mypy import api

    program = """\
        import torchtrt_bridge as trtb

        def use(model: object) -> None:
            trtb.compile(model, precision="fp16", targets=("sm_89",), workspace_bytes=None)
            trtb.compile(model, precision="fp61")
            trtb.compile(model, precison="fp16")
            trtb.accelerate(model, tf32=1)
            trtb.explain(print, (), optimization_level="3")
            trtb.export(print, (), trial="check", engine="rtx")
            trtb.load("model.pt2", trial="off")
            trtb.load("model.pt2", precision="fp16")
        """
    path = tmp_path / "program.py"
    path.write_text(textwrap.dedent(program))
    settings = ["--strict", "--follow-imports=silent", "--no-error-summary", "--hide-error-context"]
    found, errors, _ = api.run([*settings, "--config-file", str(ROOT / "pyproject.toml"), str(path)])
    assert errors == ""
    wrong = [int(line.split(":")[1]) for line in found.splitlines() if ": error:" in line]
    assert wrong == [5, 6, 7, 8, 9, 11], found


def test_a_target_alone_is_taken_as_a_tuple() -> None:
    assert trtb.Options(targets="sm_89").targets == ("sm_89",)  # type: ignore[arg-type]


def test_compile_checks_options_at_once() -> None:
    with pytest.raises(trtb.OptionsError, match="precision"):
        trtb.compile(ConvNet(), precison="fp16")


def test_torch_compile_does_not_drop_an_unknown_option() -> None:
    model = torch.compile(ConvNet().eval(), backend="torchtrt_bridge", options={"precison": "fp16"})
    with torch.no_grad(), pytest.raises(Exception, match="Did you mean 'precision'"):
        model(image())


def test_torch_compile_does_not_drop_a_mode() -> None:
    model = torch.compile(ConvNet().eval(), backend="torchtrt_bridge", mode="max-autotune")
    with torch.no_grad(), pytest.raises(Exception, match="mode"):
        model(image())


@pytest.mark.parametrize(
    ("text", "name", "value"),
    [
        ("precision=fp16", "precision", "fp16"),
        ("tf32=True", "tf32", True),
        ("fp16-accumulation=false", "fp16_accumulation", False),
        ("targets=sm_86, sm_89", "targets", ("sm_86", "sm_89")),
        ("torch_ops=", "torch_ops", ()),
        ("workspace_bytes=none", "workspace_bytes", None),
        ("workspace_bytes=4096", "workspace_bytes", 4096),
        ("cache_dir=", "cache_dir", ""),
        ("cache_dir=a=b", "cache_dir", "a=b"),
        ("progress=none", "progress", None),
    ],
)
def test_options_are_read_from_text(text: str, name: str, value: object) -> None:
    assert options_from_text([text]) == {name: value}


@pytest.mark.parametrize("name", DECLARATIONS)
def test_the_default_of_every_option_is_read_from_its_text(name: str) -> None:
    default = defaults()[name]
    text = ",".join(default) if isinstance(default, tuple) else str(default)
    assert options_from_text([f"{name}={text}"]) == {name: default}
    assert f"  {name}=" in names_text()
