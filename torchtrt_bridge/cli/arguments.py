"""Arguments that several commands take, and their syntax, which is checked before PyTorch is imported."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import Any

from torchtrt_bridge.errors import OptionsError
from torchtrt_bridge.options import Options, choices, defaults, first_sentence, names_text, options_from_text
from torchtrt_bridge.options.declaration import suggestion

IMAGE = "1x3x224x224"
MODEL_HELP = (
    "torchvision:resnet50, timm:resnet18, hf:bert (a type or class of transformers' configurations, with random "
    "weights) or hf:FOLDER, file.pt2, or package.module:callable, where the callable returns an nn.Module"
)
DTYPES = (
    "float32", "float64", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool",
    "complex64", "complex128",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class InputText:
    """An input of a model, as ``"1x128:int64"`` says it."""

    text: str
    sizes: tuple[int, ...]
    dtype: str


def input_from_text(text: str) -> InputText:
    """Return sizes and dtype of ``"1x3x224x224:float32"``; OptionsError for another syntax."""
    sizes, colon, dtype = text.partition(":")
    if colon and dtype not in DTYPES:
        raise OptionsError(f"--input {text}: {dtype!r} is not a dtype of an input.{suggestion(dtype, list(DTYPES))}")
    if not all(size.isdecimal() for size in sizes.split("x")):
        raise OptionsError(f"--input {text}: write sizes with x between them, as {IMAGE}.")
    return InputText(text, tuple(int(size) for size in sizes.split("x")), dtype or "float32")


def batch_range(text: str | None) -> tuple[int, int] | None:
    """Return the smallest and the largest batch of ``"1:16"``."""
    if text is None:
        return None
    low, _, high = text.partition(":")
    if not (low.isdecimal() and high.isdecimal() and 1 <= int(low) < int(high)):
        raise OptionsError(f"--dynamic-batch {text!r}: write the smallest and largest batch, as 1:16.")
    return int(low), int(high)


def names_of(text: str) -> tuple[str, ...]:
    """Split a list of names with commas between them."""
    return tuple(name.strip() for name in text.split(",") if name.strip())


@dataclasses.dataclass(frozen=True)
class Request:
    """What a command is asked for about a model: the syntax is right, and nothing is imported yet."""

    model: str
    inputs: tuple[InputText, ...]
    batch: tuple[int, int] | None
    options: dict[str, Any]


def request_from(arguments: argparse.Namespace) -> Request:
    """Return the checked arguments about the model; OptionsError for what is wrong in them."""
    flags = {name: getattr(arguments, name, None) for name in ("precision", "fallback", "engine")}
    if getattr(arguments, "targets", None) is not None:
        flags["targets"] = names_of(arguments.targets)
    given = {name: value for name, value in flags.items() if value is not None}
    options = options_from_text(arguments.options or (), given)
    Options.from_mapping(options)
    inputs = tuple(input_from_text(text) for text in arguments.inputs or ())
    batch = batch_range(getattr(arguments, "dynamic_batch", None))
    _check_model_name(arguments.model)
    return Request(arguments.model, inputs, batch, options)


def is_file(name: str) -> bool:
    """Check if MODEL names an exported program."""
    return name.endswith(".pt2")


def _check_model_name(name: str) -> None:
    if is_file(name):
        if not Path(name).is_file():
            raise OptionsError(f"{name}: there is no such file.")
        return
    home, _, attribute = name.partition(":")
    if not home or not attribute:
        raise OptionsError(f"{name!r} names no model. Write {MODEL_HELP}.")


def add_choice(parser: argparse.ArgumentParser, name: str, default: str | None = None) -> None:
    """Add one of `Options` that is a choice of words, as it is declared there.

    default: another one than the option's own. Without it the argument is None where it is not given.
    """
    meaning = f"{first_sentence(name)} ({default or defaults()[name]})"
    parser.add_argument(f"--{name}", choices=choices(name), default=default, help=meaning)


def add_model(parser: argparse.ArgumentParser) -> None:
    """Add MODEL, its inputs and the options."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = f"options for --option NAME=VALUE:\n{names_text()}"
    parser.add_argument("model", metavar="MODEL", help=MODEL_HELP)
    parser.add_argument(
        "--input",
        action="append",
        dest="inputs",
        metavar="SIZES[:DTYPE]",
        help=f"an input's sizes and dtype, as {IMAGE} or 1x128:int64; once for each input",
    )
    add_choice(parser, "precision")
    parser.add_argument(
        "--option", action="append", dest="options", metavar="NAME=VALUE", help="any option, by its name; see below"
    )


def add_page(parser: argparse.ArgumentParser) -> None:
    """Add the page of the report."""
    parser.add_argument("--html", type=Path, metavar="FILE", help="also write the report as an HTML page")


def add_export(parser: argparse.ArgumentParser) -> None:
    """Add what says how a program is built and where it is written."""
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FILE.pt2")
    parser.add_argument("--targets", help="compute capabilities, as sm_86,sm_89; without it: a portable engine")
    parser.add_argument("--dynamic-batch", metavar="MIN:MAX", help="let the first size of every input vary")
    add_choice(parser, "fallback")


def add_quantize(parser: argparse.ArgumentParser) -> None:
    """Add the data, and the arguments of `trtb.quantize` that can be text."""
    parser.add_argument("--data", metavar="package.module:loader", help="a loader of batches, or what returns one")
    parser.add_argument("--method", help="how ranges are found: auto (default), absmax, percentile, mse, entropy, ...")
    parser.add_argument("--dtype", help="int8 (default), fp8 or int4")
    parser.add_argument("--skip", metavar="LIST", help="layers to leave in floating point, as 'head.*,stem'")
    parser.add_argument("--evaluate", metavar="package.module:function", help="gives the score of a model")
    parser.add_argument(
        "--max-drop", type=float, metavar="SCORE", help="most of the score to lose: layers stay in floating point"
    )
    parser.add_argument("--calibration", type=Path, metavar="FILE.json", help="file for what was found, read again")
    parser.add_argument("--num-batches", type=int, metavar="N", help="read so many batches of the data")
    parser.add_argument("--sensitivity", action="store_true", help="measure the error of each layer by itself")


def check_objects(arguments: argparse.Namespace) -> None:
    """Raise OptionsError for data or a score that is no name, and for a drop of no score."""
    for flag, name in (("--data", arguments.data), ("--evaluate", arguments.evaluate)):
        home, _, attribute = ("" if name is None else name).partition(":")
        if name is not None and not (home and attribute):
            raise OptionsError(f"{flag} {name}: write package.module:name.")
    if arguments.data is None and not (arguments.calibration and arguments.calibration.exists()):
        raise OptionsError("--data package.module:loader is needed, or a --calibration FILE.json that exists.")
    if arguments.max_drop is not None and arguments.evaluate is None:
        raise OptionsError("--max-drop is about a score: --evaluate package.module:function gives it.")


def add_bench(parser: argparse.ArgumentParser) -> None:
    """Add how a model is measured, and where the results are written."""
    add_choice(parser, "engine")
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="turns of each contender (%(default)s)")
    parser.add_argument("--calls", type=int, default=100, metavar="N", help="calls in a turn, at most (%(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the results as JSON")
