"""Parts on disk become one Cloud Optimized GeoTIFF, whole or not at all."""

import errno
import os
import subprocess
import sys
import textwrap
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import rasterio
from rasterio.crs import CRS
from rasterio.transform import Affine
from rio_cogeo.cogeo import cog_validate

from hetecd.cog import write_cog, write_part
from hetecd.errors import OutputError
from hetecd.raster import Grid
from hetecd.tiles import Window

UTM = CRS.from_epsg(32633)
ROTATED = Affine.translation(500_000, 5_000_000) @ Affine.rotation(25) @ Affine.scale(3, -2)


def write_parts(folder, image, height=512, width=512):
    """Parts of an image, but for those without data."""
    parts = {}
    for row, col in product(range(0, image.shape[0], height), range(0, image.shape[1], width)):
        part = image[row : row + height, col : col + width]
        if (~np.isnan(part) if part.dtype.kind == "f" else part != 255).any():
            parts[Window(row, col, *part.shape)] = folder / f"{row}_{col}.tif"
            write_part(folder / f"{row}_{col}.tif", part)
    return parts


@pytest.mark.parametrize("shape", [(1100, 700), (100, 90)])
@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_the_usual_validator_passes_it(tmp_path, dtype, shape):
    """With a colour table too."""
    image = np.random.default_rng(0).integers(0, 2, shape).astype(dtype)
    colours = {0: (1, 2, 3), 1: (250, 0, 7)} if dtype == "uint8" else None
    path, parts = tmp_path / "x.tif", write_parts(tmp_path, image)
    write_cog(path, Grid(UTM, ROTATED, *shape), parts, dtype, 255, "mode", colours=colours)
    valid, errors, warned = cog_validate(path, strict=True)
    assert (valid, errors, warned) == (True, [], [])
    with rasterio.open(path) as dataset:
        assert dataset.overviews(1) == ([2, 4] if shape[0] > 512 else [])
        assert np.array_equal(dataset.read(1), image)
        if colours:
            table = dataset.colormap(1)
            assert {value: table[value][:3] for value in colours} == colours
            assert table[255][3] == 0  # nodata is transparent
            assert dataset.colorinterp[0].name == "palette"


@pytest.mark.parametrize(("dtype", "nodata", "overviews"), [("uint8", 255, "mode"), ("float32", np.nan, "average")])
@pytest.mark.parametrize("size", [(512, 512), (333, 700)])
def test_parts_become_a_cog(tmp_path, dtype, nodata, overviews, size):
    where = Grid(UTM, ROTATED, 1100, 700)
    image = np.random.default_rng(0).integers(0, 2, where.shape).astype(dtype)
    image[:300] = image[1024:] = nodata
    image[:, 512:] = nodata
    parts = write_parts(tmp_path, image, *size)
    (tmp_path / "out").mkdir()
    write_cog(tmp_path / "out" / "x.tif", where, parts, dtype, nodata, overviews, {"threshold": "0.5 <&>"})
    assert os.listdir(tmp_path / "out") == ["x.tif"]
    with rasterio.open(tmp_path / "out" / "x.tif") as dataset:
        assert dataset.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
        assert dataset.block_shapes == [(512, 512)]
        assert dataset.overviews(1) == [2, 4]
        assert dataset.tags()["threshold"] == "0.5 <&>"
        assert dataset.crs == UTM
        assert dataset.transform.almost_equals(ROTATED, 1e-12)
        np.testing.assert_equal(dataset.nodata, nodata)
        assert np.array_equal(dataset.read(1), image, equal_nan=True)
        small = dataset.read(1, out_shape=(275, 175))
        assert np.array_equal(small[:70], np.full((70, 175), nodata, dtype), equal_nan=True)
        assert np.isin(small, (0, 1, 255)).all() or dtype == "float32"
        # The directory of every resolution stands before any pixel, so a few range reads show a scene.
        offsets = [int(dataset.get_tag_item("IFD_OFFSET", "TIFF", bidx=1, ovr=level)) for level in (None, 0, 1)]
        first_pixels = int(dataset.get_tag_item("BLOCK_OFFSET_0_1", "TIFF", bidx=1))
        assert offsets == sorted(offsets)
        assert max(offsets) < first_pixels


def test_where_nothing_is_nothing_is_stored(tmp_path):
    where = Grid(UTM, ROTATED, 11_000, 16_000)
    image = np.random.default_rng(0).random((512, 512), np.float32)
    write_part(tmp_path / "part.tif", image)
    window = Window(512 * 20, 512 * 30, 512, 512)
    write_cog(tmp_path / "x.tif", where, {window: tmp_path / "part.tif"}, "float32", np.nan)
    assert os.path.getsize(tmp_path / "x.tif") < 1.5e6
    with rasterio.open(tmp_path / "x.tif") as dataset:
        assert np.array_equal(dataset.read(1, window=((10240, 10752), (15360, 15872))), image)
        assert np.isnan(dataset.read(1, window=((10752, 10800), (15360, 15872)))).all()


def test_no_place_on_earth(tmp_path):
    image = np.random.default_rng(0).integers(0, 2, (90, 80)).astype(np.uint8)
    write_cog(tmp_path / "x.tif", Grid(None, Affine.identity(), 90, 80), write_parts(tmp_path, image), "uint8", 255)
    with rasterio.open(tmp_path / "x.tif") as dataset:
        assert dataset.crs is None
        assert dataset.transform.is_identity
        assert np.array_equal(dataset.read(1), image)


