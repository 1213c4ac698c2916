"""Speed-ups, their means, and the tables made of them."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from benchmarks.suite.summary import comparisons, means, problems
from benchmarks.suite.tables import Table, footnotes, tables
from tests.benchmarks.rows import results, row, side_by_side, timed

ROWS = [
    *side_by_side("resnet50", 1, 1.0, 8.0, 3.0, 2.0),
    *side_by_side("gpt2", 1, 2.0, 4.0, 1.0, 4.0),
    *side_by_side("resnet50", 32, 4.0, 8.0, 6.0),
]


def test_the_best_inductor_is_the_fastest_of_its_modes() -> None:
    found = {(c.model, c.batch): c for c in comparisons(ROWS)}
    assert found["resnet50", 1].best_inductor == "inductor-reduce-overhead"
    assert found["gpt2", 1].best_inductor == "inductor"
    assert found["resnet50", 1].speedup("torchtrt_bridge", "inductor-reduce-overhead") == 2.0
    assert found["resnet50", 1].spread == pytest.approx(0.05)


def test_means_are_by_batch_and_over_all() -> None:
    found = {(mean.batch, mean.against): mean for mean in means(comparisons(ROWS))}
    assert {key: mean.mean for key, mean in found.items()} == pytest.approx(
        {
            (1, "inductor"): 1.0,
            (1, "eager"): 4.0,
            (32, "inductor"): 1.5,
            (32, "eager"): 2.0,
            (None, "inductor"): 1.5 ** (1 / 3),
            (None, "eager"): 32 ** (1 / 3),
        }
    )
    least = found[None, "inductor"]
    assert (least.least, least.least_at, least.compared, least.total) == (0.5, "gpt2, batch 1", 3, 3)


def test_rows_that_failed_are_counted_and_not_averaged() -> None:
    rows = [*ROWS, row("torchtrt_bridge", "vit-b-16", failed="no"), timed("inductor", 1.0, "vit-b-16")]
    found = next(mean for mean in means(comparisons(rows)) if (mean.batch, mean.against) == (1, "inductor"))
    assert (found.compared, found.total, found.mean) == (2, 3, pytest.approx(1.0))


def test_without_an_inductor_there_is_no_speed_up_over_it() -> None:
    (found,) = comparisons([timed("torchtrt_bridge", 1.0), row("inductor", failed="no")])
    assert found.best_inductor is None
    assert found.speedup("torchtrt_bridge", found.best_inductor) is None


def test_problems_are_listed_once_with_their_places() -> None:
    places = [("resnet50", 1), ("resnet50", 8), ("gpt2", 1), ("gpt2", 8), ("gpt2", 32)]
    rows = [row("torch_tensorrt", model, batch, failed="no module") for model, batch in places]
    rows.append(timed("torchtrt_bridge", 1.0, problems=["trt_0 runs in PyTorch"]))
    rows.append(row("eager", kind="start", cold_problems=["slow"], warm_problems=["slow"]))
    assert problems(rows) == [
        "torch_tensorrt, speed of resnet50 1 fp16, resnet50 8 fp16, gpt2 1 fp16 and 2 more: no module",
        "torchtrt_bridge, speed of resnet50 1 fp16: trt_0 runs in PyTorch",
        "eager, start of resnet50 1 fp16: slow",
    ]


# Tables ------------------------------------------------------------------------------------------------------------


def table(title: str, found: list[Table]) -> list[dict[str, str]]:
    """Return the rows of a table, by column."""
    chosen = next(each for each in found if each.title.startswith(title))
    return [dict(zip(chosen.columns, line, strict=True)) for line in chosen.rows]


@pytest.fixture
def found(tmp_path: Path) -> list[Table]:
    started = [
        row("torchtrt_bridge", kind="start", cold_seconds=8.0, warm_seconds=2.0, cold_trace_seconds=1.5,
            warm_trace_seconds=1.25, cold_host_peak_mib=500.0, cold_host_before_mib=300.0, cold_device_peak_mib=90.0,
            cold_device_held_mib=70.0),
        row("eager", kind="start", failed="cold: no"),
    ]  # fmt: skip
    built = [
        row(
            "torchtrt_bridge",
            kind="build",
            cold_export_s=4.0,
            cold_build_s=1.5,
            cold_peak_mib=425.4,
            cold_built=1,
            warm_built=0,
        )
    ]
    failed = row("torch_tensorrt", failed="no")
    return tables(results(tmp_path / "bench.json", [*ROWS, failed, *started, *built]))


def test_times_stand_side_by_side(found: list[Table]) -> None:
    lines = table("Back to back", found)
    assert [(line["model"], line["batch"]) for line in lines] == [("resnet50", "1"), ("resnet50", "32"), ("gpt2", "1")]
    first = {
        "bridge": "1.00",
        "eager": "8.00",
        "inductor": "3.00",
        "inductor, reduce-overhead": "2.00",
        "torch_tensorrt": "failed",
        "bridge / best inductor": "2.00x",
        "bridge / eager": "8.00x",
        "spread": "5%",
    }
    assert first.items() <= lines[0].items()
    assert lines[1]["inductor, reduce-overhead"] == "-"


def test_each_measure_has_its_table(found: list[Table]) -> None:
    assert table("Of it, Dynamo", found)[0]["bridge"] == "1.50 / 1.25"
    assert table("One call", found)[0]["bridge"] == "2.00"
    assert table("Error", found)[0]["eager"] == "1.0e-03"
    assert table("Engines", found)[0]["engine alone: ms"] == "0.900"
    assert table("First result", found) == [
        {"model": "resnet50", "batch": "1", "precision": "fp16", "bridge": "8.00 / 2.00", "eager": "failed"}
    ]
    assert table("Host memory", found)[0]["bridge"] == "200"
    assert table("Device memory for it", found)[0]["bridge"] == "90 / 70"
    build = table("An export", found)[0]
    assert (build["peak MiB"], build["built"], build["built again"], build["again s"]) == ("425", "1", "0", "-")
    assert (build["export s"], build["build s"], build["without build s"]) == ("4.00", "1.50", "2.50")


def test_a_table_without_figures_is_left_out(found: list[Table]) -> None:
    assert not [each for each in found if each.title.startswith("Device memory that stays")]


def test_a_table_as_markdown() -> None:
    table = Table("Times", ("model", "ms"), [("a|b", "1.0")], texts=1)
    assert table.markdown() == "**Times**\n\n| model | ms |\n| --- | ---: |\n| a\\|b | 1.0 |"


def test_a_table_in_the_terminal() -> None:
    console = Console(file=io.StringIO(), width=60)
    Table("Times", ("model", "ms"), [("resnet50", "1.0")]).print(console)
    assert "resnet50   1.0" in console.file.getvalue()  # type: ignore[attr-defined]


def test_notes_say_where_and_what_does_not_fit(tmp_path: Path) -> None:
    kept = results(tmp_path / "bench.json", [*ROWS, {**row("eager", "gpt2", 8, failed="no"), "source": "other"}])
    notes = footnotes(kept)
    assert notes[0] == "NVIDIA Example, driver 1.2; PyTorch 2.11.0, TensorRT-RTX 1.6, transformers 5.17.0."
    assert any("2 states of the source code" in note for note in notes)
    assert notes[-1] == "eager, speed of gpt2 8 fp16: no"
