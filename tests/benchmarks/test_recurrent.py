"""The benchmark of recurrent models, in its tiny version on the CPU."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from benchmarks import recurrent
from tests.pages import ROOT


@pytest.mark.full
def test_each_way_is_timed(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.recurrent", "--tiny", "--results", str(tmp_path)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "recurrent_host.json").read_text())
    assert [(row["model"], row["batch"]) for row in found["rows"]] == [
        (model, batch) for model in ("crnn", "encoder-lstm", "encoder-gru") for batch in (1, 8)
    ]
    for ways in (row["ways"] for row in found["rows"]):
        assert list(ways) == ["eager", "compile, trial check", "compile", "export"]
        assert all(way["ms"] > 0 and way["error"] < 1e-5 for way in ways.values())
        assert all(ways[way]["is_whole"] and ways[way]["choices"] == ["engine"] for way in recurrent.BRIDGE)


def _endless(model: nn.Module, x: torch.Tensor) -> Any:
    while True:
        with contextlib.suppress(Exception):  # as compilers do
            time.sleep(10)


def test_inductor_is_given_up_once_for_all_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    def unrolled(model: nn.Module, x: torch.Tensor) -> Any:
        with recurrent.time_limit(1):
            return _endless(model, x)

    ways = {"eager": recurrent._called, recurrent.UNROLLED: unrolled}
    monkeypatch.setattr(recurrent, "_ways", lambda tiny, limit: ways)
    given_up: dict[str, Any] = {}
    found = recurrent.measured("encoder-gru", 1, tiny=True, limit=1, given_up=given_up)
    assert found["eager"]["ms"] > 0
    assert given_up == {recurrent.UNROLLED: {"failed": "TimeoutError: given up after 1 s"}}
    ways[recurrent.UNROLLED] = _endless
    again = recurrent.measured("encoder-gru", 8, tiny=True, limit=1, given_up=given_up)
    assert again[recurrent.UNROLLED] == given_up[recurrent.UNROLLED]


def test_a_time_limit_passes_by_handlers_of_errors_and_ends_with_its_block() -> None:
    before = signal.getsignal(signal.SIGALRM)
    with pytest.raises(TimeoutError, match=r"given up after 0\.2 s"), recurrent.time_limit(0.2):
        _endless(nn.Identity(), torch.ones(1))
    assert signal.getsignal(signal.SIGALRM) is before
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def test_each_way_has_code_of_its_own() -> None:
    models = [recurrent.Encoder(nn.LSTM, 4, 8, 1).eval() for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    x = torch.randn(1, 4, 6)
    expected = models[0](x)
    for way, model in zip(("one", "two"), models, strict=True):
        recurrent._give_own_code(model, way)
    codes = [type(model).forward.__code__ for model in models]
    assert len({recurrent.Encoder.forward.__code__, *codes}) == 3
    assert all(torch.equal(model(x), expected) for model in models)
