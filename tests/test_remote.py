"""Images behind HTTP are read in parts, as few as a window needs."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import rasterio.shutil
from rasterio.transform import Affine
from test_pair import ONE, UTM, read, refused, save

from hetecd.pair import open_pair
from hetecd.raster import READING, Grid
from hetecd.tiles import Window

GRID = Grid(UTM, Affine(10, 0, 500_000, 0, -10, 5_005_000), 2000, 2000)


class Server:
    """The program range_server.py, running over a folder."""

    def __init__(self, folder: Path, log: Path) -> None:
        self.log = log
        with log.open("w") as out:
            program = [sys.executable, str(Path(__file__).with_name("range_server.py")), str(folder)]
            self.process = subprocess.Popen(program, stdout=out)
        while not (lines := log.read_text().splitlines()):
            assert self.process.poll() is None
        self.port = lines[0]

    def url(self, name: str) -> str:
        return f"http://127.0.0.1:{self.port}/{name}"

    def sent(self) -> list[tuple[str, int]]:
        """Path and bytes of every answer."""
        answers = [line.split() for line in self.log.read_text().splitlines()[1:]]
        return [(path, int(count)) for _, path, count in answers]

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("web")
    noise = np.random.default_rng(0).integers(1, 60_000, (1, *GRID.shape)).astype(np.uint16)
    save(folder / "plain.tif", GRID, noise, 0)
    rasterio.shutil.copy(folder / "plain.tif", folder / "sar.tif", driver="COG")
    turned = Grid(UTM, GRID.transform @ Affine.translation(900, 900) @ Affine.rotation(20), 150, 160)
    save(folder / "optical.tif", turned, np.ones((1, *turned.shape), np.uint8))
    return folder


@pytest.fixture
def server(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    server = Server(folder, tmp_path / "answers.txt")
    yield server
    server.stop()


def test_a_cog_is_read_in_parts(server, folder):
    size_bytes = (folder / "sar.tif").stat().st_size
    with open_pair(folder / "optical.tif", server.url("sar.tif"), "optical", ONE, ONE) as pair:
        opening = server.sent()
        window = Window(20, 30, 64, 64)
        _, sar, valid = pair.read(window)
        assert pair.files == (str(folder / "optical.tif"),)
    assert 0 < sum(count for _, count in opening) <= 32_768  # the header
    assert sum(count for _, count in server.sent()) < 0.25 * size_bytes  # one to four blocks of 512 x 512 pixels
    assert not any(path == "/" for path, _ in server.sent())  # nobody needs a list of the folder
    assert valid.all()
    assert np.array_equal(sar, read(folder / "optical.tif", folder / "sar.tif", window)[1])


def test_a_server_without_ranges(server, folder):
    assert "download the file" in refused(folder / "optical.tif", server.url("whole/sar.tif"), "Range")


def test_an_address_of_nothing(server, folder):
    assert "check the address" in refused(folder / "optical.tif", server.url("nothing.tif"), "nothing.tif")


def test_a_server_that_goes_away(server, folder, monkeypatch):
    monkeypatch.setitem(READING, "GDAL_HTTP_MAX_RETRY", "0")
    with open_pair(folder / "optical.tif", server.url("sar.tif"), "optical", ONE, ONE) as pair:
        server.stop()
        with pytest.raises(ValueError, match="try again, or download the file") as error:
            pair.read(Window(0, 0, 150, 160))
    assert str(error.value).startswith(server.url("sar.tif"))
