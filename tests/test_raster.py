import os
import re
import zipfile
from contextlib import ExitStack

import numpy as np
import pytest
import rasterio
from PIL import Image
from rasterio.crs import CRS
from rasterio.enums import ColorInterp
from rasterio.transform import Affine

from hetecd.doubts import _nodata
from hetecd.errors import InputError, OutputError
from hetecd.image import open_image
from hetecd.raster import Grid, crs_text, read_raster, to_float32, write_raster
from hetecd.tiles import Window

UTM = CRS.from_epsg(32633)
ROTATED = Affine.translation(500_000, 5_000_000) @ Affine.rotation(25) @ Affine.scale(3, -2)


def grid(height, width, transform=ROTATED, crs=UTM):
    return Grid(crs, transform, height, width)


def noise(shape, dtype, seed=0):
    high = 200 if dtype == "uint8" else 9000
    return np.random.default_rng(seed).integers(1, high, shape).astype(dtype)


def test_grid_of_a_window_keeps_the_ground_under_every_pixel():
    whole = grid(50, 70)
    part = whole.window(Window(11, 23, 20, 30))
    assert part.shape == (20, 30)
    assert part.crs == UTM
    np.testing.assert_allclose(part.transform @ (4.5, 6.5), whole.transform @ (27.5, 17.5))


def test_grid_resolution_and_bounds():
    assert grid(50, 70).res == pytest.approx((3, 2))
    straight = grid(50, 70, Affine(3, 0, 100, 0, -2, 900))
    assert straight.bounds == (100, 800, 310, 900)
    left, bottom, right, top = grid(50, 70).bounds
    corners = [ROTATED @ at for at in ((0, 0), (70, 0), (0, 50), (70, 50))]
    np.testing.assert_allclose(
        (left, bottom, right, top), (*np.min(corners, axis=0), *np.max(corners, axis=0)), rtol=1e-12
    )


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
@pytest.mark.parametrize("count", [1, 2, 3, 4, 13])
def test_what_is_written_is_read(tmp_path, dtype, count):
    image = noise((count, 40, 60), dtype)
    write_raster(tmp_path / "x.tif", image, grid(40, 60))
    raster = read_raster(tmp_path / "x.tif")
    assert raster.array.dtype == dtype
    assert np.array_equal(raster.array, image)
    assert raster.valid.all()
    assert raster.grid == grid(40, 60)
    assert os.listdir(tmp_path) == ["x.tif"]


@pytest.mark.parametrize(
    ("dtype", "nodata"), [("uint8", 0), ("uint16", 65535), ("float32", -9999.0), ("float32", np.nan)]
)
def test_nodata_value(tmp_path, dtype, nodata):
    image = noise((2, 30, 40), dtype)
    image[:, :5] = nodata
    image[1, 20, 20] = nodata  # one band is enough: its value cannot be used
    write_raster(tmp_path / "x.tif", image, grid(30, 40), nodata=nodata)
    raster = read_raster(tmp_path / "x.tif")
    expected = np.ones((30, 40), bool)
    expected[:5] = expected[20, 20] = False
    assert np.array_equal(raster.valid, expected)
    assert np.array_equal(raster.array, image, equal_nan=dtype == "float32")
    raw = to_float32(raster.array, raster.valid)
    assert np.isnan(raw[:, ~expected]).all()
    assert np.array_equal(raw[:, expected], image[:, expected].astype(np.float32))
    assert read_raster(tmp_path / "x.tif", (1,)).valid[20, 20]


def test_not_finite_is_invalid_without_being_declared(tmp_path):
    image = noise((1, 30, 40), "float32")
    image[0, 3, 4], image[0, 5, 6], image[0, 7, 8] = np.nan, np.inf, -3.4028235e38
    write_raster(tmp_path / "x.tif", image, grid(30, 40), nodata=-1)
    raster = read_raster(tmp_path / "x.tif")
    assert (~raster.valid).sum() == 3
    assert not raster.valid[[3, 5, 7], [4, 6, 8]].any()


def test_the_code_of_a_crs_is_exactly_it():
    assert crs_text(UTM) == "EPSG:32633"
    near = CRS.from_string("+proj=utm +zone=33 +ellps=intl +units=m")  # of no datum: 114 m from EPSG:23033
    assert near.to_epsg() == 23033
    assert CRS.from_user_input(crs_text(near)) == near


