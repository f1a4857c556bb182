"""What several test files share."""

import dataclasses
import functools
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from hetecd.config import ModelConfig, TrainConfig
from hetecd.data import TileDataset, find_tiles
from hetecd.evaluate import predict_tiles
from hetecd.export import Target, export_file
from hetecd.info import ModelInfo
from hetecd.modality import Modality
from hetecd.model import HeteCD
from hetecd.synth import write_tiles
from hetecd.weights import predictor, save

SHARED = Path(__file__).resolve().parents[2] / "shared"
QUICK = {
    "encoder": "mit_b0", "width": 8, "attention": "rescaled", "dropout": 0.1, "token_dropout": False,
}  # fmt: skip


@pytest.fixture
def shared() -> Path:
    """Real data and parity numbers beside the repository; the test is skipped where they are absent."""
    if not SHARED.is_dir():
        pytest.skip("needs the folder ../shared (real data and parity numbers), which is absent")
    return SHARED


@pytest.fixture(scope="session")
def tiles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small data set: 16 training and 8 test tiles of 64 px, four optical bands, SAR as linear power."""
    root = tmp_path_factory.mktemp("tiles")
    write_tiles(root, "train", range(4), tile_px=64, scene_px=128)
    write_tiles(root, "test", (100, 101), tile_px=64, scene_px=128)
    return root


@pytest.fixture(scope="session")
def decided(tiles: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint that nobody trained but that finds change in half of the pixels of the small data set."""
    torch.manual_seed(0)
    config = ModelConfig(encoder="mit_b0", width=16, optical_channels=4, sar_channels=1, attention="rescaled")
    optical = Modality((1, 2, 3, 4), (0.0,) * 4, (3000.0,) * 4)
    net = HeteCD(config).eval()
    net.info = ModelInfo(config, optical, Modality((1,), (-25.0,), (0.0,), db=True), data='a "name" <ü>')
    with torch.no_grad():
        net.decoder.head[3].weight.mul_(40)
    files = find_tiles(tiles, "test")
    data = TileDataset(files, TrainConfig(), net.info.optical, net.info.sar)
    probs = [prob for _, prob in predict_tiles(predictor(net), data, 8)]
    info = dataclasses.replace(net.info, threshold=float(np.median(probs)))
    path = tmp_path_factory.mktemp("decided") / "net.safetensors"
    save(path, net, info)
    return path


@pytest.fixture(scope="session")
def graphs(decided: Path, tiles: Path) -> Callable[[str], Path]:
    """Export that checkpoint, once for each of "f32.onnx", "f32.xml", "bf16.xml" and "int8.xml"."""

    @functools.cache
    def make(name: str) -> Path:
        path = decided.parent / name
        to: Target = "onnx" if path.suffix == ".onnx" else "openvino"
        export_file(decided, path, to, path.stem, tiles)  # type: ignore[arg-type]
        return path

    return make


@pytest.fixture
def small_disk(tmp_path: Path) -> Callable[[str], Path]:
    """Make a folder that is a whole disk of the given size ("600k"); the test is skipped where that is forbidden."""
    mounted: list[Path] = []

    def make(size: str) -> Path:
        folder = tmp_path / f"disk_{len(mounted)}"
        folder.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
        if subprocess.run(command, check=False, capture_output=True).returncode:
            pytest.skip("needs the right to mount a tmpfs")
        mounted.append(folder)
        return folder

    yield make  # type: ignore[misc]
    for folder in mounted:
        subprocess.run(["umount", str(folder)], check=True)
