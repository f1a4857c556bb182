"""A real pair from raw files to polygons, with pictures: what docs/scene_la.md shows.

    python examples/scene.py optical.tif sar.tif -o scene_la

Every step is a command that you can type yourself; after them come two pictures of the result.
"""

import argparse
import shlex
import sys
from pathlib import Path

import numpy as np
import pyogrio
import shapely
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from numpy.typing import NDArray

from hetecd.cli import main as hetecd
from hetecd.files import replacing
from hetecd.modality import Floats
from hetecd.preview import picture, read_small, shrink
from hetecd.raster import Grid, read_raster
from hetecd.survey import open_results
from hetecd.tiles import Window

DETAIL_PX = 256
SQUARE_PX = 32  # of the chequerboard


def main() -> None:
    """Look at the pair, map it, draw the pictures."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("optical", type=Path, help="optical image, of the earlier date")
    parser.add_argument("sar", type=Path, help="SAR image, of the later date")
    parser.add_argument("--at", type=int, nargs=2, default=(1150, 1700), help="row and column of the detail")
    parser.add_argument("--out", "-o", type=Path, default=Path("scene"), help="folder for the map and the pictures")
    args = parser.parse_args()
    result: Path = args.out / "map"
    run("inspect", args.optical, args.sar)
    run("predict", args.optical, args.sar, "-o", result, "--precision", "bf16", "--min-area", 1000, "--simplify", 10,
        "--report")  # fmt: skip
    made = open_results(result)
    grid = made.grid
    probability = read_raster(result / "probability.tif").array
    factor = max(1, max(grid.shape) // 1000)
    optical = read_small(grid, args.optical, "optical", 1)
    sar = read_small(grid, args.sar, "sar", 1, made.sar_move)
    small = [shrink(image, factor) for image in (optical, sar, probability)]
    overview(args.out / "overview.jpg", grid, small[0], small[1], small[2], result, factor)
    detail(args.out / "detail.jpg", grid, optical, sar, probability, result, *args.at)
    print(f"written: {args.out}/overview.jpg, {args.out}/detail.jpg")


def run(*words: object) -> None:
    """Print a command, then run it; stop where it fails."""
    command = [str(word) for word in words]
    print(f"\n$ hetecd {shlex.join(command)}", flush=True)
    if code := hetecd(command):
        sys.exit(code)


def overview(
    path: Path, grid: Grid, optical: Floats, sar: Floats, probability: Floats, result: Path, factor: int
) -> None:
    """The whole scene: both images on one grid, the probability of change, the polygons."""
    figure = Figure(figsize=(11, 7.8), layout="constrained")
    axes = figure.subplots(2, 2).ravel()
    show(axes[0], picture(optical), "before: optical")
    show(axes[1], picture(sar), "after: SAR, on the optical image's grid")
    show_probability(axes[2], probability[0])
    show(axes[3], picture(optical), "polygons")
    axes[3].add_collection(LineCollection(outlines(result, grid, 0, 0, factor), colors="#d7191c", linewidths=0.5))
    save(figure, path)


def detail(
    path: Path, grid: Grid, optical: Floats, sar: Floats, probability: Floats, result: Path, row: int, col: int
) -> None:
    """A window pixel by pixel: how well both images lie upon each other, and what is mapped there."""
    part = Window(row, col, DETAIL_PX, DETAIL_PX)
    cut = (slice(None), slice(part.row, part.row + part.height), slice(part.col, part.col + part.width))
    before, after = picture(optical[cut]), picture(sar[cut])
    rows, cols = np.indices(before.shape[:2]) // SQUARE_PX
    figure = Figure(figsize=(11, 3.2), layout="constrained")
    axes = figure.subplots(1, 4)
    show(axes[0], before, "optical")
    show(axes[1], after, "SAR")
    show(axes[2], np.where(((rows + cols) % 2 == 0)[..., None], before, after), "both in turn")
    show_probability(axes[3], probability[cut][0])
    lines = outlines(result, grid, part.row, part.col, 1)
    axes[3].add_collection(LineCollection(lines, colors="#000000", linewidths=0.8))
    save(figure, path)


def save(figure: Figure, path: Path) -> None:
    """As JPEG: speckle makes large PNGs."""
    with replacing(path) as part:
        figure.savefig(part, format="jpg", pil_kwargs={"quality": 80})


def show(axes: Axes, image: NDArray[np.uint8], title: str) -> None:
    """An image (H, W, 3) without scales around it."""
    axes.imshow(image, interpolation="nearest")
    axes.set_title(title, fontsize=9)
    axes.set_axis_off()
    axes.autoscale(False)


def show_probability(axes: Axes, probability: Floats) -> None:
    """A probability (H, W) from white to dark red."""
    colours = colormaps["OrRd"].with_extremes(bad="0.5")
    axes.imshow(probability, cmap=colours, vmin=0, vmax=1, interpolation="nearest")
    axes.set_title("probability of change", fontsize=9)
    axes.set_axis_off()
    axes.autoscale(False)


def outlines(result: Path, grid: Grid, row: int, col: int, factor: int) -> list[NDArray[np.float64]]:
    """Rings of the polygons as (n, 2) pixel coordinates of a picture that begins at (row, col)."""
    _, _, geometry, _ = pyogrio.raw.read(result / "change.gpkg")
    rings = shapely.get_rings(shapely.from_wkb(geometry))
    points, owners = shapely.get_coordinates(rings, return_index=True)
    cols, rows = ~grid.transform @ (points[:, 0], points[:, 1])
    pixels = np.column_stack([cols - col, rows - row]) / factor - 0.5
    return np.split(pixels, np.nonzero(np.diff(owners))[0] + 1)


if __name__ == "__main__":
    main()
