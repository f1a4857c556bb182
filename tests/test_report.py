"""What the page says; how it behaves is in test_browser.py."""

import base64
import io
import json
import re
import shutil

import numpy as np
import pytest
from PIL import Image
from rasterio.crs import CRS
from rasterio.transform import Affine
from scipy import ndimage

from hetecd import cli
from hetecd.errors import InputError, OutputError
from hetecd.modality import uint8_modality
from hetecd.pair import open_pair
from hetecd.predict import predict_scene
from hetecd.raster import Grid, read_raster, write_raster
from hetecd.report import _levels, _picture_url, facts, page, write_report
from hetecd.survey import open_results

MOVED = {"sar_move": [1, 0, -12, 0, 1, 7], "shift_px": [12, -7], "rotation_deg": 0, "scale": 1, "moved": True,
         "inlier_ratio": 0.8, "tiles": 20, "note": "clear"}  # fmt: skip


@pytest.fixture
def folder(mapped, tmp_path):
    return shutil.copytree(mapped, tmp_path / "map")


def change_summary(folder, **fields):
    path = folder / "summary.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def shown(path):
    """The numbers and words of a page."""
    found = re.search(r'<script id="data" type="application/json">(.*?)</script>', path.read_text(encoding="utf-8"))
    return json.loads(found[1])


def test_the_page_holds_everything_itself(folder, capsys):
    assert cli.main(["report", str(folder)]) == 0
    assert capsys.readouterr().out == f"written: {folder}/report.html\n"
    text = (folder / "report.html").read_text(encoding="utf-8")
    assert not re.findall(r"""(?:src|href)=["']?(?!data:)[a-z]""", text.split("<script")[0])
    assert "default-src 'none'" in text
    assert "sourceMappingURL" not in text
    assert "Redistributions in binary form must reproduce" in text  # Leaflet's licence
    assert "$" not in re.sub(r"<script.*?</script>", "", text, flags=re.DOTALL)
    data = shown(folder / "report.html")
    assert [image["title"] for image in data["images"]] == ["optical, before", "SAR, after"]
    assert (data["height"], data["width"], data["factor"], data["threshold"]) == (120, 160, 1, 0.6)
    assert data["missing"] == data["warnings"] == []


def test_predict_makes_the_page_too(decided, mapped, tiles, tmp_path, capsys):
    pair = [str(mapped.parent / f"{name}.tif") for name in ("optical", "sar")]
    words = ["--weights", str(decided), "-o", str(tmp_path / "out"), "--report"]
    assert cli.main(["predict", *pair, *words]) == 0
    assert capsys.readouterr().out.endswith(f"written: {tmp_path}/out/report.html\n")
    data = shown(tmp_path / "out" / "report.html")
    assert len(data["images"]) == 2
    assert data["polygons_total"] == len(data["polygons"]) > 0
    (tmp_path / "out" / "report.html").unlink()
    assert cli.main(["predict", *(str(tiles / "test" / name) for name in "AB"), *words]) == 2
    assert "report: found True and folders of tiles" in capsys.readouterr().err


def test_images_are_those_of_the_pair(folder, mapped, tmp_path):
    data = shown(write_report(folder))
    prob = read_raster(mapped / "probability.tif").array[0]
    kind, coded = data["probability"]["image"].split(",")
    assert kind == "data:image/png;base64"
    (tmp_path / "p.png").write_bytes(base64.b64decode(coded))
    level = np.asarray(Image.open(tmp_path / "p.png")).astype(int)
    np.testing.assert_array_equal(level == 0, np.isnan(prob))
    for k in (1, 29, 53, 59, 99):  # float32 multiples of 0.01 are edges
        np.testing.assert_array_equal(level > k, prob >= np.float32(k / 100))
    for image, name in zip(data["images"], ("optical", "sar"), strict=True):
        (tmp_path / "i.webp").write_bytes(base64.b64decode(image["image"].split(",")[1]))
        picture = np.asarray(Image.open(tmp_path / "i.webp").convert("RGBA"))
        valid = read_raster(mapped.parent / f"{name}.tif").valid
        assert picture.shape == (120, 160, 4)
        if name == "optical":
            np.testing.assert_array_equal(picture[..., 3] > 0, valid)
            assert np.ptp(picture[valid], axis=0)[:3].min() > 200


def test_a_moved_image_is_shown_where_the_network_saw_it(folder):
    pictures = []
    for alignment in (None, MOVED, MOVED | {"moved": False}):
        change_summary(folder, alignment=alignment)
        coded = shown(write_report(folder))["images"][1]["image"].split(",")[1]
        pictures.append(np.asarray(Image.open(io.BytesIO(base64.b64decode(coded))).convert("L")).astype(int))
    still, moved, left = pictures
    np.testing.assert_array_equal(still, left)
    inside = still[7 + 20 : 7 + 90, 20:120], moved[20:90, 12 + 20 : 12 + 120]
    assert np.abs(inside[0] - inside[1]).mean() < 6 < np.abs(moved - still).mean()


