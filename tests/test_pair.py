import re
import threading

import numpy as np
import pytest
import rasterio
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from rasterio.crs import CRS
from rasterio.transform import Affine
from rasterio.warp import transform as transform_points
from scipy.ndimage import gaussian_filter

from hetecd.errors import InputError
from hetecd.grids import GridChoice
from hetecd.modality import uint8_modality
from hetecd.pair import open_pair
from hetecd.raster import Grid, write_raster
from hetecd.tiles import Window

UTM = CRS.from_epsg(32633)
WGS84 = CRS.from_epsg(4326)
ONE = uint8_modality((1,))
NO_CHOICE = GridChoice()
# Middle of both: 15 E, 45.2 N. The optical image is rotated and has oblong pixels.
OPTICAL = Grid(UTM, Affine.translation(500_000, 5_005_000) @ Affine.rotation(20) @ Affine.scale(10, -8), 300, 260)
MOVE = Affine.translation(7.3, -12.6) @ Affine.rotation(1.2) @ Affine.scale(1.01)
SAR = Grid(WGS84, Affine(0.00012, 0, 14.97, 0, -0.0001, 45.22), 500, 600)


def ground(grid, rows=None, cols=None):
    """A smooth function of the place on the ground (UTM), at pixel centres of a grid: (1, H, W)."""
    rows, cols = np.indices(grid.shape) if rows is None else (rows, cols)
    x, y = grid.transform @ (cols + 0.5, rows + 0.5)
    x, y = (np.array(v).reshape(rows.shape) for v in transform_points(grid.crs, UTM, x.ravel(), y.ravel()))
    return 1000 + 0.05 * (x - 500_000) + 0.03 * (y - 5_005_000)[None]


def save(path, grid, image, nodata=None):
    write_raster(path, image, grid, nodata)
    return path


@pytest.fixture
def files(tmp_path):
    optical = save(tmp_path / "optical.tif", OPTICAL, np.full((3, *OPTICAL.shape), 7, np.uint8))
    return optical, save(tmp_path / "sar.tif", SAR, ground(SAR).astype(np.float32))


def read(
    optical,
    sar,
    window=None,
    optical_modality=ONE,
    sar_modality=ONE,
    before_is="optical",
    sar_move=None,
    choice=NO_CHOICE,
):
    before, after = (optical, sar) if before_is == "optical" else (sar, optical)
    with open_pair(before, after, before_is, optical_modality, sar_modality, sar_move, choice) as pair:
        return pair.read(window or Window(0, 0, *pair.grid.shape))


def inside(grid, source, margin_px):
    """Pixels of a grid whose centre lies in a source grid, by more than some of the source's pixels."""
    rows, cols = np.indices(grid.shape)
    x, y = grid.transform @ (cols + 0.5, rows + 0.5)
    x, y = transform_points(grid.crs, source.crs, x.ravel(), y.ravel())
    col, row = (v.reshape(grid.shape) for v in ~source.transform @ (np.array(x), np.array(y)))
    return (col > margin_px) & (row > margin_px) & (col < source.width - margin_px) & (row < source.height - margin_px)


def test_sar_lands_where_it_belongs(files):
    optical, sar, valid = read(*files)
    assert optical.dtype == sar.dtype == np.float32
    assert (optical == 7).all()
    # One SAR pixel is 10 m; 0.02 pixels are 0.01 in value.
    np.testing.assert_allclose(sar[0][valid], ground(OPTICAL)[0][valid], atol=0.02)
    assert np.array_equal(np.isnan(sar[0]), ~valid)
    assert valid.mean() > 0.9


def test_a_moved_sar_image_is_found_where_the_move_says(files):
    _, sar, valid = read(*files, sar_move=MOVE)
    rows, cols = np.indices(OPTICAL.shape)
    cols, rows = MOVE @ (cols + 0.5, rows + 0.5)
    expected = ground(OPTICAL, rows - 0.5, cols - 0.5)[0]
    assert np.abs(expected - ground(OPTICAL)[0])[valid].min() > 0.5
    np.testing.assert_allclose(sar[0][valid], expected[valid], atol=0.02)
    assert valid.mean() > 0.9


@pytest.mark.parametrize("transform", [Affine.identity(), Affine.scale(2, -2)])
def test_a_move_without_crs_is_one_of_pixels(tmp_path, transform):
    image = np.random.default_rng(0).integers(1, 255, (40, 50)).astype(np.uint8)
    optical = save(tmp_path / "o.tif", Grid(None, transform, 40, 50), image)
    sar = save(tmp_path / "s.tif", Grid(None, Affine.identity(), 40, 50), image)
    for flat in (optical, sar):
        _, moved, valid = read(flat, sar, sar_move=Affine.translation(3, -2))
        assert np.array_equal(moved[0][2:, :-3], image[:-2, 3:])
        assert np.array_equal(valid, np.pad(np.ones((38, 47), bool), ((2, 0), (0, 3))))
    half = read(optical, sar, sar_move=Affine.translation(0.5, 0))[1][0]
    np.testing.assert_allclose(half[:, :-1], image[:, :-1] / 2 + image[:, 1:] / 2, atol=1e-3)
    still = read(optical, sar, sar_move=Affine.identity())[1][0]
    assert np.array_equal(still, image)


