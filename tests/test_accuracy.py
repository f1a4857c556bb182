"""The bench of accuracy: real trainings of a few seconds, and everything that is counted against counts by hand."""

import csv
import dataclasses
import json
from pathlib import Path

import accuracy
import numpy as np
import pytest
import torch
from affine import Affine
from boosting import features
from plain import PlainHeteCD
from protocols import PAIRS, PROTOCOLS, Sizes, cut_scene
from rows import configs, read_rows, train
from runs import read_result, results, run, score_checkpoint
from scoring import SHIFTS_PX, Counts, ScoredSet, multiply_adds, parameters, score, shifted
from siamese import train_network
from tables import cell, groups, write_tables
from torch import Tensor, nn

from hetecd.config import ModelConfig
from hetecd.data import Tile, find_tiles
from hetecd.errors import ConfigError, InputError
from hetecd.evaluate import score as evaluate
from hetecd.metrics import Calibration, Confusion
from hetecd.model import HeteCD
from hetecd.raster import Grid, read_raster, write_raster
from hetecd.weights import load, predictor

SMALL = Sizes(folds=4, train_scenes=2, test_scenes=3, scene_px=192, tile_px=64)
ROWS = """
tiny: {recipe: quick.yaml, settings: {encoder: mit_b0, width: 8, precision: f32, batch: 4, sar_db: true}}
boosting: {kind: boosting, recipe: quick.yaml, options: {pixels: 60, iterations: 4}, settings: {sar_db: true}}
siamese: {kind: torchgeo, network: FCSiamConc, recipe: quick.yaml}
"""


@pytest.fixture(scope="module")
def rows_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rows") / "rows.yaml"
    path.write_text(ROWS)
    return path


