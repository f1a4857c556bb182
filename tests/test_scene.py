import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from hetecd.synth import write_pair

PROGRAM = Path(__file__).parents[1] / "examples" / "scene.py"


@pytest.mark.slow
def test_the_pictures_of_a_pair(tmp_path: Path) -> None:
    write_pair(tmp_path, seed=7, height_px=320, width_px=320)
    command = [sys.executable, PROGRAM, tmp_path / "optical.tif", tmp_path / "sar.tif", "-o", tmp_path / "out"]
    subprocess.run([*map(str, command), "--at", "30", "40"], check=True)
    for name in ("overview", "detail"):
        assert Image.open(tmp_path / "out" / f"{name}.jpg").size[0] > 1000
    assert (tmp_path / "out" / "map" / "report.html").is_file()
