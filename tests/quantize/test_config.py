"""The config of `quantize`, its fields as keywords, and wrong options."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import nn

import torchtrt_bridge as trtb
from tests.quantize.nets import PLAIN, loader
from torchtrt_bridge.errors import OptionsError
from torchtrt_bridge.quantize.config import QuantizeKeywords, settings_from

X = loader(4, 8)


def net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4)).eval()


def test_a_config_does_as_its_fields_do() -> None:
    model, x = net(), torch.randn(4, 8)
    fields = {name: value for name, value in PLAIN.items() if name != "method"}
    by_keywords = trtb.quantize(model, X, method="mse", **fields)
    by_config = trtb.quantize(model, X, method="mse", config=trtb.QuantizeConfig(**fields))
    torch.testing.assert_close(by_config(x), by_keywords(x), rtol=0, atol=0)


def test_each_field_is_a_keyword_of_the_same_type() -> None:
    fields = {field.name: field.type for field in dataclasses.fields(trtb.QuantizeConfig)}
    hints = QuantizeKeywords.__annotations__.items()
    assert {name: getattr(hint, "__forward_arg__", hint) for name, hint in hints} == fields


def test_each_field_is_explained() -> None:
    explained = trtb.QuantizeConfig.__doc__ or ""
    assert [f.name for f in dataclasses.fields(trtb.QuantizeConfig) if f"\n    {f.name}: " not in explained] == []


def test_a_config_and_a_keyword_are_refused() -> None:
    with pytest.raises(OptionsError, match=r"config= and smooth=None.*dataclasses.replace\(config, smooth=...\)"):
        trtb.quantize(net(), X, config=trtb.QuantizeConfig(table=False), smooth=None)


def test_a_config_of_another_type_is_refused() -> None:
    with pytest.raises(OptionsError, match="config takes a QuantizeConfig, not a dict"):
        trtb.quantize(net(), X, config={"table": False})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("wrong", "right"),
    [("smoth", "smooth"), ("numbatches", "num_batches"), ("metod", "method"), ("maxdrop", "max_drop")],
)
def test_an_unknown_keyword_is_refused_with_the_nearest(wrong: str, right: str) -> None:
    with pytest.raises(OptionsError, match=f"no keyword {wrong!r}. Did you mean {right!r}. Known: method, .*table"):
        trtb.quantize(net(), X, **{wrong: None})


# Digests of settings as calibration files of commit df35f7c hold them.
DIGESTS: dict[str, dict[str, Any]] = {
    "dd32c0f355bddfe2": {},
    "e4ea218d6f12f9c8": {"method": "mse", "dtype": "fp8", "skip": ("a", "b.*")},
    "7593b21e99dfc49f": {"dtype": "int4", "block_size": 32, "smooth": None, "equalize": True, "max_error": 0.1},
    "62ff4a4ecffcf72c": {
        "max_drop": 0.5, "attention": True, "percentile": 99.9, "correct_bias": False, "sensitivity": True,
    },
}  # fmt: skip


@pytest.mark.parametrize("digest", DIGESTS)
def test_the_digest_of_settings_stays(digest: str) -> None:
    assert settings_from(**DIGESTS[digest]).digest == digest


@pytest.mark.parametrize("field", ["num_batches", "forward", "dynamic_shapes", "progress", "table"])
def test_fields_that_shape_no_result_are_not_in_the_digest(field: str) -> None:
    value: Any = {"forward": lambda model, batch: model(batch)}.get(field, 1)
    assert settings_from(**{field: value}).digest == settings_from().digest


OPTIONS: dict[str, tuple[dict[str, Any], str]] = {
    "method": ({"method": "max"}, "method='max' is not a choice.*absmax"),
    "dtype": ({"dtype": "int3"}, "dtype='int3'"),
    "skip": ({"skip": ("nothing",)}, "skip='nothing' is no layer.*Layers: 0, 2"),
    "skip type": ({"skip": (3,)}, "skip takes names"),
    "smooth": ({"smooth": 1.5}, "smooth=1.5 must be a number, 0 to 1, or 'auto' or None"),
    "equalize": ({"equalize": "yes"}, "equalize must be True"),
    "percentile": ({"percentile": 101}, "percentile=101"),
    "percentile none": ({"percentile": None}, "percentile=None"),
    "block size": ({"block_size": 48}, "block_size=48"),
    "max_error": ({"max_error": -1.0}, "max_error=-1.0"),
    "max_drop": ({"max_drop": "auto"}, "max_drop='auto'"),
    "fp8 entropy": ({"dtype": "fp8", "method": "entropy"}, "evenly spaced"),
}


@pytest.mark.parametrize("option", OPTIONS)
def test_wrong_options_are_refused(option: str) -> None:
    options, message = OPTIONS[option]
    with pytest.raises(OptionsError, match=message):
        trtb.quantize(net(), X, table=False, **options)


@pytest.mark.parametrize("count", [0, -1, 2.5])
def test_a_number_of_batches_that_is_none(count: Any) -> None:
    with pytest.raises(OptionsError, match=rf"num_batches={count} is no count"):
        trtb.quantize(net(), X, num_batches=count)
