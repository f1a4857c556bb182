"""How much a map owes to its windows: stitched maps of one scene against a single pass over it, as a Markdown table.

    python benchmarks/seams.py [--seed 805] [--size 2624] [--weights CHECKPOINT] [--optical-bands 3 2 1]

The scene is a synthetic flood; compared are probabilities 32 px from the border and farther in.
"""

import argparse
import json
import tempfile
from pathlib import Path

import numpy as np

from hetecd.cli import main as hetecd
from hetecd.modality import Floats
from hetecd.raster import read_raster
from hetecd.synth import write_pair

PLANS = ((256, 0), (256, 64), (512, 128), (512, 256), (768, 384), (1024, 512), (1536, 448), (1536, 512))
BORDER_PX = 32
BANDS = ["3", "4", "2"]  # of blue, green, red, near infrared: what the weights that come along read


def main() -> None:
    """Map, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seed", type=int, default=805, help="of the scene")
    parser.add_argument("--size", type=int, default=2624, help="its edge, px; a multiple of 32")
    parser.add_argument("--weights", help="checkpoint or graph; default: those that come with hetecd")
    parser.add_argument("--optical-bands", nargs="+", default=[], help="default: 3 4 2 with those, else as they say")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        images = write_pair(folder, args.seed, args.size, args.size, "flood")[:2]
        bands = args.optical_bands or ([] if args.weights else BANDS)
        flags = ["--optical-bands", *bands] if bands else []
        flags += ["--weights", args.weights] if args.weights else []
        flags += ["--align", "off", "--redo", "--batch", "1"]

        def mapped(tile_px: int, overlap_px: int) -> tuple[Floats, float]:
            out = folder / "map"
            windows = ["--tile", str(tile_px), "--overlap", str(overlap_px)]
            if hetecd(["predict", *map(str, images), "-o", str(out), *flags, *windows]):
                raise SystemExit(1)
            inner = slice(BORDER_PX, -BORDER_PX)
            settings = json.loads((out / "summary.json").read_text())["settings"]
            return read_raster(out / "probability.tif").array[0, inner, inner], settings["threshold"]

        whole, threshold = mapped(args.size, 0)
        valid = np.isfinite(whole)
        print("| tile / overlap, px | largest difference | mean | pixels of another class |\n|---|---|---|---|")
        for plan in PLANS:
            probability, _ = mapped(*plan)
            error = np.abs(probability - whole)[valid]
            other = ((probability >= threshold) != (whole >= threshold))[valid].mean()
            print(
                f"| {plan[0]} / {plan[1]} | {error.max():.2g} | {error.mean():.2g} | {100 * other:.2g} % |", flush=True
            )


if __name__ == "__main__":
    main()
