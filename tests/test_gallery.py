"""A gallery shows what is in its folder and nothing else, and names what is missing."""

import json
import os
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import rasterio

from hetecd import gallery as gallery_module
from hetecd.errors import AbsentError, InputError
from hetecd.gallery import Gallery, Layer
from hetecd.map_tiles import levels
from hetecd.products import is_product
from hetecd.raster import read_raster
from hetecd.report import polygon_bins
from hetecd.survey import is_result, open_results, read_polygons, survey

MADE = ("change.tif", "probability.tif", "change.gpkg", "summary.json")


@pytest.fixture
def root(mapped: Path, tmp_path: Path) -> Path:
    """Two results, `one` with its images beside it, `old` that is older and only has its rasters."""
    root = tmp_path / "served"
    shutil.copytree(mapped.parent, root / "one", ignore=lambda folder, names: [n for n in names if n == "map"])
    for file in MADE:
        shutil.copy(mapped / file, root / "one")
    for date, name in (("before", "optical.tif"), ("after", "sar.tif")):
        _rename(root / "one", date, root / "one" / name)
    (root / "old").mkdir()
    for file in ("change.tif", "probability.tif"):
        shutil.copy(mapped / file, root / "old")
    (root / ".hidden").mkdir()
    shutil.copy(mapped / "summary.json", root / ".hidden")
    (root / "empty").mkdir()
    return root


def _rename(folder: Path, date: str, path: Path | str) -> None:
    """Let a summary say that the image of a date lies elsewhere."""
    summary = json.loads((folder / "summary.json").read_text())
    summary[date]["path"] = str(path)
    (folder / "summary.json").write_text(json.dumps(summary))


def test_the_list(root: Path, mapped: Path) -> None:
    entries = Gallery(root).entries()
    summary = json.loads((mapped / "summary.json").read_text())
    assert [entry.name for entry in entries] == ["one", "old"]
    assert (entries[0].height, entries[0].width) == (120, 160)
    assert entries[0].changed_area_m2 == summary["changed_area_m2"]
    assert (entries[0].files, entries[0].missing) == (MADE, ())
    assert any("summary.json: no such file" in line for line in entries[1].missing)
    assert [entry.name for entry in Gallery(root / "one").entries()] == ["one"]  # a result itself can be served
    with pytest.raises(InputError, match="found no such folder"):
        Gallery(root, [root / "nowhere"])


def test_a_view_has_addresses_and_the_figures_of_a_report(root: Path, mapped: Path) -> None:
    gallery = Gallery(root)
    shown = gallery.view("one")
    assert [image["title"] for image in shown["images"]] == ["optical, before", "SAR, after"]
    assert shown["images"][0]["tiles"].startswith("/api/results/one/before/tiles/{z}/{x}/{y}?v=")
    assert shown["probability"]["levels"] == 0
    assert shown["missing"] == []
    results = open_results(mapped)
    shapes = read_polygons(results, 2000).shapes
    assert gallery.bins("one") == polygon_bins(results, survey(results, shapes, 1))
    json.dumps(shown, allow_nan=False)


def test_numbers_without_a_summary_are_counted(root: Path) -> None:
    gallery = Gallery(root)
    assert gallery.view("old")["changed_pixels"] == gallery.view("one")["changed_pixels"]
    assert gallery.view("old")["images"] == []


def test_probability_tiles_are_bins(root: Path, mapped: Path, tmp_path: Path) -> None:
    gallery = Gallery(root)
    for number, coded in enumerate((gallery.tile("one", "probability", 0, 0, 0), gallery.whole("one", "probability"))):
        (tmp_path / f"{number}.png").write_bytes(coded)
        found = read_raster(tmp_path / f"{number}.png").array[0, :120, :160]
        prob = read_raster(mapped / "probability.tif").array[0]
        valid = np.isfinite(prob)
        assert ((found == 0) == ~valid).all()
        assert np.abs(found[valid] - 1 - np.floor(prob[valid] * 100)).max() <= 1  # 1 is in the last bin
    for layer in ("before", "after"):
        assert gallery.tile("one", layer, 0, 0, 0)[8:12] == b"WEBP"
        assert gallery.whole("one", layer)[8:12] == b"WEBP"
    assert levels(gallery.open("one").grid) == 0
    with pytest.raises(InputError, match="not on this map"):
        gallery.tile("one", "before", 1, 0, 0)


@pytest.mark.parametrize("name", ["nothing", "..", ".", "", ".hidden", "empty", "one/../one", "/etc", "../served/one"])
def test_only_names_of_the_list_are_results(root: Path, name: str) -> None:
    for ask in (Gallery(root).open, Gallery(root).view, lambda name: Gallery(root).tile(name, "before", 0, 0, 0)):
        with pytest.raises(AbsentError, match="found no such result"):
            ask(name)


