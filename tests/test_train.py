"""Training learns, resumes exactly, and survives Ctrl-C and a full disk."""

import csv
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import QUICK
from safetensors.torch import load_file

import hetecd
from hetecd import cli, train
from hetecd.config import ModelConfig, TrainConfig
from hetecd.data import TileDataset, find_tiles
from hetecd.errors import CheckpointError, ConfigError, HetecdError, InputError, OutputError
from hetecd.info import ModelInfo
from hetecd.modality import Modality
from hetecd.model import HeteCD
from hetecd.raster import Grid, write_raster
from hetecd.resume import SafetensorsIO
from hetecd.synth import write_tiles
from hetecd.train import (
    MOST_OVERFLOWS,
    MOST_WORKERS,
    Hardware,
    Keep,
    Training,
    fca_weight,
    fit,
    loader_workers,
    lr_factor,
    running_mean,
)

MODEL = ModelConfig(**QUICK)  # type: ignore[arg-type]
CPU = Hardware(accelerator="cpu", devices=1)


def _config(**changes: object) -> TrainConfig:
    settings: dict[str, object] = {"sar_db": True, "epochs": 2, "batch": 4, "val_fraction": 0.25, "seed": 5}
    return TrainConfig(**(settings | changes))  # type: ignore[arg-type]


def _rows(out: Path) -> list[dict[str, str]]:
    with (out / "log.csv").open() as file:
        return list(csv.DictReader(file))


def _equal(a: Path, b: Path) -> bool:
    first, second = load_file(a), load_file(b)
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


def test_a_training_leaves_what_it_promises(tiles: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="hetecd")
    out = tmp_path / "run"
    best = fit(tiles, out, MODEL, _config(gsd_m=3.0, data_licence="Apache-2.0"), hardware=CPU)
    assert best == out / "best.safetensors"
    assert {"best.safetensors", "last.safetensors", "state.safetensors", "log.csv", "tensorboard"} == {
        path.name for path in out.iterdir()
    }
    assert "held out" in caplog.text
    assert "epoch 2/2" in caplog.text
    assert "in all, which is few" in caplog.text
    rows = _rows(out)
    assert [row["epoch"] for row in rows] == ["0", "1"]
    assert {"loss", "loss_ce", "loss_dice", "loss_fca", "val_loss", "val_iou", "lr", "seconds"} <= rows[0].keys()
    info = hetecd.load(best).info
    assert info is not None
    assert (info.optical.bands, info.sar.bands, info.sar.db) == ((1, 2, 3, 4), (1,), True)
    assert (info.sar.gsd_m, info.licence, info.recipe["epochs"]) == (3.0, "Apache-2.0", 2)
    assert info.scores["epoch"] in (0, 1)
    assert list((out / "tensorboard").glob("events.*"))


