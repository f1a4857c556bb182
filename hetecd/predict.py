"""Map a pair of images, or a folder of tile pairs, with any predictor.

A *predictor* is a callable ``(optical (B, Co, H, W), sar (B, Cs, H, W)) -> probability (B, H, W)``, NumPy float32 in
and out, raw pixels in with NaN = invalid. What it gives at invalid pixels does not matter. A network that standardises
its bands must be a :class:`hetecd.modality.Scaled` (as :func:`hetecd.predictor` gives it), or windows of a scene will
not fit together; what is inside is wrapped by ``replace(predictor, compute=Focusing(function, windows_of(predictor)))``
of dataclasses and :mod:`hetecd.modality`. Torch is not needed here: the same code serves every runtime.
Rasters and polygons are the business of :mod:`hetecd.pair`, :mod:`hetecd.raster` and :mod:`hetecd.vector`.
"""

import logging
import os
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from hetecd.cog import read_part, write_cog
from hetecd.config import IGNORE, Role
from hetecd.errors import InputError, OutputError
from hetecd.files import publish, staging, writing
from hetecd.flow import behind
from hetecd.folders import TileFiles
from hetecd.info import ModelInfo
from hetecd.modality import Floats, Modality, Predictor, Windows, windows_of
from hetecd.pair import Pair, open_pair
from hetecd.progress import Progress
from hetecd.raster import write_raster
from hetecd.results import About, Count, describe, map_rows, read_summary, tags, warnings_heard, write_summary
from hetecd.stac import write_item
from hetecd.stream import Tally, probability_rows
from hetecd.styles import COLOURS, STYLES, write_styles
from hetecd.surroundings import seen_by
from hetecd.tiles import Window, blocks, panels
from hetecd.vector import DRIVERS, PolygonSettings, write_polygons
from hetecd.work import FOLDER, Block, Work, work_in

