"""What an image is read from is known again, whatever names it; what was changed is not."""

import hashlib
import os
import zipfile

import numpy as np
import pytest
import rasterio
from rasterio.crs import CRS
from rasterio.transform import Affine
from test_remote import Server

from hetecd.modality import uint8_modality
from hetecd.pair import open_pair
from hetecd.raster import Grid, write_raster
from hetecd.results import About, describe
from hetecd.sources import files_beside, identify, identify_with, is_known, request_of

GRID = Grid(CRS.from_epsg(32633), Affine(10, 0, 5e5, 0, -10, 5e6), 40, 50)
VRT = (
    '<VRTDataset rasterXSize="50" rasterYSize="40"><SRS>EPSG:32633</SRS><GeoTransform>5e5, 10, 0, 5e6, 0, -10'
    '</GeoTransform><VRTRasterBand dataType="Byte" band="1"><SimpleSource><SourceFilename relativeToVRT="{}">{}'
    "</SourceFilename><SourceBand>1</SourceBand></SimpleSource></VRTRasterBand></VRTDataset>"
)


def image(path, value):
    write_raster(path, np.full((1, *GRID.shape), value, np.uint8), GRID)
    return path


def vrt(path, source, relative=1):
    path.write_text(VRT.format(relative, source))
    return path


def asked(path, **settings):
    return request_of(settings, [path, path], [])


@pytest.fixture
def server(tmp_path, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    server = Server(tmp_path, tmp_path / "answers.txt")
    yield server
    server.stop()


def test_a_file_is_itself_whatever_viewers_leave_beside_it(tmp_path):
    path = image(tmp_path / "a.tif", 1)
    content = path.read_bytes()
    expected = {"path": str(path), "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    expected["read_as"] = identify(path)["read_as"]
    assert identify(path) == expected
    before = asked(path)
    (tmp_path / "a.tif.aux.xml").write_text("<PAMDataset></PAMDataset>")
    assert identify(path) == expected
    assert asked(path) == before
    assert asked(path, threshold=0.5) != before
    assert is_known(expected)
    band = '<PAMRasterBand band="1"><NoDataValue>1</NoDataValue></PAMRasterBand>'
    (tmp_path / "a.tif.aux.xml").write_text(f"<PAMDataset>{band}</PAMDataset>")  # no longer the same image
    assert identify(path)["read_as"] != expected["read_as"]
    assert asked(path) != before


def test_a_mask_beside_a_granule_counts(tmp_path):
    image(tmp_path / "a.tif", 1)
    before, request = identify(tmp_path), asked(tmp_path)
    assert "sources" not in before
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=False), rasterio.open(tmp_path / "a.tif", "r+") as dataset:
        dataset.write_mask(np.eye(*GRID.shape) == 0)
    after = identify(tmp_path)
    assert (after["sha256"], after["sources"]["files"]) == (before["sha256"], 1)
    assert asked(tmp_path) != request


def test_the_projection_of_a_shapefile_counts(tmp_path):
    for suffix in (".shp", ".prj"):
        (tmp_path / f"aoi{suffix}").write_text("one")
    assert files_beside(tmp_path / "aoi.shp") == [tmp_path / "aoi.shp", tmp_path / "aoi.prj"]
    before = identify_with(tmp_path / "aoi.shp")
    (tmp_path / "aoi.prj").write_text("two")
    assert identify_with(tmp_path / "aoi.shp")["sources"] != before["sources"]


def test_what_a_virtual_raster_names_counts_however_deep(tmp_path):
    image(tmp_path / "a.tif", 1)
    vrt(tmp_path / "b.vrt", "a.tif")
    path = vrt(tmp_path / "c.vrt", "b.vrt")
    before, request = identify(path), asked(path)
    assert before["sources"]["files"] == 2
    assert before["sources"]["bytes"] == sum((tmp_path / name).stat().st_size for name in ("a.tif", "b.vrt"))
    assert identify(path) == before
    assert asked(path) == request
    with open_pair(path, path, "optical", uint8_modality((1,)), uint8_modality((1,))) as pair:
        assert str(tmp_path / "a.tif") in pair.files  # which so is not replaced by a map
    times = os.stat(tmp_path / "a.tif")
    image(tmp_path / "a.tif", 2)
    os.utime(tmp_path / "a.tif", ns=(times.st_atime_ns, times.st_mtime_ns))
    after = identify(path)
    assert after["sha256"] == before["sha256"]
    assert after["sources"]["bytes"] == before["sources"]["bytes"]
    assert after["sources"]["sha256"] != before["sources"]["sha256"]
    assert asked(path) != request


def test_the_weights_of_a_graph_count(tmp_path):
    path, weights = tmp_path / "net.xml", tmp_path / "net.bin"
    path.write_text("<net/>")
    assert "sources" not in identify_with(path)
    weights.write_bytes(b"12")
    before = identify_with(path)
    weights.write_bytes(b"34")
    after = identify_with(path)
    assert (after["sha256"], after["sources"]["bytes"]) == (before["sha256"], 2)
    assert after["sources"] != before["sources"]
    (tmp_path / "net.onnx").write_text("x")
    assert "sources" not in identify_with(tmp_path / "net.onnx")


def test_of_what_lies_in_an_archive_nothing_tells(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.write(image(tmp_path / "a.tif", 1), "a.tif")
    name = f"/vsizip/{tmp_path}/a.zip/a.tif"
    assert identify(name) == {"path": name, "bytes": None, "sha256": None, "read_as": None}
    assert identify(vrt(tmp_path / "a.vrt", name, 0))["sources"]["sha256"] is None
    assert not is_known(identify(name))
    assert asked(name) == asked(name) != asked(tmp_path / "a.tif")


@pytest.mark.parametrize("folder", ["", "dated/"])
def test_of_a_url_counts_what_the_server_says(server, tmp_path, folder):
    path = image(tmp_path / "a.tif", 1)
    os.utime(path, (1e9, 1e9))
    url = server.url(f"{folder}a.tif")
    before = identify(url)
    version = "Sun, 09 Sep 2001 01:46:40 -0000" if folder else '"1000000000.0"'
    assert before == {"path": url, "bytes": path.stat().st_size, "sha256": None, "version": version}
    assert is_known(before)
    mosaic = vrt(tmp_path / "a.vrt", f"/vsicurl/{url}", 0)
    sources, requests = identify(mosaic)["sources"], [asked(url), asked(mosaic)]
    assert identify(server.url("nothing.tif"))["version"] is None  # whoever opens it says why
    os.utime(path, (2e9, 2e9))
    assert identify(url)["version"] != version
    assert identify(mosaic)["sources"]["sha256"] != sources["sha256"]
    assert not {asked(url), asked(mosaic)} & {*requests}


def test_where_nothing_tells_the_summary_says_so(server, tmp_path):
    path = image(tmp_path / "a.tif", 1)
    url = server.url("silent/a.tif")
    entry = identify(url)
    assert entry == {"path": url, "bytes": path.stat().st_size, "sha256": None, "version": None}
    mosaic = vrt(tmp_path / "a.vrt", f"/vsicurl/{url}", 0)
    assert identify(mosaic)["sources"] == {"files": 1, "bytes": None, "sha256": None}
    assert not is_known(entry)
    assert not is_known(identify(mosaic))
    with open_pair(path, mosaic, "optical", uint8_modality((1,)), uint8_modality((1,))) as pair:
        (warning,) = describe(pair, About(), {})["warnings"]
    assert warning.startswith(f"{mosaic}: nothing tells whether it changes")
