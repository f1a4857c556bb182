"""Where pixels lie, for files that say it with a transform, with tie points or with polynomials."""

import numpy as np
import pytest
import rasterio
from rasterio.control import GroundControlPoint
from rasterio.crs import CRS
from rasterio.rpc import RPC
from rasterio.transform import Affine
from rasterio.warp import transform as transform_points

from hetecd.errors import InputError
from hetecd.place import Place, box_of, metric_crs, pixel_of, pixel_size, place_of
from hetecd.raster import WGS84

pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")

UTM = CRS.from_epsg(32633)
SHAPE = 400, 500
AFFINE = Place(UTM, *SHAPE, Affine.translation(500_000, 5_005_000) @ Affine.rotation(20) @ Affine.scale(10, -8))


def curved(cols, rows):
    """Longitude and latitude of pixel coordinates as a side-looking radar has them: skewed and unevenly spaced."""
    u, v = np.asarray(cols, float) / 500, np.asarray(rows, float) / 400
    lon = 14.97 + 0.055 * u + 0.006 * v + 0.002 * u**2 + 0.0006 * np.sin(3 * u + v)
    return lon, 45.21 - 0.033 * v + 0.004 * u + 0.0004 * np.sin(2 * u * v)


def tie_points(steps=15):
    cols, rows = np.meshgrid(np.linspace(0, 500, steps), np.linspace(0, 400, steps))
    return [
        GroundControlPoint(row, col, *map(float, curved(col, row)), 120.0)
        for col, row in zip(cols.ravel().tolist(), rows.ravel().tolist(), strict=True)
    ]


def polynomials():
    """RPCs of a slanted view: latitude, longitude and height to line and sample, normalised, of mild curvature."""
    one = [1.0] + [0.0] * 19
    line = [0.01, 0.02, -0.98, 0.03, 0.004, 0, 0.001, 0.006, -0.004, *[0.0] * 11]
    sample = [0.0, 0.97, 0.05, -0.06, 0.003, 0, 0, 0.008, 0.002, *[0.0] * 11]
    denominator = [1.0, 0.002, -0.003, 0.001, *[0.0] * 16]
    return RPC(
        height_off=800.0, height_scale=500.0, lat_off=45.19, lat_scale=0.02, long_off=15.0, long_scale=0.03,
        line_off=200.0, line_scale=200.0, samp_off=250.0, samp_scale=250.0,
        line_num_coeff=line, line_den_coeff=denominator, samp_num_coeff=sample, samp_den_coeff=one,
    )  # fmt: skip


def by_polynomials(rpc, lon, lat, height_m):
    """Pixel coordinates (col, row) by the formula itself; its own count from the middle of the first pixel."""
    x = (np.asarray(lon) - rpc.long_off) / rpc.long_scale
    y = (np.asarray(lat) - rpc.lat_off) / rpc.lat_scale
    h = np.full_like(x, (height_m - rpc.height_off) / rpc.height_scale)
    terms = np.array([np.ones_like(x), x, y, h, x * y, x * h, y * h, x * x, y * y, h * h])
    line, sample = (
        (np.array(num[:10]) @ terms) / (np.array(den[:10]) @ terms)
        for num, den in ((rpc.line_num_coeff, rpc.line_den_coeff), (rpc.samp_num_coeff, rpc.samp_den_coeff))
    )
    return sample * rpc.samp_scale + rpc.samp_off + 0.5, line * rpc.line_scale + rpc.line_off + 0.5


def opened(tmp_path, **georeference):
    path = tmp_path / "image.tif"
    with rasterio.open(path, "w", driver="GTiff", height=400, width=500, count=1, dtype="uint8") as dataset:
        dataset.write(np.ones((1, *SHAPE), np.uint8))
        for name, value in georeference.items():
            setattr(dataset, name, value)
    return rasterio.open(path)


PIXELS = np.array([[0.0, 500, 250, 33.3, 480], [0.0, 400, 200, 390.1, 3.5]])


def test_a_transform_comes_first(tmp_path):
    with opened(tmp_path, crs=UTM, transform=AFFINE.transform) as dataset:
        place = place_of(dataset, "image")
    assert (place.by, place.transform, place.crs) == ("transform", AFFINE.transform, UTM)
    np.testing.assert_allclose(place.pixel(*place.ground(*PIXELS)), PIXELS, atol=1e-6)


def test_ground_control_points(tmp_path):
    with opened(tmp_path, gcps=(tie_points(), WGS84)) as dataset:
        place = place_of(dataset, "image")
    assert (place.by, place.crs, place.transform) == ("GCPs", WGS84, None)
    degree_of_pixel = 1e-4
    np.testing.assert_allclose(place.ground(*PIXELS), curved(*PIXELS), atol=0.1 * degree_of_pixel)
    np.testing.assert_allclose(place.pixel(*curved(*PIXELS)), PIXELS, atol=0.1)