@pytest.mark.parametrize("file", ["../one/summary.json", "before.tif", "/etc/passwd", "optical.tif", "", "CHANGE.TIF"])
def test_only_results_are_downloaded(root: Path, file: str) -> None:
    assert Gallery(root).file("one", "change.tif").read_bytes()[:4] == b"II*\0"
    with pytest.raises(AbsentError, match="found no such file"):
        Gallery(root).file("one", file)


def _link_folder(root: Path, outside: Path) -> None:
    (root / "x").symlink_to(outside / "map")


def _link_file(root: Path, outside: Path) -> None:
    (root / "x").mkdir()
    for file in MADE:
        (root / "x" / file).symlink_to(outside / "map" / file)


@pytest.mark.parametrize("make", [_link_folder, _link_file])
def test_links_do_not_lead_outside(root: Path, mapped: Path, make: Callable[[Path, Path], None]) -> None:
    make(root, mapped.parent)
    gallery = Gallery(root)
    (entry,) = (entry for entry in gallery.entries() if entry.name == "x")
    assert entry.width is None
    assert "lies outside the served folder" in entry.missing[0]
    for ask in (gallery.view, gallery.bins, lambda name: gallery.file(name, "summary.json")):
        with pytest.raises(InputError, match="lies outside the served folder"):
            ask("x")
    assert Gallery(root, [mapped.parent]).view("x")["images"]  # unless somebody said so


@pytest.mark.parametrize("place", ["outside", "link", "vrt", "url", "gone", "circle", "folder", "product"])
def test_images_that_a_summary_names_elsewhere_are_not_opened(root: Path, mapped: Path, place: str) -> None:
    inside, outside = root / "one" / "image.tif", mapped.parent / "optical.tif"
    (root / "one" / "optical.tif").unlink()
    named: Path | str = outside if place == "outside" else inside
    if place == "link":
        inside.symlink_to(outside)
    elif place == "circle":
        inside.symlink_to(inside)
    elif place == "vrt":
        inside.write_text(f"<VRTDataset><SourceFilename>{outside}</SourceFilename></VRTDataset>")
    elif place == "url":
        named = "/vsicurl/http://localhost:1/x.tif"
    elif place == "folder":
        named = root / "granules"
        named.mkdir()
        (named / "a.tif").symlink_to(outside)
    elif place == "product":
        named = root / "granules"
        (named / "x.SAFE" / "measurement").mkdir(parents=True)
        (named / "x.SAFE" / "measurement" / "s1-iw-grd-vv-x.tiff").symlink_to(outside)
    _rename(root / "one", "before", named)
    gallery = Gallery(root)
    shown = gallery.view("one")
    assert [image["title"] for image in shown["images"]] == ["SAR, after"]
    assert [name for name, _ in shown["facts"] if name.startswith("Before")] == []  # nor was its date looked up
    (line,) = shown["missing"]
    said = {"vrt": "found none of TIFF", "url": "found no such file", "gone": "found no such file",
            "circle": "found no such file"}  # fmt: skip
    assert said.get(place, "lies outside the served folder") in line
    with pytest.raises(AbsentError, match="found no such image"):
        gallery.tile("one", "before", 0, 0, 0)
    if place == "outside":
        assert len(Gallery(root, [mapped.parent]).view("one")["images"]) == 2


def test_a_folder_of_granules_is_shown_whatever_else_lies_in_it(root: Path, mapped: Path) -> None:
    granules = root / "granules"
    granules.mkdir()
    (root / "one" / "optical.tif").rename(granules / "a.tif")
    (granules / "a.tif.aux.xml").write_text("<PAMDataset></PAMDataset>")
    for name in ("README.txt", ".DS_Store", "manifest.safe"):
        (granules / name).write_text("no image")
    _rename(root / "one", "before", granules)
    gallery = Gallery(root)
    assert gallery.view("one")["missing"] == []
    assert gallery.tile("one", "before", 0, 0, 0)
    (granules / "b.tif").symlink_to(mapped.parent / "optical.tif")  # what comes to it later is looked at, too
    assert "lies outside the served folder" in gallery.view("one")["missing"][0]


