"""What several test files share."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from hetecd.synth import write_tiles

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