@pytest.mark.parametrize("wrapped", [True, False])
def test_ground_control_points_across_the_antimeridian(tmp_path, wrapped):
    shift = 180 - 15.0
    ties = [
        GroundControlPoint(t.row, t.col, t.x + shift - (360 if wrapped and t.x + shift > 180 else 0), t.y)
        for t in tie_points()
    ]
    with opened(tmp_path, gcps=(ties, WGS84)) as dataset:
        place = place_of(dataset, "image")
    lon, lat = curved(*PIXELS)
    x, y = transform_points(WGS84, place.crs, lon + shift, lat)
    np.testing.assert_allclose(place.pixel(x, y), PIXELS, atol=0.1)


def test_a_transform_that_cannot_be_undone(tmp_path):
    with (
        opened(tmp_path, crs=UTM, transform=Affine(10, 10, 5e5, 10, 10, 5e6)) as dataset,
        pytest.raises(InputError, match="image: found a transform that leaves pixels no area"),
    ):
        place_of(dataset, "image")


def test_rational_polynomials(tmp_path):
    rpc = polynomials()
    with opened(tmp_path, rpcs=rpc) as dataset:
        place = place_of(dataset, "image")
    assert (place.by, place.crs) == ("RPCs", WGS84)
    lon, lat = place.ground(*PIXELS)
    np.testing.assert_allclose(by_polynomials(rpc, lon, lat, rpc.height_off), PIXELS, atol=0.01)
    np.testing.assert_allclose(place.pixel(lon, lat), PIXELS, atol=0.01)
    # The height matters: at sea level the same place would be pixels away.
    assert np.abs(np.array(by_polynomials(rpc, lon, lat, 0.0)) - PIXELS).max() > 5


def test_no_georeference(tmp_path):
    with opened(tmp_path) as dataset:
        assert place_of(dataset, "image").crs is None


def test_too_few_ground_control_points(tmp_path):
    with opened(tmp_path, gcps=(tie_points()[:2], WGS84)) as dataset, pytest.raises(InputError, match="found 2 ground"):
        place_of(dataset, "image")


@pytest.mark.parametrize(
    "how", ["on a line", "nearly on a line", "one pixel twice", "one place twice", "one place", "nan"]
)
def test_ground_control_points_that_fix_no_place(tmp_path, how):
    ties = tie_points()
    if how.endswith("on a line"):
        off = 0.01 * (how == "nearly on a line")
        ties = [GroundControlPoint(i * 10 + off * (i % 3), i * 10, 15 + i * 1e-3, 45 + i * 1e-3) for i in range(4)]
        ties[1] = GroundControlPoint(ties[1].row, ties[1].col, ties[1].x, ties[1].y + off * 1e-4)
    elif how == "one pixel twice":
        ties.append(GroundControlPoint(ties[0].row, ties[0].col, ties[-1].x, ties[0].y))
    elif how == "one place twice":
        ties.append(GroundControlPoint(ties[0].row + 5, ties[0].col, ties[0].x, ties[0].y))
    elif how == "nan":
        ties[1] = GroundControlPoint(ties[1].row, ties[1].col, float("nan"), ties[1].y)
    else:
        ties = [GroundControlPoint(tie.row, tie.col, 15.0, 45.0) for tie in ties]
    with (
        opened(tmp_path, gcps=(ties, WGS84)) as dataset,
        pytest.raises(InputError, match=f"image: found {len(ties)} ground control points that fix no place") as error,
    ):
        place_of(dataset, "image")
    assert "\n" not in str(error.value)


def test_from_place_to_place():
    ties = Place(WGS84, *SHAPE, None, tuple(tie_points()), "GCPs")
    x, y = transform_points(WGS84, UTM, *curved(*PIXELS))
    expected = AFFINE.pixel(np.array(x), np.array(y))
    np.testing.assert_allclose(pixel_of(ties, AFFINE, *PIXELS), expected, atol=0.2)
    least, greatest = box_of(ties, AFFINE)
    assert (least <= expected.min(1) + 0.2).all()
    assert (greatest >= expected.max(1) - 0.2).all()


def test_pixel_size():
    assert pixel_size(AFFINE, UTM) == pytest.approx(np.sqrt(80))
    degrees = Place(WGS84, 100, 100, Affine(1e-3, 0, 15, 0, -1e-3, 60))
    # A thousandth of a degree at 60 degrees north: 111.4 m along the meridian, 55.8 m along the parallel.
    assert pixel_size(degrees, CRS.from_epsg(32633)) == pytest.approx(np.sqrt(111.41 * 55.80), rel=1e-3)


@pytest.mark.parametrize(
    ("lon", "lat", "epsg"),
    [
        (15, 45, 32633),
        (-118.2, 34, 32611),
        (151.2, -33.9, 32756),
        (179.99, 10, 32660),
        (20, 88, 32661),
        (20, -88, 32761),
    ],
)
def test_metric_crs(lon, lat, epsg):
    place = Place(WGS84, 2, 2, Affine(1e-4, 0, lon - 1e-4, 0, -1e-4, lat + 1e-4))
    assert metric_crs(place).to_epsg() == epsg


def test_a_place_says_where_it_is():
    assert str(Place(UTM, 10, 20, Affine(10, 0, 500_000, 0, -10, 5_005_000))) == (
        "[500000, 5004900, 500200, 5005000] in EPSG:32633"
    )
