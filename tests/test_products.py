"""Sentinel products as they are downloaded, each a folder that is one image."""

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import rasterio
from rasterio.control import GroundControlPoint
from rasterio.crs import CRS
from rasterio.transform import Affine
from rasterio.warp import transform as transform_points

from hetecd.cli import main
from hetecd.errors import InputError
from hetecd.image import are_tiles, open_image
from hetecd.modality import uint8_modality
from hetecd.pair import open_pair
from hetecd.preview import shown_bands
from hetecd.products import BANDS, is_product, product_files
from hetecd.raster import Grid, read_raster
from hetecd.tiles import Window

UTM = CRS.from_epsg(32633)
GRID = Grid(UTM, Affine(10, 0, 500_000, 0, -10, 5_005_000), 240, 300)
PLANE = np.add.outer(np.arange(240) * 7, np.arange(300) * 5) + 100.0  # differs from pixel to pixel, and is no 0
L2A, L1C = "S2A_MSIL2A_20210714T101031_T33TUN.SAFE", "S2B_MSIL1C_20210714T101031_T33TUN.SAFE"
S1 = "S1A_IW_GRDH_1SDV_20210716T053531_20210716T053556_038804_04942A_1234.SAFE"


def jp2(path: Path, image: np.ndarray, edge_m: int, shift_px: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    where = GRID.transform @ Affine.translation(shift_px, 0) @ Affine.scale(edge_m / 10)
    with rasterio.open(
        path, "w", driver="JP2OpenJPEG", height=image.shape[0], width=image.shape[1], count=1, dtype="uint16",
        crs=UTM, transform=where, QUALITY=100, REVERSIBLE="YES",
    ) as dataset:  # fmt: skip
        dataset.write(image.astype(np.uint16), 1)


def coarser(image: np.ndarray, factor: int) -> np.ndarray:
    return image.reshape(image.shape[0] // factor, factor, -1, factor).mean((1, 3)).round()


def sentinel_2(root: Path, name: str = L2A, shift_px: int = 0) -> Path:
    """Bands that are the plane and their number; of B12 20 and 60 m, of B04 a coarser copy; true colour beside them."""
    images = root / name / "GRANULE" / "L2A_T33TUN_A031" / "IMG_DATA"
    tile = "T33TUN_20210714T101031"
    l2a = "MSIL2A" in name
    for band, edges in (("B02", (10,)), ("B03", (10,)), ("B04", (10, 20)), ("B08", (10,)), ("B12", (20, 60))):
        for edge in edges if l2a else edges[:1]:
            path = images / f"R{edge}m" / f"{tile}_{band}_{edge}m.jp2" if l2a else images / f"{tile}_{band}.jp2"
            jp2(path, coarser(PLANE + int(band[1:]), edge // 10), edge, shift_px)
    jp2(images / (f"R10m/{tile}_TCI_10m.jp2" if l2a else f"{tile}_TCI.jp2"), PLANE, 10, shift_px)
    (images / f"._{tile}_B08.jp2").write_bytes(b"left by another system")
    return root / name


def sentinel_1(root: Path, keys: Sequence[str] = ("vh", "vv"), dtype: str = "uint16", kind: str = "grd") -> Path:
    cols, rows = (v.ravel().tolist() for v in np.meshgrid(np.linspace(0, 300, 7), np.linspace(0, 240, 7)))
    lon, lat = transform_points(UTM, CRS.from_epsg(4326), *(GRID.transform @ (np.array(cols), np.array(rows))))
    ties = [GroundControlPoint(*point, 0.0) for point in zip(rows, cols, lon, lat, strict=True)]
    for number, key in enumerate(keys):
        name = f"s1a-iw-{kind}-{key}-20210716t053531-20210716t053556-038804-04942a-{number:03}.tiff"
        path = root / S1 / "measurement" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with rasterio.open(
            path, "w", driver="GTiff", height=240, width=300, count=1, dtype=dtype, gcps=ties, crs="EPSG:4326"
        ) as dataset:
            dataset.write((PLANE + 1000 * (key == "vh")).astype(dtype), 1)
    return root / S1


@pytest.mark.parametrize("name", [L2A, L1C])
def test_sentinel_2_has_its_bands_on_the_finest_grid(tmp_path: Path, name: str) -> None:
    raster = read_raster(sentinel_2(tmp_path, name))
    assert raster.grid == GRID
    assert raster.valid.all()
    repeated = coarser(PLANE + 12, 2).repeat(2, 0).repeat(2, 1)
    np.testing.assert_array_equal(raster.array, [repeated, PLANE + 8, PLANE + 4, PLANE + 3, PLANE + 2])


def test_pixels_of_0_are_no_data(tmp_path: Path) -> None:
    product = sentinel_2(tmp_path)
    empty = PLANE + 8
    empty[:50] = 0
    jp2(product_files(product)["B08"], empty, 10)
    assert read_raster(product).valid.sum() == PLANE[50:].size


def test_sentinel_1_lies_by_its_control_points(tmp_path: Path) -> None:
    """VV comes first, whatever the order of the files; windows equal the whole."""
    one = uint8_modality((1,))
    with open_pair(sentinel_2(tmp_path), sentinel_1(tmp_path), "optical", one, uint8_modality((1, 2))) as pair:
        _, sar, valid = pair.read(Window(0, 0, 240, 300))
        _, part, _ = pair.read(Window(30, 40, 50, 60))
    assert valid.mean() > 0.98
    np.testing.assert_allclose(sar[0][valid], PLANE[valid], atol=0.5)
    np.testing.assert_allclose(sar[1][valid], PLANE[valid] + 1000, atol=0.5)
    np.testing.assert_array_equal(part, sar[:, 30:80, 40:100])


def test_a_folder_of_products_is_a_mosaic(tmp_path: Path) -> None:
    """As is one in which an archive was unpacked to a folder of its name."""
    one = sentinel_2(tmp_path / L2A)
    sentinel_2(tmp_path / L2A, L2A.replace("TUN", "TVN"), shift_px=300)
    two = uint8_modality((2,))
    with open_pair(one.parent, sentinel_1(tmp_path), "optical", two, two) as pair:
        assert (pair.grid.height, pair.grid.width) == (240, 600)
        optical, _, _ = pair.read(Window(0, 290, 10, 20))
    np.testing.assert_array_equal(optical[0], np.hstack([PLANE[:10, 290:], PLANE[:10, :10]]) + 8)


def test_what_is_no_whole_product(tmp_path: Path) -> None:
    def refused(folder: Path, match: str) -> None:
        with pytest.raises(InputError, match=match) as error, open_image(folder, (1,)):
            pass
        assert str(error.value).startswith(str(folder))

    (tmp_path / "empty.SAFE").mkdir()
    refused(tmp_path / "empty.SAFE", r"found no image, .* or a Sentinel product")
    (tmp_path / "ocean.SAFE" / "measurement").mkdir(parents=True)
    (tmp_path / "ocean.SAFE" / "measurement" / "s1a-iw-ocn-vv-001.nc").touch()
    refused(tmp_path / "ocean.SAFE", "found neither measurement")
    product = sentinel_2(tmp_path)
    product_files(product)["B08"].unlink()
    refused(product, "found no B08, expected all of B12, ")
    (images,) = sentinel_2(tmp_path).glob("GRANULE/*")
    shutil.copytree(images, images.with_name("another"))
    refused(product, "found several granules")
    refused(
        sentinel_1(tmp_path / "swaths", ("iw1-vv", "iw2-vv"), kind="slc"), "found 2 measurements, such as s1a-iw-slc-"
    )
    refused(sentinel_1(tmp_path / "complex", ("vv",), "complex64", "slc"), "found complex64, .* take the GRD product")
    product = sentinel_1(tmp_path / "damaged")
    product_files(product)["VH"].write_bytes(b"no image")
    refused(product, "not a raster that GDAL can read .*; unpack it anew$")
    both = tmp_path / "both"
    sentinel_1(both)
    sentinel_2(both)
    refused(both, "found products with the bands B12, B08, B04, B03, B02 and VV, VH, expected the same")


def test_a_product_has_its_bands_whatever_its_name(tmp_path: Path) -> None:
    product = sentinel_2(tmp_path).rename(tmp_path / "before")
    assert is_product(product)
    assert not is_product(tmp_path)
    hh = sentinel_1(tmp_path / "after", ("hv", "hh"))
    assert [*product_files(hh)] == ["HH", "HV"]
    assert not are_tiles(product, product)
    assert shown_bands(product, "optical") == (3, 4, 5)


def test_a_map_of_two_products(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The weights that come along know these bands in this order. A map is known again, until a file is another one."""
    images = [sentinel_2(tmp_path), sentinel_1(tmp_path)]
    words = ["predict", *map(str, images), "-o", str(tmp_path / "map"), "--align", "off"]
    assert main(words) == 0
    summary = json.loads((tmp_path / "map" / "summary.json").read_text())
    for date, image in zip(("before", "after"), images, strict=True):
        files = product_files(image).values()
        assert summary[date]["bytes"] == sum(file.stat().st_size for file in files)
        assert "sources" not in summary[date]
    assert summary["scaling"]["sar"]["db"]
    told = f"{images[0]}: bands {', '.join(BANDS)} of a product, taken as one image"
    assert caplog.messages.count(told) == 1
    assert main(words) == 0
    assert caplog.messages[-1].endswith("finished already; --redo does it again")
    os.utime(product_files(images[0])["B12"])
    assert main(words) == 0
    assert not caplog.messages[-1].endswith("finished already; --redo does it again")


def test_inspect_names_the_bands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(sentinel_2(tmp_path)), str(sentinel_1(tmp_path))]) == 0
    said = capsys.readouterr().out
    assert "band 1 (B12): " in said
    assert "band 1 (VV): " in said
    assert "date      2021-07-16" in said
