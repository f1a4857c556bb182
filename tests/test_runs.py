"""What a training left is read as it is, what is missing is named, and all are scored on the same tiles."""

import dataclasses
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hetecd.data import TileDataset, find_tiles
from hetecd.errors import InputError
from hetecd.evaluate import score, telling
from hetecd.info import ModelInfo
from hetecd.metrics import BINS, Confusion, calibration, confusion
from hetecd.modality import Predictor
from hetecd.raster import Grid, write_raster
from hetecd.runs import FINE_BINS, Run, Scored, differing, gain, previous_run, read_run, score_runs
from hetecd.weights import load, predictor, save

LOG = (
    "epoch,seconds,lr,loss,loss_ce,loss_dice,val_loss,val_iou\n0,60,0.1,1.5,1,0.5,0.9,0.2\n1,60,0.05,1.2,0.8,0.4,0.7,\n"
)


def open_predictor(path: Path) -> tuple[Predictor, ModelInfo]:
    net = load(path)
    assert net.info is not None
    return predictor(net, "cpu"), net.info


@pytest.fixture
def run(decided: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "runs" / "mine"
    folder.mkdir(parents=True)
    (folder / "log.csv").write_text(LOG)
    shutil.copy(decided, folder / "best.safetensors")
    return folder


def test_a_run_is_read(run: Path) -> None:
    found = read_run(run)
    assert (found.name, len(found.epochs), found.problems) == ("mine", 2, ())
    assert found.column("loss") == [1.5, 1.2]
    assert np.isnan(found.column("val_iou")[1])
    assert np.isnan(found.column("nothing")).all()
    assert found.info == load(run / "best.safetensors").info


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("log.csv", None, "log.csv: cannot read the log"),
        ("log.csv", b"epoch,loss\nx,1\n", "found 1 epochs with a line that has no number"),
        ("log.csv", b"\xff\xfe\x00", "log.csv: cannot read the log"),
        ("log.csv", b"", "found 0 epochs"),
        ("best.safetensors", None, "best.safetensors: no such file"),
        ("best.safetensors", b"x" * 100, "best.safetensors: not a .safetensors file"),
    ],
)
def test_what_is_missing_is_named(run: Path, tiles: Path, name: str, content: bytes | None, problem: str) -> None:
    if content is None:
        (run / name).unlink()
    else:
        (run / name).write_bytes(content)
    (found,) = score_runs([read_run(run)], open_predictor, tiles, "test")
    assert problem in found.problems[0]
    assert bool(found.epochs) == (name != "log.csv")
    assert (found.scored is None) == (name != "log.csv")


def test_no_training_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"found neither log\.csv nor best\.safetensors"):
        read_run(tmp_path)


def test_the_previous_run_is_the_one_that_ended_last_before(run: Path) -> None:
    assert previous_run(run) is None
    for name, age in (("old", 300), ("older", 500), ("later", -300)):
        other = run.parent / name
        other.mkdir()
        shutil.copy(run / "log.csv", other)
        ended = (run / "log.csv").stat().st_mtime - age
        os.utime(other / "log.csv", (ended, ended))
    assert previous_run(run) == run.parent / "old"
    assert previous_run(run.parent / "older") is None


def test_scores_are_those_of_evaluate(run: Path, tiles: Path) -> None:
    (found,) = score_runs([read_run(run)], open_predictor, tiles, "test", batch=3)
    assert found.scored is not None
    assert found.problems == ()
    wanted = score(*open_predictor(run / "best.safetensors"), tiles, "test")
    assert found.scored.pooled.scores() == {key: wanted[key] for key in found.scored.pooled.scores()}
    assert sum(found.scored.calibration.counts) == wanted["pixels"]
    place = int(np.nanargmax(found.scored.ious()))
    ((tile, prob),) = found.scored.look([place])
    assert tile.name == found.scored.tiles.files[place].name
    assert confusion(prob >= found.scored.threshold, tile.label) == found.scored.confusions[place]


def test_tiles_that_a_training_knows_are_said(run: Path, tiles: Path) -> None:
    """Another seed held out other tiles than those of the first training."""
    info = load(run / "best.safetensors").info
    assert info is not None
    other = run.parent / "other"
    other.mkdir()
    for folder, seed in ((run, 0), (other, 5)):
        changed = dataclasses.replace(info, recipe={"seed": seed, "val_fraction": 0.2, "lr": 0.1})
        save(folder / "best.safetensors", load(run / "best.safetensors"), changed)
    first, second = score_runs([read_run(run), read_run(other)], open_predictor, tiles, "val")
    assert first.scored is not None
    assert second.scored is not None
    assert [f.name for f in first.scored.tiles.files] == [f.name for f in second.scored.tiles.files]
    assert len(first.scored.confusions) == 3
    assert [problem for problem in first.problems if "training tiles" in problem] == []
    assert second.problems[-1] == "2 of the 3 tiles scored are among its training tiles"
    assert differing([first, second]) == {"seed": [0, 5]}


