"""What several test files share."""

import dataclasses
import fcntl
import functools
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import ndimage
from selenium import webdriver

from hetecd.config import ModelConfig, TrainConfig
from hetecd.data import TileDataset, find_tiles
from hetecd.evaluate import predict_tiles
from hetecd.export import Target, export_file
from hetecd.info import ModelInfo
from hetecd.modality import Modality
from hetecd.model import HeteCD
from hetecd.pair import open_pair
from hetecd.predict import predict_scene
from hetecd.synth import write_pair, write_tiles
from hetecd.weights import predictor, save

SHARED = Path(__file__).resolve().parents[2] / "shared"
QUICK = {
    "encoder": "mit_b0", "width": 8, "attention": "rescaled", "dropout": 0.1, "token_dropout": False,
}  # fmt: skip


def described(info: ModelInfo) -> HeteCD:
    """A network of random weights, always the same, that carries a description."""
    torch.manual_seed(0)
    net = HeteCD(info.model).eval()
    net.info = info
    return net


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
def common(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that the processes of a run of tests share; what is made there is made :func:`once`."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


def once(path: Path, make: Callable[[Path], object]) -> Path:
    """A file that the first process to need it makes, and that nobody changes."""
    with open(f"{path}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            make(path)
    return path


@pytest.fixture(scope="session")
def decided(tiles: Path, common: Path) -> Path:
    """A checkpoint that nobody trained but that finds change in half of the pixels of the small data set."""
    return once(common / "decided.safetensors", functools.partial(_decide, tiles))


def _decide(tiles: Path, path: Path) -> None:
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
    save(path, net, info)


@pytest.fixture(scope="session")
def graphs(decided: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Export that checkpoint, once for each of "f32.onnx", "f32.xml", "bf16.xml" and "int8.xml"."""
    few = tmp_path_factory.mktemp("few")  # of which int8 takes the longer, the more there are
    write_tiles(few, "train", (0, 1), tile_px=64, scene_px=64)

    def make(path: Path) -> None:
        to: Target = "onnx" if path.suffix == ".onnx" else "openvino"
        export_file(decided, path, to, path.stem, few)  # type: ignore[arg-type]

    return lambda name: once(decided.with_name(name), make)


@pytest.fixture(scope="session")
def mapped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The results `map` of a scene of 120 x 160 px, which lies beside them; some thirty blobs changed."""
    folder = tmp_path_factory.mktemp("mapped")
    write_pair(folder, seed=5, height_px=120, width_px=160)
    field = ndimage.gaussian_filter(np.random.default_rng(0).normal(size=(120, 160)), 3)
    probability = (1 / (1 + np.exp(-2.5 * field / field.std()))).astype(np.float32)
    bands = [Modality(tuple(range(1, n + 1)), (0.0,) * n, (1.0,) * n) for n in (4, 1)]
    with open_pair(folder / "optical.tif", folder / "sar.tif", "optical", *bands) as pair:
        predict_scene(pair, lambda optical, sar: probability[None], folder / "map", 0.6, progress=False)
    return folder / "map"


@pytest.fixture(scope="module")
def browser() -> Iterator[webdriver.Chrome]:
    """Chromium without a window, one per test file; the tests are skipped where none is installed."""
    program = shutil.which("chromium") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    if not program or not driver:
        pytest.skip("needs chromium and chromedriver (Debian: chromium, chromium-driver)")
    options = webdriver.ChromeOptions()
    options.binary_location = program
    quiet = ("background-networking", "component-update", "gpu", "quic", "sync", "dev-shm-usage")
    for flag in ("headless=new", "no-sandbox", "no-first-run", *(f"disable-{name}" for name in quiet)):
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    chrome = webdriver.Chrome(options, webdriver.ChromeService(driver))
    yield chrome
    chrome.quit()


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
