"""The page of a result in a real browser: what a person does with it, by mouse, keys and touch."""

import base64
import io
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage
from selenium.webdriver import ActionChains, Chrome, Keys
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement

from hetecd.raster import read_raster
from hetecd.report import write_report

DESKTOP, PHONE = (1200, 800), (390, 844)


def show(browser: Chrome, path: Path, size: tuple[int, int] = DESKTOP) -> None:
    """Open a page as a double click does, and wait for its picture of the probability."""
    phone = size == PHONE
    metrics = {"width": size[0], "height": size[1], "deviceScaleFactor": 1, "mobile": phone}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    browser.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": phone})
    browser.get(f"file://{quote(str(path))}")
    browser.set_script_timeout(10)
    browser.execute_async_script("(paint ? paint.repaint() : Promise.resolve()).then(arguments[0])")


@pytest.fixture(scope="module")
def report(mapped: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(mapped, tmp_path_factory.mktemp("report") / "report.html")


@pytest.fixture
def page(browser: Chrome, report: Path) -> Iterator[Chrome]:
    """The page just opened; afterwards the browser must have had nothing to complain about."""
    show(browser, report)
    yield browser
    assert browser.get_log("browser") == []


@pytest.fixture
def prob(mapped: Path) -> np.ndarray:
    return read_raster(mapped / "probability.tif").array[0]


def by_id(page: Chrome, name: str) -> WebElement:
    return page.find_element(By.ID, name)


def number(text: str) -> float:
    return float(text.split(maxsplit=1)[0].replace(",", ""))


def set_threshold(page: Chrome, steps: int) -> float:
    """Press an arrow key on the slider; the threshold it says then."""
    key = Keys.ARROW_RIGHT if steps > 0 else Keys.ARROW_LEFT
    by_id(page, "threshold").send_keys(key * abs(steps))
    return float(by_id(page, "threshold-value").text)


def groups(prob: np.ndarray, threshold: float) -> list[np.ndarray]:
    """Probabilities of each polygon of the map."""
    labels, count = ndimage.label(prob >= np.float32(threshold))
    return [prob[labels == k + 1] for k in range(count)]


def test_nothing_is_asked_of_the_network(page: Chrome) -> None:
    names = page.execute_script("return performance.getEntriesByType('resource').map((entry) => entry.name)")
    assert all(name.startswith("data:") for name in names)
    refused = page.execute_async_script("fetch('https://example.org').catch((error) => arguments[0](`${error}`))")
    assert "Failed to fetch" in refused
    assert any("Content Security Policy" in line["message"] for line in page.get_log("browser"))


def test_the_area_follows_the_slider(page: Chrome, prob: np.ndarray, mapped: Path) -> None:
    summary = json.loads((mapped / "summary.json").read_text())
    pixel_m2 = summary["changed_area_m2"] / summary["changed_pixels"]
    mapped_groups = groups(prob, 0.6)
    assert number(by_id(page, "area").text) == pytest.approx(summary["changed_area_m2"] / 1e4, abs=0.005)
    for steps, expected in ((1, 0.61), (22, 0.83), (-30, 0.53), (-53, 0.0)):
        threshold = set_threshold(page, steps)
        assert threshold == pytest.approx(expected)
        pixels = int((prob >= np.float32(threshold)).sum())
        text = by_id(page, "area").text
        assert number(text) == pytest.approx(pixels * pixel_m2 / 1e4, abs=0.006, rel=4e-3), text  # 14.5 ha
        assert f"{pixels:,} px" in text
        alive = [group for group in mapped_groups if group.max() >= np.float32(threshold)]
        assert f"{len(alive)} of {len(mapped_groups)} polygons" in text
        drawn = page.execute_script("return outlines.getLayers().length / 2")
        assert drawn == len(alive)
        first = by_id(page, "largest").find_element(By.TAG_NAME, "button").text.split("\n")[1]
        most = max((group >= np.float32(max(threshold, 0.6))).sum() for group in mapped_groups)
        assert number(first) == pytest.approx(most * pixel_m2 / 1e4, abs=0.006)
    assert "--threshold 0.00" in by_id(page, "outline-note").text
    by_id(page, "reset").click()
    assert by_id(page, "threshold-value").text == "0.60"
    assert number(by_id(page, "area").text) == pytest.approx(summary["changed_area_m2"] / 1e4, abs=0.005)


def test_a_threshold_between_two_steps_is_kept(browser: Chrome, mapped: Path, tmp_path: Path) -> None:
    """Checkpoints have thresholds such as 0.4375; the map's own figures are shown until somebody moves the slider."""
    shutil.copytree(mapped, tmp_path / "map")
    summary = json.loads((mapped / "summary.json").read_text())
    summary["settings"]["threshold"] = 0.5975
    (tmp_path / "map" / "summary.json").write_text(json.dumps(summary))
    show(browser, write_report(tmp_path / "map"))
    assert by_id(browser, "threshold-value").text == "0.5975"
    assert f"{summary['changed_pixels']:,} px" in by_id(browser, "area").text
    assert set_threshold(browser, 1) == pytest.approx(0.61)
    by_id(browser, "reset").click()
    assert by_id(browser, "threshold-value").text == "0.5975"


def test_what_is_painted_follows_the_slider(page: Chrome, prob: np.ndarray) -> None:
    for steps in (0, 20, -50):
        threshold = set_threshold(page, steps)
        painted = page.execute_async_script("""const done = arguments[0]; paint.repaint().then(() => {
            const { width, height } = paint.canvas;
            const bytes = paint.canvas.getContext("2d").getImageData(0, 0, width, height).data;
            done([width, height, bytes.filter((value, at) => at % 4 === 3 && value > 0).length]);
        })""")
        assert painted == [160, 120, int((prob >= np.float32(threshold)).sum())]


def seen_colour(page: Chrome, share: float) -> float:
    """How colourful a strip of the map is at a share of its width: 0 = grey."""
    shot = np.asarray(Image.open(io.BytesIO(page.get_screenshot_as_png())).convert("RGB")).astype(int)
    box = by_id(page, "map").rect
    col, rows = int(box["x"] + share * box["width"]), slice(int(box["y"] + 150), int(box["y"] + box["height"] - 150))
    strip = shot[rows, col - 15 : col + 15]
    return float((strip.max(-1) - strip.min(-1)).mean())


def test_the_swipe_shows_one_image_on_each_side(page: Chrome) -> None:
    for name in ("show-probability", "show-polygons"):
        by_id(page, name).click()
    assert seen_colour(page, 0.4) > 10
    assert seen_colour(page, 0.6) < 1
    handle = page.find_element(By.CSS_SELECTOR, "#swipe span")
    width = by_id(page, "map").rect["width"]
    ActionChains(page).drag_and_drop_by_offset(handle, int(0.2 * width), 0).perform()
    assert by_id(page, "swipe").get_attribute("aria-valuenow") == "70"
    assert seen_colour(page, 0.6) > 10
    by_id(page, "swipe").send_keys(Keys.HOME + Keys.ARROW_RIGHT * 3 + Keys.PAGE_UP)
    assert by_id(page, "swipe").get_attribute("aria-valuenow") == "16"
    assert by_id(page, "swipe").get_attribute("aria-valuetext") == "16 % optical, before"
    assert seen_colour(page, 0.4) < 1
    # The line stays where it is while the map moves under it.
    x = by_id(page, "swipe").rect["x"]
    by_id(page, "map").send_keys("+" + Keys.ARROW_LEFT)
    page.execute_async_script("setTimeout(arguments[0], 400)")
    assert by_id(page, "swipe").rect["x"] == pytest.approx(x, abs=0.5)


def middle_of(page: Chrome, row: float, col: float) -> tuple[int, int]:
    """Where on the screen a place of the map is, from the middle of the map's element."""
    x, y = page.execute_script(
        "const at = map.latLngToContainerPoint([arguments[0], arguments[1]]), size = map.getSize();"
        "return [at.x - size.x / 2, at.y - size.y / 2]", row, col,
    )  # fmt: skip
    return round(x), round(y)


def test_a_click_on_a_polygon_tells_its_figures(page: Chrome, prob: np.ndarray) -> None:
    labels, _ = ndimage.label(prob >= np.float32(0.6))
    sizes = np.bincount(labels.ravel())[1:]
    biggest = int(sizes.argmax()) + 1
    depth = ndimage.distance_transform_edt(labels == biggest)
    row, col = np.unravel_index(depth.argmax(), depth.shape)
    place = middle_of(page, row + 0.5, col + 0.5)
    ActionChains(page).move_to_element_with_offset(by_id(page, "map"), *place).click().perform()
    popup = page.find_element(By.CLASS_NAME, "leaflet-popup-content").text
    assert popup.startswith("Change 1\n")
    assert f"Pixels\n{sizes.max():,}\n" in popup
    assert f"Mean probability\n{prob[labels == biggest].mean():.2f}\n" in popup
    pressed = page.find_elements(By.CSS_SELECTOR, "#largest [aria-pressed=true]")
    assert [button.get_attribute("data-number") for button in pressed] == ["1"]
    set_threshold(page, 20)
    kept = int((prob[labels == biggest] >= np.float32(0.8)).sum())
    area = number(page.find_element(By.CLASS_NAME, "leaflet-popup-content").text.split("From 0.80\n")[1])
    assert area == pytest.approx(kept * 9 / 0.9996**2 / 1e4, abs=0.01)
    # Beside all polygons there is nothing to tell.
    row, col = np.argwhere((prob < 0.3) & (ndimage.distance_transform_edt(prob < 0.6) > 4))[0]
    place = middle_of(page, row + 0.5, col + 0.5)
    ActionChains(page).move_to_element_with_offset(by_id(page, "map"), *place).click().perform()
    assert page.find_elements(By.CLASS_NAME, "leaflet-popup-content") == []


def test_the_pointer_tells_place_and_probability(page: Chrome, prob: np.ndarray, mapped: Path) -> None:
    grid = read_raster(mapped / "probability.tif").grid
    row, col = 60, 80
    ActionChains(page).move_to_element_with_offset(by_id(page, "map"), *middle_of(page, row + 0.5, col + 0.5)).perform()
    text = by_id(page, "position").text
    x, y = (float(word.strip(",")) for word in (text.split()[1], text.split()[3]))
    assert np.allclose((x, y), grid.transform @ (col + 0.5, row + 0.5), atol=3)
    low, high = (float(word) for word in text.split("probability ")[1].split(" to "))
    assert low <= prob[row, col] <= high
    assert "EPSG:326" in text


def test_keys_are_enough(page: Chrome) -> None:
    reached = []
    for _ in range(12):
        ActionChains(page).send_keys(Keys.TAB).perform()
        focused = page.switch_to.active_element
        reached.append(focused.get_attribute("id") or focused.get_attribute("data-number") or focused.text)
    wanted = ["map", "swipe", "+", "−", "threshold", "show-probability", "show-polygons", "whole", "1", "2"]
    assert [name for name in reached if name in wanted] == wanted
    whole = page.execute_script("return map.getZoom()")
    page.switch_to.active_element.send_keys(Keys.ENTER)
    assert page.execute_script("return map.getZoom()") > whole
    assert page.find_elements(By.CLASS_NAME, "leaflet-popup-content")
    by_id(page, "map").send_keys(Keys.ESCAPE)
    assert page.find_elements(By.CLASS_NAME, "leaflet-popup-content") == []
    by_id(page, "show-polygons").send_keys(Keys.SPACE)
    assert not page.execute_script("return map.hasLayer(outlines)")
    by_id(page, "whole").send_keys(Keys.ENTER)
    assert page.execute_script("return map.getZoom()") == whole


def test_a_phone(browser: Chrome, report: Path) -> None:
    show(browser, report, PHONE)
    wide, tall, shown = browser.execute_script(
        "const box = document.getElementById('map').getBoundingClientRect();"
        "return [document.documentElement.scrollWidth, box.height, box.width]"
    )
    assert wide == shown == PHONE[0]
    assert 0.5 < tall / PHONE[1] < 0.7
    box = browser.find_element(By.CSS_SELECTOR, "#swipe span").rect
    assert min(box["width"], box["height"]) >= 44  # a thumb
    x, y = box["x"] + 22, box["y"] + 22
    for kind, points in (("touchStart", [(x, y)]), ("touchMove", [(x - 40, y)]), ("touchMove", [(x - 78, y)]),
                         ("touchEnd", [])):  # fmt: skip
        touches = [{"x": col, "y": row} for col, row in points]
        browser.execute_cdp_cmd("Input.dispatchTouchEvent", {"type": kind, "touchPoints": touches})
    assert by_id(browser, "swipe").get_attribute("aria-valuenow") == "30"
    button = browser.find_element(By.CSS_SELECTOR, "#largest button")
    assert button.rect["height"] >= 44
    button.click()
    popup = browser.find_element(By.CLASS_NAME, "leaflet-popup")
    assert popup.rect["x"] >= 0
    assert popup.rect["x"] + popup.rect["width"] <= PHONE[0]
    content = browser.find_element(By.CLASS_NAME, "leaflet-popup-content")
    assert browser.execute_script("return arguments[0].scrollWidth <= arguments[0].clientWidth", content)
    assert browser.get_log("browser") == []


def test_paper_shows_the_images_side_by_side(page: Chrome) -> None:
    pdf = base64.b64decode(page.execute_cdp_cmd("Page.printToPDF", {})["data"])
    assert pdf.startswith(b"%PDF")
    assert pdf.count(b"/Subtype /Image") >= 3
    assert 1 <= pdf.count(b"/Type /Page\n") <= 3
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    figures = page.find_elements(By.CSS_SELECTOR, "#paper figcaption")
    assert [figure.text for figure in figures] == ["optical, before", "SAR, after", "change, probability from 0.60"]
    assert not by_id(page, "map").is_displayed()
    assert not by_id(page, "threshold").is_displayed()
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})