@pytest.mark.parametrize(
    ("workers", "gpus", "cores", "hardware", "chosen"),
    [
        (-1, 0, 16, Hardware(), 0),
        (-1, 1, 16, Hardware(accelerator="cpu"), 0),
        (-1, 1, 6, Hardware(), 5),
        (-1, 1, 1, Hardware(accelerator="gpu"), 1),
        (-1, 4, 16, Hardware(devices=0), 3),
        (-1, 4, 16, Hardware(devices=-1), 3),
        (-1, 4, 128, Hardware(), MOST_WORKERS),
        (0, 1, 16, Hardware(), 0),
        (3, 0, 2, Hardware(), 3),
    ],
)
def test_loader_processes_are_chosen_by_what_trains(
    workers: int, gpus: int, cores: int, hardware: Hardware, chosen: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(train, "usable_cores", lambda: cores)
    assert loader_workers(workers, hardware) == chosen


def test_without_validation_all_tiles_train_and_the_last_epoch_is_kept(
    tiles: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    best = fit(tiles, tmp_path / "run", MODEL, _config(val_fraction=0), hardware=CPU)
    assert not [record for record in caplog.records if record.levelname == "WARNING"]
    assert _equal(best, tmp_path / "run" / "last.safetensors")
    info = hetecd.load(best).info
    assert info is not None
    count = len(find_tiles(tiles, "train"))
    assert info.data.startswith(f"{tiles.name}: {count} training tiles")
    assert (info.scores["epoch"], info.scores["iou"]) == (1, None)
    with pytest.raises(ConfigError, match="calibrate: found val_fraction 0"):
        _config(val_fraction=0, calibrate=True)


def test_every_loss_that_is_asked_for_is_logged_and_trains(tiles: Path, tmp_path: Path) -> None:
    model = replace(MODEL, encoder="residual_s", deep_supervision=True, detail=True, standardise=True, correlation=True)
    config = _config(lovasz_weight=0.5, alignment="label_aware", fca_weight=0.3, fca_schedule="constant", rotate=90)
    fit(tiles, tmp_path / "run", model, config, hardware=CPU)
    for row in _rows(tmp_path / "run"):
        terms = [float(row[f"loss_{name}"]) for name in ("ce", "dice", "lovasz", "deep", "fca")]
        assert min(terms) > 0
        assert sum(terms) == pytest.approx(float(row["loss"]), rel=1e-3)
    first, last = (float(row["loss"]) for row in _rows(tmp_path / "run"))
    assert last < first


def test_it_learns(tmp_path: Path) -> None:
    """A change that both dates tell together, and neither alone: the XOR of two checkered images."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 12), ("val", 4)):
        for i in range(count):
            before, after = (np.kron(rng.integers(0, 2, (4, 4)), np.ones((16, 16))).astype(np.uint8) for _ in range(2))
            for folder, image in (("A", before * 200), ("B", after * 200), ("label", (before ^ after) * 255)):
                write_raster(tmp_path / split / folder / f"{i}.png", image, Grid(None, None, 64, 64))
    config = TrainConfig(epochs=16, batch=4, lr=2e-3, scale=1.0, fca_weight=0.0, normalise="uint8")
    model = ModelConfig("residual_s", width=16, attention="rescaled", dropout=0, drop_path=0, decoder_dropout=0)
    out = tmp_path / "run"
    fit(tmp_path, out, model, config, hardware=CPU)
    rows = _rows(out)
    assert float(rows[-1]["loss"]) < 0.5 * float(rows[0]["loss"])
    assert max(float(row["val_iou"] or 0) for row in rows) > 0.8


def test_the_same_seed_gives_the_same_weights_and_another_does_not(tiles: Path, tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        fit(tiles, tmp_path / name, MODEL, _config(epochs=1, seed=seed), hardware=CPU)
    assert _equal(tmp_path / "a" / "last.safetensors", tmp_path / "b" / "last.safetensors")
    assert not _equal(tmp_path / "a" / "last.safetensors", tmp_path / "c" / "last.safetensors")


def test_ctrl_c_leaves_the_last_good_checkpoint_and_resume_continues_exactly(tiles: Path, tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    flags = ["--data", str(tiles), "--epochs", "4", "--batch", "4", "--sar-db", "true", "--seed", "5", "--workers", "0",
             "--width", "8", "--val-fraction", "0.25", "--precision", "f32", "--accelerator", "cpu",
             "--cutmix", "0.5", "--ema", "0.9"]  # fmt: skip
    command = [sys.executable, "-m", "hetecd", "train", "recipes/quick.yaml", *flags]
    environment = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    # A shell's background jobs ignore Ctrl-C, and so would what they start.
    first = subprocess.Popen(
        [*command, "-o", str(cut)], stderr=subprocess.PIPE, text=True, env=environment,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509 - takes no lock
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while not (cut / "state.safetensors").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    first.send_signal(signal.SIGINT)
    _, said = first.communicate(timeout=60)
    assert first.returncode == 130, said
    assert said.splitlines()[-1] == "hetecd: interrupted; what was finished is kept"
    done = len(_rows(cut))
    assert 1 <= done < 4
    hetecd.load(cut / "best.safetensors")
    for out, resume in ((cut, ["--resume"]), (whole, [])):
        assert cli.main([*command[3:], "-o", str(out), *resume]) == 0
    assert [row["epoch"] for row in _rows(cut)] == ["0", "1", "2", "3"]
    for name in ("last.safetensors", "best.safetensors"):
        assert _equal(cut / name, whole / name)
    for column in ("loss", "val_iou", "lr"):
        assert [row[column] for row in _rows(cut)] == [row[column] for row in _rows(whole)]


def test_a_full_disk_leaves_the_last_good_checkpoint(
    tiles: Path, tmp_path: Path, small_disk: Callable[[str], Path]
) -> None:
    fit(tiles, tmp_path / "probe", MODEL, _config(epochs=1), hardware=CPU)
    size = sum(path.stat().st_size for path in (tmp_path / "probe").rglob("*.safetensors"))
    # Room for all files once, but not for the new state beside the old one.
    disk = small_disk(f"{int(size * 1.2)}")
    with pytest.raises(OutputError, match="cannot write"):
        fit(tiles, disk / "run", MODEL, _config(epochs=3), hardware=CPU)
    hetecd.load(disk / "run" / "best.safetensors")
    SafetensorsIO().load_checkpoint(disk / "run" / "state.safetensors")
    assert not list((disk / "run").glob(".*"))


def test_the_running_mean_is_of_the_last_steps(tiles: Path, tmp_path: Path) -> None:
    fit(tiles, tmp_path / "run", MODEL, _config(epochs=3, ema=0.75), hardware=CPU)
    state = SafetensorsIO().load_checkpoint(tmp_path / "run" / "state.safetensors")["state_dict"]
    kept = load_file(tmp_path / "run" / "last.safetensors")
    assert all(torch.equal(value, state[f"average.module.{name}"]) for name, value in kept.items())
    assert any(not torch.equal(value, state[f"model.{name}"]) for name, value in kept.items())
    mean = value = torch.zeros(3)
    for step in range(1, 6):
        value = value + 1
        running_mean(0.75)([mean], [value], step)
    # By hand: the mean moves to the new value by 9/11, 9/12, 9/13, 9/14, 9/15 of the way, and never by less than 1/4.
    assert mean[0] == pytest.approx(4.4002, abs=1e-4)
    running_mean(0.75)([mean], [mean + 1], 1000)
    assert mean[0] == pytest.approx(4.4002 + 0.25, abs=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("modalities", ["both", "optical"])
def test_two_processes_train_one_network(modalities: str, tiles: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "hetecd", "train", "recipes/quick.yaml", "--data", str(tiles),
               "-o", str(tmp_path / "run"), "--epochs", "2", "--batch", "2", "--width", "8", "--sar-db", "true",
               "--accelerator", "cpu", "--devices", "2", "--strategy", "ddp", "--precision", "f32",
               "--ema", "0.9", "--cutmix", "0.5",
               "--modalities", modalities]  # fmt: skip
    subprocess.run(command, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, timeout=300)
    assert [row["epoch"] for row in _rows(tmp_path / "run")] == ["0", "1"]
    hetecd.load(tmp_path / "run" / "best.safetensors")


def test_what_cannot_be_started_is_refused(tiles: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"found no state\.safetensors, expected a training to resume"):
        fit(tiles, tmp_path / "none", MODEL, _config(), resume=True)
    with pytest.raises(InputError, match="found no such folder"):
        fit(tmp_path / "nowhere", tmp_path / "out", MODEL, _config())
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot write here"):
        fit(tiles, tmp_path / "file" / "run", MODEL, _config())
    out = tmp_path / "run"
    fit(tiles, out, MODEL, _config(epochs=1), hardware=CPU)
    with pytest.raises(OutputError, match=r"holds a training already \(state.safetensors\); go on with"):
        fit(tiles, out, MODEL, _config(epochs=1), hardware=CPU)
    with pytest.raises(ConfigError, match=r"hardware: .*int > 0"):
        fit(tiles, tmp_path / "minus", MODEL, _config(), hardware=Hardware(accelerator="cpu", devices=-3))
    with pytest.raises(CheckpointError, match=r"settings differ from before \(lr 0.0005 -> 0.001\)"):
        fit(tiles, out, MODEL, _config(epochs=1, lr=1e-3), resume=True, hardware=CPU)
    other = tmp_path / "other"
    write_tiles(other, "train", range(4, 8), tile_px=64, scene_px=128)
    with pytest.raises(CheckpointError, match="the tiles in --data are not those of before"):
        fit(other, out, MODEL, _config(epochs=1), resume=True, hardware=CPU)
    for path in (other / "train" / "label").iterdir():
        write_raster(path, np.zeros((64, 64), np.uint8), Grid(None, None, 64, 64))
    with pytest.raises(InputError, match="found no changed pixel in 12 training labels"):
        fit(other, tmp_path / "blank", MODEL, _config(epochs=1), hardware=CPU)


def test_held_out_tiles_without_change_choose_no_epoch(tmp_path: Path) -> None:
    for split, seeds in (("train", range(2)), ("val", range(2, 3))):
        write_tiles(tmp_path, split, seeds, tile_px=64, scene_px=128)
    for path in (tmp_path / "val" / "label").iterdir():
        write_raster(path, np.zeros((64, 64), np.uint8), Grid(None, None, 64, 64))
    with pytest.raises(InputError, match=r"calibrate: found no changed pixel in \d+ held-out labels"):
        fit(tmp_path, tmp_path / "run", MODEL, _config(epochs=2, calibrate=True), hardware=CPU)
    fit(tmp_path, tmp_path / "run", MODEL, _config(epochs=2), hardware=CPU)
    assert [float(row["val_iou"]) for row in _rows(tmp_path / "run")] == [0, 0]  # each calls something changed
    net = hetecd.load(tmp_path / "run" / "best.safetensors")
    assert net.info is not None
    assert net.info.scores["epoch"] == 1


@pytest.mark.parametrize("resume", [False, True])
def test_weights_without_a_state_are_neither_gone_on_from_nor_replaced(
    resume: bool, tiles: Path, tmp_path: Path
) -> None:
    (tmp_path / "best.safetensors").touch()  # all there is after a kill in the first epoch
    with pytest.raises(HetecdError, match=r"no state\.safetensors to go on from; remove best\.safetensors and start"):
        fit(tiles, tmp_path, MODEL, _config(), resume, CPU)


def test_a_log_with_columns_of_another_version_is_gone_on_with(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text("epoch,seconds,old\n0,1.5,7\n")
    trainer = SimpleNamespace(current_epoch=1, max_epochs=2, optimizers=[SimpleNamespace(param_groups=[{"lr": 0.1}])])
    Keep(tmp_path)._write_line(trainer, {"loss": 1.0}, {"iou": 0.5})  # type: ignore[arg-type]
    first, second = _rows(tmp_path)
    assert (first["old"], first["loss"]) == ("7", "")
    assert (second["old"], second["loss"], second["val_iou"]) == ("", "1.0", "0.5")


def test_a_single_pixel_has_no_statistics(tmp_path: Path) -> None:
    write_tiles(tmp_path, "train", (1, 3), tile_px=32, scene_px=64)
    with pytest.raises(ConfigError, match="batch: found 1 tile of at most 32 px"):
        fit(tmp_path, tmp_path / "run", MODEL, _config(epochs=1, batch=1), hardware=CPU)
    residual = replace(MODEL, encoder="residual_s")  # whose coarsest map is twice as fine
    fit(tmp_path, tmp_path / "residual", residual, _config(epochs=1, batch=1), hardware=CPU)


def test_a_state_of_something_else_is_refused(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"a": torch.zeros(1)}, tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError, match="expected 'hetecd-state-1'"):
        SafetensorsIO().load_checkpoint(tmp_path / "x.safetensors")


def test_a_state_comes_back_as_it_was(tmp_path: Path) -> None:
    shared = torch.arange(4.0)
    state = {
        "a": {0: {"step": torch.tensor(3.0)}, "b": [1, 2.5, None, True, "x"]}, "t": (1, (2, shared)),
        "same": shared[:2],
        "empty": {}, "big": 2**60,
    }  # fmt: skip
    io = SafetensorsIO()
    io.save_checkpoint(state, tmp_path / "s.safetensors")
    again = io.load_checkpoint(tmp_path / "s.safetensors")
    assert again["a"][0]["step"] == 3.0
    assert again["a"]["b"] == state["a"]["b"]  # type: ignore[index]
    assert again["t"][0] == 1
    assert torch.equal(again["t"][1][1], shared)
    assert again["big"] == 2**60
    io.remove_checkpoint(tmp_path / "s.safetensors")
    assert not list(tmp_path.iterdir())
    with pytest.raises(CheckpointError, match="cannot store a object"):
        io.save_checkpoint({"x": object()}, tmp_path / "s.safetensors")


def test_schedules() -> None:
    paper = TrainConfig(fca_weight=2.0, fca_schedule="decay", lr_power=1.5, warmup=0.0, epochs=200)
    assert [fca_weight(paper, epoch) for epoch in (0, 1, 9)] == [2.0, 1.0, 0.2]
    assert lr_factor(paper, 0, 100) == 1.0
    assert lr_factor(paper, 25, 100) == pytest.approx(0.75**1.5)
    ramp = TrainConfig(fca_weight=1.0, fca_schedule="ramp", epochs=4, warmup=0.1, lr_power=1.0)
    assert [fca_weight(ramp, epoch) for epoch in range(4)] == [0.25, 0.5, 0.75, 1.0]
    factors = [lr_factor(ramp, step, 100) for step in range(101)]
    assert factors[:2] == [0.1, 0.2]
    assert max(factors) == factors[9] == 1.0
    assert factors[100] == 0.0


@pytest.mark.parametrize(
    ("field", "value"), [("epochs", 0), ("flip", 1.5), ("tile_px", 16), ("scale", 0.5), ("val_fraction", 0.95)]
)
def test_settings_out_of_range_are_refused(field: str, value: float) -> None:
    with pytest.raises(ConfigError, match=rf"{field}: found {value}, expected"):
        TrainConfig(**{field: value})  # type: ignore[arg-type]


@pytest.mark.parametrize("weights", [(-1.0, 1.0), (0.0, 0.0), (math.inf, 1.0), (1.0, math.nan)])
@pytest.mark.parametrize("field", ["ce_weights", "val_ce_weights"])
def test_class_weights_that_are_none_are_refused(field: str, weights: tuple[float, float]) -> None:
    with pytest.raises(ConfigError, match=rf"^{field}: found .*, expected two finite numbers from 0, not both 0"):
        TrainConfig(**{field: weights})  # type: ignore[arg-type]


def test_pretrained_encoders_are_used(tiles: Path, tmp_path: Path) -> None:
    from hetecd.encoder import ENCODERS, Encoder
    from hetecd.weights import save_tensors

    torch.manual_seed(7)
    tensors = Encoder(ENCODERS["mit_b0"], 3).state_dict()
    path = tmp_path / "encoder.safetensors"
    save_tensors(path, tensors, {"format": "hetecd-encoder-1", "encoder": "mit_b0"})
    fit(tiles, tmp_path / "run", MODEL, _config(epochs=1, lr=0.0, encoder_weights=str(path)), hardware=CPU)
    net = hetecd.load(tmp_path / "run" / "last.safetensors")
    key = "stages.2.blocks.1.mlp.expand.weight"
    for encoder in (net.optical_encoder, net.sar_encoder):
        assert torch.equal(encoder.state_dict()[key], tensors[key])
    first = "stages.0.embed.conv.weight"
    torch.testing.assert_close(net.sar_encoder.state_dict()[first], tensors[first].sum(1, keepdim=True))


@pytest.mark.parametrize("modalities", ["optical", "sar"])
def test_controls_that_see_one_date_train(modalities: str, tiles: Path, tmp_path: Path) -> None:
    model = ModelConfig(**(QUICK | {"modalities": modalities}))  # type: ignore[arg-type]
    fit(tiles, tmp_path / "run", model, _config(epochs=1), hardware=CPU)
    assert float(_rows(tmp_path / "run")[0]["loss"]) < 10
    net = hetecd.load(tmp_path / "run" / "last.safetensors")
    assert all(value.isfinite().all() for value in net.state_dict().values())


def test_a_gradient_that_overflows_leaves_the_weights_alone_and_in_the_end_stops_the_training(tiles: Path) -> None:
    config = _config(clip=0.5)
    optical, sar = Modality((1, 2, 3), (0,) * 3, (1,) * 3), Modality((1,), (0,), (1,))
    info = ModelInfo(ModelConfig(**QUICK, sar_channels=1), optical, sar)  # type: ignore[arg-type]
    data = TileDataset(find_tiles(tiles, "test"), config, optical, sar)
    task = Training(HeteCD(info.model), config, info, data, data)
    optimizer = torch.optim.AdamW(task.parameters(), lr=1.0)
    weight = task.model.decoder.fuse.weight

    def step(gradient: float) -> float:
        before = weight.detach().clone()
        weight.grad = torch.full_like(weight, gradient)
        task.configure_gradient_clipping(optimizer)
        norm = 0.0 if weight.grad is None else weight.grad.norm().item()
        optimizer.step()
        assert torch.equal(weight, before) == (norm == 0.0)
        return norm

    for gradient in (math.inf, math.nan, -math.inf):
        assert step(gradient) == 0.0
    assert step(1e6) == pytest.approx(0.5)
    for _ in range(MOST_OVERFLOWS - 1):
        step(math.nan)
    with pytest.raises(InputError, match="the gradient is not finite for 20 steps in a row; lower lr"):
        step(math.nan)


def test_a_training_can_start_from_another_and_ends_calibrated(
    tiles: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = fit(tiles, tmp_path / "first", MODEL, _config(epochs=1), hardware=CPU)
    caplog.set_level("INFO", logger="hetecd")
    caplog.clear()  # the level may have been that before
    again = _config(epochs=1, lr=0.0, ema=0.5, start_from=str(first), calibrate=True)
    second = fit(tiles, tmp_path / "second", MODEL, again, hardware=CPU)
    assert "held out" in caplog.text
    assert "which is few" not in caplog.text  # it was trained before
    before, after = hetecd.load(first), hetecd.load(second)
    assert before.info is not None
    assert after.info is not None
    assert after.info.optical == before.info.optical
    assert after.info.threshold != 0.5
    content = second.read_bytes()
    fit(tiles, tmp_path / "second", MODEL, again, resume=True, hardware=CPU)
    assert second.read_bytes() == content  # calibrated once
    shutil.copy(tmp_path / "second" / "last.safetensors", second)  # as after a kill between the last epoch and this
    fit(tiles, tmp_path / "second", MODEL, again, resume=True, hardware=CPU)
    assert hetecd.load(second).info == after.info
    states = before.state_dict(), after.state_dict()
    same = [key for key, value in before.named_parameters() if torch.equal(value, states[1][key])]
    assert {key for key, _ in before.named_parameters()} - set(same) == {
        "decoder.head.3.weight", "decoder.head.3.bias",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("model", "changes", "words"),
    [
        ({"width": 16}, {}, "does not fit the network"),
        ({"attention": "published"}, {}, "found another attention, expected the network to be trained"),
        ({}, {"sar_bands": (1, 1)}, r"sar_bands: found \[1, 1\], expected 1"),
        ({}, {"before_is": "sar"}, "found optical as the earlier date"),
    ],
)
def test_a_start_that_does_not_fit_is_refused(
    model: dict[str, object], changes: dict[str, object], words: str, tiles: Path, tmp_path: Path
) -> None:
    first = fit(tiles, tmp_path / "first", MODEL, _config(epochs=1), hardware=CPU)
    with pytest.raises(HetecdError, match=words):
        fit(
            tiles, tmp_path / "second", ModelConfig(**(QUICK | model)),  # type: ignore[arg-type]
            _config(epochs=1, start_from=str(first), **changes), hardware=CPU,
        )  # fmt: skip


def test_two_kinds_of_initial_weights_are_one_too_many() -> None:
    with pytest.raises(ConfigError, match="start_from: found encoder_weights too"):
        TrainConfig(start_from="a", encoder_weights="b")


@pytest.mark.parametrize("name", ["before_is", "normalise", "decay", "precision", "dice", "alignment", "fca_schedule"])
def test_a_word_that_is_no_choice_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=f"{name}: found 'hard', expected one of "):
        TrainConfig(**{name: "hard"})  # type: ignore[arg-type]
