"""The yardstick of the speed tables is the published network too; pictures show what they should."""

import dataclasses
import multiprocessing
import subprocess
import sys
from pathlib import Path

import numpy as np
import parity
import pytest
import speed
import torch
from plain import PlainHeteCD

from examples import main as examples
from hetecd.convert import UNUSED
from hetecd.raster import read_raster
from hetecd.synth import write_tiles
from hetecd.weights import load, save


@pytest.mark.parametrize("name", ["C_e64_1x64", "D_e64_1x96x160"])
def test_the_plain_transcription_has_parity(name: str, shared: Path) -> None:
    net = PlainHeteCD(64).eval()
    state = parity.state_dict(shared / "parity", "keys_e64.json")
    net.load_state_dict({key: value for key, value in state.items() if key not in UNUSED})
    optical, sar, _ = parity.inputs(shared / "parity", name)
    arrays, _ = parity.case(shared / "parity", name)
    with torch.no_grad():
        logits, features = net(optical, sar)
    assert np.abs(logits.numpy() - arrays["logits"]).max() < 1e-4
    assert np.abs(features[1][0][:, :8].numpy() - arrays["feat2_c3_first8"]).max() < 1e-4


@pytest.mark.parametrize("table", speed.TABLES)
@pytest.mark.parametrize("row", ["plain, bf16", "`default` network, bf16"])
def test_a_row_of_the_speed_tables(
    table: str, row: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One small call in a process of its own, as on any device."""
    task, batch, _, unit = speed.TABLES[table]
    monkeypatch.setitem(speed.TABLES, table, (task, batch, 32, unit))
    ours, theirs = multiprocessing.Pipe()
    for message in (True, False):
        ours.send(message)
    speed.work(theirs, row, table, 1, tmp_path, "cpu")
    result, first_mb, again_mb = ours.recv()
    variant = speed.Variant(row, multiprocessing.current_process(), ours, result, first_mb, again_mb, [ours.recv()])
    assert result.shape == (batch, 32, 32)
    assert 0 < variant.seconds[0] < 60
    speed.show(table, [variant])
    assert f"| {row} | {variant.median_ms:.0f} | 1.00 |" in capsys.readouterr().out


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("program", ["speed", "roofline"])
def test_no_gpu_is_one_line(program: str) -> None:
    run = subprocess.run(
        [sys.executable, f"benchmarks/{program}.py", "--device", "cuda"], capture_output=True, text=True, check=False
    )
    assert run.returncode == 1
    assert run.stderr == "--device: found cuda, but torch can use no GPU here; expected cpu\n"


def test_examples_show_every_tile_once_and_every_network(decided: Path, tiles: Path, tmp_path: Path) -> None:
    sizes = []
    for count, weights in ((1, ["a"]), (1, ["a", "b"]), (9, ["a"])):
        out = tmp_path / "examples.png"
        flags = ["--each", str(count), "--weights", *(f"{name}={decided}" for name in weights)]
        examples([str(tiles), "-o", str(out), *flags])
        sizes.append(read_raster(out).array.shape[1:])
    assert sizes[1][0] == sizes[0][0]
    assert sizes[1][1] > sizes[0][1]  # a column more
    assert sizes[2][0] > 2 * sizes[0][0]  # all tiles with change, none twice
    assert sizes[2][0] < 10 * sizes[0][0] / 3


def test_no_examples_where_nothing_changes(decided: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_tiles(tmp_path, "test", (100,), tile_px=64, scene_px=64, change=False)
    net = load(decided)
    assert net.info is not None
    with torch.no_grad():
        net.decoder.head[3].weight.zero_()
        net.decoder.head[3].bias.zero_()
    weights = tmp_path / "quiet.safetensors"
    save(weights, net, dataclasses.replace(net.info, threshold=0.9))
    with pytest.raises(SystemExit):
        examples([str(tmp_path), "-o", str(tmp_path / "examples.png"), "--weights", f"a={weights}"])
    assert "found no change in split 'test'" in capsys.readouterr().err
