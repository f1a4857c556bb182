"""Map a pair of images, or a folder of tile pairs, with any predictor.

A *predictor* is a callable ``(optical (B, Co, H, W), sar (B, Cs, H, W)) -> probability (B, H, W)``, NumPy float32 in
and out, raw pixels in with NaN = invalid. What it gives at invalid pixels does not matter. Torch is not needed
here: the same code serves every runtime. Rasters and polygons are the business of :mod:`hetecd.pair`,
:mod:`hetecd.raster` and :mod:`hetecd.vector`, which use rasterio.
"""

import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from hetecd.config import IGNORE, Role
from hetecd.errors import InputError
from hetecd.files import publish, staging
from hetecd.folders import TileFiles
from hetecd.modality import MIN_PX, Floats, Modality, Predictor
from hetecd.pair import Pair, open_pair
from hetecd.raster import write_cog, write_raster
from hetecd.results import About, Count, describe, map_rows, tags, write_summary
from hetecd.tiles import Stitcher, Window, windows
from hetecd.vector import PolygonSettings, write_polygons

TILE_INVALID = 127  # in the PNG map of a tile, between 0 (unchanged) and 255 (changed), and declared transparent


@dataclass(frozen=True)
class Summary:
    """What came out of a run over a scene or a folder.

    Attributes:
        pixels: size of the scene, or of all tiles together.
        valid_pixels: those valid in both images.
        changed_pixels: those mapped as changed.
        changed_area_m2: their area on the ellipsoid; NaN without a CRS, and for folders.
        polygons: polygons written; 0 for folders.
        windows: windows (or tiles) in all.
        skipped: windows left out because they hold no valid pixel.
        seconds: how long it took.
        outputs: the files written.
    """

    pixels: int
    valid_pixels: int
    changed_pixels: int
    changed_area_m2: float
    polygons: int
    windows: int
    skipped: int
    seconds: float
    outputs: tuple[Path, ...]


def predict_scene(
    pair: Pair,
    predictor: Predictor,
    out_dir: Path | str,
    threshold: float = 0.5,
    tile_px: int = 256,
    overlap_px: int = 64,
    batch: int = 4,
    progress: bool = True,
    about: About | None = None,
    polygons: PolygonSettings = PolygonSettings(),  # noqa: B008 - frozen
) -> Summary:
    """Write ``change.tif``, ``probability.tif``, ``change.gpkg`` and ``summary.json`` of a pair into ``out_dir``.

    Change is uint8 0 / 1 / 255, probability float32; pixels invalid in either image are 255 and NaN, the nodata
    values. Both are Cloud Optimized GeoTIFFs on the grid of the pair. All appear when all are whole.

    Args:
        pair: from :func:`hetecd.pair.open_pair`.
        predictor: see the module.
        out_dir: made if need be; older results in it are replaced.
        threshold: probability from which a pixel counts as changed.
        tile_px: edge of a window, at least 32. Close to the training tiles is best: it is the context a pixel has.
        overlap_px: pixels that neighbouring windows share.
        batch: windows given to the predictor at a time.
        progress: show a bar where the output is a terminal.
        about: what the metadata and the summary say besides, see :mod:`hetecd.results`.
        polygons: their format, and what is left out of them.

    Raises:
        InputError: no pixel is valid in both images, a file is damaged, an argument is out of range, a result would
            replace an input, or the predictor gives something other than probabilities.
        OutputError: a result cannot be written. Nothing is left behind.
    """
    started = time.monotonic()
    _check_threshold(threshold)
    polygons.check(pair.grid)
    plan = windows(*pair.grid.shape, tile_px, overlap_px)
    tally = _Tally()
    out_dir = Path(out_dir)
    names = ("change.tif", "probability.tif", f"change.{polygons.format}", "summary.json")
    outputs = tuple(out_dir / name for name in names)
    _keep_inputs(pair.files, outputs)
    settings = {"threshold": threshold, "tile_px": tile_px, "overlap_px": overlap_px}
    settings |= {"min_area": polygons.min_area, "simplify": polygons.simplify}
    description = describe(pair, about or About(), settings)
    with staging(out_dir) as folder:
        staged = [folder / path.name for path in outputs]
        with (
            tqdm(total=len(plan), unit="window", disable=None if progress else True) as bar,
            write_cog(staged[0], pair.grid, "uint8", IGNORE, "mode", tags(description)) as write_change,
            write_cog(staged[1], pair.grid, "float32", float("nan"), "average", tags(description)) as write_probability,
        ):
            for rows in probability_rows(pair, predictor, tile_px, overlap_px, batch, tally, bar.update):
                write_change(tally.classify(rows, threshold, changed=1, invalid=IGNORE))
                write_probability(rows)
            if tally.valid_pixels == 0:
                raise InputError(
                    f"{pair.optical_path} and {pair.sar_path}: found no pixel that is valid in both, expected some; "
                    "check that both show the same place and what their nodata values are"
                )
        count = Count(pair.grid, threshold)
        number = write_polygons(count.passing(map_rows(*staged[:2])), pair.grid, staged[2], polygons)
        found = {"polygons": number, "outputs": list(names)}
        write_summary(staged[3], description, count.numbers() | found, started)
        publish(staged, out_dir)
    return tally.summary(pair.grid.height * pair.grid.width, count.changed_area_m2, number, len(plan), started, outputs)