def test_valid_where_sar_reaches(tmp_path):
    part = SAR.window(Window(150, 200, 160, 170))
    save(tmp_path / "optical.tif", OPTICAL, np.full((1, *OPTICAL.shape), 7, np.uint8))
    save(tmp_path / "sar.tif", part, ground(part).astype(np.float32))
    valid = read(tmp_path / "optical.tif", tmp_path / "sar.tif")[2]
    assert 0.1 < valid.mean() < 0.9
    assert valid[inside(OPTICAL, part, 0.1)].all()
    assert not valid[~inside(OPTICAL, part, -0.1)].any()


@pytest.mark.parametrize("sar_move", [None, MOVE])
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_a_window_is_the_part_of_the_whole_to_the_last_bit(sar_move, data, tmp_path_factory):
    folder = tmp_path_factory.getbasetemp() / "windows"
    optical, sar = folder / "optical.tif", folder / "sar.tif"
    if not folder.exists():
        folder.mkdir()
        rng = np.random.default_rng(0)
        save(optical, OPTICAL, rng.integers(0, 99, (2, *OPTICAL.shape)).astype(np.uint16), 0)
        speckle = rng.exponential(size=(2, *SAR.shape)).astype(np.float32)
        speckle[:, rng.random(SAR.shape) < 0.05] = np.nan
        save(sar, SAR, speckle)
    row, col = data.draw(st.integers(0, 299)), data.draw(st.integers(0, 259))
    window = Window(row, col, data.draw(st.integers(1, 300 - row)), data.draw(st.integers(1, 260 - col)))
    two = uint8_modality((1, 2))
    whole = read(optical, sar, None, two, two, sar_move=sar_move)
    part = read(optical, sar, window, two, two, sar_move=sar_move)
    for big, small in zip(whole, part, strict=True):
        expected = big[..., row : row + window.height, col : col + window.width]
        assert np.array_equal(small, expected, equal_nan=small.dtype != bool)


def marked(tmp_path, how):
    """The SAR file with a rectangle of pixels invalid, marked in some way or two; the rectangle."""
    image = ground(SAR).astype(np.float32)
    hole = np.zeros(SAR.shape, bool)
    hole[200:260, 250:330] = True
    path = tmp_path / "sar.tif"
    if how in ("value", "nan declared", "nan", "value and nan"):
        image[:, hole] = -9999 if how.startswith("value") else np.nan
        if how == "value and nan":
            image[:, 200:260, 290:330] = np.nan
        save(path, SAR, image, {"value": -9999, "nan declared": np.nan, "value and nan": -9999}.get(how))
    else:
        image[:, hole] = 30_000  # what stands below a mask must not leak out
        alpha, both = how.startswith("alpha"), how.endswith("and value")
        if both:  # a part is marked by the value alone
            image[:, 200:260, 290:330] = 7
            hole[200:260, 290:330] = False
        beside = how.startswith("alpha and mask")  # a mask band, which marks the left half
        dtype = how.split()[-1] if alpha and not both else "uint16"
        opaque = {"uint16": 65535, "float32": 1e-4, "int16": -1}[dtype]  # all but 0 is valid
        masked = hole & ((np.arange(SAR.width) < 270) | (not beside))
        bands = np.concatenate([image, np.where(hole & ~(masked & beside), 0, opaque)[None]]) if alpha else image
        profile = {"driver": "GTiff", "count": len(bands), "height": SAR.height, "width": SAR.width, "crs": SAR.crs}
        profile |= {"dtype": dtype if alpha else "float32", "alpha": "yes" if alpha else "no"}
        profile |= {"nodata": 7} if both else {}
        with (
            rasterio.Env(GDAL_TIFF_INTERNAL_MASK=how.split()[-1] != "beside"),
            rasterio.open(path, "w", transform=SAR.transform, **profile) as dataset,
        ):
            dataset.write(bands.astype(dataset.dtypes[0]))
            if beside or not alpha:
                dataset.write_mask(~masked)
    hole[200:260, 250:330] = True
    return path, hole


