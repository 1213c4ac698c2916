"""Reports as HTML: what a page says, what it escapes, what it folds."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest

from tests.report import examples
from tests.report.examples import SCRIPT, engine
from torchtrt_bridge import CompileReport, Options, OptionsError
from torchtrt_bridge.report import page as page_module
from torchtrt_bridge.report.model import GraphBreak, Stage
from torchtrt_bridge.report.page import html_for_notebook, html_from_report

EMPTY = {"meta", "br", "link", "img"}


class Page(HTMLParser):
    """Parser of a page, which checks that tags are closed in order.

    text: what a reader can see, without styles. unfolded: without what is within `details`, but with their summaries.
    """

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str | None]] = []
        self.open: list[str] = []
        self.text = ""
        self.unfolded = ""
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.handle_data(" ")
        self.tags.append(tag)
        self.attributes += [(tag, name, value) for name, value in attributes]
        if tag not in EMPTY:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" in self.open:
            return
        self.text += data
        if self.open.count("details") == self.open.count("summary"):
            self.unfolded += data

    def values(self, name: str) -> list[str | None]:
        """Return the values of all attributes of a name."""
        return [value for _, found, value in self.attributes if found == name]


def words(text: str) -> str:
    return " ".join(text.split())


EXAMPLES = [
    lambda: CompileReport(Options()),
    examples.whole,
    examples.mixed,
    examples.broken,
    lambda: examples.broken(40),
    examples.quantized,
    examples.profiled,
    examples.hostile,
    examples.large,
]
IDS = ["empty", "whole", "mixed", "broken", "forty graphs", "quantized", "profiled", "hostile", "large"]
all_examples = pytest.mark.parametrize("example", EXAMPLES, ids=IDS)


@all_examples
def test_a_page_is_complete_and_loads_nothing(example: Callable[[], CompileReport]) -> None:
    text = html_from_report(example())
    page = Page(text)
    assert text.lstrip().startswith("<!DOCTYPE html>")
    assert {"script", "link", "img", "iframe", "object"} & set(page.tags) == set()
    assert {"src", "href", "srcset", "onclick"} & {name for _, name, _ in page.attributes} == set()
    assert "url(" not in text
    assert "@import" not in text
    assert "http" not in text


@all_examples
def test_headings_come_in_order_and_tables_have_scopes(example: Callable[[], CompileReport]) -> None:
    for render, first in ((html_from_report, 1), (html_for_notebook, 2)):
        page = Page(render(example()))
        levels = [int(tag[1]) for tag in page.tags if re.fullmatch(r"h\d", tag)]
        assert levels[0] == first
        assert levels.count(first) == 1
        assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
        assert page.tags.count("th") == len(page.values("scope"))
        assert page.tags.count("table") == page.tags.count("caption")


def test_the_top_says_what_was_compiled() -> None:
    report = examples.whole()
    text = words(Page(html_from_report(report)).unfolded)
    for part in (
        "102 of 102 nodes in TensorRT, 1 engine",
        "Model Net",
        "Precision fp16",
        "Coverage 102 of 102 nodes (100 %), 1 engine",
        "Error 1.1e-03, of the results to the model's own",
        "Speed 2.4 times as fast as PyTorch: 0.21 ms per call instead of 0.5 ms, in the trial",
        "GPU NVIDIA L4",
        f"PyTorch {report.versions['PyTorch']}",
        "TensorRT-RTX 1.7.1.116",
        f"Date {report.created.replace('T', ' ')}",
        "Options precision='fp16'",
    ):
        assert part in text


def test_an_uncompiled_report_claims_nothing() -> None:
    text = Page(html_from_report(CompileReport(Options()))).text
    assert "Nothing was compiled yet" in text
    for title in ("Precision", "Coverage", "Error", "Options", "Order of the data"):
        assert title not in text


def test_a_plan_has_no_times_and_no_errors() -> None:
    report = CompileReport(Options(), [engine(engine="not built", error=None, bytes=0)], graphs=1)
    text = Page(html_from_report(report)).text
    assert "would run in TensorRT" in text
    assert "not measured" not in text
    assert "runs in engine" not in text


def test_one_node_in_pytorch_is_not_all_in_tensorrt() -> None:
    report = CompileReport(Options(), [engine(nodes={"aten.relu.default": 2999})], [examples.node("det")], graphs=1)
    text = html_from_report(report)
    assert "width: 99%" in text
    assert "2999 of 3000 nodes (99 %)" in text


def test_blocks_come_in_the_order_of_the_data_with_their_reasons() -> None:
    text = words(Page(html_from_report(examples.mixed())).unfolded)
    parts = (
        "TensorRT trt_0 102 nodes, 0.2 ms",
        "PyTorch 5 nodes",
        "aten.linalg_det.default (2 nodes): no converter; aten.cat.default: inputs mix float16, float32; "
        "2 calls of views, copies or sizes, which compute no elements",
        "PyTorch trt_1 102 nodes",
        "it runs in PyTorch: no CUDA GPU is visible to PyTorch",
    )
    places = [text.index(part) for part in parts]
    assert places == sorted(places)


def test_the_reason_of_a_block_is_on_hover_and_within_it() -> None:
    page = Page(html_from_report(examples.mixed()))
    (title,) = {value for value in page.values("title") if value and value.startswith("aten.linalg_det")}
    assert page.text.count(title) == 2  # in the summary, and unfolded


def test_blocks_have_the_source_lines_of_their_nodes() -> None:
    text = words(Page(html_from_report(examples.mixed())).text)
    assert "net/model.py:31 53 nodes x = self.conv(x)" in text
    assert "net/model.py:12 2 nodes y = f(x)" in text
    assert "net/model.py:14 1 node y = f(x)" in text


def test_a_division_in_the_line_of_a_graph_break_cuts_nothing() -> None:
    report = examples.whole()
    report.add_break(GraphBreak("branching", "/home/me/net/model.py:3: if x / 2 > y:", "this line", 1))
    assert "this line model.py:3: if x / 2 > y:" in words(Page(html_from_report(report)).unfolded)


def test_graph_breaks_stand_between_the_graphs() -> None:
    text = words(Page(html_from_report(examples.broken())).unfolded)
    parts = (
        "Graph 0:",
        "Graph break PyTorch runs this line model.py:1: if x > 1:",
        "Graph 1:",
        "model.py:2:",
        "Graph 2:",
    )
    places = [text.index(part) for part in parts]
    assert places == sorted(places)


def test_a_break_behind_the_last_graph_is_shown() -> None:
    report = examples.mixed()
    report.breaks = [GraphBreak("a reason", "m.py:9: print(x)", "this line", after=1)]
    text = words(Page(html_from_report(report)).unfolded)
    assert text.index("trt_1 102 nodes") < text.index("Graph break PyTorch runs this line m.py:9: print(x)")


def test_a_graph_that_pytorch_runs_is_a_block_with_the_reason() -> None:
    report = CompileReport(Options(), notes=["PyTorch runs a whole graph: gradients are needed"], graphs=1)
    assert words(Page(html_from_report(report)).unfolded).count("gradients are needed") == 2  # and in the notes


def test_bars_are_as_long_as_times_and_sizes() -> None:
    report = examples.whole()
    report.engines[0].milliseconds["inductor"] = 0.25
    text = html_from_report(report)
    assert re.findall(r'class="fill (\w+)" style="width: ([\d.]+)%"', text)[:4] == [
        ("engine", "42.0"),
        ("torch", "100.0"),
        ("inductor", "50.0"),
        ("size", "100.0"),
    ]
    assert words(Page(text).text).count("chosen") == 1


def test_a_quantized_model_has_its_layers_and_the_dtypes_of_its_products() -> None:
    text = words(Page(html_from_report(examples.quantized())).unfolded)
    for part in (
        "products in int8 3",
        "products in fp16 2",
        "Not quantized",
        "TensorRT does not build it",
        "1 of 2 layers in int8: absmax; error of the outputs 3.80e-04",
        "body.0 linear int8 0.034",
        "head linear float - few",
    ):
        assert part in text
    assert "error alone" not in text


def test_the_slowest_layers_have_bars_and_all_of_them_a_table() -> None:
    report = examples.profiled()
    text = html_from_report(report)
    section = text.partition("Slowest layers</h2>")[2].partition("<h2>")[0]
    page = Page(f"<div>{section.partition('</section>')[0]}</div>")
    shares = [float(width) for width in re.findall(r'class="fill engine" style="width: ([\d.]+)%"', section)]
    assert shares == [pytest.approx(100 * (24 - index) / 24, abs=0.05) for index in range(10)]
    words_of_page = words(page.text)
    for part in (
        "trt_0 24 layers, 0.3 ms together, for input_ids: int64[8, 128]; attention_mask: bool[8, 1, 128, 128]",
        "linear_0 + add_0 0.024 ms",
        "24 layers, with source lines",
        "layer ms share in TensorRT source line",
        "scaled_dot_product_attention_1 + add_1 0.023 8 % add, reshape, transpose, reshape, move bert/net.py:8",
        "4 more rows",
        "trt_1 not timed: PyTorch runs it: no CUDA GPU is visible to PyTorch",
    ):
        assert part in words_of_page
    assert "4 more rows" not in words(page.unfolded)
    assert "Slowest layers" not in html_from_report(examples.mixed())


def test_many_engines_have_their_layers_folded() -> None:
    report = examples.large(80)
    for entry in report.engines:
        entry.layer_times = examples.layer_times(2)
    page = Page(html_from_report(report))
    assert page.unfolded.count("2 layers, 0.003 ms together") == 6
    assert page.text.count("2 layers, 0.003 ms together") == 8
    assert "2 more engines" in page.unfolded


def test_markup_in_names_and_source_lines_is_text() -> None:
    report = examples.hostile()
    for text in (html_from_report(report), html_for_notebook(report)):
        page = Page(text)
        assert "script" not in page.tags
        assert page.text.count(SCRIPT) > 20
        assert "&#34;quoted&#34;" in text


def test_long_lists_are_folded() -> None:
    page = Page(html_from_report(examples.large()))
    assert "570 more parts" in page.text
    assert "2980 more rows" in page.text
    assert page.unfolded.count("aten.op_") < 120
    assert "aten.op_96.default" in page.text


def test_many_graphs_are_folded() -> None:
    page = Page(html_from_report(examples.broken(40)))
    assert "36 more graphs" in page.text
    assert "Graph 39:" in page.text
    assert "Graph 39:" not in page.unfolded


def test_a_notebook_gets_a_part_with_styles_of_its_own() -> None:
    text = examples.mixed()._repr_html_()
    page = Page(text)
    assert {"html", "head", "body", "main"} & set(page.tags) == set()
    assert "102 of 207 nodes in TensorRT" in page.text
    (styles,) = re.findall(r"<style>(.*?)</style>", text, re.DOTALL)
    for selectors in re.findall(r"([^{};]+)\{", styles):
        for selector in selectors.split(","):
            assert selector.strip().startswith((".trtb", "@media"))


def test_save_writes_the_page(tmp_path: Path) -> None:
    report = examples.mixed()
    report.save(tmp_path / "report.html")
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == html_from_report(report)


def test_save_writes_data_to_a_json_file(tmp_path: Path) -> None:
    report = examples.mixed()
    report.save(tmp_path / "report.json")
    found = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert found["engines"][0]["name"] == "trt_0"
    assert found["options"]["precision"] == "fp16"
    assert found == json.loads(json.dumps(report.to_dict(), default=str))


@pytest.mark.parametrize(("path", "message"), [("missing/report.html", "create .*missing first"), (".", "is a folder")])
def test_save_says_where_it_cannot_write(path: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(OptionsError, match=message):
        examples.mixed().save(tmp_path / path)


def test_the_template_is_part_of_the_package() -> None:
    content = (
        (Path(page_module.__file__).parents[2] / "pyproject.toml")
        .read_text(encoding="utf-8")
        .partition("[tool.setuptools.package-data]\n")[2]
    )
    package = Path(page_module.__file__).parents[1]
    patterns = re.findall(r'"(.+?)"', content.splitlines()[0])
    found = {path for pattern in patterns for path in package.glob(pattern)}
    assert package / "report" / page_module.TEMPLATE in found


@pytest.mark.parametrize(
    ("stages", "shares", "words_of_caption"),
    [
        (["trt_0", "trt_1"], [0.25, 0.75], "as its time per call."),
        (["trt_0", "", "trt_1"], [0.2, 0.2, 0.6], "What was not timed"),
    ],
    ids=["timed", "with nodes in PyTorch"],
)
def test_blocks_are_sized_by_their_time(stages: list[str], shares: list[float], words_of_caption: str) -> None:
    entries = [examples.timed("trt_0", 1, 102, nodes={"a": 102}), examples.timed("trt_1", 3, 102, nodes={"a": 102})]
    stays = [examples.node("det")]
    report = CompileReport(Options(), entries, stays, graphs=1)
    report.stages = [Stage(0, name) if name else Stage(0, in_torch=stays) for name in stages]
    text = html_from_report(report)
    assert [float(share) for share in re.findall(r"--share: ([\d.]+)", text)] == shares
    assert words_of_caption in text


def test_blocks_without_times_are_sized_by_their_nodes() -> None:
    report = CompileReport(Options(), [engine(nodes={"a": 3})], [examples.node("det")], graphs=1)
    text = html_from_report(report)
    assert re.findall(r"--share: ([\d.]+)", text) == ["0.7500", "0.2500"]
    assert "as its number of nodes" in text