@pytest.mark.parametrize("nodata", [None, 7])
def test_mask_band_with_and_without_nodata(tmp_path, nodata):
    image = noise((3, 30, 40), "uint8")
    image[image == 7] = 8
    image[:, 9, 9] = 7
    mask = np.full((30, 40), 255, np.uint8)
    mask[10:15, 20:] = 0
    profile = {"driver": "GTiff", "count": 3, "height": 30, "width": 40, "dtype": "uint8", "nodata": nodata}
    with (
        rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True),
        rasterio.open(tmp_path / "x.tif", "w", crs=UTM, transform=ROTATED, **profile) as dataset,
    ):
        dataset.write(image)
        dataset.write_mask(mask)
    expected = mask > 0
    expected[9, 9] = nodata is None
    assert np.array_equal(read_raster(tmp_path / "x.tif").valid, expected)


@pytest.mark.parametrize("nodata", [None, 0])
@pytest.mark.parametrize("aside", [0, 1.5])
def test_a_pixel_is_invalid_where_all_bands_have_their_nodata_value(tmp_path, nodata, aside):
    """As the tag NODATA_VALUES has it, whether the image is warped or not; PNGs with a transparent colour have both."""
    image = noise((3, 60, 60), "uint8")
    image[:, 20:40, 20:40] = 0
    image[0, 50:55, 50:55] = 0
    profile = {"driver": "GTiff", "count": 3, "height": 60, "width": 60, "dtype": "uint8", "nodata": nodata}
    place = {"crs": UTM, "transform": Affine(10, 0, 500_000, 0, -10, 5_000_000)}
    with rasterio.open(tmp_path / "x.tif", "w", **profile, **place) as dataset:
        dataset.write(image)
        dataset.update_tags(NODATA_VALUES="0 0 0")
    moved = Grid(UTM, place["transform"] @ Affine.translation(aside, aside), 58, 58)
    with open_image(tmp_path / "x.tif", (1, 2, 3)) as opened, ExitStack() as stack:
        valid = opened.on(stack, moved)(Window(0, 0, 58, 58))[1]
    assert not valid[22:36, 22:36].any()
    assert valid[:18].all()
    assert valid[45:].all()
    with open_image(tmp_path / "x.tif", (1, 2, 3)) as opened:
        assert _nodata(opened.granules[0]) == "values of all bands together"


def test_alpha_masks_and_is_no_data_band(tmp_path):
    image = noise((4, 30, 40), "uint8")
    image[3] = 255
    image[3, :, 30:] = 0
    Image.fromarray(np.moveaxis(image, 0, -1)).save(tmp_path / "x.png")
    raster = read_raster(tmp_path / "x.png")
    assert np.array_equal(raster.array, image[:3])
    assert np.array_equal(raster.valid, image[3] > 0)


def test_near_infrared_that_gdal_calls_alpha_is_data_when_asked_for(tmp_path):
    image = noise((4, 30, 40), "uint8")
    image[3, 2, 2] = 0
    with rasterio.open(tmp_path / "x.tif", "w", driver="GTiff", count=4, height=30, width=40, dtype="uint8", crs=UTM,
                       transform=ROTATED) as dataset:  # fmt: skip
        dataset.write(image)
        assert dataset.colorinterp[3] == ColorInterp.alpha
    raster = read_raster(tmp_path / "x.tif", (4, 3, 2, 1))
    assert np.array_equal(raster.array, image[::-1])
    assert raster.valid.all()
    assert not read_raster(tmp_path / "x.tif").valid[2, 2]


def test_four_bands_are_not_written_as_alpha(tmp_path):
    image = noise((4, 30, 40), "uint8")
    image[3, 2, 2] = 0
    write_raster(tmp_path / "x.tif", image, grid(30, 40))
    assert np.array_equal(read_raster(tmp_path / "x.tif").array, image)
    assert read_raster(tmp_path / "x.tif").valid.all()


def test_bands_in_any_order_and_repeated(tmp_path):
    image = noise((3, 30, 40), "uint16")
    write_raster(tmp_path / "x.tif", image, grid(30, 40))
    assert np.array_equal(read_raster(tmp_path / "x.tif", (3, 1, 1, 2)).array, image[[2, 0, 0, 1]])


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif"])
def test_tiles_without_georeference(tmp_path, suffix, recwarn):
    image = np.full((30, 40, 3), 90, np.uint8)
    Image.fromarray(image).save(tmp_path / f"x.{suffix}")
    raster = read_raster(tmp_path / f"x.{suffix}")
    assert raster.array.shape == (3, 30, 40)
    assert np.abs(raster.array.astype(int) - 90).max() <= 2
    assert raster.grid == Grid(None, Affine.identity(), 30, 40)
    assert not recwarn.list