log = logging.getLogger("hetecd")

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
        windows: windows (of a folder: tiles) that this run looked at; none where it found the scene finished.
        skipped: windows left out because they hold no valid pixel that counts.
        seconds: how long this run took.
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
    tile_px: int | None = None,
    overlap_px: int | None = None,
    batch: int = 4,
    progress: bool = True,
    about: About | None = None,
    polygons: PolygonSettings = PolygonSettings(),  # noqa: B008 - frozen
    redo: bool = False,
    keep_batch: bool = False,
) -> Summary:
    """Write the change map of a pair into ``out_dir``, in all the forms in which people use it.

    These are ``change.tif``, ``probability.tif``, ``change.gpkg`` (or another format of polygons), ``summary.json``,
    ``item.json`` (STAC), and styles for QGIS.

    Change is uint8 0 / 1 / 255, probability float32; pixels invalid in either image are 255 and NaN, the nodata
    values. Both are Cloud Optimized GeoTIFFs on the grid of the pair. All appear when all are whole.

    Where ``about`` names the weights, a run that was cut off goes on after its last finished block, and one that was
    finished from the same files with the same settings is not done again. Either way the GeoTIFFs and the GeoPackage
    are those of an uninterrupted run, on processors of one kind to the byte.

    Args:
        pair: from :func:`hetecd.pair.open_pair`.
        predictor: see the module.
        out_dir: made if need be; older results in it are replaced, and an older report and polygons removed.
        threshold: probability from which a pixel counts as changed.
        tile_px: edge of a window, at least 32, best that of the training tiles or more: it is what a pixel sees around.
            None: what suits the predictor, see :class:`hetecd.modality.Windows`.
        overlap_px: pixels that neighbouring windows share; None: what suits predictor and edge.
        batch: windows given to the predictor at a time.
        progress: show how far it is.
        about: what the metadata and the summary say besides, see :mod:`hetecd.results`.
        polygons: their format, and what is left out of them.
        redo: do it all again, whatever is there.
        keep_batch: a run that goes on takes the batch that it began with, also where ``batch`` is less. Otherwise it
            takes the lesser one, and its maps are equal to those of an uninterrupted run but for rounding.

    Raises:
        InputError: no pixel is valid in both images, a file is damaged, an argument is out of range, a result would
            replace an input, the predictor gives something other than probabilities, the folder holds unfinished work
            of something else or another process is at work there.
        OutputError: a result cannot be written. Nothing is left behind but finished blocks that can be used again.
    """
    started = time.monotonic()
    check_threshold(threshold)
    polygons.check(pair.grid)
    out_dir = Path(out_dir)
    outputs = _outputs(out_dir, polygons)
    outdated = {out_dir / name for name in ("report.html", *(f"change{suffix}" for suffix in DRIVERS))} - {*outputs}
    # Maps in a folder of granules would be taken for granules the next time.
    _keep_inputs([path for path in (pair.optical_path, pair.sar_path) if os.path.isdir(path)], [out_dir])
    _keep_inputs([*pair.files, *([pair.aoi] if pair.aoi else [])], [*outputs, *outdated])
    windows = windows_of(predictor).asked(tile_px, overlap_px)
    settings = {"threshold": threshold, **windows._asdict()}
    settings |= {"min_area": polygons.min_area, "simplify": polygons.simplify}
    about = about or About()
    description = describe(pair, about, settings)
    made_from = {key: description[key] for key in description if key != "warnings"} if about.weights else None
    tally = Tally()
    with work_in(out_dir, made_from, batch, redo, keep_batch) as work, warnings_heard(work.warn):
        again = redo or bool(work.done)  # such as those of a run with --redo that was cut off
        found = read_summary(made_from, outputs) if made_from and not again else None
        if found:  # what is older than the map was left by a run that was killed before it came to remove it
            made_ns = outputs[-1].stat().st_mtime_ns
            outdated = {path for path in outdated if path.is_file() and path.stat().st_mtime_ns < made_ns}
        else:
            if outputs[0].is_file():
                log.info("%s: holds a map already, which this one replaces", out_dir)
            _map_blocks(work, pair, predictor, threshold, windows, tally, progress)
            description["warnings"] += [text for text in work.warnings if text not in description["warnings"]]
            description["asked"] = about.asked
            with staging(work.folder) as folder:
                staged = [folder / path.name for path in outputs]
                found = _finish(work, pair, description, about.model, staged, polygons, started)
                publish(staged, out_dir, durable=True)
        _remove_outdated(outdated)
    return _summary(found, outputs, tally, started)


def finished_scene(out_dir: Path | str, asked: str, polygons: PolygonSettings) -> Summary | None:
    """What an earlier run left that was asked for the very same, and finished; None where there is no such thing.

    Args:
        out_dir: folder of the results.
        asked: from :func:`hetecd.sources.request_of`, as it was given to that run in ``about``.
        polygons: of the results.

    Raises:
        InputError: a GeoTIFF of it is not as large as it was written.
    """
    started, outputs = time.monotonic(), _outputs(Path(out_dir), polygons)
    unfinished = (Path(out_dir) / FOLDER).exists()  # of another request
    found = None if unfinished else read_summary({"asked": asked}, outputs)
    if not found:
        return None
    log.info("%s: finished already; --redo does it again", out_dir)
    return _summary(found, outputs, Tally(), started)


def check_outputs(out_dir: Path | str, polygons: PolygonSettings) -> None:
    """OutputError where the results of a pair could not be written: sooner than :func:`predict_scene` would say so."""
    there = next(path for path in (Path(out_dir), *Path(out_dir).absolute().parents) if os.path.lexists(path))
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        raise OutputError(
            f"{there}: found no folder that may be written to, expected one; choose another for the results"
        )
    for path in _outputs(Path(out_dir), polygons):
        if path.is_dir():
            raise OutputError(f"{path}: found a folder in place of a result, expected a file or none; move it away")


def _outputs(out_dir: Path, polygons: PolygonSettings) -> tuple[Path, ...]:
    names = ("change.tif", "probability.tif", f"change.{polygons.format}", "item.json", *STYLES, "summary.json")
    return tuple(out_dir / name for name in names)


