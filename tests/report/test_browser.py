"""The page in a browser: opened, clicked through and measured, on a telephone and on a desktop, light and dark."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.report import examples
from torchtrt_bridge import CompileReport, Options

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install playwright")
pytestmark = pytest.mark.full

SIZES = {"telephone": {"width": 390, "height": 844}, "desktop": {"width": 1280, "height": 900}}
EXAMPLES = {
    "empty": lambda: CompileReport(Options()),
    "whole": examples.whole,
    "broken": examples.broken,
    "quantized": examples.quantized,
    "profiled": examples.profiled,
    "hostile": examples.hostile,
    "forty graphs": lambda: examples.broken(40),
    "large": examples.large,
    "one and four ms": lambda: CompileReport(
        Options(), [examples.timed("trt_0", 1, 9), examples.timed("trt_1", 4, 9)], graphs=1
    ),
}
LEAST_CONTRAST = 4.5

# Elements whose right end is beyond the window, but for those in a box that scrolls.
BEYOND = """() => [...document.querySelectorAll('body *')]
  .filter(e => e.getBoundingClientRect().right > document.documentElement.clientWidth + 0.5 && !e.closest('.scroll'))
  .map(e => e.outerHTML.slice(0, 80))"""

# The lowest contrast of a text to what is behind it, after WCAG 2.2, with the text.
CONTRAST = """() => {
  const numbers = color => color.match(/[\\d.]+/g).map(Number)
  const luminance = color => numbers(color).slice(0, 3).map(value => value / 255)
    .map(value => value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4)
    .reduce((sum, value, index) => sum + value * [0.2126, 0.7152, 0.0722][index], 0)
  const behind = element => {
    for (; element; element = element.parentElement) {
      const color = getComputedStyle(element).backgroundColor
      if ((numbers(color)[3] ?? 1) > 0) return color
    }
    return 'rgb(255, 255, 255)'
  }
  const found = []
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT)
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement
    if (!walker.currentNode.data.trim() || !element.getClientRects().length) continue
    const [low, high] = [getComputedStyle(element).color, behind(element)].map(luminance).sort((a, b) => a - b)
    found.push([(high + 0.05) / (low + 0.05), walker.currentNode.data])
  }
  return found.sort((a, b) => a[0] - b[0])[0]
}"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Start Chromium without a window: playwright's own, or the system's."""
    with playwright.sync_playwright() as started:
        own = started.chromium.executable_path
        names = ("chromium", "chromium-browser", "google-chrome")
        path = next((found for name in (own, *names) if (found := shutil.which(name))), None)
        if path is None:
            pytest.skip("there is no Chromium: playwright install chromium")
        opened = started.chromium.launch(executable_path=path, args=["--no-sandbox"])  # for root, as in a container
        yield opened
        opened.close()


Open = Callable[..., Any]


@pytest.fixture
def open_page(browser: Any, tmp_path: Path) -> Iterator[Open]:
    """Return the function that opens a report's page, without a network; it fails the test if the page asks for one."""
    requests: list[str] = []
    contexts: list[Any] = []

    def open_page(example: str, size: str = "desktop", scheme: str = "light") -> Any:
        EXAMPLES[example]().save(tmp_path / "report.html")
        contexts.append(browser.new_context(viewport=SIZES[size], color_scheme=scheme, offline=True))
        page = contexts[-1].new_page()
        page.on("request", lambda request: requests.append(request.url))
        page.goto((tmp_path / "report.html").as_uri())
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert [url for url in requests if not url.startswith("file:")] == []


def unfold(page: Any) -> None:
    page.evaluate("document.querySelectorAll('details').forEach(each => each.open = true)")


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("example", EXAMPLES)
def test_nothing_is_wider_than_the_window(example: str, size: str, open_page: Open) -> None:
    page = open_page(example, size)
    for is_unfolded in (False, True):
        if is_unfolded:
            unfold(page)
        assert page.evaluate("document.documentElement.scrollWidth") == SIZES[size]["width"]
        assert page.evaluate(BEYOND) == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("example", ["whole", "broken", "quantized", "profiled"])
