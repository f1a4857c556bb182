"""The results in a folder, for a server: what is there, what a page shows of each, and its images piece by piece.

No name that comes from outside becomes a path: names are looked up among those that are there. What lies in a folder
may itself point elsewhere (links, paths in a summary), so that every file is followed to where it really is before it
is opened, and must lie in the served folder or in one that was named as a place of images.
"""

import functools
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

from rasterio.transform import Affine

from hetecd.config import Role
from hetecd.errors import AbsentError, InputError
from hetecd.image import own_files
from hetecd.jobs import check_kind
from hetecd.map_tiles import levels, read_tile, read_whole
from hetecd.modality import Floats
from hetecd.preview import Stretch, coarseness, shown_bands, stretch
from hetecd.raster import Grid, open_raster
from hetecd.report import MOST_POLYGONS, PREVIEW_PX, attempt, level_image, picture_image, polygon_bins, title_of, view
from hetecd.survey import (
    CHANGE,
    POLYGONS,
    PROBABILITY,
    SUMMARY,
    Polygons,
    Results,
    inputs,
    is_result,
    open_results,
    read_polygons,
    recount,
    survey,
)

Layer = Literal["before", "after", "probability"]
FILES = (CHANGE, PROBABILITY, *POLYGONS, SUMMARY)
POLYGON_KINDS = {b"SQLite format 3\0": "GeoPackage", b"fgb": "FlatGeobuf", b"{": "GeoJSON"}
SIDE_FILES = (".ovr", ".msk", ".aux.xml")  # of overviews, validity, metadata
STRETCH_PX = 512  # edge of what brightness is chosen from
KEPT_TILES = 1000  # some 20 MB


@dataclass(frozen=True)
class Entry:
    """A result in the list.

    Attributes:
        name: of its folder.
        created: when it was made, ISO 8601; None where that is not known.
        changed_area_m2: None without a place on earth.
        changed_pixels: None where nobody counted.
        height: of the map, pixels; None where there is no map to be shown.
        width: of the map, pixels.
        files: what can be downloaded.
        missing: what cannot be shown.
    """

    name: str
    created: str | None = None
    changed_area_m2: float | None = None
    changed_pixels: int | None = None
    height: int | None = None
    width: int | None = None
    files: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()


