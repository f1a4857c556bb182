"""The page about trainings in a real browser: it asks for nothing, complains about nothing, and fits a phone."""

from pathlib import Path

import pytest
from selenium.webdriver import Chrome
from test_run_report import runs
from test_runs import open_predictor

from hetecd.run_report import write_comparison

__all__ = ["runs"]  # the fixture


@pytest.mark.parametrize("size", [(1280, 900), (390, 844)], ids=["desk", "phone"])
def test_a_comparison_is_whole(browser: Chrome, runs: Path, tiles: Path, tmp_path: Path, size: tuple[int, int]) -> None:
    page = write_comparison(sorted(runs.iterdir()), tmp_path / "c.html", tiles, "test", open_predictor)
    browser.set_window_size(*size)
    browser.get_log("browser")
    browser.get(page.as_uri())
    assert browser.execute_script("return document.documentElement.scrollWidth <= innerWidth")
    broken = "return [...document.images].filter((image) => !image.naturalWidth).length"
    assert browser.execute_script(broken) == 0
    charts = "return [...document.querySelectorAll('svg')].map((chart) => chart.getBoundingClientRect().width)"
    widths = browser.execute_script(charts)
    assert len(widths) == 7
    assert all(200 < width <= size[0] for width in widths)
    assert browser.execute_script("return performance.getEntriesByType('resource').length") == 0
    assert browser.get_log("browser") == []