WAYS = [
    "value",
    "nan declared",
    "nan",
    "value and nan",
    "mask",
    "mask beside",
    "alpha uint16",
    "alpha int16",
    "alpha float32",
    "mask and value",
    "alpha and value",
    "alpha and mask uint16",
    "alpha and mask int16",
    "alpha and mask float32",
    "alpha and mask and value",
]


@pytest.mark.parametrize("how", WAYS)
def test_however_invalid_pixels_are_marked(files, tmp_path, how):
    path, _ = marked(tmp_path, how)
    _, sar, valid = read(files[0], path)
    gap = SAR.window(Window(200, 250, 60, 80))
    assert not valid[inside(OPTICAL, gap, 1)].any()
    assert valid[~inside(OPTICAL, gap, -1) & inside(OPTICAL, SAR, 1)].all()
    # Neighbours of invalid pixels are interpolated from valid ones alone.
    np.testing.assert_allclose(sar[0][valid], ground(OPTICAL)[0][valid], atol=1.1 if how.startswith("alpha") else 0.6)
    assert np.array_equal(np.isnan(sar[0]), ~valid)


def test_a_gap_in_one_band_is_a_gap(files, tmp_path):
    image = np.repeat(ground(SAR), 2, axis=0).astype(np.float32)
    image[1, 200:260, 250:330] = -9999
    path = save(tmp_path / "sar.tif", SAR, image, -9999)
    _, sar, valid = read(files[0], path, sar_modality=uint8_modality((1, 2)))
    assert not valid[inside(OPTICAL, SAR.window(Window(200, 250, 60, 80)), 1)].any()
    assert np.isnan(sar[:, ~valid]).all()
    assert np.array_equal(read(files[0], path)[2], read(files[0], path)[2] | valid)
    assert read(files[0], path)[2].sum() > valid.sum()


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_bands_of_both_dates(tmp_path, dtype):
    levels = np.array([10, 20, 30, 40, 50], dtype)[:, None, None]
    save(tmp_path / "o.tif", OPTICAL, np.broadcast_to(levels, (5, *OPTICAL.shape)))
    save(tmp_path / "s.tif", SAR, np.broadcast_to(levels[:3], (3, *SAR.shape)))
    for before_is in ("optical", "sar"):
        optical, sar, valid = read(tmp_path / "o.tif", tmp_path / "s.tif", None, uint8_modality((5, 1)),
                                   uint8_modality((3, 1, 1)), before_is)  # fmt: skip
        assert [set(band[valid]) for band in optical] == [{50}, {10}]
        assert [set(band[valid]) for band in sar] == [{30}, {10}, {10}]


def test_finer_sar_is_averaged_alike_everywhere(tmp_path):
    """SAR at a fifth of the optical pixel: its noise must fall, at the border of its extent as in the middle."""
    fine = Grid(UTM, Affine(2, 0, 500_000, 0, -2, 5_005_000), 900, 900)
    coarse = Grid(UTM, Affine(10, 0, 499_000, 0, -10, 5_006_000), 500, 500)
    noise = np.random.default_rng(0).normal(0, 1, (1, *fine.shape)).astype(np.float32)
    save(tmp_path / "o.tif", coarse, np.ones((1, *coarse.shape), np.uint8))
    sar = read(tmp_path / "o.tif", save(tmp_path / "s.tif", fine, noise))[1][0]
    rows, cols = np.nonzero(np.isfinite(sar))
    assert (rows.min(), rows.max(), cols.min(), cols.max()) == (100, 279, 100, 279)
    inner = sar[100:280, 100:280]
    deviations = [block.std() for band in np.split(inner, 6) for block in np.split(band, 6, axis=1)]
    assert 0.1 < min(deviations) <= max(deviations) < 0.2


def test_same_grid_is_not_resampled(tmp_path):
    image = np.random.default_rng(0).integers(1, 60_000, (1, *OPTICAL.shape)).astype(np.uint16)
    save(tmp_path / "o.tif", OPTICAL, image)
    optical, sar, valid = read(tmp_path / "o.tif", save(tmp_path / "s.tif", OPTICAL, image))
    assert valid.all()
    assert np.array_equal(optical, image)
    assert np.array_equal(sar, image)


def test_two_without_crs_go_pixel_by_pixel(tmp_path):
    image = np.random.default_rng(0).integers(1, 255, (40, 50)).astype(np.uint8)
    Image.fromarray(image).save(tmp_path / "o.png")
    Image.fromarray(255 - image).save(tmp_path / "s.png")
    optical, sar, valid = read(tmp_path / "o.png", tmp_path / "s.png")
    assert valid.all()
    assert np.array_equal(optical[0] + sar[0], np.full((40, 50), 255))


