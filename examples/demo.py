"""The main job in minutes, on data that it makes itself: `make demo`.

Makes synthetic floods, trains the quick recipe on both dates and, as controls, on one date alone, scores all three on
scenes of other seeds, maps a whole georeferenced scene, makes its report and draws the picture that opens the README.
Every step is a command that you can type yourself.
"""

import argparse
import json
import shlex
import shutil
import sys
import time
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from hetecd.cli import main as hetecd
from hetecd.figures import picture, save_figure, verdict
from hetecd.raster import read_raster

TRAIN_SCENES, TEST_SCENES, EPOCHS = 24, 6, 7
TEST_SEED, SCENE_SEED = 1000, 2001
DATES = {"both": "both dates", "optical": "optical alone", "sar": "SAR alone"}


def run(*words: object) -> None:
    """Print a command, then run it; stop the demo where it fails."""
    command = [str(word) for word in words]
    print(f"\n$ hetecd {shlex.join(command)}", flush=True)
    if code := hetecd(command):
        sys.exit(code)


def main() -> None:
    """Run all steps and print what each took."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path, nargs="?", default=Path("demo"))
    parser.add_argument("--scenes", type=int, default=TRAIN_SCENES, help="training scenes of 512 x 512 px")
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    args = parser.parse_args()
    started = time.monotonic()
    folder: Path = args.folder
    tiles, scene = folder / "tiles", folder / "scene"
    for old in (tiles, *(folder / f"{part}_{dates}" for part in ("run", "scores") for dates in DATES)):
        shutil.rmtree(old, ignore_errors=True)

    run("synth", "tiles", "-o", tiles, "--split", "train", "--seed", 0, "--scenes", args.scenes)
    run("synth", "tiles", "-o", tiles, "--split", "test", "--seed", TEST_SEED, "--scenes", TEST_SCENES)
    scores = {}
    for dates in DATES:
        out = folder / f"run_{dates}"
        run("train", "recipes/quick.yaml", "--data", tiles, "-o", out, "--sar-db", "true", "--modalities", dates,
            "--epochs", args.epochs, "--gsd-m", 3, "--sar-unit", "linear power", "--optical-unit", "reflectance",
            "--data-licence", "Apache-2.0")  # fmt: skip
        run("evaluate", out / "best.safetensors", "--data", tiles, "-o", folder / f"scores_{dates}")
        scores[dates] = json.loads((folder / f"scores_{dates}" / "metrics.json").read_text())
    run("synth", "scene", "-o", scene, "--seed", SCENE_SEED, "--size", 768)
    run("predict", scene / "optical.tif", scene / "sar.tif", "-o", folder / "map",
        "--weights", folder / "run_both" / "best.safetensors", "--report")  # fmt: skip
    draw(scene, folder / "map", folder / "demo.png")

    print(f"\nIoU of the changed class on {scores['both']['tiles']} tiles of scenes never seen in training")
    for dates, name in DATES.items():
        print(f"  {name:14} {100 * scores[dates]['iou']:5.1f} %")
    if scores["both"]["iou"] <= max(scores["optical"]["iou"] or 0, scores["sar"]["iou"] or 0):
        sys.exit("demo: both dates together are no better than one; something is broken")
    print(f"picture: {folder / 'demo.png'}   report: {folder / 'map' / 'report.html'}")
    print(f"{time.monotonic() - started:.0f} s")


def draw(scene: Path, result: Path, path: Path) -> None:
    """Optical before, SAR after, probability and errors of a mapped scene, side by side."""
    from hetecd.modality import Modality
    from hetecd.pair import open_pair
    from hetecd.tiles import Window

    bands = Modality((1, 2, 3, 4), (0,) * 4, (1,) * 4), Modality((1,), (0,), (1,))
    with open_pair(scene / "optical.tif", scene / "sar.tif", "optical", *bands) as pair:
        optical, sar, valid = pair.read(Window(0, 0, pair.grid.height, pair.grid.width))
    prob = read_raster(result / "probability.tif").array[0]
    label = np.where(valid, read_raster(scene / "label.tif").array[0] // 255, 255).astype(np.uint8)
    figure = Figure(figsize=(12.4, 3.5), dpi=100, layout="constrained")
    panels = (
        ("optical, before", picture(optical)),
        ("SAR, after", picture(sar)),
        ("probability of change", prob),
        ("white hit, blue missed, orange false alarm", verdict(prob, label, 0.5)),
    )
    for axis, (title, image) in zip(figure.subplots(1, len(panels)), panels, strict=True):
        axis.imshow(image, vmin=0, vmax=1, interpolation="antialiased")
        axis.set_title(title, fontsize=10)
        axis.set_axis_off()
    save_figure(figure, path)


if __name__ == "__main__":
    main()
