import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from rasterio.crs import CRS
from rasterio.transform import Affine

from hetecd.errors import InputError
from hetecd.modality import Modality
from hetecd.pair import open_pair
from hetecd.preview import encode, picture, read_small, shrink, stretch, strips
from hetecd.raster import Grid, write_raster
from hetecd.tiles import Window

UTM = Grid(CRS.from_epsg(32633), Affine(10, 0, 500_000, 0, -10, 5_005_000), 70, 90)
DEGREES = Grid(CRS.from_epsg(4326), Affine(0.00012, 0, 15.004, 0, -0.0001, 45.2), 180, 200)


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 9), st.integers(0, 2**32 - 1))
def test_shrunk_pixels_are_means_of_what_is_valid(height, width, factor, seed):
    image = np.random.default_rng(seed).random((2, height, width)).astype(np.float32)
    image[image < 0.2] = np.nan
    small = shrink(image, factor)
    assert small.shape == (2, -(-height // factor), -(-width // factor))
    block = image[:, :factor, -((width - 1) % factor + 1) :]
    for got, part in zip(small[:, 0, -1], block, strict=True):
        values = part[np.isfinite(part)]
        assert np.isnan(got) if values.size == 0 else got == pytest.approx(values.mean(), rel=1e-5)


@given(st.integers(1, 3000), st.integers(1, 50))
def test_strips_cover_all_rows_in_whole_blocks(height, factor):
    parts = list(strips(Grid(None, Affine.identity(), height, 7), factor))
    assert [part.row for part in parts] == [0, *np.cumsum([part.height for part in parts])[:-1]]
    assert sum(part.height for part in parts) == height
    assert all(part.height % factor == 0 for part in parts[:-1])


def test_an_image_is_shown_as_the_network_sees_it(tmp_path):
    rng = np.random.default_rng(0)
    write_raster(tmp_path / "optical.tif", rng.integers(1, 99, (5, *UTM.shape)).astype(np.uint16), UTM)
    write_raster(tmp_path / "sar.tif", rng.exponential(1, (2, *DEGREES.shape)).astype(np.float32), DEGREES)
    modalities = [Modality(bands, (0,) * len(bands), (1,) * len(bands)) for bands in ((1, 2, 3, 4), (1,))]
    with open_pair(tmp_path / "optical.tif", tmp_path / "sar.tif", "optical", *modalities) as pair:
        optical, sar, _ = pair.read(Window(0, 0, *UTM.shape))
    assert 0.1 < np.isnan(sar).mean() < 0.9
    for name, is_, expected in (("optical", "optical", optical), ("sar", "sar", sar)):
        for factor in (1, 4):
            got = read_small(UTM, tmp_path / f"{name}.tif", is_, factor)
            np.testing.assert_array_equal(got, shrink(expected, factor))


def test_without_coordinates_and_elsewhere(tmp_path):
    plain = Grid(None, Affine.identity(), 40, 50)
    image = np.arange(2000, dtype=np.float32).reshape(40, 50)
    write_raster(tmp_path / "image.tif", image, plain)
    np.testing.assert_array_equal(read_small(plain, tmp_path / "image.tif", "sar", 1)[0], image)
    write_raster(tmp_path / "far.tif", image, Grid(UTM.crs, UTM.transform @ Affine.translation(9000, 0), 40, 50))
    with pytest.raises(InputError, match=r"far.tif: found no overlap"):
        read_small(UTM, tmp_path / "far.tif", "sar", 1)
    with pytest.raises(InputError, match="no such file"):
        read_small(UTM, tmp_path / "none.tif", "optical", 1)


def test_power_is_shown_by_its_logarithm_and_decibels_as_they_are():
    rng = np.random.default_rng(0)
    power = rng.gamma(4.4, 10**-0.5 / 4.4, (1, 200, 200)).astype(np.float32)  # -5 dB, 4.4 looks
    power[0, :10, :10] = 1000  # buildings
    power[0, 50, 50] = 1e-4
    below = np.where(power == np.float32(1e-4), np.float32(-1e-4), power)  # as noise that was subtracted leaves some
    for image, log in ((power, True), (below, True), (10 * np.log10(power), False)):
        assert stretch(image).log == log
        assert 100 < np.median(picture(image)) < 200


@pytest.mark.parametrize("channels", [None, 3, 4])
def test_an_encoded_image_is_the_image(channels, tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (20, 30, channels) if channels else (20, 30)).astype(np.uint8)
    (tmp_path / "image").write_bytes(encode(image, "PNG"))
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "image")), image)
    coded = encode(np.full((64, 64, 4), 255, np.uint8), "WEBP", quality=80)
    assert coded[8:12] == b"WEBP"