def test_levels_of_every_threshold():
    prob = (np.arange(101) / 100).astype(np.float32)
    assert _levels(prob[None])[0].tolist() == [*range(1, 101), 100]
    assert _levels(np.float32([[np.nan]])) == [[0]]


def test_noise_is_made_coarser_until_it_fits(monkeypatch):
    monkeypatch.setattr("hetecd.report.IMAGE_BYTES", 100_000)
    noise = np.random.default_rng(0).random((3, 800, 800)).astype(np.float32)
    assert 50_000 < len(_picture_url(noise)) < 100_000 * 4 / 3 + 100


def test_facts(folder):
    change_summary(folder, alignment=MOVED, warnings=["SAR is odd"],
                   weights={"name": "w.safetensors"})  # fmt: skip
    known = dict(facts(open_results(folder)))
    assert known["Before, optical"] == "optical.tif, date not known"
    assert known["Coordinate system"].startswith("EPSG:326")
    assert (
        known["Alignment"]
        == "SAR moved: found +12.0 px to the right, -7.0 px down, rotation 0.00°, scale 1.0000; clear"
    )
    assert re.fullmatch(r"[\d.]+ x [\d.]+ m", known["Pixel"])
    valid = read_raster(folder / "probability.tif").valid
    assert known["No data"].startswith(f"{100 * (1 - valid.mean()):.1f} %")
    assert known["Weights"] == "w.safetensors"
    assert shown(write_report(folder))["warnings"] == ["SAR is odd"]


def test_without_coordinates_areas_are_pixels(folder):
    summary = json.loads((folder / "summary.json").read_text())
    change_summary(folder, changed_area_m2=None, grid=summary["grid"] | {"pixel_m": None},
                   histogram=summary["histogram"] | {"area_m2": None})  # fmt: skip
    data = shown(write_report(folder))
    assert data["pixel_m"] is None
    assert data["changed_area_m2"] is None


@pytest.mark.slow
def test_a_large_scene_fits_into_five_megabytes(tmp_path):
    """10,000 x 10,000 px of noise, which is what compresses worst, with tens of thousands of changes."""
    grid = Grid(CRS.from_epsg(32633), Affine(10, 0, 4e5, 0, -10, 5.4e6), 10_000, 10_000)
    rng = np.random.default_rng(0)
    for name, bands in (("optical", 3), ("sar", 1)):
        tile = rng.integers(1, 255, (bands, 1000, 1000), dtype=np.uint8)
        write_raster(tmp_path / f"{name}.tif", np.tile(tile, (1, 10, 10)), grid)
    field = ndimage.gaussian_filter(rng.normal(size=(1024, 1024)), 4)
    prob = (1 / (1 + np.exp(3 - 2.2 * field / field.std()))).astype(np.float32)
    modalities = uint8_modality((1, 2, 3)), uint8_modality((1,))

    def noise(optical, _):
        batch, _, height, width = optical.shape
        return np.tile(prob[:height, :width], (batch, 1, 1))

    with open_pair(tmp_path / "optical.tif", tmp_path / "sar.tif", "optical", *modalities) as pair:
        predict_scene(pair, noise, tmp_path / "map", tile_px=1024)
    path = write_report(tmp_path / "map")
    data = shown(path)
    assert data["factor"] == 7
    assert len(data["polygons"]) == 2000
    assert data["polygons_total"] > 20_000
    assert path.stat().st_size < 5e6


def test_corners_are_limited(folder, monkeypatch):
    whole = shown(write_report(folder))
    monkeypatch.setattr("hetecd.report.CORNERS", 120)
    monkeypatch.setattr("hetecd.report.PREVIEW_PX", 50)
    part = shown(write_report(folder))
    assert len(part["polygons"]) == len(whole["polygons"]) == whole["polygons_total"]
    assert sum(len(ring) // 2 for polygon in part["polygons"] for ring in polygon["rings"]) <= 120
    assert (whole["tolerance_px"], part["factor"]) == (0, 4)
    assert part["tolerance_px"] > 2
    assert part["polygons"][0]["area_px"] == whole["polygons"][0]["area_px"]
    assert part["polygons"][0]["bins"] == whole["polygons"][0]["bins"]


def test_nothing_in_a_string_ends_the_script(folder):
    change_summary(folder, warnings=["</script><!--<script>"])
    text = write_report(folder).read_text(encoding="utf-8")
    assert text.count("</script>") == 3
    assert shown(folder / "report.html")["warnings"] == ["</script><!--<script>"]


def test_a_folder_without_results(tmp_path, capsys):
    assert cli.main(["report", str(tmp_path / "none")]) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "none: found no such folder, expected" in said
    assert "that of a map, with its summary.json" in said
    with pytest.raises(InputError, match="expected a folder written by `hetecd predict`"):
        write_report(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_page_that_cannot_be_written(folder, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot write"):
        write_report(folder, tmp_path / "file" / "report.html")


def test_page_refuses_what_json_cannot_say():
    with pytest.raises(ValueError, match="JSON"):
        page({"area": float("nan")})