def refused(optical, sar, match, optical_modality=ONE, sar_modality=ONE):
    with pytest.raises(InputError, match=match) as error:
        read(optical, sar, None, optical_modality, sar_modality)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_crs_on_one_side_only(files, tmp_path):
    plain = save(tmp_path / "plain.tif", Grid(None, SAR.transform, *SAR.shape), ground(SAR).astype(np.float32))
    assert str(plain) in refused(files[0], plain, "no CRS").split(":")[0]
    assert str(plain) in refused(plain, files[1], "no CRS").split(":")[0]


def test_no_overlap(files, tmp_path):
    far = Grid(WGS84, Affine(0.0001, 0, 18.0, 0, -0.0001, 45.22), 50, 60)
    assert "sar_far.tif" in refused(files[0], save(tmp_path / "sar_far.tif", far, np.ones((1, 50, 60), np.uint8)),
                                    "no overlap")  # fmt: skip
    antipode = Grid(WGS84, Affine(0.0001, 0, -165.0, 0, -0.0001, -45.2), 50, 60)
    refused(files[0], save(tmp_path / "x.tif", antipode, np.ones((1, 50, 60), np.uint8)), "no overlap")


def test_a_local_crs_is_nowhere(files, tmp_path):
    local = Grid(CRS.from_wkt('LOCAL_CS["site",UNIT["metre",1]]'), SAR.transform, *SAR.shape)
    refused(files[0], save(tmp_path / "local.tif", local, ground(SAR).astype(np.float32)), "CRS")


def test_other_size_or_transform_without_crs(tmp_path):
    one = save(tmp_path / "a.tif", Grid(None, Affine.identity(), 40, 50), np.ones((40, 50), np.uint8))
    other = save(tmp_path / "b.tif", Grid(None, Affine.identity(), 40, 51), np.ones((40, 51), np.uint8))
    assert "40 x 51" in refused(one, other, re.escape(str(one)))
    here = save(tmp_path / "c.tif", Grid(None, Affine.scale(2, -2), 40, 50), np.ones((40, 50), np.uint8))
    there = save(tmp_path / "d.tif", Grid(None, Affine.scale(3, -3), 40, 50), np.ones((40, 50), np.uint8))
    refused(here, there, "another transform")
    assert read(one, here)[2].all()


def test_too_few_bands(files):
    refused(*files, "found 3 bands", optical_modality=uint8_modality((1, 2, 3, 4)))
    refused(*files, "found 1 band,", sar_modality=uint8_modality((1, 2)))


def test_missing_file(files, tmp_path):
    refused(files[0], tmp_path / "nowhere.tif", "no such file")


@pytest.mark.parametrize("which", [0, 1])
def test_truncated_while_reading(files, which):
    content = files[which].read_bytes()
    with rasterio.open(files[which]) as dataset:
        assert dataset.count  # the directory stands at the front, so the file opens
    files[which].write_bytes(content[: int(len(content) * 0.6)])
    assert str(files[which]) in refused(*files, "truncated|not a raster")


def test_one_pair_serves_several_threads(files):
    with open_pair(*files, "optical", ONE, ONE) as pair:
        whole = pair.read(Window(0, 0, *OPTICAL.shape))[1]
        same = []

        def work(seed):
            for row, col in np.random.default_rng(seed).integers(0, 200, (20, 2)).tolist():
                part = pair.read(Window(row, col, 60, 60))[1]
                same.append(np.array_equal(part, whole[:, row : row + 60, col : col + 60], equal_nan=True))

        threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert same == [True] * 80


def test_real_pair(shared):
    """Los Angeles: the warped SAR image must show the same streets, which registration within a pixel means."""
    scene = shared / "data" / "scene_la"
    window = Window(600, 1000, 512, 512)
    with open_pair(scene / "optical.tif", scene / "sar.tif", "optical", uint8_modality((1, 2, 3)), ONE) as pair:
        assert pair.grid.shape == (2048, 3072)
        optical, sar, valid = pair.read(window)
        outside = pair.read(Window(0, 0, 100, 100))
    assert valid.all()
    assert not outside[2].any()

    def directions(image):
        """Doubled angle of the gradient: the same for a bright and a dark road."""
        gradient = np.gradient(gaussian_filter(image, 1))
        doubled = (gradient[1] + 1j * gradient[0]) ** 2
        return doubled / np.maximum(np.abs(doubled), 1e-6)

    spectra = [np.fft.fft2(directions(image)) for image in (optical.mean(0), sar[0])]
    likeness = np.fft.ifft2(spectra[0] * spectra[1].conj()).real
    assert likeness.max() > 8 * likeness.std()
    shift = np.array(np.unravel_index(likeness.argmax(), likeness.shape))
    shift[shift > 256] -= 512
    assert np.abs(shift).max() <= 3  # the products themselves are off by a pixel or two