def test_tiles_of_the_same_name_in_another_split_are_others(run: Path, tiles: Path, tmp_path: Path) -> None:
    for split in ("train", "val"):
        shutil.copytree(tiles / "train", tmp_path / split)
    (found,) = score_runs([read_run(run)], open_predictor, tmp_path, "val")
    assert found.scored is not None
    assert [problem for problem in found.problems if "training tiles" in problem] == []


def test_gain_and_its_interval(run: Path, tiles: Path) -> None:
    (found,) = score_runs([read_run(run)], open_predictor, tiles, "test")
    ours = found.scored
    assert ours is not None
    assert gain(ours, ours) == (0, 0, 0)
    worse = Scored(
        TileDataset(ours.tiles.files, ours.tiles.config, ours.tiles.optical, ours.tiles.sar),
        tuple(dataclasses.replace(c, tp=c.tp // 2, fn=c.fn + c.tp - c.tp // 2) for c in ours.confusions),
        ours.calibration, ours.threshold, ours.predictor,
    )  # fmt: skip
    mean, low, high = gain(ours, worse)
    assert 0 < low < mean < high
    assert mean == ours.pooled.scores()["iou"] - worse.pooled.scores()["iou"]


@given(st.lists(st.tuples(st.floats(0, 1, width=32), st.sampled_from((0, 1, 255))), min_size=1, max_size=40))
def test_one_fine_histogram_gives_both_diagrams(pixels: list[tuple[float, int]]) -> None:
    prob, label = np.array([p for p, _ in pixels], np.float32), np.array([t for _, t in pixels], np.uint8)
    fine, coarse = calibration(prob, label, FINE_BINS), calibration(prob, label)
    merged = fine.coarse()
    assert (merged.counts, merged.changed) == (coarse.counts, coarse.changed)
    assert merged.probs == pytest.approx(coarse.probs)
    limits, parts = fine.at_least()
    assert len(limits) == len(parts) == FINE_BINS
    for k in (0, FINE_BINS // BINS, FINE_BINS // 2):
        assert parts[k] == confusion((prob.astype(np.float64) * FINE_BINS).astype(int) >= k, label)
        assert limits[k] == pytest.approx(k / FINE_BINS)


@given(st.lists(st.one_of(st.floats(0, 1), st.just(float("nan"))), max_size=30), st.integers(1, 4))
def test_telling_tiles(scores: list[float], each: int) -> None:
    chosen = telling(scores, each)
    real = [value for value in scores if np.isfinite(value)]
    assert len(chosen) == len(set(chosen)) == min(len(real), 3 * each)
    found = [scores[i] for i in chosen]
    assert found == sorted(found, reverse=True)
    if real:
        assert (found[0], found[-1]) == (max(real), min(real))
    else:
        assert chosen == []


def _save(folder: Path, decided: Path, **recipe: object) -> Run:
    """A training of these settings that left its weights alone."""
    net = load(decided)
    assert net.info is not None
    folder.mkdir()
    save(folder / "best.safetensors", net, dataclasses.replace(net.info, recipe=recipe))
    return read_run(folder)


def test_a_training_without_validation_is_scored_on_a_val_split(decided: Path, tiles: Path, tmp_path: Path) -> None:
    whole = _save(tmp_path / "whole", decided, val_fraction=0.0)
    with pytest.raises(InputError, match=r"found no val split, and this training held no tiles out .* with --split"):
        score_runs([whole], open_predictor, tiles)
    for split, folder in (("train", "train"), ("val", "test")):
        (tmp_path / split).symlink_to(tiles / folder)
    (found,) = score_runs([whole], open_predictor, tmp_path)
    assert found.scored is not None
    assert len(found.scored.confusions) == 8


def test_nothing_to_score_is_said(decided: Path, tiles: Path, tmp_path: Path) -> None:
    ignoring = _save(tmp_path / "run", decided, ignore_255=True)
    (tmp_path / "test" / "label").mkdir(parents=True)
    for files in find_tiles(tiles, "test"):
        for path in (files.before, files.after):
            (tmp_path / "test" / path.parent.name).mkdir(exist_ok=True)
            (tmp_path / "test" / path.parent.name / path.name).symlink_to(path)
        nothing = np.full((64, 64), 255, np.uint8)
        write_raster(tmp_path / "test" / "label" / files.before.name, nothing, Grid(None, None, 64, 64))
    (found,) = score_runs([ignoring], open_predictor, tmp_path, "test")
    assert found.scored is None
    assert "found no pixel that counts in split 'test'" in found.problems[-1]


@pytest.mark.filterwarnings("error")
def test_no_gain_where_nothing_changed(run: Path, tiles: Path) -> None:
    (found,) = score_runs([read_run(run)], open_predictor, tiles, "test")
    assert found.scored is not None
    quiet = dataclasses.replace(found.scored, confusions=(Confusion(tn=9),) * 8)
    assert np.isnan(gain(quiet, quiet)).all()