def test_names_of_files_are_words_and_nothing_else(browser: Chrome, mapped: Path, tmp_path: Path) -> None:
    evil = "<!-- <script></script><img src=x onerror=document.title='evil'>${data}\u2028.tif"
    shutil.copytree(mapped, tmp_path / "map")
    summary = json.loads((mapped / "summary.json").read_text())
    copied = shutil.copy(summary["before"]["path"], tmp_path / evil.replace("/", "_"))
    summary["before"]["path"] = str(copied)
    summary["warnings"] = [evil, "</script><script>document.title='evil'</script>"]
    (tmp_path / "map" / "summary.json").write_text(json.dumps(summary))
    show(browser, write_report(tmp_path / "map"))
    assert Path(copied).name.split("\u2028")[0] in by_id(browser, "title").text
    assert evil.split("\u2028", maxsplit=1)[0] in by_id(browser, "notices").text
    assert browser.title.endswith("change report")
    assert browser.find_elements(By.CSS_SELECTOR, "img[src=x]") == []
    assert len(browser.find_elements(By.CLASS_NAME, "leaflet-image-layer")) == 3
    assert browser.get_log("browser") == []


@pytest.mark.parametrize("case", ["polygons", "probability", "change", "summary", "inputs", "one input"])
def test_the_rest_is_shown_where_something_is_missing(case: str, browser: Chrome, mapped: Path, tmp_path: Path) -> None:
    """Three files are cut off in the middle, so that they open; others are gone."""
    folder = tmp_path / "map"
    shutil.copytree(mapped, folder)
    for name in {"polygons": ["change.gpkg"], "probability": ["probability.tif"], "change": ["change.tif"]}.get(
        case, []
    ):
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: len(content) // 2])
    if case == "summary":
        (folder / "summary.json").unlink()
    elif "input" in case:
        summary = json.loads((folder / "summary.json").read_text())
        for date in ("before",) if case == "one input" else ("before", "after"):
            summary[date]["path"] = f"/nowhere/{date}.tif"
        (folder / "summary.json").write_text(json.dumps(summary))
    show(browser, write_report(folder))
    notices = by_id(browser, "notices").text
    said = {"polygons": "change.gpkg: ", "probability": "probability.tif: ", "summary": "summary.json: no such file",
            "inputs": "/nowhere/after.tif: ", "one input": "/nowhere/before.tif: "}.get(case, "")  # fmt: skip
    assert said in notices
    assert bool(notices) == bool(said)  # the page needs no change.tif
    images = {"summary": 0, "inputs": 0, "one input": 1}.get(case, 2)
    assert len(browser.find_elements(By.CSS_SELECTOR, "#map img.leaflet-image-layer")) == images
    assert len(browser.find_elements(By.ID, "swipe")) == (images == 2)
    assert len(browser.find_elements(By.CSS_SELECTOR, "#map canvas.leaflet-image-layer")) == (case != "probability")
    assert bool(browser.find_elements(By.CSS_SELECTOR, "#largest button")) == (case != "polygons")
    assert (
        by_id(browser, "show-probability").is_displayed()
        == by_id(browser, "ramp").is_displayed()
        == (case != "probability")
    )
    assert by_id(browser, "show-polygons").is_displayed() == (case != "polygons")
    before = by_id(browser, "area").text
    set_threshold(browser, 10)
    assert number(before) > number(by_id(browser, "area").text) > 0
    assert browser.get_log("browser") == []