def test_a_folder_that_may_not_be_entered_is_no_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as lost+found of a disk that is served."""
    tmp_path.chmod(0o755)
    monkeypatch.chdir(tmp_path)
    Path("lost+found").mkdir()
    Path("lost+found").chmod(0)
    user = os.geteuid()
    try:
        if user == 0:
            os.seteuid(65534)  # the administrator may enter every folder
        assert not is_result("lost+found")
        assert not is_product("lost+found")
    finally:
        os.seteuid(user)


@pytest.mark.parametrize("file", ["optical.tif", "probability.tif"])
@pytest.mark.parametrize("side", ["", ".ovr", ".aux.xml"])
def test_pixels_of_other_files_are_not_shown(root: Path, mapped: Path, file: str, side: str) -> None:
    """Overviews may be named by the metadata of a file, or be a link beside it."""
    path = root / "one" / file
    if side:
        Path(f"{path}{side}").symlink_to(mapped / "probability.tif")
    else:
        with rasterio.open(path, "r+", IGNORE_COG_LAYOUT_BREAK="YES") as dataset:
            dataset.update_tags(ns="OVERVIEWS", OVERVIEW_FILE=str(mapped / "probability.tif"))
    problem = "lies outside the served folder" if side else "found overviews in another file"
    layer: Layer = "before" if file == "optical.tif" else "probability"
    gallery = Gallery(root)
    for ask in (gallery.tile, lambda *given: gallery.whole(*given[:2])):
        with pytest.raises((InputError, AbsentError), match=f"{problem}|found no such image"):
            ask("one", layer, 0, 0, 0)
    (entry,) = (entry for entry in gallery.entries() if entry.name == "one")
    assert any(problem in line for line in entry.missing)


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _drop_layer(path: Path) -> None:
    with sqlite3.connect(path) as base:
        base.execute("DELETE FROM gpkg_contents")
        base.execute("DELETE FROM gpkg_geometry_columns")


def _refer(path: Path) -> None:
    path.write_text("<OGRVRTDataSource><!-- names another file --></OGRVRTDataSource>")


@pytest.mark.parametrize(
    ("file", "damage"),
    [("change.gpkg", _refer), ("change.gpkg", _truncate), ("change.gpkg", _drop_layer), ("change.gpkg", os.remove),
     ("summary.json", _truncate), ("probability.tif", os.remove), ("change.tif", os.remove)],
)  # fmt: skip
def test_the_rest_is_shown(root: Path, file: str, damage: Callable[[Path], None]) -> None:
    damage(root / "one" / file)
    shown = Gallery(root).view("one")
    assert any(file in line for line in shown["missing"])
    assert bool(shown["polygons"]) == (file != "change.gpkg")
    assert (shown["probability"] is None) == (file == "probability.tif")
    assert len(shown["images"]) == (0 if file == "summary.json" else 2)
    assert shown["changed_pixels"]


def test_a_damaged_summary_takes_nothing_else_with_it(root: Path) -> None:
    summary = json.loads((root / "one" / "summary.json").read_text())
    del summary["after"]["path"]
    (root / "one" / "summary.json").write_text(json.dumps(summary))
    entries = {entry.name: entry for entry in Gallery(root).entries()}
    assert set(entries) == {"one", "old"}
    assert "after.path" in entries["one"].missing[0]
    shown = Gallery(root).view("one")
    assert (shown["missing"], shown["images"]) == ([*entries["one"].missing], [])
    assert shown["polygons"]


def test_a_raster_that_is_none_is_refused(root: Path) -> None:
    (root / "one" / "change.tif").write_text("<VRTDataset/>")
    with pytest.raises(InputError, match="found none of TIFF"):
        Gallery(root).view("one")


def test_what_did_not_change_is_looked_at_once(root: Path, mapped: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And anything that may change what is shown makes it look again."""
    looked: list[str] = []
    monkeypatch.setattr(
        gallery_module, "open_results", lambda folder: looked.append(folder.name) or open_results(folder)
    )
    gallery = Gallery(root)

    def looks() -> int:
        looked.clear()
        gallery.tile("one", "before", 0, 0, 0)
        return len(looked)

    image = root / "one" / "optical.tif"
    assert [looks(), looks()] == [1, 0]
    for change in (
        lambda: os.utime(root / "one" / "summary.json"),
        lambda: os.utime(image),
        lambda: Path(f"{image}.aux.xml").write_text("<PAMDataset></PAMDataset>"),
        lambda: (image.rename(root / "one" / "moved.tif"), image.symlink_to(root / "one" / "moved.tif")),
        (root / "one" / "change.gpkg").unlink,
    ):
        change()
        assert [looks(), looks()] == [1, 0]
    shutil.rmtree(root / "one")
    with pytest.raises(AbsentError):
        looks()


def test_a_new_result_of_the_same_name_is_not_the_old_one(root: Path) -> None:
    gallery = Gallery(root)
    before = gallery.tile("one", "probability", 0, 0, 0), gallery.view("one")["probability"]["tiles"]
    (root / "old" / "probability.tif").rename(root / "one" / "probability.tif")
    os.utime(root / "one" / "probability.tif")
    assert gallery.view("one")["probability"]["tiles"] != before[1]
    assert gallery.tile("one", "probability", 0, 0, 0) == before[0]