class Gallery:
    """Results in the folders of a folder, and in itself."""

    def __init__(self, root: Path | str, images: Sequence[Path | str] = ()) -> None:
        """``images``: folders, beside the served one, in which the images of the pairs may lie."""
        for folder in (root, *images):
            if not Path(folder).is_dir():
                raise InputError(f"{folder}: found no such folder, expected one to serve; check the path")
        self.root = Path(root).resolve()
        self._allowed = (self.root, *(Path(folder).resolve() for folder in images))
        self._opened: dict[str, _Opened] = {}

    def entries(self) -> list[Entry]:
        """All results, the newest first."""
        entries = [self._entry(name) for name in self._folders()]
        return sorted(entries, key=lambda entry: entry.created or "", reverse=True)

    def _entry(self, name: str) -> Entry:
        try:
            results = self.open(name)
        except InputError as error:
            return Entry(name, missing=(str(error),))
        known, (height, width) = results.summary, results.grid.shape
        created, area_m2, pixels = (known.get(key) for key in ("created", "changed_area_m2", "changed_pixels"))
        files = tuple(file for file in FILES if (results.folder / file).is_file())
        return Entry(name, created, area_m2, pixels, height, width, files, results.missing)

    def _folders(self) -> dict[str, Path]:
        children = [path for path in sorted(self.root.iterdir()) if path.is_dir() and not path.name.startswith(".")]
        return {path.name: path for path in (self.root, *children) if is_result(path)}

    def _folder(self, name: str) -> Path:
        folder = self._folders().get(name)
        if folder is None:
            raise AbsentError(f"{name}: found no such result in {self.root.name}; it was moved, renamed or removed")
        return folder

    def open(self, name: str) -> Results:
        """One result by its name. Its summary only names images that may be read; the others are among its missing.

        Raises:
            AbsentError: there is no such result.
            InputError: it cannot be shown at all, or lies outside.
        """
        opened = self._opened.get(name)
        if opened is None or opened.states != [_state(path) for path in opened.paths]:
            opened = self._opened[name] = self._open(self._folder(name))
        return opened.results

    def _open(self, folder: Path) -> "_Opened":
        paths = [folder / file for file in FILES]
        states = [_state(path) for path in paths]  # before they are looked at, so that nothing changes unseen
        for path in paths:
            if path.exists():
                self._pixels(path) if path.suffix == ".tif" else self.inside(path)
        results = open_results(folder)
        missing, summary = list(results.missing), dict(results.summary)
        for date, (_, place) in inputs(results).items():
            paths.append(Path(place))
            states.append(_state(Path(place)))
            real = attempt(missing, self._image, place)
            summary[date] = {**summary[date], "path": str(real) if real else ""}
        return _Opened(replace(results, summary=summary, missing=tuple(missing)), paths, states)

    def inside(self, path: Path | str) -> Path:
        """Where a file really is; InputError unless that is in the served folder or one of the folders of images."""
        try:
            real = Path(path).resolve(strict=True)
        except (OSError, RuntimeError, ValueError):  # links in a circle; names with a zero byte
            raise InputError(f"{Path(path).name}: found no such file; it was moved or removed") from None
        if not any(real.is_relative_to(folder) for folder in self._allowed):
            raise InputError(
                f"{Path(path).name}: lies outside the served folder, so it is not shown; start the server with "
                "--images and the folder that it is in"
            )
        return real

    def _image(self, place: str) -> Path:
        """Where an image, a file or a folder of granules or of a product, really is, if it may be read."""
        real = self.inside(place)
        for file in map(Path, own_files(real)):
            self._pixels(file)
            with open_raster(file):  # it names no other file
                pass
        return real

    def _pixels(self, path: Path) -> None:
        """InputError unless a raster, and what GDAL reads along with it, may be read and holds its pixels itself."""
        real = self.inside(path)
        check_kind(real)
        for side in (Path(f"{base}{suffix}") for base in {path, real} for suffix in SIDE_FILES):
            if side.exists():
                self.inside(side)
                if side.suffix != ".xml":  # what that says shows when the raster is opened
                    check_kind(side)
                    with open_raster(side):
                        pass

    def file(self, name: str, file: str) -> Path:
        """A file of a result, for download; AbsentError unless it is one of FILES and there."""
        if file not in FILES or not (path := self._folder(name) / file).is_file():
            raise AbsentError(f"{file}: found no such file of {name}, expected one of {', '.join(FILES)}")
        return self.inside(path)

    # --- the page of a result ---

    def view(self, name: str) -> dict[str, Any]:
        """What :func:`hetecd.report.view` gives, with addresses of tiles in place of images."""
        results = self.open(name)
        missing = list(results.missing)
        polygons = attempt(missing, _polygons, results)
        if not results.summary:
            results = replace(results, summary=attempt(missing, _recount, results.folder, _stamp(results)) or {})
        base = f"/api/results/{quote(name, safe='')}"
        shown = view(results, polygons, None, coarseness(results.grid, PREVIEW_PX))
        shown |= {"title": name, "home": "/", "factor": 1, "missing": missing}
        if (results.folder / PROBABILITY).is_file():
            shown["probability"] = _address(results, base, "probability")
            if polygons:
                shown["bins"] = f"{base}/bins"
        for date, (is_, _) in inputs(results).items():
            shown["images"].append({"title": title_of(is_, date), **_address(results, base, date)})
        return shown

    def bins(self, name: str) -> list[list[int]]:
        """Of each polygon, the largest first: see :func:`hetecd.report.polygon_bins`."""
        results = self.open(name)
        return _bins(results.folder, _stamp(results))

    def tile(self, name: str, layer: Layer, zoom: int, col: int, row: int) -> bytes:
        """One tile as WebP, or PNG of bins of probability (0 = no data); see :func:`hetecd.map_tiles.read_tile`."""
        results = self.open(name)
        return _tile(self._source(results, layer), _stamp(results), zoom, col, row)

    def whole(self, name: str, layer: Layer) -> bytes:
        """The whole of a layer, as coarse as in a report, coded as its tiles."""
        results = self.open(name)
        source = self._source(results, layer)
        return _coded(_whole(source, PREVIEW_PX), source, _stamp(results))

    def _source(self, results: Results, layer: Layer) -> "_Source":
        if layer == "probability":
            return _Source(self.inside(results.folder / PROBABILITY), None, results.grid, None)
        found = inputs(results).get(layer)
        if found is None:
            raise AbsentError(f"{layer}: found no such image of {results.folder.name} that may be shown")
        is_, place = found
        return _Source(Path(place), is_, results.grid, results.sar_move if is_ == "sar" else None)


