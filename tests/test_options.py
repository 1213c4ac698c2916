"""Loud options: what is unknown, out of range or contradictory raises, and says what would be right."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import torchtrt_bridge as trtb
from tests.models import ConvNet, image


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"precison": "fp16"}, "Did you mean 'precision'"),
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
