"""A scene is mapped over a night: killed at any moment it goes on, finished it is left alone."""

import json
import logging
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from rasterio.crs import CRS
from rasterio.transform import Affine

from hetecd.errors import InputError, OutputError
from hetecd.modality import Focusing, uint8_modality
from hetecd.pair import open_pair
from hetecd.predict import predict_scene
from hetecd.raster import Grid, write_raster
from hetecd.results import About
from hetecd.work import FOLDER

SCENE = Grid(CRS.from_epsg(32633), Affine.translation(5e5, 5e6) @ Affine.rotation(7) @ Affine.scale(10, -12), 1900, 300)
ONE = uint8_modality((1,))
ABOUT = About({"name": "pointwise", "sha256": "12", "scores": None})
MAPS = ["change.gpkg", "change.qml", "change.tif", "probability.qml", "probability.tif"]


def pointwise(optical, sar):
    return 0.5 + 0.25 * np.sin(optical.mean(1) / 9) + 0.25 * np.cos(sar.mean(1) / 7)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Three and a bit blocks of data, the middle of which is empty; SAR on another, larger grid."""
    folder = tmp_path_factory.mktemp("pair")
    rng = np.random.default_rng(0)
    optical = rng.integers(1, 255, (1, *SCENE.shape)).astype(np.uint8)
    optical[:, 500:1100] = 0
    optical[:, :, :30] = 0
    optical = np.repeat(np.repeat(optical[:, ::20, ::20], 20, 1), 20, 2)[:, : SCENE.height, : SCENE.width]
    sar_grid = Grid(SCENE.crs, SCENE.transform @ Affine.translation(-5.3, -7.1), 1960, 320)
    sar = np.kron(rng.exponential(20, (1, 98, 16)), np.ones((20, 20))).astype(np.float32)
    write_raster(folder / "optical.tif", optical, SCENE, nodata=0)
    write_raster(folder / "sar.tif", sar, sar_grid)
    return folder / "optical.tif", folder / "sar.tif"


def run(files, out, predictor=pointwise, about=ABOUT, **options):
    with open_pair(*files, "optical", ONE, ONE) as pair:
        return predict_scene(pair, predictor, out, 0.7, 128, 32, 2, about=about, **options)


def cut_off(files, out, **options):
    """A run that is interrupted after 20 calls of the predictor."""

    def stops(optical, sar):
        calls.append(0)
        if len(calls) > 20:
            raise KeyboardInterrupt
        return pointwise(optical, sar)

    calls = []
    with pytest.raises(KeyboardInterrupt):
        run(files, out, stops, **options)


def content(out):
    return {name: (out / name).read_bytes() for name in MAPS}


@pytest.fixture(scope="module")
def expected(files, tmp_path_factory):
    """The maps of an uninterrupted run, how long it takes, and how often it calls the predictor."""
    out, calls = tmp_path_factory.mktemp("whole"), []

    def predictor(optical, sar):
        calls.append(len(optical))
        return pointwise(optical, sar)

    seconds = run(files, out, predictor).seconds
    assert sorted(os.listdir(out)) == sorted([*MAPS, "item.json", "summary.json"])
    return content(out), seconds, len(calls)


def wait_and_kill(pid, after_s):
    """True if the process was killed, False if it had ended well."""
    time.sleep(after_s)
    os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    assert status in (0, signal.SIGKILL)
    return status != 0


def killed(after_s, action):
    """Do something in a process that is killed after a while."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            action()
            status = 0
        finally:
            os._exit(status)
    return wait_and_kill(pid, after_s)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_killed_at_any_moment_it_goes_on(files, tmp_path, expected):
    maps, seconds, _ = expected
    out, kills, chance = tmp_path / "out", 0, random.Random(0)
    deadline = time.monotonic() + 60
    while kills < 6 and time.monotonic() < deadline:
        if killed(chance.uniform(0.1, 1) * seconds, partial(run, files, out)):
            kills += 1
            # What has its final name is whole, at every moment.
            assert all((out / name).read_bytes() == maps[name] for name in MAPS if (out / name).exists())
        else:
            assert content(out) == maps
            out = tmp_path / f"out{kills}"
    assert kills == 6
    run(files, out)
    assert content(out) == maps
    assert sorted(os.listdir(out)) == sorted([*MAPS, "item.json", "summary.json"])


