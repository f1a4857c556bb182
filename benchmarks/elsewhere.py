"""What weights make of places they do not know: `elsewhere.py [WEIGHTS ...] --data DATA`, DATA with pairs and scene_la.

Each pair goes through `hetecd predict --precision bf16`, in the range of the scene where its values are foreign, and
both dates of Gloucester in theirs. Synthetic scenes (:mod:`hetecd.synth`, of seeds that no training has) are
reflectance and linear power, half of them in true and half in false colour. Prints a Markdown table.
"""

import argparse
import contextlib
import io
import sys
import tempfile
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np
from affine import Affine
from mixture import FALSE, NATURAL, shrunk
from rasterio.crs import CRS

from hetecd.cli import main as hetecd
from hetecd.config import IGNORE
from hetecd.errors import InputError
from hetecd.flags import DEFAULT_WEIGHTS
from hetecd.metrics import Confusion, confusion
from hetecd.raster import Grid, read_raster, write_raster
from hetecd.synth import make_scene
from hetecd.synth_world import PIXEL_M, SceneKind

EDGE_PX = 512
SEED = 81_000  # of the first scene


class Place(NamedTuple):
    """A column of synthetic scenes; ``shrink`` of their pixels along either axis become one of the images."""

    name: str
    kind: SceneKind
    change: bool
    shrink: float
    scenes: int


class Pair(NamedTuple):
    """Two images, perhaps a label (none: nothing changed), and flags of `predict`."""

    before: Path
    after: Path
    label: Path | None = None
    flags: tuple[str, ...] = ()


PLACES = (
    Place("floods, 10 m", "flood", True, 10 / 3, 4),
    Place("floods, 3 m", "flood", True, 1, 4),
    Place("rivers in their beds, 10 m", "flood", False, 10 / 3, 2),
    Place("cities as they were, 6 m", "city", False, 2, 2),
)


def pairs_of(data: Path, work: Path) -> dict[str, list[Pair]]:
    """All pairs, by the name of their column; synthetic ones are written to ``work``."""
    flood, city = data / "pairs" / "gloucester2", data / "scene_la"
    flags = ("--align", "off", "--scaling", "scene")
    real = {
        "Gloucester": [Pair(flood / "pre.tif", flood / "post.tif", flood / "label.png", flags)],
        "Los Angeles, unchanged": [Pair(city / "optical.tif", city / "sar.tif")],
    }
    for pair in chain.from_iterable(real.values()):
        for path in filter(None, (pair.before, pair.after, pair.label)):
            if not path.is_file():
                raise InputError(f"{path}: no such file; expected pairs/ and scene_la/ in --data")
    synthetic = {
        place.name: [
            write_scene(work / f"{group}_{i}", SEED + 100 * group + i, place, NATURAL if i % 2 else FALSE)
            for i in range(place.scenes)
        ]
        for group, place in enumerate(PLACES)
    }
    return synthetic | real


def write_scene(out: Path, seed: int, place: Place, bands: Sequence[int]) -> Pair:
    """Write a scene as rasters: three bands of reflectance x 10000, one of linear power, the label."""
    size, shrink = round(EDGE_PX * place.shrink), place.shrink
    scene = make_scene(
        seed, size, size, place.kind, looks=max(1.0, 4 / shrink**2), jitter_px=min(4.0, 2 * shrink), change=place.change
    )
    optical = scene.optical[[band - 1 for band in bands]]
    images = shrunk(np.concatenate([optical, scene.sar, scene.label[None]]).astype(np.float32), EDGE_PX)
    pixel_m = PIXEL_M * shrink
    grid = Grid(CRS.from_epsg(32633), Affine(pixel_m, 0, 500_000, 0, -pixel_m, 5_000_000), EDGE_PX, EDGE_PX)
    pair = Pair(out / "optical.tif", out / "sar.tif", out / "label.tif")
    write_raster(pair.before, images[:3].round().astype(np.uint16), grid)
    write_raster(pair.after, images[3:4], grid)
    write_raster(out / "label.tif", images[4:] > 0.5, grid)
    return pair


def score(weights: str, pairs: Sequence[Pair], work: Path) -> str:
    """IoU of the changed class over some pairs in %, or how much is called changed where nothing did."""
    counts = Confusion()
    for pair in pairs:
        words = ("predict", pair.before, pair.after, "-o", work, "--redo", "--weights", weights, "--precision", "bf16")
        with contextlib.redirect_stdout(io.StringIO()):
            if hetecd([str(word) for word in (*words, *pair.flags)]):
                sys.exit(1)  # it has said why
        change = read_raster(work / "change.tif")
        label = np.zeros(change.valid.shape) if pair.label is None else read_raster(pair.label).array[0]
        counts += confusion(change.array[0] == 1, np.where(change.valid, label > 0, IGNORE))
    if counts.tp + counts.fn:
        return f"{100 * counts.scores()['iou']:.1f}"
    return f"{100 * counts.fp / counts.total:.1f} % called"


def main(argv: list[str] | None = None) -> int:
    """Print the table; 0, or 1 after a failure whose reason was printed."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("weights", nargs="*", default=[str(DEFAULT_WEIGHTS)], help="default: those that come along")
    parser.add_argument("--data", type=Path, required=True, help="folder with pairs/ and scene_la/")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        try:
            columns = pairs_of(args.data, Path(folder))
        except InputError as error:
            print(f"elsewhere: error: {error}", file=sys.stderr)
            return 1
        print(f"| weights | {' | '.join(columns)} |\n|{'---|' * (len(columns) + 1)}")
        for weights in args.weights:
            cells = [score(weights, pairs, Path(folder) / "map") for pairs in columns.values()]
            name = "/".join(Path(weights).parts[-2:])
            print(f"| {name} | {' | '.join(cells)} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
