"""The bench of accuracy: real trainings of a few seconds, and everything that is counted against counts by hand."""

import csv
import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import accuracy
import numpy as np
import pytest
import torch
from boosting import features
from plain import PlainHeteCD
from protocols import Sizes
from rows import read_rows, row_configs, train
from runs import Result, read_result, results, run, save, score_checkpoint
from scoring import SHIFTS_PX, Counts, ScoredSet, Trained, multiply_adds, parameters, score, shifted
from siamese import train_network
from tables import cell, groups, spread, write_tables
from torch import Tensor, nn

from hetecd.config import ModelConfig
from hetecd.data import Tile, find_tiles
from hetecd.errors import CheckpointError, ConfigError, InputError
from hetecd.evaluate import score as evaluate
from hetecd.metrics import Calibration, Confusion
from hetecd.modality import Modality, mirrored
from hetecd.model import HeteCD
from hetecd.weights import load, predictor
from hetecd.weights import save as save_weights

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
    plain = ModelConfig(encoder="mit_b0", width=8)
    supervised = HeteCD(dataclasses.replace(plain, deep_supervision=True))
    assert parameters(supervised) == parameters(HeteCD(plain))


def test_no_score_of_numbers_that_are_not_finite(tiles: Path) -> None:
    optical, sar = Modality((1,), (0.0,), (1.0,)), Modality((1,), (0.0,), (1.0,))
    broken = Trained(lambda optical, sar: np.full_like(sar[:, 0], np.nan), optical, sar)
    with pytest.raises(InputError, match="no finite numbers"):
        score(broken, ScoredSet("test", tiles, "test", 1))


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


# --- rows, results, tables -------------------------------------------------------------------------------------------


def test_shipped_rows_fit_their_recipes() -> None:
    for row in read_rows():
        _, config = row_configs(row, 7, {"epochs": 3})
        assert (config.seed, config.epochs) == (7, 3)
        assert row.kind == "torchgeo" or not row.network
    assert row_configs(read_rows(["paper"])[0], 0, {})[1].sar_bands == (1, 1, 1)
    assert row_configs(read_rows(["sar-only"])[0], 0, {})[0].modalities == "sar"


def test_rows_refuse_what_they_do_not_know(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="found no nets"):
        read_rows(["nets"])
    path = tmp_path / "rows.yaml"
    for text, says in (
        ("a: {recipe: quick.yaml, settings: {widht: 8}}", "unknown recipe keys widht"),
        ("a: {recipe: quick.yaml, kind: svm}", "kind 'svm'"),
        ("a: {recipes: quick.yaml}", "recipes"),
        ("a: {recipe: quick.yaml, kind: boosting, options: {pixel: 8}}", "'pixel'; did you mean 'pixels'"),
        ("a: {recipe: quick.yaml, options: {pixels: 8}}", "kind hetecd has none"),
    ):
        path.write_text(text)
        with pytest.raises(ConfigError, match=says):
            read_rows(path=path)
    path.write_text("a: {recipe: quick.yaml, settings: {width: wide}}")
    with pytest.raises(ConfigError, match="row a"):
        row_configs(read_rows(path=path)[0], 0, {})
    path.write_text("a: {recipe: quick.yaml, kind: boosting, settings: {modalities: sar}}")
    with pytest.raises(ConfigError, match="knows neither modalities"):
        train(read_rows(path=path)[0], tmp_path, 0, {}, tmp_path / "out")


def test_a_row_that_breaks_does_not_stop_the_others(tiles: Path, tmp_path: Path) -> None:
    path = tmp_path / "rows.yaml"
    small = "kind: boosting, recipe: quick.yaml"
    path.write_text(
        f"broken: {{{small}, options: {{pixels: many}}}}\nwhole: {{{small}, options: {{pixels: 60, iterations: 2}}}}"
    )
    problems = run("public", read_rows(path=path), [0, 1], tmp_path, tiles, SMALL)
    assert len(problems) == 1
    assert problems[0].startswith("row broken: TypeError: ")
    assert [(result.row, result.seed) for result in results(tmp_path)] == [("whole", 0), ("whole", 1)]


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
    (problem,) = run("blocks", rows[:1], [0], finished, tiles, SMALL, epochs=0)
    assert "epochs: found 0" in problem


def test_results_from_before_a_setting_existed_count(
    finished: Path, tiles: Path, rows_file: Path, tmp_path: Path
) -> None:
    rows, place = read_rows(["boosting"], rows_file), "results/blocks/boosting"
    shutil.copytree(finished / place, tmp_path / place)
    for path in sorted((tmp_path / place).glob("*.json")):
        content = json.loads(path.read_text())
        for key in ("ema", "deep_supervision", "ce_weights", "tiles"):
            del content["settings"][key]
        path.write_text(json.dumps(content))
    assert not run("blocks", rows, [0], tmp_path, tiles, SMALL, epochs=1)
    content["settings"]["ema"] = 0.9
    path.write_text(json.dumps(content))
    (problem,) = run("blocks", rows, [0], tmp_path, tiles, SMALL, epochs=1)
    assert "other settings (ema)" in problem


def test_other_tiles_in_a_folder_of_that_name_are_other_settings(
    finished: Path, tiles: Path, rows_file: Path, tmp_path: Path
) -> None:
    data, place = tmp_path / tiles.name, "results/blocks/boosting"
    shutil.copytree(finished / place, tmp_path / place)
    shutil.copytree(tiles, data)
    rows = read_rows(["boosting"], rows_file)
    assert not run("blocks", rows, [0], tmp_path, data, SMALL, epochs=1)
    tile = find_tiles(data, "train")[0]
    for path in (tile.before, tile.after, tile.label):
        assert path is not None
        path.rename(path.with_stem("00000_renamed"))
    (problem,) = run("blocks", rows, [0], tmp_path, data, SMALL, epochs=1)
    assert "other settings (tiles)" in problem