def _summary(found: Mapping[str, Any], outputs: tuple[Path, ...], tally: Tally, started: float) -> Summary:
    return Summary(
        pixels=found["pixels"],
        valid_pixels=found["valid_pixels"],
        changed_pixels=found["changed_pixels"],
        changed_area_m2=float("nan") if found["changed_area_m2"] is None else found["changed_area_m2"],
        polygons=found["polygons"],
        windows=tally.windows,
        skipped=tally.skipped,
        seconds=time.monotonic() - started,
        outputs=outputs,
    )


def _map_blocks(
    work: Work,
    pair: Pair,
    predictor: Predictor,
    threshold: float,
    size: Windows,
    tally: Tally,
    progress: bool,
) -> None:
    """Map the blocks of a scene that are not yet among the finished ones."""

    def put_away(item: tuple[Window, Floats]) -> None:
        window, probability = item
        change, valid_pixels, _ = _classify(probability, threshold, changed=1, invalid=IGNORE)
        work.add(Block(window, valid_pixels), {"change": change, "probability": probability})

    compute, see = seen_by(predictor, pair.grid.shape, pair.read)
    done = set(work.done)
    # Of each panel all from the first block that is missing to the last, also what is finished in between.
    runs = [(panel, run) for panel in panels(*pair.grid.shape) if (run := _missing(list(blocks(panel)), done))]
    with Progress(pair.grid.height * pair.grid.width, progress) as bar, behind(put_away) as put:
        bar.skip(sum(window.height * window.width for window in done.difference(*(run for _, run in runs))))
        for panel, run in runs:
            first = run[0].row
            part = Window(first, panel.col, panel.height - first, panel.width)
            rows = probability_rows(pair, compute, *size, work.batch, part, tally, see)
            with closing(rows):
                for item in _cut(rows, run, bar):
                    if item[0] not in done:
                        put(item)


def _missing(windows: Sequence[Window], done: Collection[Window]) -> Sequence[Window]:
    """The windows from the first to the last that is not done."""
    at = [i for i, window in enumerate(windows) if window not in done]
    return windows[at[0] : at[-1] + 1] if at else ()


def _cut(rows: Iterator[Floats], windows: Iterable[Window], bar: Progress) -> Iterator[tuple[Window, Floats]]:
    """Rows (n, W) of any number, cut and joined into the windows, which lie below each other."""
    left = np.empty((0, 0), np.float32)
    for window in windows:
        block = np.empty((window.height, window.width), np.float32)
        filled = 0
        while filled < window.height:
            if not len(left):
                left = next(rows)
                bar.add(left.size)
            count = min(len(left), window.height - filled)
            block[filled : filled + count] = left[:count]
            left = left[count:]
            filled += count
        yield window, block


def _finish(
    work: Work,
    pair: Pair,
    description: Mapping[str, Any],
    model: ModelInfo | None,
    staged: Sequence[Path],
    polygons: PolygonSettings,
    started: float,
) -> dict[str, Any]:
    """Make the results out of the finished blocks; gives what the summary says."""
    if not work.valid_pixels:
        raise InputError(
            f"{pair.optical_path} and {pair.sar_path}: found no pixel that is valid in both, expected some; "
            "check that both show the same place, what their nodata values are, and that an area of interest holds the "
            "middle of a pixel"
        )
    change, probability = work.parts("change"), work.parts("probability")
    labels = tags(description)
    write_cog(staged[0], pair.grid, change, "uint8", IGNORE, "mode", labels, COLOURS)
    write_cog(staged[1], pair.grid, probability, "float32", float("nan"), "average", labels)
    count = Count(pair.grid, description["settings"]["threshold"])
    found = ((window, read_part(change[window]) == 1, read_part(probability[window])) for window in change)
    number = write_polygons(map_rows(count.passing(found), pair.grid), pair.grid, staged[2], polygons)
    numbers = {**count.numbers(), "polygons": number, "outputs": [path.name for path in staged]}
    numbers["bytes"] = {path.name: path.stat().st_size for path in staged[:2]}
    write_styles(staged[0].parent)
    summary = write_summary(staged[-1], description, numbers, started)
    write_item(staged[3], summary, pair.grid, staged[2], model)
    return summary