def test_png_is_written_plain(tmp_path):
    label = (noise((30, 40), "uint8") > 100) * np.uint8(255)
    write_raster(tmp_path / "x.png", label, grid(30, 40))
    write_raster(tmp_path / "y.png", label > 0, grid(30, 40))
    assert np.array_equal(np.asarray(Image.open(tmp_path / "x.png")), label)
    assert sorted(os.listdir(tmp_path)) == ["x.png", "y.png"]


def one_line(error):
    text = str(error.value)
    assert "\n" not in text
    return text


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(InputError, match="no such file") as error:
        read_raster(tmp_path / "nowhere.tif")
    assert "nowhere.tif" in one_line(error)
    with pytest.raises(InputError, match="a folder"):
        read_raster(tmp_path)


@pytest.mark.parametrize("name", ["NETCDF:{}:band", "GTIFF_DIR:2:{}", "file://{}", "/vsizip/{}/x.tif", "scene:1.tif"])
def test_missing_file_under_a_name_for_gdal(tmp_path, name):
    name = name.format(tmp_path / "nowhere.tif")
    with pytest.raises(InputError, match="not a raster that GDAL can read") as error:
        read_raster(name)
    assert one_line(error).startswith(f"{name}: ")


def test_not_a_raster(tmp_path):
    (tmp_path / "x.tif").write_text("not a raster")
    with pytest.raises(InputError, match=re.escape("x.tif")) as error:
        read_raster(tmp_path / "x.tif")
    one_line(error)


@pytest.mark.parametrize("name", ["S2A_MSIL2A_20210714T101031.SAFE.zip", "x.TIF.gz"])
def test_an_archive_is_to_be_unpacked(tmp_path, name):
    with zipfile.ZipFile(tmp_path / name, "w") as archive:
        archive.writestr("x.tif", "")
    with pytest.raises(InputError, match=r"; unpack it$"):
        read_raster(tmp_path / name)


@pytest.mark.parametrize("suffix", ["tif", "png", "jpg"])
@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.95])
def test_truncated_file(tmp_path, suffix, share):
    image = np.random.default_rng(0).integers(0, 255, (100, 120, 3)).astype(np.uint8)
    path = tmp_path / f"x.{suffix}"
    if suffix == "tif":
        write_raster(path, np.moveaxis(image, -1, 0), grid(100, 120))
    else:
        Image.fromarray(image).save(path)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(InputError) as error:
        read_raster(path)
    assert str(path) in one_line(error)


def test_band_that_is_not_there(tmp_path):
    write_raster(tmp_path / "x.tif", noise((2, 30, 40), "uint8"), grid(30, 40))
    for bands in ((3,), (0,), (1, 2, 3)):
        with pytest.raises(InputError, match="found 2 bands") as error:
            read_raster(tmp_path / "x.tif", bands)
        one_line(error)


def test_complex_pixels_are_refused(tmp_path):
    profile = {"driver": "GTiff", "count": 1, "height": 30, "width": 40, "dtype": "complex64"}
    with rasterio.open(tmp_path / "x.tif", "w", crs=UTM, transform=ROTATED, **profile) as dataset:
        dataset.write(np.ones((1, 30, 40), np.complex64))
    with pytest.raises(InputError, match="complex"):
        read_raster(tmp_path / "x.tif")


def test_array_that_does_not_fit(tmp_path):
    with pytest.raises(InputError, match="expected"):
        write_raster(tmp_path / "x.tif", np.zeros((30, 41), np.uint8), grid(30, 40))
    with pytest.raises(InputError, match="PNG cannot hold"):
        write_raster(tmp_path / "x.png", np.zeros((1, 30, 40), np.float32), grid(30, 40))
    assert os.listdir(tmp_path) == []


def test_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("in the way")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(OutputError, match="cannot write") as error:
            write_raster(folder / "x.tif", np.zeros((30, 40), np.uint8), grid(30, 40))
        one_line(error)
    assert os.listdir(tmp_path) == ["file"]


def test_a_failed_write_keeps_the_older_file(tmp_path):
    write_raster(tmp_path / "x.tif", np.ones((30, 40), np.uint8), grid(30, 40))

    with pytest.raises(InputError):
        write_raster(tmp_path / "x.tif", np.zeros((31, 40), np.uint8), grid(30, 40))
    assert os.listdir(tmp_path) == ["x.tif"]
    assert (read_raster(tmp_path / "x.tif").array == 1).all()
