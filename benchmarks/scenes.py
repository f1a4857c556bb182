"""Speed, memory and use of the processor against the size of a scene: `make bench-scene`.

Each row is a process of its own. *Dense* scenes have data everywhere; *islands* are scenes of which four places of
1024 x 1024 pixels have data, in GeoTIFFs that store nothing elsewhere. SAR lies on another grid than the optical image
and is warped. The naive program holds the scene in arrays, as scripts do: it reads both images, predicts the same
windows in the same batches, adds them up with weights and writes the two GeoTIFFs. It makes no polygons, overviews or
summary and leaves no window out. Prints a Markdown table.
"""

import argparse
import dataclasses
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from itertools import groupby
from pathlib import Path

import numpy as np
import rasterio
from rasterio.transform import Affine
from scipy import ndimage

from hetecd.flags import DEFAULT_WEIGHTS
from hetecd.memory import fitting_batch
from hetecd.modality import Floats, Focusing, Inner, Predictor, Windows, ask, windows_of
from hetecd.pair import Pair, open_pair
from hetecd.predict import predict_scene
from hetecd.results import About, describe_weights
from hetecd.tiles import Window, blend_weights, windows
from hetecd.weights import load, predictor

ISLAND_PX = 1024
OPTICAL = Affine(10, 0, 300_000, 0, -10, 6_000_000)
SAR = Affine(10.5, 0, 299_990, 0, -10.5, 6_000_012)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--dense", type=int, nargs="*", default=[512, 1024, 2048, 4096], help="edges, px")
    parser.add_argument("--islands", type=int, nargs="*", default=[4096, 10_000, 30_000, 100_000], help="edges, px")
    parser.add_argument("--naive", type=int, nargs="*", default=[512, 1024, 2048, 4096], help="edges of dense scenes")
    parser.add_argument("--one", nargs=3, metavar=("HOW", "FOLDER", "SIZE"), help="used by the program itself")
    args = parser.parse_args()
    if args.one:
        run_one(args.one[0], Path(args.one[1]))
        return
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores\n")
    print("| program | scene | edge, px | with data, Mpx | s | Mpx/s | peak MB | cores busy | predicting | disk, MB |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    rows = [("hetecd", "dense", n) for n in args.dense] + [("hetecd", "islands", n) for n in args.islands]
    for how, kind, size_px in [*rows, *(("naive", "dense", n) for n in args.naive)]:
        print(row(how, kind, size_px), flush=True)


def row(how: str, kind: str, size_px: int) -> str:
    """Make a pair, map it in a process of its own, and word the result as a row."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_images(folder, size_px, kind == "islands")
        command = [sys.executable, __file__, "--one", how, name, str(size_px)]
        done = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        disk_mb = sum(path.stat().st_blocks for path in folder.rglob("*") if path.is_file()) * 512 / 1e6
    mpx = done["valid_pixels"] / 1e6
    return (
        f"| {how} | {kind} | {size_px} | {mpx:.1f} | {done['seconds']:.1f} | {mpx / done['seconds']:.2f} | "
        f"{done['peak_mb']:.0f} | {done['cpu_s'] / done['seconds']:.2f} | "
        f"{100 * done['predicting_s'] / done['seconds']:.0f} % | {disk_mb:.0f} |"
    )


def write_images(folder: Path, size_px: int, islands: bool) -> None:
    """An optical image of three bands and a SAR image on another grid, 8 bits like those of the default weights."""
    rng = np.random.default_rng(0)
    for name, bands, transform in (("optical", 3, OPTICAL), ("sar", 1, SAR)):
        noise = ndimage.gaussian_filter(rng.standard_normal((bands, ISLAND_PX, ISLAND_PX)), (0, 4, 4), mode="wrap")
        texture = np.clip(90 + 300 * noise, 1, 255).astype(np.uint8)
        profile = {
            "driver": "GTiff",
            "dtype": "uint8",
            "count": bands,
            "height": size_px,
            "width": size_px,
            "nodata": 0,
        }
        profile |= {"crs": "EPSG:32633", "transform": transform, "compress": "deflate", "sparse_ok": True}
        profile |= {"tiled": True, "blockxsize": 512, "blockysize": 512, "bigtiff": "if_safer"}
        with rasterio.open(folder / f"{name}.tif", "w", **profile) as dataset:
            for place in corners(size_px, islands):
                col, row = (int(value) for value in ~transform @ (OPTICAL @ (place[1] + 0.5, place[0] + 0.5)))
                part = texture[:, : size_px - row, : size_px - col]
                dataset.write(part, window=((row, row + part.shape[1]), (col, col + part.shape[2])))


def corners(size_px: int, islands: bool) -> list[tuple[int, int]]:
    """Where there is data: everywhere, or at four places."""
    if islands:
        places = [size_px // 512 * share // 8 * 512 for share in (1, 2, 5, 7)]
        return [(min(row, size_px - ISLAND_PX), min(row, size_px - ISLAND_PX)) for row in places]
    return [(row, col) for row in range(0, size_px, ISLAND_PX) for col in range(0, size_px, ISLAND_PX)]


def run_one(how: str, folder: Path) -> None:
    """Map the pair of a folder and print what it took."""
    spent = [0.0]
    net = load(DEFAULT_WEIGHTS)
    network = predictor(net)
    size = windows_of(network)
    batch = fitting_batch(size.tile_px)

    def timed(optical: Floats, sar: Floats, inner: Inner | None) -> Floats:
        begun = time.perf_counter()
        probability = ask(network.compute, optical, sar, inner)
        spent[0] += time.perf_counter() - begun
        return probability

    compute = dataclasses.replace(network, compute=Focusing(timed, size))
    info = net.info
    assert info is not None
    started, cpu_before = time.perf_counter(), time.process_time()
    paths = folder / "optical.tif", folder / "sar.tif"
    with open_pair(*paths, "optical", info.optical, info.sar) as pair:
        if how == "naive":
            valid_pixels = naive(pair, compute, folder / "naive", info.threshold, size, batch)
        else:
            about = About(describe_weights(DEFAULT_WEIGHTS, info.scores))
            settings = (info.threshold, *size, batch)
            valid_pixels = predict_scene(pair, compute, folder / "out", *settings, about=about).valid_pixels
    found = {
        "seconds": time.perf_counter() - started,
        "cpu_s": time.process_time() - cpu_before,
        "predicting_s": spent[0],
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3,
        "valid_pixels": valid_pixels,
    }
    print(json.dumps(found))


def naive(pair: Pair, compute: Predictor, out: Path, threshold: float, size: Windows, batch: int) -> int:
    """The scene in arrays; the number of valid pixels."""
    height, width = pair.grid.shape
    optical, sar, valid = pair.read(Window(0, 0, height, width))
    total = np.zeros((height, width), np.float32)
    weight = np.zeros((height, width), np.float32)
    plan = windows(height, width, *size)
    for shape, alike in groupby(plan, lambda w: (w.height, w.width)):  # the last of a row may be shorter
        edges = (np.maximum(blend_weights(px, size.overlap_px, size.overlap_px), 1e-3) for px in shape)
        share = np.outer(*edges)
        places = [np.s_[w.row : w.row + w.height, w.col : w.col + w.width] for w in alike]
        for first in range(0, len(places), batch):
            parts = places[first : first + batch]
            images = (np.stack([image[:, part[0], part[1]] for part in parts]) for image in (optical, sar))
            for part, probability in zip(parts, compute(*images), strict=True):
                total[part] += share * probability
                weight[part] += share
    probability = np.where(valid, total / weight, np.nan).astype(np.float32)
    change = np.where(valid, probability >= threshold, 255).astype(np.uint8)
    out.mkdir()
    for name, image in (("probability", probability), ("change", change)):
        profile = {"driver": "GTiff", "count": 1, "height": height, "width": width, "dtype": image.dtype}
        grid = {"crs": pair.grid.crs, "transform": pair.grid.transform}
        with rasterio.open(out / f"{name}.tif", "w", compress="deflate", tiled=True, **profile, **grid) as dataset:
            dataset.write(image, 1)
    return int(valid.sum())


if __name__ == "__main__":
    main()