def predict_folder(
    tiles: Sequence[TileFiles],
    predictor: Predictor,
    out_dir: Path | str,
    optical: Modality,
    sar: Modality,
    before_is: Role = "optical",
    threshold: float = 0.5,
    tile_px: int = 256,
    overlap_px: int = 64,
    batch: int = 4,
    progress: bool = True,
) -> Summary:
    """Map every tile pair: ``out_dir/NAME.png`` (0 / 255) and ``out_dir/probability/NAME.png`` (uint8, 0 to 254).

    Pixels invalid in either image are 127 in the map and 255 in the probability (which is value / 254 elsewhere);
    both are declared as nodata, so that viewers show them transparent. A tile without any valid pixel gives just that.

    Args:
        tiles: names and files, see :func:`hetecd.folders.find_tiles`.
        predictor: see the module.
        out_dir: made if need be; older results in it are replaced.
        optical: which bands are read from the optical tiles.
        sar: which bands are read from the SAR tiles.
        before_is: which of the two the earlier date is.
        threshold: probability from which a pixel counts as changed.
        tile_px: larger images are mapped in windows of this edge.
        overlap_px: pixels that neighbouring windows share.
        batch: windows given to the predictor at a time.
        progress: show a bar where the output is a terminal.

    Raises:
        InputError: no tiles; ``out_dir`` is a folder of inputs; a tile is damaged or its two images do not fit.
        OutputError: a result cannot be written. Each PNG is whole or not there.
    """
    started = time.monotonic()
    _check_threshold(threshold)
    if not tiles:
        raise InputError("tiles: found none, expected at least one pair; check the folder")
    out_dir = Path(out_dir)
    folders = (out_dir, out_dir / "probability")
    inputs = [path for tile in tiles for path in (tile.before, tile.after, tile.label) if path]
    # Maps among the inputs would be taken for tiles, also where they replace none.
    _keep_inputs({path.parent for path in inputs}, folders)
    _keep_inputs(inputs, [folder / f"{tile.name}.png" for tile in tiles for folder in folders])
    tally, pixels, outputs = _Tally(), 0, []
    for tile in tqdm(tiles, unit="tile", disable=None if progress else True):
        with open_pair(tile.before, tile.after, before_is, optical, sar) as pair:
            rows = list(probability_rows(pair, predictor, tile_px, overlap_px, batch, tally))
            probability = np.concatenate(rows)
            change = tally.classify(probability, threshold, changed=255, invalid=TILE_INVALID)
            level = np.where(np.isnan(probability), 255, np.rint(probability * 254)).astype(np.uint8)
            for folder, image, nodata in zip(folders, (change, level), (TILE_INVALID, 255), strict=True):
                outputs.append(folder / f"{tile.name}.png")
                write_raster(outputs[-1], image, pair.grid, nodata=nodata)
            pixels += probability.size
    return tally.summary(pixels, float("nan"), 0, len(tiles), started, tuple(outputs))