@pytest.mark.parametrize("stop", [KeyboardInterrupt, RuntimeError])
@pytest.mark.parametrize("share", [0.1, 0.5, 1])
def test_interrupted_it_computes_only_what_is_missing(files, tmp_path, expected, stop, share):
    calls, all_calls = [], expected[2]

    def predictor(optical, sar):
        calls.append(len(optical))
        if len(calls) == int(share * all_calls):
            raise stop
        return pointwise(optical, sar)

    with pytest.raises(stop):
        run(files, tmp_path / "out", predictor)
    # Nothing is left of what began with the first block.
    assert (tmp_path / "out").exists() == (share > 0.1)
    before = len(calls)
    run(files, tmp_path / "out", predictor)
    assert content(tmp_path / "out") == expected[0]
    assert len(calls) - before <= (1.35 - share) * all_calls  # what is missing, and up to a block


def test_interrupted_it_goes_on_with_its_batch(files, tmp_path):
    """As memory is scarcer now, unless that is asked for."""
    seen = []

    def predictor(optical, sar):
        seen.append(len(optical))
        if len(seen) == 20:
            raise KeyboardInterrupt
        return pointwise(optical, sar)

    def part(batch, keep_batch):
        seen.clear()
        with open_pair(*files, "optical", ONE, ONE) as pair:
            predict_scene(pair, predictor, tmp_path, 0.7, 128, 32, batch, about=ABOUT, keep_batch=keep_batch)

    with pytest.raises(KeyboardInterrupt):
        part(2, True)
    part(1, True)
    assert max(seen) == 2


def test_interrupted_it_asks_for_the_same_parts_of_windows(files, tmp_path):
    """The answer depends on what is wanted together, as rounding does."""
    calls = []

    def asked(out, cut_at=0):
        def compute(optical, sar, inner):
            calls.append(str(inner))
            if len(calls) == cut_at:
                raise KeyboardInterrupt
            rows, cols = inner
            out = np.full((len(optical), *optical.shape[2:]), np.nan)
            out[:, rows, cols] = pointwise(optical, sar)[:, rows, cols] / 2 + (rows.stop + cols.stop) / 1000
            return out

        calls.clear()
        run(files, out, Focusing(compute))
        return len(calls)

    count = asked(tmp_path / "whole")
    assert len({*calls}) > 3  # ends of rows, and of the empty middle
    for share in (0.6, 0.85):
        out = tmp_path / str(share)
        with pytest.raises(KeyboardInterrupt):
            asked(out, int(share * count))
        assert asked(out) < count
        assert content(out) == content(tmp_path / "whole")


def test_what_a_run_that_was_cut_off_warned_of_is_not_lost(files, tmp_path, expected):
    def doubtful(optical, sar):
        calls.append(0)
        if len(calls) == 1:
            logging.getLogger("hetecd").warning("optical: looks strange")
        if len(calls) == 20:
            raise KeyboardInterrupt
        logging.getLogger("hetecd").warning("sar: looks strange, too")
        return pointwise(optical, sar)

    calls = []
    with pytest.raises(KeyboardInterrupt):
        run(files, tmp_path, doubtful)
    run(files, tmp_path, doubtful)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["warnings"] == ["optical: looks strange", "sar: looks strange, too"]
    assert content(tmp_path) == expected[0]


def test_finished_it_is_not_done_again(files, tmp_path, expected):
    def never(optical, sar):
        raise AssertionError("it is finished")

    first = run(files, tmp_path)
    times = {name: os.stat(tmp_path / name).st_mtime_ns for name in os.listdir(tmp_path)}
    again = run(files, tmp_path, never)
    assert (again.windows, first.windows > 0) == (0, True)
    for name in ("pixels", "valid_pixels", "changed_pixels", "changed_area_m2", "polygons", "outputs"):
        assert getattr(again, name) == getattr(first, name)
    assert times == {name: os.stat(tmp_path / name).st_mtime_ns for name in os.listdir(tmp_path)}
    # Unless asked, for other weights, for weights that nobody knows, or where a result is missing or replaced.
    with pytest.raises(AssertionError, match="finished"):
        run(files, tmp_path, never, redo=True)
    for about in (About({"name": "other", "sha256": "34", "scores": None}), About(), None):
        with pytest.raises(AssertionError, match="finished"):
            run(files, tmp_path, never, about)
    (tmp_path / "change.gpkg").unlink()
    with pytest.raises(AssertionError, match="finished"):
        run(files, tmp_path, never)
    assert run(files, tmp_path).windows > 0
    assert content(tmp_path) == expected[0]
    (tmp_path / "summary.json").write_text("{}")
    assert run(files, tmp_path).windows > 0