def test_every_text_can_be_read(example: str, scheme: str, open_page: Open) -> None:
    page = open_page(example, scheme=scheme)
    unfold(page)
    contrast, text = page.evaluate(CONTRAST)
    assert contrast >= LEAST_CONTRAST, text
    page.add_style_tag(content=".trtb .muted { color: #999 !important; background: #bbb }")
    assert page.evaluate(CONTRAST)[0] < LEAST_CONTRAST  # the measure sees what cannot be read


def test_the_schemes_differ(open_page: Open) -> None:
    colors = {
        open_page("whole", scheme=scheme).evaluate("getComputedStyle(document.querySelector('main')).backgroundColor")
        for scheme in ("light", "dark")
    }
    assert len(colors) == 2


def test_blocks_open_by_a_click_and_by_the_keyboard(open_page: Open) -> None:
    page = open_page("broken")
    block, other = page.locator(".block details").nth(0), page.locator(".block details").nth(1)
    assert not block.get_by_text("x = self.conv(x)").is_visible()
    block.locator("summary").first.click()
    assert block.get_by_text("x = self.conv(x)").is_visible()
    page.keyboard.press("Tab")  # past the table of operators, which can be scrolled
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent").startswith("PyTorch")
    page.keyboard.press("Enter")
    assert other.get_by_text("y = f(x)").first.is_visible()
    page.keyboard.press("Enter")
    assert not other.get_by_text("y = f(x)").first.is_visible()


def test_the_reader_of_a_screen_hears_headings_tables_and_bars(open_page: Open) -> None:
    page = open_page("broken", "telephone")
    assert page.get_by_role("heading", level=1).count() == 1
    for title in ("Order of the data", "Engines", "Graph breaks", "In PyTorch"):
        assert page.get_by_role("heading", level=2, name=title, exact=True).count() == 1
    table = page.get_by_role("table", name="In PyTorch")
    assert table.get_by_role("columnheader").all_inner_texts() == ["operator", "count", "reason", "first source line"]
    assert table.get_by_role("rowheader").first.inner_text() == "aten.linalg_det.default"
    assert page.get_by_role("img", name="percent of the nodes in TensorRT").count() == 1


def test_the_reader_of_a_screen_hears_the_layers_of_each_engine(open_page: Open) -> None:
    page = open_page("profiled", "telephone")
    assert page.get_by_role("heading", level=2, name="Slowest layers", exact=True).count() == 1
    assert page.get_by_role("heading", level=3, name="trt_0 24 layers, 0.3 ms together").count() == 1
    bars = page.get_by_role("table", name="Times of the slowest layers of trt_0")
    assert bars.get_by_role("rowheader").first.inner_text() == "linear_0 + add_0"
    page.get_by_text("24 layers, with source lines").click()
    table = page.get_by_role("table", name="Layers of trt_0", exact=True)
    titles = ["layer", "ms", "share", "in TensorRT", "source line"]
    assert table.get_by_role("columnheader").all_inner_texts() == titles
    assert table.get_by_role("rowheader").count() == 20
    widths = page.evaluate("[...document.querySelectorAll('.wide .fill')].map(e => e.getBoundingClientRect().width)")
    assert widths == sorted(widths, reverse=True)
    assert widths[9] / widths[0] == pytest.approx(15 / 24, abs=0.01)


def test_blocks_are_as_high_and_wide_as_they_take_time(open_page: Open) -> None:
    page = open_page("one and four ms")
    heights = page.evaluate("[...document.querySelectorAll('.block summary')].map(e => e.offsetHeight)")
    widths = page.evaluate("[...document.querySelectorAll('.strip span')].map(e => e.getBoundingClientRect().width)")
    assert heights[1] > 1.5 * heights[0]
    assert 3.9 < widths[1] / widths[0] < 4.1


def test_markup_of_a_report_does_not_run(open_page: Open) -> None:
    page = open_page("hostile")
    unfold(page)
    assert page.title() != "run"
    assert page.locator("script").count() == 0
    assert page.get_by_text(examples.SCRIPT).first.is_visible()