def _remove_outdated(paths: Iterable[Path]) -> None:
    """Remove what an older run left beside a new map and is not replaced by it."""
    for path in paths:
        if path.is_file():
            with writing(path):
                path.unlink()
            log.info("%s: removed, it was of an older map", path)


def predict_folder(
    tiles: Sequence[TileFiles],
    predictor: Predictor,
    out_dir: Path | str,
    optical: Modality,
    sar: Modality,
    before_is: Role = "optical",
    threshold: float = 0.5,
    tile_px: int | None = None,
    overlap_px: int | None = None,
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
        tile_px: larger images are mapped in windows of this edge; None: what suits the predictor.
        overlap_px: pixels that neighbouring windows share; None: what suits predictor and edge.
        batch: windows given to the predictor at a time.
        progress: show a bar where the output is a terminal.

    Raises:
        InputError: no tiles; ``out_dir`` is a folder of inputs; a tile is damaged or its two images do not fit.
        OutputError: a result cannot be written. Each PNG is whole or not there.
    """
    started = time.monotonic()
    check_threshold(threshold)
    if not tiles:
        raise InputError("tiles: found none, expected at least one pair; check the folder")
    out_dir = Path(out_dir)
    folders = (out_dir, out_dir / "probability")
    inputs = [path for tile in tiles for path in (tile.before, tile.after, tile.label) if path]
    # Maps among the inputs would be taken for tiles, also where they replace none.
    _keep_inputs({path.parent for path in inputs}, folders)
    _keep_inputs(inputs, [folder / f"{tile.name}.png" for tile in tiles for folder in folders])
    windows = windows_of(predictor).asked(tile_px, overlap_px)
    tally, pixels, valid_pixels, changed_pixels, outputs = Tally(), 0, 0, 0, []
    for tile in tqdm(tiles, unit="tile", disable=None if progress else True):
        with open_pair(tile.before, tile.after, before_is, optical, sar) as pair:
            # One that fits into a window is seen as the network sees it: by itself.
            whole = max(pair.grid.shape) <= windows.tile_px
            compute, see = (predictor, None) if whole else seen_by(predictor, pair.grid.shape, pair.read)
            rows = list(probability_rows(pair, compute, *windows, batch, tally=tally, see=see))
            probability = np.concatenate(rows)
            change, valid, changed = _classify(probability, threshold, changed=255, invalid=TILE_INVALID)
            pixels += probability.size
            valid_pixels += valid
            changed_pixels += changed
            level = np.where(np.isnan(probability), 255, np.rint(probability * 254)).astype(np.uint8)
            for folder, image, nodata in zip(folders, (change, level), (TILE_INVALID, 255), strict=True):
                outputs.append(folder / f"{tile.name}.png")
                write_raster(outputs[-1], image, pair.grid, nodata=nodata)
    seconds = time.monotonic() - started
    return Summary(
        pixels, valid_pixels, changed_pixels, float("nan"), 0, len(tiles), tally.skipped, seconds, tuple(outputs)
    )


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


def check_threshold(threshold: float) -> None:
    """InputError unless it is a probability."""
    if not 0 <= threshold <= 1:
        raise InputError(f"threshold: found {threshold}, expected 0 to 1; give a probability")


def _classify(probability: Floats, threshold: float, changed: int, invalid: int) -> tuple[NDArray[np.uint8], int, int]:
    """Probability (H, W), NaN = invalid, to classes 0, ``changed`` and ``invalid``; numbers of valid and changed."""
    is_invalid = np.isnan(probability)
    is_changed = probability >= threshold
    classes = is_changed.astype(np.uint8)
    classes *= np.uint8(changed)
    classes[is_invalid] = invalid
    return classes, probability.size - int(is_invalid.sum()), int(is_changed.sum())
