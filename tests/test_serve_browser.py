"""The server's pages in a real browser: the list, a map from tiles, an upload that is followed to its end, a phone."""

import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from selenium.webdriver import Chrome
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait
from test_serve import Site, serving

from hetecd.survey import summary_in
from hetecd.synth import write_pair


@pytest.fixture(scope="module")
def site(mapped: Path, decided: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    root = tmp_path_factory.mktemp("site") / "served"
    shutil.copytree(mapped.parent, root)
    with serving(root, ["--weights", str(decided), "--device", "cpu"], [mapped.parent]) as site:
        yield site


@pytest.fixture
def page(browser: Chrome, site: Site) -> Iterator[Callable[[str], Chrome]]:
    """Opens an address of the server; afterwards nothing may have been complained about in the console."""
    browser.set_window_size(1280, 900)
    browser.get_log("browser")

    def go(path: str) -> Chrome:
        browser.get(f"http://127.0.0.1:{site.port}{path}")
        return browser

    yield go
    assert browser.get_log("browser") == []


def until(browser: Chrome, what: Callable[[], object], seconds: float = 20) -> None:
    WebDriverWait(browser, seconds, poll_frequency=0.05).until(lambda _: what())


def text(browser: Chrome, selector: str) -> str:
    return browser.find_element(By.CSS_SELECTOR, selector).text


def set_threshold(browser: Chrome, value: float) -> None:
    script = (
        "const at = document.getElementById('threshold'); at.value = arguments[0]; at.dispatchEvent(new Event('input'))"
    )
    browser.execute_script(script, value)


def painted(browser: Chrome) -> int:
    """Pixels of the tiles of probability that are not transparent."""
    script = """return [...document.querySelectorAll("canvas.leaflet-tile-loaded")].map((canvas) =>
        canvas.getContext("2d").getImageData(0, 0, 256, 256).data.filter((byte, k) => k % 4 === 3 && byte).length)
        .reduce((total, count) => total + count, 0)"""
    return int(browser.execute_script(script))


def test_from_the_list_to_a_map_of_tiles(page: Callable[[str], Chrome], mapped: Path) -> None:
    browser = page("/")
    until(browser, lambda: "map" in text(browser, "#results"))
    summary = summary_in(mapped)
    assert f"{summary['changed_area_m2'] / 1e4:.1f} ha" in text(browser, "#results")
    browser.find_element(By.LINK_TEXT, "map").click()
    until(browser, lambda: len(browser.find_elements(By.CSS_SELECTOR, "img.leaflet-tile-loaded")) >= 2)
    until(browser, lambda: painted(browser) > 0)
    widths = "return [...document.querySelectorAll('img.leaflet-tile-loaded')].map((tile) => tile.naturalWidth)"
    assert set(browser.execute_script(widths)) == {256}
    assert [side.text for side in browser.find_elements(By.CSS_SELECTOR, ".side")] == ["optical, before", "SAR, after"]
    browser.find_element(By.LINK_TEXT, "All results").click()
    until(browser, lambda: "map" in text(browser, "#results"))


def test_the_threshold_repaints_the_tiles(page: Callable[[str], Chrome], mapped: Path) -> None:
    browser = page("/results/map")
    until(browser, lambda: browser.execute_script("return data.polygons.every((polygon) => polygon.bins)"))
    until(browser, lambda: painted(browser) > 0)
    summary, before = summary_in(mapped), painted(browser)
    assert before == summary["changed_pixels"]  # at full size a pixel of a tile is one of the map
    set_threshold(browser, 0.8)
    assert painted(browser) == sum(summary["histogram"]["pixels"][80:])
    area_m2 = sum(summary["histogram"]["area_m2"][80:])
    assert float(re.findall(r"[\d.]+", text(browser, "#area strong"))[0]) == pytest.approx(area_m2 / 1e4, abs=0.006)
    alive = int(re.findall(r"(\d+) of \d+ polygons", text(browser, "#area"))[0])
    assert 0 < alive < summary["polygons"]


def test_zooming_fetches_finer_tiles(page: Callable[[str], Chrome]) -> None:
    browser = page("/results/map")
    browser.execute_script("map.setView([60, 80], 3)")
    until(browser, lambda: painted(browser) > 0)
    browser.execute_script("map.fire('mousemove', { latlng: L.latLng(60, 80) })")
    assert "probability" in text(browser, "#position")


def test_an_upload_is_followed_to_its_result(page: Callable[[str], Chrome], site: Site, tmp_path: Path) -> None:
    optical, sar, *_ = write_pair(tmp_path, 2001, 200, 200)
    browser = page("/")
    for name, value in (("before", str(optical)), ("after", str(sar)), ("name", "from a browser")):
        browser.find_element(By.NAME, name).send_keys(value)
    browser.find_element(By.CSS_SELECTOR, "#pair button").click()
    until(browser, lambda: "from a browser" in text(browser, "#jobs"))
    assert browser.find_elements(By.CSS_SELECTOR, "#jobs progress")
    until(browser, lambda: "from a browser" in text(browser, "#results"), 90)
    assert text(browser, "#problem") == ""
    assert text(browser, "#jobs") == ""
    assert (site.root / "from a browser" / "summary.json").is_file()
    browser.find_element(By.LINK_TEXT, "from a browser").click()
    until(browser, lambda: len(browser.find_elements(By.CSS_SELECTOR, "img.leaflet-tile-loaded")) >= 2)


def test_what_shows_an_upload_stays_what_it_is(page: Callable[[str], Chrome]) -> None:
    """So that a click on Cancel does not meet another button, and focus is not lost twice a second."""
    script = """const job = { id: "x", name: "a pair", state: "running", percent: null };
        const seen = [{}, { percent: 5 }, { state: "failed", message: "no" }].map((change) => {
            const item = show({ ...job, ...change });
            return [item, item.querySelector("button"), item.querySelector("progress").getAttribute("value")];
        });
        return [seen.every(([item, button]) => item === seen[0][0] && button === seen[0][1]),
                seen.map(([, , value]) => value),
                seen[0][0].querySelector("small").textContent, seen[0][1].hidden]"""
    same, values, said, hidden = page("/").execute_script(script)
    assert (same, values, hidden) == (True, [None, "0.05", None], True)
    assert said == "no"


def test_a_request_that_fails_is_made_again(page: Callable[[str], Chrome]) -> None:
    browser = page("/")
    until(browser, lambda: "map" in text(browser, "#results"))
    script = """before = "x"; window.real = window.fetch; window.fetch = () => Promise.reject(new Error("gone"));
        follow().catch(tell)"""
    browser.execute_script(script)
    until(browser, lambda: text(browser, "#problem") == "gone")
    browser.execute_script("window.fetch = window.real")
    until(browser, lambda: text(browser, "#problem") == "")
    assert browser.execute_script("return problem(500, 'Internal Server Error')").startswith("the server failed (500)")
    assert browser.execute_script("""return problem(422, '{"detail": [{"msg": "a"}, {"msg": "b"}]}')""") == "a; b"


def test_what_is_wrong_with_an_upload_is_said(page: Callable[[str], Chrome], tmp_path: Path) -> None:
    (tmp_path / "odd.tif").write_text("<VRTDataset/>")
    (tmp_path / "large.tif").write_bytes(bytes(1_000_001))
    browser = page("/")
    for file, problem in (("large.tif", "expected at most 1.0 MB"), ("odd.tif", "found none of TIFF")):
        browser.refresh()
        for name, value in (("before", str(tmp_path / file)), ("after", str(tmp_path / file)), ("name", "odd")):
            browser.find_element(By.NAME, name).send_keys(value)
        browser.find_element(By.CSS_SELECTOR, "#pair button").click()
        until(browser, lambda problem=problem: problem in text(browser, "#problem"))
    until(browser, lambda: "found none of TIFF" in text(browser, "#jobs"))
    browser.get_log("browser")  # it notes that the server refused


def test_on_a_phone_nothing_is_wider_than_the_screen(page: Callable[[str], Chrome], browser: Chrome) -> None:
    browser.set_window_size(390, 844)
    for path in ("/", "/results/map", "/api", "/results/nothing"):
        page(path)
        wide = "return document.documentElement.scrollWidth - document.documentElement.clientWidth"
        until(browser, lambda wide=wide: browser.execute_script(wide) <= 0)
    browser.get_log("browser")  # the last one is not found, on purpose