@dataclass(frozen=True)
class _Opened:
    """A result that was looked at, and the files that it was read from, as they were before."""

    results: Results
    paths: list[Path]
    states: list[tuple[Any, ...]]


def _state(path: Path) -> tuple[Any, ...]:
    """Changes when a file, a folder of granules, or what GDAL reads along with either changes or becomes another."""
    files = [path, *(Path(f"{path}{suffix}") for suffix in SIDE_FILES)]
    with suppress(OSError, RuntimeError, ValueError, InputError):  # links in a circle; names with a zero byte
        own = [Path(file) for file in own_files(path)] if path.is_dir() else [path.resolve()]
        files += [Path(f"{file}{suffix}") for file in own for suffix in ("", *SIDE_FILES)]
    return tuple(_status(file) for file in files)


def _status(path: Path) -> tuple[Any, ...]:
    try:
        found = path.stat()
    except (OSError, ValueError):
        return (str(path),)
    return str(path), found.st_dev, found.st_ino, found.st_mtime_ns, found.st_ctime_ns


@dataclass(frozen=True)
class _Source:
    """Where the pixels of a layer come from.

    Attributes:
        path: an image that may be read.
        is_: what it is an image of; None = the probability.
        grid: of the result.
        move: how the image lies elsewhere than its georeference says.
    """

    path: Path
    is_: Role | None
    grid: Grid
    move: Affine | None

    @property
    def bands(self) -> tuple[int, ...]:
        """Those that are shown."""
        return shown_bands(self.path, self.is_) if self.is_ else (1,)


def _address(results: Results, base: str, layer: str) -> dict[str, Any]:
    version = f"?v={max(_stamp(results))}"
    return {
        "image": f"{base}/{layer}/whole{version}",
        "tiles": f"{base}/{layer}/tiles/{{z}}/{{x}}/{{y}}{version}",
        "levels": levels(results.grid),
    }


def _stamp(results: Results) -> tuple[int, ...]:
    """Changes when a result is replaced."""
    return tuple(path.stat().st_mtime_ns for file in FILES if (path := results.folder / file).is_file())


def _polygons(results: Results) -> Polygons:
    for path in (results.folder / name for name in POLYGONS):
        if path.is_file():
            check_kind(path, POLYGON_KINDS)
    return read_polygons(results, MOST_POLYGONS)


def _whole(source: _Source, most_px: int) -> Floats:
    return read_whole(source.path, source.bands, source.grid, most_px, source.move)


def _coded(image: Floats, source: _Source, stamp: tuple[int, ...]) -> bytes:
    return picture_image(image, _stretch(source, stamp)) if source.is_ else level_image(image[0])


@functools.lru_cache(64)
def _stretch(source: _Source, _stamp: tuple[int, ...]) -> Stretch:
    return stretch(_whole(source, STRETCH_PX))


@functools.lru_cache(KEPT_TILES)
def _tile(source: _Source, stamp: tuple[int, ...], zoom: int, col: int, row: int) -> bytes:
    image = read_tile(source.path, source.bands, source.grid, zoom, col, row, source.move)
    return _coded(image, source, stamp)


@functools.lru_cache(16)
def _recount(folder: Path, _stamp: tuple[int, ...]) -> dict[str, Any]:
    return recount(open_results(folder))


@functools.lru_cache(16)
def _bins(folder: Path, _stamp: tuple[int, ...]) -> list[list[int]]:
    results = open_results(folder)
    shapes = _polygons(results).shapes
    return polygon_bins(results, survey(results, shapes, coarseness(results.grid, PREVIEW_PX)))
