"""The log: warnings once, and levels that the environment names."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest
import torch
from torch import nn

import torchtrt_bridge as trtb
from torchtrt_bridge.report import log


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    level, handlers, propagates = log.logger.level, list(log.logger.handlers), log.logger.propagate
    yield
    log.logger.setLevel(level)
    log.logger.handlers, log.logger.propagate = handlers, propagates


def test_a_warning_is_given_once(caplog: pytest.LogCaptureFixture) -> None:
    log.warn_once("this")
    log.warn_once("this")
    assert [record.message for record in caplog.records] == ["torchtrt_bridge: this"]


def test_info_says_what_was_built_and_what_computes(capsys: pytest.CaptureFixture[str]) -> None:
    log.set_level("info")
    model = nn.Linear(8, 8).eval()
    fast = trtb.compile(model, engine="reference")
    with torch.no_grad():
        fast(torch.randn(3, 8))
    trtb.export(model, (torch.randn(3, 8),), targets=("sm_86",))
    trtb.export(model, (torch.randn(3, 8),), targets=("sm_86",))
    shown = capsys.readouterr().err
    assert "trt_0 is computed by engine" in shown
    assert "trt_0 was built in" in shown
    assert "trt_0 comes from the cache" in shown
    assert shown.count("comes from the cache") == 1


def test_by_default_nothing_but_warnings_is_logged(capsys: pytest.CaptureFixture[str]) -> None:
    trtb.export(nn.Linear(8, 8).eval(), (torch.randn(3, 8),), targets=("sm_86",))
    assert "built" not in capsys.readouterr().err


def test_error_silences_warnings(caplog: pytest.LogCaptureFixture) -> None:
    log.set_level("ERROR")
    log.warn_once("this")
    assert not caplog.records
    assert log.logger.level == logging.ERROR


def test_a_level_that_there_is_not(caplog: pytest.LogCaptureFixture) -> None:
    before = log.logger.level
    log.set_level("loud")
    assert log.logger.level == before
    (record,) = caplog.records
    assert "TORCHTRT_BRIDGE_LOG='loud'" in record.message
    assert "debug, info, warning, error" in record.message