def test_a_finished_map_that_was_damaged_or_edited_is_neither_trusted_nor_replaced_unasked(files, tmp_path, expected):
    run(files, tmp_path)
    path = tmp_path / "probability.tif"
    written = path.read_bytes()
    path.write_bytes(written[:-9])
    with pytest.raises(InputError, match=f"probability.tif: found {len(written) - 9} bytes, expected {len(written)}"):
        run(files, tmp_path)
    assert len(path.read_bytes()) == len(written) - 9
    cut_off(files, tmp_path, redo=True)
    run(files, tmp_path)  # goes on with what was asked for
    assert content(tmp_path) == expected[0]


def test_after_a_damaged_block_nothing_is_computed_again(files, tmp_path, expected):
    (tmp_path / "change.tif").mkdir()
    with pytest.raises(OutputError, match=r"change\.tif"):
        run(files, tmp_path)
    (tmp_path / "change.tif").rmdir()
    (tmp_path / FOLDER / "probability_0_0.tif").write_bytes(b"damaged")
    later = {path: path.stat().st_mtime_ns for path in (tmp_path / FOLDER).glob("*.tif") if "_0_0" not in path.name}
    seen = {}

    def looks(optical, sar):
        seen.update({path: path.stat().st_mtime_ns for path in later})
        return pointwise(optical, sar)

    again = run(files, tmp_path, looks)
    assert seen == later != {}
    assert again.windows < run(files, tmp_path / "whole").windows / 2
    assert content(tmp_path) == expected[0]


def test_other_settings_are_refused_before_anything_is_lost(files, tmp_path):
    cut_off(files, tmp_path)
    journal = (tmp_path / FOLDER / "journal").read_bytes()
    with (
        open_pair(*files, "optical", ONE, ONE) as pair,
        pytest.raises(InputError, match=r"settings.threshold 0.7, expected 0.6"),
    ):
        predict_scene(pair, pointwise, tmp_path, 0.6, 128, 32, 2, about=ABOUT)
    with pytest.raises(InputError, match=r"settings.device cpu, expected cuda"):
        run(files, tmp_path, about=replace(ABOUT, device="cuda"))
    assert (tmp_path / FOLDER / "journal").read_bytes() == journal


COMMAND = [sys.executable, "-m", "hetecd", "predict"]


@pytest.mark.slow
def test_the_command_killed_at_twenty_moments(tmp_path):
    """The real command, with a real network, on a synthetic scene."""
    from hetecd.config import ModelConfig
    from hetecd.info import ModelInfo
    from hetecd.synth import write_pair
    from hetecd.weights import fresh, save

    config = ModelConfig("residual_s", 3, 1, width=16)
    info = ModelInfo(model=config, optical=uint8_modality((1, 2, 3)), sar=uint8_modality((1,)))
    save(tmp_path / "net.safetensors", fresh(config, 0), info)
    pair = [str(path) for path in write_pair(tmp_path / "scene", 3, 1400, 700, "flood")[:2]]
    options = ["--weights", str(tmp_path / "net.safetensors"), "--threshold", "0.5", "--tile", "128", "--overlap", "32"]

    def command(out: Path) -> list[str]:
        return [*COMMAND, *pair, *options, "--out", str(out)]

    started = time.monotonic()
    subprocess.run(command(tmp_path / "whole"), check=True, capture_output=True)
    seconds = time.monotonic() - started
    maps = content(tmp_path / "whole")
    out, kills, finished, chance = tmp_path / "out", 0, 0, random.Random(1)
    while kills < 20:
        with subprocess.Popen(command(out), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
            try:
                _, said = process.communicate(timeout=chance.uniform(0.2, 1.1) * seconds)
                assert process.returncode == 0, said
                assert content(out) == maps
                finished += 1
                out = tmp_path / f"out{finished}"
            except subprocess.TimeoutExpired:
                process.kill()
                kills += 1
    subprocess.run(command(out), check=True, capture_output=True)
    assert content(out) == maps
    summary = json.loads((out / "summary.json").read_text())
    assert summary["valid_pixels"] > 0


@pytest.mark.slow
def test_a_scene_of_a_hundred_thousand_pixels_fits_into_two_gigabytes(tmp_path):
    """The real command with the weights that come along; four places have data, elsewhere nothing is stored."""
    from scenes import ISLAND_PX, write_images

    size_px = 100_000
    write_images(tmp_path, size_px, islands=True)
    words = [str(tmp_path / name) for name in ("optical.tif", "sar.tif")]
    process = subprocess.Popen([*COMMAND, *words, "-o", str(tmp_path / "out")], stderr=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    assert status == 0
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["pixels"] == size_px**2
    assert 3 * ISLAND_PX**2 < summary["valid_pixels"] <= 4 * ISLAND_PX**2
    peak_mb = used.ru_maxrss / 1e3  # Linux counts in kB
    print(f"peak {peak_mb:.0f} MB")
    assert peak_mb < 2000
