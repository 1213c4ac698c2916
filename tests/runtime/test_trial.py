"""The trial: every run must be right, timing stays within its budget, and the engine wins ties."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch

from tests.runtime.fakes import clock
from torchtrt_bridge.runtime.tolerance import Reference
from torchtrt_bridge.runtime.trial import BUDGET_CALLS, ENGINE, INDUCTOR, PYTORCH, Candidate, Outcome, Trial, ready

Tensors = Sequence[torch.Tensor]
Run = Callable[[Tensors], Tensors]


@pytest.fixture(autouse=True)
def _own_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torchtrt_bridge.runtime.trial.time", clock)


def right(inputs: Tensors) -> Tensors:
    return [inputs[0] * 2]


class Sequenced:
    """Gives the results of `runs` one after the other, the last one ever after, each after `seconds`."""

    def __init__(self, *runs: Callable[[Tensors], Tensors], seconds: float = 0.0) -> None:
        self.runs = runs
        self.seconds = seconds
        self.count = 0

    def __call__(self, inputs: Tensors) -> Tensors:
        clock.advance(self.seconds)
        self.count += 1
        return self.runs[min(self.count, len(self.runs)) - 1](inputs)


def tried(engine: Run, *others: Candidate, plain_runs: int = 4) -> Outcome:
    """The outcome of a trial of an engine and others."""
    inputs = [torch.randn(4, 3)]
    candidates = [ready(ENGINE, engine, Reference(right(inputs), bound=1e-4)), *others]
    return Trial(inputs, candidates, is_replayed=False, plain_runs=plain_runs).run()


def test_a_right_engine() -> None:
    engine = Sequenced(right)
    outcome = tried(engine)
    assert (outcome.problem, outcome.error, outcome.seconds, outcome.winner) == (None, 0.0, {}, ENGINE)
    assert engine.count == 4


@pytest.mark.parametrize("position", [0, 1, 3])
@pytest.mark.parametrize("factor", [3.0, float("nan")])
def test_one_wrong_run_is_enough(position: int, factor: float) -> None:
    engine = Sequenced(*[right] * position, lambda inputs: [inputs[0] * factor], right)
    outcome = tried(engine)
    assert outcome.problem is not None
    assert engine.count == position + 1, "the first wrong run ends the trial"


def test_rounding_that_differs_from_run_to_run_is_right() -> None:
    engine = Sequenced(right, lambda inputs: [inputs[0] * (2 + 1e-5)], right)
    outcome = tried(engine)
    assert outcome.problem is None
    assert outcome.error == pytest.approx(5e-6, rel=0.1)


@pytest.mark.parametrize(
    ("engine_seconds", "pytorch_seconds", "winner"), [(0.002, 0.02, ENGINE), (0.02, 0.002, PYTORCH)]
)
def test_the_faster_one_wins(engine_seconds: float, pytorch_seconds: float, winner: str) -> None:
    engine, pytorch = Sequenced(right, seconds=engine_seconds), Sequenced(right, seconds=pytorch_seconds)
    outcome = tried(engine, ready(PYTORCH, pytorch), plain_runs=1)
    assert outcome.winner == winner
    assert outcome.seconds == pytest.approx({ENGINE: engine_seconds, PYTORCH: pytorch_seconds})


def test_a_third_candidate_may_win() -> None:
    others = [ready(PYTORCH, Sequenced(right, seconds=0.02)), ready(INDUCTOR, Sequenced(right, seconds=0.001))]
    outcome = tried(Sequenced(right, seconds=0.01), *others, plain_runs=1)
    assert outcome.winner == INDUCTOR


def test_a_candidate_that_cannot_be_prepared_takes_no_part() -> None:
    others = [ready(PYTORCH, Sequenced(right, seconds=0.02)), Candidate(INDUCTOR, lambda inputs: None)]
    outcome = tried(Sequenced(right, seconds=0.01), *others, plain_runs=1)
    assert set(outcome.seconds) == {ENGINE, PYTORCH}


def test_nothing_is_prepared_beside_a_wrong_engine() -> None:
    prepared: list[Tensors] = []
    outcome = tried(lambda inputs: [inputs[0] * 3], Candidate(PYTORCH, prepared.append))
    assert outcome.problem is not None
    assert prepared == []


class Disturbed(Sequenced):
    """Takes four times as long in two calls of three."""

    def __call__(self, inputs: Tensors) -> Tensors:
        clock.advance(0.0 if self.count % 3 == 0 else 3 * self.seconds)
        return super().__call__(inputs)


@pytest.mark.parametrize(("engine_seconds", "winner"), [(0.9, ENGINE), (1.1, PYTORCH)])
def test_what_disturbs_a_turn_decides_nothing(engine_seconds: float, winner: str) -> None:
    """Heavy load on the GPU meets now the one, now the other."""
    engine, pytorch = Disturbed(right, seconds=engine_seconds), Disturbed(right, seconds=1.0)
    assert tried(engine, ready(PYTORCH, pytorch), plain_runs=1).winner == winner


@pytest.mark.parametrize("ratio", [0.01, 0.3, 1.0, 3.0, 30.0])
def test_what_a_trial_costs(ratio: float) -> None:
    """Ten calls of PyTorch, and what was begun before these were over."""
    engine, pytorch = Sequenced(right, seconds=ratio), Sequenced(right, seconds=1.0)
    started = clock.now
    tried(engine, ready(PYTORCH, pytorch), plain_runs=2)
    assert clock.now - started < BUDGET_CALLS + 2 + 3 * ratio


@pytest.mark.parametrize(("pytorch", "winner"), [(1.0, ENGINE), (0.99, ENGINE), (0.98, PYTORCH)])
def test_the_engine_wins_ties(pytorch: float, winner: str) -> None:
    assert Outcome(ENGINE, seconds={ENGINE: 1.0, PYTORCH: pytorch}).winner == winner