def _result(seed: int, fold: str, tp: int, **other: Any) -> Result:
    counts = Counts(Confusion(tn=50, fp=10, fn=10, tp=tp), calibration=Calibration((9,) * 15, (4.0,) * 15, (3,) * 15))
    sets = {"held-out blocks": counts, "shift 0": counts}
    costs = {"parameters": 1, "multiply_adds": 1, "minutes": 1.0, "epochs": 1, "device": "CPU", "code": "a"}
    return Result(
        **{**costs, "protocol": "blocks", "row": "net", "settings": {}, **other}, seed=seed, fold=fold, sets=sets
    )


def test_seeds_that_lack_folds_are_not_pooled(tmp_path: Path) -> None:
    found = [_result(0, "a", 20), _result(0, "b", 30), _result(1, "a", 90)]
    runs = groups(found)["blocks", "held-out blocks"]["net"]
    whole = groups(found[:2])["blocks", "held-out blocks"]["net"]
    assert cell(runs, "iou") == cell(whole, "iou")
    assert spread(runs)[1] == "2 folds, 1 incomplete seed left out"
    runs = groups([*found, _result(1, "b", 20), _result(2, "b", 0)])["blocks", "held-out blocks"]["net"]
    assert spread(runs)[1] == "2 seeds (4 trainings), 1 incomplete seed left out"


def test_rows_of_several_versions_of_the_code_are_marked(tmp_path: Path) -> None:
    found = [_result(0, "a", 20), _result(1, "a", 30), _result(0, "a", 9, row="same")]
    for result in found:
        save(result, tmp_path / "results" / "blocks" / result.row / f"seed{result.seed}-a.json")
    assert "†" not in write_tables(tmp_path)
    save(dataclasses.replace(found[1], code="b"), tmp_path / "results/blocks/net/seed1-a.json")
    text = write_tables(tmp_path)
    assert text.count("| net† |") == text.count("† Pools results of different versions of the code.") == 2
    assert text.count("| same |") == 2


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
    with pytest.raises(CheckpointError, match=f"epochs 2 -> 3.*; or remove {tmp_path}"):
        train(row, tiles, 0, {"epochs": 3}, tmp_path)


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
    assert result.minutes is result.device is None  # nobody knows how it was trained
    flags = ["--data", str(tiles), "--out", str(tmp_path)]
    assert accuracy.main(["checkpoint", str(decided), *flags, "--tta"]) == 0
    (mean,) = [found for found in results(tmp_path) if found.row == f"{decided.stem}+tta"]
    expected = evaluate(mirrored(predictor(net)), net.info, tiles)
    assert mean.sets[f"{tiles.name} test"].scores()["iou"] == pytest.approx(expected["iou"])
    assert result.multiply_adds is not None
    assert mean.multiply_adds == 2 * result.multiply_adds


def test_another_checkpoint_does_not_replace_the_results_of_one(
    decided: Path, tiles: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    score_checkpoint(decided, tiles, "test", tmp_path)
    net = load(decided)
    assert net.info is not None
    other = tmp_path / decided.name
    save_weights(other, net, dataclasses.replace(net.info, threshold=0.9))
    arguments = ["checkpoint", str(other), "--data", str(tiles), "--out", str(tmp_path)]
    assert accuracy.main(arguments) == 1
    assert "--name" in capsys.readouterr().err
    assert accuracy.main([*arguments, "--name", "other"]) == 0
    assert {result.row for result in results(tmp_path)} == {decided.stem, "other"}
    (tmp_path / "elsewhere").mkdir()
    elsewhere = tmp_path / "elsewhere" / tiles.name  # other tiles in a folder of the same name
    shutil.copytree(tiles, elsewhere)
    with pytest.raises(ConfigError, match="found a result of another data;"):
        score_checkpoint(decided, elsewhere, "test", tmp_path)


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
    settings = {"epochs": 3, "ema": 0.9, "cutmix": 0.5, "precision": "bf16"}
    config = row_configs(read_rows(["tiny"], rows_file)[0], 0, settings)[1]
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
    with pytest.raises(CheckpointError, match="resume: lr differ from before"):
        train_network(TinyNet, tiles, dataclasses.replace(config, lr=0.5), tmp_path / "parts")


def test_foreign_networks_follow_the_recipe(tiles: Path, rows_file: Path, tmp_path: Path) -> None:
    config = row_configs(read_rows(["tiny"], rows_file)[0], 0, {"epochs": 1, "lr": 0.05})[1]
    test = ScoredSet("test", tiles, "test")
    plain = score(train_network(TinyNet, tiles, config, tmp_path / "plain"), test)
    changes: dict[str, Any] = {
        "cutmix": 1.0, "ema": 0.9, "lovasz_weight": 0.5, "dice": "released", "precision": "bf16",
    }  # fmt: skip
    for key, value in changes.items():
        changed = train_network(TinyNet, tiles, dataclasses.replace(config, **{key: value}), tmp_path / key)
        assert score(changed, test) != plain, key


def test_torchvision_that_does_not_load_is_declared_once(tmp_path: Path) -> None:
    package = tmp_path / "torchvision"
    package.mkdir()
    for name in ("__init__.py", "_C.so", "_C_stable.so"):
        (package / name).touch()
    program = "import vision; vision.prepare(); vision.prepare(); print(len(vision.DECLARED))"
    path = os.pathsep.join([str(tmp_path), str(Path(accuracy.__file__).parent)])
    done = subprocess.run(
        [sys.executable, "-c", program], env={**os.environ, "PYTHONPATH": path}, check=False, capture_output=True
    )
    assert done.stdout.strip() == b"1", done.stderr


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