@pytest.fixture(scope="module")
def finished(tiles: Path, rows_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Block cross-validation of a network and of boosting on the small data set."""
    out = tmp_path_factory.mktemp("accuracy")
    assert not run("blocks", read_rows(["tiny", "boosting"], rows_file), [0], out, tiles, SMALL, epochs=1)
    return out


# --- what is counted -------------------------------------------------------------------------------------------------


def test_multiply_adds_are_those_of_the_published_network() -> None:
    plain = multiply_adds(PlainHeteCD(), 3, 3)
    assert plain == pytest.approx(64.3e9, rel=1e-3)
    # Ours fuses the scales before it upsamples them, which saves 1 %; its banded convolutions would add 5 %.
    assert multiply_adds(HeteCD(), 3, 3) == pytest.approx(plain - 0.72e9, rel=1e-3)


def test_counting_leaves_the_network_alone() -> None:
    net = HeteCD(ModelConfig(encoder="mit_b0", width=8, modalities="sar")).train()
    multiply_adds(net, 3, 3, 64)
    assert net.training
    assert next(net.parameters()).device.type == "cpu"
    assert parameters(net) == sum(p.numel() for p in net.parameters()) - sum(
        p.numel() for p in net.optical_encoder.parameters()
    )


def test_pooled_counts_and_their_scores() -> None:
    one = Counts(Confusion(tn=6, fp=2, fn=1, tp=1), calibration=Calibration(counts=(10,) * 15, probs=(2.0,) * 15))
    both = one + Counts(Confusion(tn=2, fp=0, fn=0, tp=4))
    assert both.scores()["iou"] == 5 / 8
    assert both.scores()["false_alarms"] == 2 / 10
    assert both.scores()["ece"] == pytest.approx(0.2)
    assert Counts.from_dict(json.loads(json.dumps(both.as_dict()))) == both


def test_shift_moves_sar_alone_and_scores_the_same_pixels() -> None:
    place = np.arange(60 * 64, dtype=np.float32).reshape(1, 60, 64)
    tile = Tile("t", place, place.copy(), (place[0] % 2).astype(np.uint8))
    for px in SHIFTS_PX:
        moved = shifted(tile, px, (1, 0))
        assert moved.optical.shape == moved.sar.shape == (1, 44, 48)
        np.testing.assert_array_equal(moved.optical, place[:, 8:-8, 8:-8])
        np.testing.assert_array_equal(moved.label, moved.optical[0] % 2)
        np.testing.assert_array_equal(moved.sar, moved.optical - 64 * px)  # a row further down shows what was above
    with pytest.raises(InputError, match="expected 48 or more"):
        shifted(dataclasses.replace(tile, label=tile.label[:40]), 1, (0, 1))


def test_features_are_statistics_of_the_tile() -> None:
    optical, sar = np.zeros((2, 8, 8), np.float32), np.arange(64, dtype=np.float32).reshape(1, 8, 8)
    optical[0, :, 4:] = 1
    seen = features(optical, sar)
    bands, windows = 3, 3
    assert seen.shape == (8, 8, 3 * bands + 2 * windows * bands + 1 + 2 * 2)
    np.testing.assert_array_equal(seen[..., :3], np.moveaxis(np.concatenate([optical, sar]), 0, -1))
    assert seen[..., 5].mean() == pytest.approx(0, abs=1e-5)
    assert seen[..., 5].std() == pytest.approx(1, abs=1e-3)
    np.testing.assert_allclose(np.unique(seen[..., 6]), [0.25, 0.75])  # ranks, ties half
    np.testing.assert_allclose(seen[..., 7], 0.5)
    np.testing.assert_allclose(seen[..., 8].ravel(), (np.arange(64) + 0.5) / 64)


# --- protocols -------------------------------------------------------------------------------------------------------


def test_blocks_are_consecutive_and_never_touch_the_test_split(tiles: Path, tmp_path: Path) -> None:
    folds = PROTOCOLS["blocks"](tiles, tmp_path, SMALL)
    names = [tile.name for tile in find_tiles(tiles, "train")]
    held = [[tile.name for tile in find_tiles(fold.data, "test")] for fold in folds]
    assert [name for block in held for name in block] == names
    for fold, block in zip(folds, held, strict=True):
        training = find_tiles(fold.data, "train")
        assert sorted([tile.name for tile in training] + block) == names
        assert all((tiles / "train") in tile.before.resolve().parents for tile in training)
        assert [test.split for test in fold.tests] == ["test"]
    with pytest.raises(InputError, match="expected at least 24"):
        PROTOCOLS["blocks"](tiles, tmp_path, dataclasses.replace(SMALL, folds=8))
    with pytest.raises(InputError, match="--data"):
        PROTOCOLS["public"](None, tmp_path, SMALL)


@pytest.mark.parametrize("shape", [(70, 301), (301, 70)])
def test_tiles_of_a_scene_cover_it_once(shape: tuple[int, int], tmp_path: Path) -> None:
    name, before_is = "gloucester2", PAIRS["gloucester2"]
    scene = tmp_path / "scenes" / name
    grid = Grid(None, Affine.identity(), *shape)
    image = np.random.default_rng(0).integers(0, 255, (3, *shape), np.uint8)
    write_raster(scene / "pre.tif", image, grid)
    write_raster(scene / "post.tif", image[:1], grid)
    write_raster(scene / "label.png", (image[:1] > 99) * np.uint8(255), grid)
    cut_scene(scene, tmp_path / "cut", 4)
    cut = find_tiles(tmp_path / "cut", "")
    found = np.concatenate([read_raster(tile.before).array.ravel() for tile in cut])
    np.testing.assert_array_equal(np.bincount(found), np.bincount(image.ravel()))
    along = 0 if shape[0] > shape[1] else 1
    first = read_raster(cut[0].after).array[0]
    np.testing.assert_array_equal(first, image[0, : first.shape[0], : first.shape[1]])
    assert first.shape[along] == 75
    folds = PROTOCOLS["pairs"](scene.parent, tmp_path / "work", SMALL)
    assert [fold.name for fold in folds] == [f"{name}-{k}" for k in range(4)]
    assert folds[0].settings == {"before_is": before_is}
    held = [tile.name for fold in folds for tile in find_tiles(fold.data, "test")]
    assert held == [tile.name for tile in cut]
    for k, fold in enumerate(folds):
        assert {tile.name[:2] for tile in find_tiles(fold.data, "train")} == {"00", "01", "02", "03"} - {f"{k:02d}"}
    with pytest.raises(InputError, match="shuguang"):
        PROTOCOLS["pairs"](tmp_path, tmp_path / "work", SMALL)


def test_synthetic_sets_are_what_they_say(tmp_path: Path, rows_file: Path) -> None:
    (fold,) = PROTOCOLS["synthetic"](None, tmp_path, SMALL)
    sets = {test.name: test for test in fold.tests}
    assert [name for name in sets if name.startswith("shift")] == [f"shift {px}" for px in SHIFTS_PX]
    for tile in find_tiles(fold.data, "unchanged"):
        assert tile.label is not None
        assert not read_raster(tile.label).array.any()
    seeds = {split: {t.name[:5] for t in find_tiles(fold.data, split)} for split in ("train", "plain", "season")}
    assert all(len(names) == count for names, count in zip(seeds.values(), (2, 3, 3), strict=True))
    assert len(set().union(*seeds.values())) == 8
    # Moving SAR cannot matter to a map that does not look at it.
    (row,) = read_rows(["boosting"], rows_file)
    trained = train(row, fold.data, 0, fold.settings, tmp_path / "out")
    blind = dataclasses.replace(trained, predictor=lambda optical, sar: (optical[:, 0] > 700).astype(np.float32))
    assert len({score(blind, sets[f"shift {px}"]).confusion for px in SHIFTS_PX}) == 1
    assert len({score(trained, sets[f"shift {px}"]).calibration for px in (0, 8)}) == 2
    made = (fold.data / "plain").stat().st_mtime_ns
    assert PROTOCOLS["synthetic"](None, tmp_path, SMALL)[0].data.joinpath("plain").stat().st_mtime_ns == made


# --- rows, results, tables -------------------------------------------------------------------------------------------


def test_shipped_rows_fit_their_recipes() -> None:
    for row in read_rows():
        _, config = configs(row, 7, {"epochs": 3})
        assert (config.seed, config.epochs) == (7, 3)
        assert row.kind == "torchgeo" or not row.network
    assert configs(read_rows(["paper"])[0], 0, {})[1].sar_bands == (1, 1, 1)
    assert configs(read_rows(["sar-only"])[0], 0, {})[0].modalities == "sar"


def test_rows_refuse_what_they_do_not_know(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="found no nets"):
        read_rows(["nets"])
    path = tmp_path / "rows.yaml"
    for text, says in (
        ("a: {recipe: quick.yaml, settings: {widht: 8}}", "unknown recipe keys widht"),
        ("a: {recipe: quick.yaml, kind: svm}", "kind 'svm'"),
        ("a: {recipes: quick.yaml}", "recipes"),
    ):
        path.write_text(text)
        with pytest.raises(ConfigError, match=says):
            read_rows(path=path)
    path.write_text("a: {recipe: quick.yaml, settings: {width: wide}}")
    with pytest.raises(ConfigError, match="row a"):
        configs(read_rows(path=path)[0], 0, {})


def test_finished_trainings_are_not_repeated(finished: Path, tiles: Path, rows_file: Path) -> None:
    files = sorted(finished.glob("results/*/*/*.json"))
    assert [str(path.relative_to(finished / "results")) for path in files] == [
        f"blocks/{row}/seed0-block-{k}.json" for row in ("boosting", "tiny") for k in range(4)
    ]
    before = [path.stat().st_mtime_ns for path in files]
    rows = read_rows(["tiny", "boosting"], rows_file)
    assert not run("blocks", rows, [0], finished, tiles, SMALL, epochs=1)
    assert [path.stat().st_mtime_ns for path in files] == before
    problems = run("blocks", rows[:1], [0], finished, tiles, SMALL, epochs=2)
    assert len(problems) == 1
    assert "other settings (epochs)" in problems[0]


def test_tables_pool_folds(finished: Path) -> None:
    text = write_tables(finished)
    runs = groups(results(finished))["blocks", "held-out blocks"]["tiny"]
    pooled = sum((counts for _, counts in runs), Counts()).scores()
    ious = [counts.scores()["iou"] for _, counts in runs]
    ious = [iou for iou in ious if not np.isnan(iou)]
    assert cell(runs, "iou") == f"{100 * pooled['iou']:.2f} ± {100 * np.std(ious, ddof=1):.2f}"
    line = next(line for line in text.splitlines() if line.startswith("| tiny |"))
    assert cell(runs, "iou") in line
    assert line.endswith("| 1 | 4 folds |")
    with (finished / "scores.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 8
    assert sum(int(line["pixels"]) for line in lines if line["row"] == "tiny") == 16 * 64 * 64
    assert (finished / "reliability-blocks-held-out-blocks.png").stat().st_size > 1000


def test_a_training_that_was_not_scored_goes_on_instead_of_anew(
    finished: Path, tiles: Path, rows_file: Path, tmp_path: Path
) -> None:
    (row,) = read_rows(["tiny"], rows_file)
    first = train(row, tiles, 0, {"epochs": 2}, tmp_path)
    log = (tmp_path / "log.csv").read_text()
    second = train(row, tiles, 0, {"epochs": 2}, tmp_path)
    assert (tmp_path / "log.csv").read_text() == log
    assert second.minutes == first.minutes > 0
    test = ScoredSet("test", tiles, "test")
    assert score(first, test) == score(second, test)


def test_checkpoint_scores_as_evaluate_does(decided: Path, tiles: Path, tmp_path: Path) -> None:
    result = score_checkpoint(decided, tiles, "test", tmp_path, shifts=True)
    net = load(decided)
    assert net.info is not None
    expected = evaluate(predictor(net), net.info, tiles)
    scores = result.sets[f"{tiles.name} test"].scores()
    assert all(scores[key] == pytest.approx(expected[key]) for key in ("iou", "f1", "precision", "recall", "kappa"))
    (path,) = tmp_path.glob("results/checkpoint/*/*.json")
    assert read_result(path) == result
    write_tables(tmp_path)
    assert (tmp_path / "shift-checkpoint.png").is_file()


class TinyNet(nn.Module):
    """A convolution over both dates."""

    def __init__(self, optical: int, sar: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(optical + sar, 2, 3, padding=1)

    def forward(self, optical: Tensor, sar: Tensor) -> Tensor:
        return self.conv(torch.cat([optical, sar], 1))


def test_foreign_networks_train_and_go_on_after_an_interruption(
    tiles: Path, rows_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = configs(read_rows(["tiny"], rows_file)[0], 0, {"epochs": 3})[1]
    whole = train_network(TinyNet, tiles, config, tmp_path / "whole")
    assert whole.parameters == 5 * 2 * 9 + 2
    assert whole.multiply_adds == 5 * 2 * 9 * 256 * 256
    made = []

    def fails_in_the_second_epoch(optical: int, sar: int) -> nn.Module:
        net = TinyNet(optical, sar)
        net.register_forward_pre_hook(lambda *_: made.append(1) if len(made) < 6 else 1 / 0)
        return net

    with pytest.raises(ZeroDivisionError):
        train_network(fails_in_the_second_epoch, tiles, config, tmp_path / "parts")
    assert (tmp_path / "parts" / "state.pt").is_file()
    parts = train_network(TinyNet, tiles, config, tmp_path / "parts")
    test = ScoredSet("test", tiles, "test")
    assert score(parts, test) == score(whole, test)


def test_the_program(finished: Path, tiles: Path, rows_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert accuracy.main(["tables", "--out", str(finished)]) == 0
    assert "## blocks: held-out blocks" in capsys.readouterr().out
    common = ["--data", str(tiles), "--rows-file", str(rows_file), "--seeds", "0", "--epochs", "1"]
    assert accuracy.main(["public", *common, "--rows", "boosting", "siamese", "--out", str(finished)]) == 1
    captured = capsys.readouterr()
    assert "## public: test" in captured.out
    assert captured.err.splitlines()[-1].startswith("accuracy: error: row siamese: needs torchgeo")
    assert accuracy.main(["blocks", "--out", str(finished / "other")]) == 1
    assert "--data" in capsys.readouterr().err