def test_the_same_parts_give_the_same_bytes(tmp_path):
    where = Grid(UTM, ROTATED, 1100, 700)
    image = np.random.default_rng(0).random(where.shape, np.float32)
    parts = write_parts(tmp_path, image)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        write_cog(tmp_path / name / "x.tif", where, parts, "float32", np.nan)
    assert (tmp_path / "a" / "x.tif").read_bytes() == (tmp_path / "b" / "x.tif").read_bytes()


def test_a_failed_write_keeps_the_older_file(tmp_path):
    where = Grid(UTM, ROTATED, 600, 300)
    parts = write_parts(tmp_path, np.ones(where.shape, np.uint8))
    write_cog(tmp_path / "x.tif", where, parts, "uint8", 255)
    content = (tmp_path / "x.tif").read_bytes()
    (tmp_path / "512_0.tif").write_bytes(b"damaged")
    before = sorted(os.listdir(tmp_path))
    with pytest.raises(OutputError, match=r"512_0.tif: cannot read this finished part .* makes it anew") as error:
        write_cog(tmp_path / "x.tif", where, parts, "uint8", 255)
    assert "\n" not in str(error.value)
    assert sorted(os.listdir(tmp_path)) == before
    assert (tmp_path / "x.tif").read_bytes() == content


def test_pixels_that_changed_on_the_way_are_noticed(tmp_path, monkeypatch):
    where = Grid(UTM, ROTATED, 600, 300)
    image = np.ones(where.shape, np.uint8)
    parts = write_parts(tmp_path, image)
    copy = rasterio.shutil.copy

    def copy_and_damage(*args, **options):
        copy(*args, **options)
        image[5, 5] = 0
        write_part(parts[Window(0, 0, 512, 300)], image[:512])

    monkeypatch.setattr(rasterio.shutil, "copy", copy_and_damage)
    with pytest.raises(OutputError, match="other pixels than written"):
        write_cog(tmp_path / "x.tif", where, parts, "uint8", 255)
    assert not (tmp_path / "x.tif").exists()


FILL_THE_DISK = """
    import pathlib, resource, sys
    import numpy as np
    from rasterio.transform import Affine
    from hetecd.cog import write_cog, write_part
    from hetecd.errors import OutputError
    from hetecd.raster import Grid, write_raster
    from hetecd.tiles import Window
    how, folder = sys.argv[1], pathlib.Path(sys.argv[2])
    side = 700
    grid = Grid(None, Affine.scale(2), side, side)
    image = np.random.default_rng(0).random((side, side)).astype(np.float32)
    if how.startswith("limit"):
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(how[5:]), int(how[5:])))
    for kind in ("part", "cog", "plain"):
        try:
            if kind == "plain":
                write_raster(folder / "plain.tif", image, grid)
            elif kind == "part":
                write_part(folder / "part.tif", image)
            else:
                parts = {Window(0, 0, side, side): folder / "part.tif"}
                if parts[Window(0, 0, side, side)].exists():
                    write_cog(folder / "cog.tif", grid, parts, "float32", float("nan"))
                else:
                    raise OutputError("no parts")
            print(kind, "written")
        except OutputError as error:
            assert chr(10) not in str(error)
            print(kind, "refused", error)
"""


def fill_the_disk(how: str, folder: Path) -> dict[str, str]:
    command = [sys.executable, "-c", textwrap.dedent(FILL_THE_DISK), how, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "Traceback" not in done.stderr, done.stderr
    said = dict(line.split(" ", 1) for line in done.stdout.splitlines())
    assert list(said) == ["part", "cog", "plain"]
    written = {name for name, words in said.items() if words == "written"}
    # What is there is whole, what was refused is not there.
    assert {name.removesuffix(".tif") for name in os.listdir(folder)} == written
    for name in written:
        with rasterio.open(folder / f"{name}.tif") as dataset:
            assert dataset.read(1).shape == (700, 700)
    return said


# 700 x 700 random floats are about 1.77 MB as they come, 1.73 MB as a part and 2.1 MB as a COG.
@pytest.mark.parametrize("limit", [0, 300_000, 1_750_000, 1_900_000, 2_500_000])
def test_largest_file_size_reached(tmp_path, limit):
    said = fill_the_disk(f"limit{limit}", tmp_path)
    assert [name for name in said if said[name] == "written"] == {
        0: [], 300_000: [], 1_750_000: ["part"], 1_900_000: ["part", "plain"], 2_500_000: ["part", "cog", "plain"],
    }[limit]  # fmt: skip
    if limit < 1_900_000:
        assert os.strerror(errno.EFBIG) in said["plain"]


@pytest.fixture
def tiny_disk(tmp_path):
    """Mounts a small file system of a given size; only root may."""
    mounted = []

    def mount(size):
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", tmp_path], check=False,
                              capture_output=True)  # fmt: skip
        if done.returncode:
            pytest.skip("needs the right to mount a tmpfs")
        mounted.append(tmp_path)
        return tmp_path

    yield mount
    for path in mounted:
        subprocess.run(["umount", path], check=True)


@pytest.mark.skipif(sys.platform != "linux", reason="mounts a tmpfs")
@pytest.mark.parametrize(
    ("size", "written"),
    [("100k", []), ("1m", []), ("2m", ["part"]), ("4m", ["part", "plain"]), ("8m", ["part", "cog", "plain"])],
)
def test_disk_full(tiny_disk, size, written):
    said = fill_the_disk("disk", tiny_disk(size))
    assert [name for name in said if said[name] == "written"] == written
