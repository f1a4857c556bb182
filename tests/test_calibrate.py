"""Calibration finds what was done to probabilities, changes no order, and lands in every runtime's weights."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hetecd.calibrate import BINS, CENTRES, calibrate, calibrate_file, calibrate_like, platt
from hetecd.config import ModelConfig, TrainConfig
from hetecd.data import TileDataset, find_tiles, fit_modalities
from hetecd.errors import CheckpointError, InputError
from hetecd.evaluate import predict_tiles, score
from hetecd.info import ModelInfo
from hetecd.metrics import Calibration, calibration
from hetecd.model import HeteCD
from hetecd.synth import write_tiles
from hetecd.weights import fresh, load, predictor, save

SMALL = ModelConfig(encoder="mit_b0", width=16, optical_channels=4, sar_channels=1)


def _network(tiles: Path, **changes: object) -> tuple[HeteCD, TileDataset]:
    files = find_tiles(tiles, "test")
    optical, sar = fit_modalities(files, TrainConfig())
    net = fresh(dataclasses.replace(SMALL, **changes), 0).eval()  # type: ignore[arg-type]
    head = net.decoder.head if net.config.detail else net.decoder.head[3]
    with torch.no_grad():
        head.weight.mul_(40)  # untrained, it hardly decides
    net.info = ModelInfo(model=net.config, optical=optical, sar=sar)
    return net, TileDataset(files, TrainConfig(), optical, sar)


def _error(net: HeteCD, tiles: TileDataset) -> float:
    bins = (calibration(prob, tile.label) for tile, prob in predict_tiles(predictor(net), tiles, 4))
    return sum(bins, Calibration()).error


@given(st.floats(0.2, 3), st.floats(-2, 2))
@settings(max_examples=30, deadline=None)
def test_platt_finds_slope_and_offset(slope: float, offset: float) -> None:
    p = 1 / (1 + np.exp(-slope * CENTRES - offset))
    density = 1e6 * np.exp(-((CENTRES / 3) ** 2))
    assert platt(np.stack([density * (1 - p), density * p])) == pytest.approx((slope, offset), abs=0.02)


def test_labels_that_contradict_do_not_turn_the_map_round() -> None:
    p = 0.3 / (1 + np.exp(CENTRES))
    slope, offset = platt(np.stack([1 - p, p]))
    assert slope > 0
    assert (1 / (1 + np.exp(-slope * CENTRES - offset))).mean() == pytest.approx(p.mean(), abs=1e-3)


def test_separable_classes_end() -> None:
    counts = np.zeros((2, BINS))
    counts[0, : BINS // 3], counts[1, BINS // 2 :] = 1, 1
    assert np.isfinite(platt(counts)).all()


@pytest.mark.parametrize("detail", [True, False])
def test_calibration_keeps_the_order_and_improves_the_scores(tiles: Path, detail: bool) -> None:
    net, data = _network(tiles, detail=detail)
    after, found = calibrate(net, data)
    assert _error(after, data) < _error(net, data)
    assert found.iou >= found.iou_before - 0.01  # thresholds have two digits
    assert net.info is not None
    assert net.info.threshold == 0.5
    assert after.info is not None
    assert after.info.threshold == found.threshold

    images = torch.rand(1, 4, 64, 64), torch.rand(1, 1, 64, 64)
    with torch.inference_mode():
        margin, moved = ((logits := m(*images))[:, 1] - logits[:, 0] for m in (net, after))
    torch.testing.assert_close(moved, found.slope * margin + found.offset, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("surer", [1.0, -0.1])  # the logits of the latter lie within 0.15, and rise with change
def test_the_file_scores_as_was_promised(tiles: Path, tmp_path: Path, surer: float) -> None:
    net, _ = _network(tiles)
    assert net.info is not None
    with torch.no_grad():
        net.decoder.head[3].weight.mul_(surer)
    save(tmp_path / "net.safetensors", net, net.info)
    found = calibrate_file(tmp_path / "net.safetensors", tiles, "test", tmp_path / "better.safetensors")
    better = load(tmp_path / "better.safetensors")
    assert better.info is not None
    # A histogram of logits knows the IoU up to what lies within one of its bins.
    assert score(predictor(better), better.info, tiles)["iou"] == pytest.approx(found.iou, abs=2e-4)
    assert score(predictor(net), net.info, tiles)["iou"] == pytest.approx(found.iou_before, abs=2e-4)

    # What was fitted can be taken over, once.
    like = calibrate_like(tmp_path / "net.safetensors", tmp_path / "better.safetensors", tmp_path / "like.safetensors")
    assert (like.threshold, like.calibration) == (found.threshold, (found.slope, found.offset))
    same = load(tmp_path / "like.safetensors").state_dict()
    assert all(torch.equal(tensor, same[key]) for key, tensor in better.state_dict().items())
    with pytest.raises(CheckpointError, match="found calibrated weights"):
        calibrate_like(tmp_path / "like.safetensors", tmp_path / "better.safetensors", tmp_path / "x.safetensors")
    assert not (tmp_path / "x.safetensors").exists()
    twice = calibrate_file(tmp_path / "better.safetensors", tiles, "test", tmp_path / "twice.safetensors")
    info = load(tmp_path / "twice.safetensors").info
    assert info is not None
    assert info.calibration == pytest.approx(
        (twice.slope * found.slope, twice.slope * found.offset + twice.offset), abs=1e-6
    )


def test_tiles_without_change_cannot_calibrate(tmp_path: Path, tiles: Path) -> None:
    net, data = _network(tiles)
    write_tiles(tmp_path, "val", [5], tile_px=64, scene_px=64, change=False)
    quiet = TileDataset(find_tiles(tmp_path, "val"), data.config, data.optical, data.sar)
    with pytest.raises(InputError, match="found no unchanged or no changed pixel"):
        calibrate(net, quiet)