def probability_rows(
    pair: Pair,
    predictor: Predictor,
    tile_px: int,
    overlap_px: int,
    batch: int,
    tally: "_Tally | None" = None,
    advance: Callable[[int], object] = lambda count: None,
) -> Iterator[Floats]:
    """Probability of change of a pair, blended over windows, as blocks of rows (n, W) from top to bottom.

    NaN where a pixel is invalid in either image. Windows without a valid pixel never reach the predictor.

    Args:
        pair: what to read.
        predictor: see the module.
        tile_px: edge of a window, at least 32. Close to the training tiles is best: it is the context a pixel has.
        overlap_px: pixels that neighbouring windows share.
        batch: windows given to the predictor at a time.
        tally: counts the windows left out.
        advance: told how many windows are done.
    """
    if tile_px < MIN_PX:
        raise InputError(f"tile_px: found {tile_px}, expected at least {MIN_PX}")
    if batch < 1:
        raise InputError(f"batch: found {batch}, expected at least 1")
    height, width = pair.grid.shape
    stitcher = Stitcher(height, width, tile_px, overlap_px)
    waiting: list[tuple[Window, Floats, Floats, NDArray[np.bool_]]] = []

    def flush() -> Iterator[Floats]:
        if waiting:
            for window, values in _predict(waiting, predictor):
                for _, rows in stitcher.add(window, values):
                    yield rows
            advance(len(waiting))
            waiting.clear()

    for window in windows(height, width, tile_px, overlap_px):
        optical, sar, valid = pair.read(window)
        if not valid.any():
            advance(1)
            if tally is not None:
                tally.skipped += 1
            continue
        waiting.append((window, optical, sar, valid))
        if len(waiting) == batch:
            yield from flush()
    yield from flush()
    for _, rows in stitcher.finish():
        yield rows


def _predict(
    waiting: Sequence[tuple[Window, Floats, Floats, NDArray[np.bool_]]], predictor: Predictor
) -> Iterator[tuple[Window, Floats]]:
    """Run the predictor on a batch of windows and give its probabilities, NaN at invalid pixels."""
    optical = np.stack([_pad(item[1]) for item in waiting])
    sar = np.stack([_pad(item[2]) for item in waiting])
    probability = np.asarray(predictor(optical, sar), np.float32)
    if probability.shape != (len(waiting), *optical.shape[2:]):
        raise InputError(
            f"predictor: found an output of shape {probability.shape}, expected {(len(waiting), *optical.shape[2:])}"
        )
    for (window, _, _, valid), padded in zip(waiting, probability, strict=True):
        values = padded[: window.height, : window.width]
        good = values[valid]
        if not ((good >= -1e-3) & (good <= 1 + 1e-3)).all():  # False for NaN as well
            raise InputError(
                f"predictor: found values from {good.min():g} to {good.max():g} in {window}, expected probabilities "
                "from 0 to 1; has the training diverged?"
            )
        yield window, np.where(valid, np.clip(values, 0.0, 1.0), np.float32(np.nan))


def _pad(image: Floats) -> Floats:
    """Invalid rows and columns after an image (C, H, W) that is smaller than a predictor can take."""
    missing = [max(0, MIN_PX - size) for size in image.shape[1:]]
    if not any(missing):
        return image
    return np.pad(image, ((0, 0), (0, missing[0]), (0, missing[1])), constant_values=np.nan)


def _keep_inputs(inputs: Iterable[Path | str], results: Iterable[Path]) -> None:
    """Raise InputError where a result is an input, under whichever name, so that none is replaced by its own map."""
    known = {_identity(path) for path in inputs} - {None}
    for path in results:
        if _identity(path) in known:
            raise InputError(f"{path}: found an input there, expected a place for results; choose another folder")


def _identity(path: Path | str) -> tuple[int, int] | None:
    """Device and number of a file or folder, the same through links; None where there is none, as for a URL."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _check_threshold(threshold: float) -> None:
    if not 0 <= threshold <= 1:
        raise InputError(f"threshold: found {threshold}, expected 0 to 1")


@dataclass
class _Tally:
    """Counts while a run goes on."""

    valid_pixels: int = 0
    changed_pixels: int = 0
    skipped: int = 0

    def classify(self, probability: Floats, threshold: float, changed: int, invalid: int) -> NDArray[np.uint8]:
        """Probability (H, W), NaN = invalid, to classes: 0, ``changed`` and ``invalid``; counts them."""
        is_invalid = np.isnan(probability)
        is_changed = probability >= threshold
        self.valid_pixels += int((~is_invalid).sum())
        self.changed_pixels += int(is_changed.sum())
        return np.where(is_invalid, invalid, np.where(is_changed, changed, 0)).astype(np.uint8)

    def summary(
        self, pixels: int, area_m2: float, polygons: int, count: int, started: float, outputs: tuple[Path, ...]
    ) -> Summary:
        """Close the books."""
        return Summary(
            pixels=pixels,
            valid_pixels=self.valid_pixels,
            changed_pixels=self.changed_pixels,
            changed_area_m2=area_m2,
            polygons=polygons,
            windows=count,
            skipped=self.skipped,
            seconds=time.monotonic() - started,
            outputs=outputs,
        )
