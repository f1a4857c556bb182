"""What the rows of the accuracy tables are trained on and scored on. Each protocol gives folds of tiles on disk.

``public``     the train split of a data set, scored on its test split
``blocks``     cross-validation over blocks of consecutive training tiles; the test split is not touched
``pairs``      single real scenes: trained on some strips of a scene, scored on another one
``synthetic``  scenes of :mod:`hetecd.synth` from unseen seeds: as they are, misregistered, unchanged, across seasons

Inside every training part, ``hetecd.train.fit`` holds blocks out to choose the epoch.
"""

import hashlib
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from affine import Affine
from scoring import SHIFT, SHIFTS_PX, ScoredSet

import hetecd
from hetecd.config import IGNORE, Role
from hetecd.data import TileFiles, find_tiles, read_label
from hetecd.errors import InputError
from hetecd.raster import Grid, read_raster, write_raster
from hetecd.synth import make_scene, write_tiles

# Scenes with an optical and a SAR date, and which comes first. The others in that folder have two optical dates.
PAIRS: dict[str, Role] = {
    "shuguang": "sar",
    "shuguang_misaligned": "sar",
    "gloucester2": "optical",
    "gf2_gf3_city": "optical",
}
HERE = Path(__file__).resolve()
PAIR_TILE_PX = 64  # about; a strip is divided evenly, so that no pixel is left out or counted twice
# First seeds of synthetic scenes. No two parts share any, and training and demo elsewhere start at 0 and 1000.
TRAIN_SEED, TEST_SEED, SEASON_SEED = 20_000, 30_000, 50_000
SEASON_DAYS = 120  # that lie between the two dates of the season set, whatever the year


@dataclass(frozen=True)
class Fold:
    """One training and what it is scored on.

    Attributes:
        name: in file names.
        data: folder of tiles with a split "train".
        tests: where to score.
        settings: recipe keys that the data set, not the row, decides.
    """

    name: str
    data: Path
    tests: tuple[ScoredSet, ...]
    settings: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Sizes:
    """How much of everything; smaller for tests.

    Attributes:
        folds: blocks or strips of a cross-validation.
        train_scenes: synthetic scenes to train on.
        test_scenes: synthetic scenes of each set to score on.
        scene_px: edge of a synthetic scene.
        tile_px: edge of a synthetic tile.
    """

    folds: int = 4
    train_scenes: int = 24
    test_scenes: int = 8
    scene_px: int = 512
    tile_px: int = 128


def public(data: Path | None, work: Path, sizes: Sizes) -> list[Fold]:
    """Train on the train split, score the test split."""
    root = _needed(data, "public")
    return [Fold("test", root, (ScoredSet("test", root, "test"),))]


def blocks(data: Path | None, work: Path, sizes: Sizes) -> list[Fold]:
    """Every block of consecutive names is scored once, by a network trained on the others.

    Raises:
        InputError: fewer tiles than three per block.
    """
    tiles = find_tiles(_needed(data, "blocks"), "train")
    if len(tiles) < 3 * sizes.folds:
        raise InputError(f"{data}: found {len(tiles)} training tiles, expected at least {3 * sizes.folds} for blocks")
    parts = [[tiles[i] for i in part] for part in np.array_split(np.arange(len(tiles)), sizes.folds)]
    key = _digest(*(str(tile.before) for tile in tiles))
    return _cross_validation(parts, work / f"blocks-{sizes.folds}-{key}", "held-out blocks", {})


def pairs(data: Path | None, work: Path, sizes: Sizes) -> list[Fold]:
    """Strips across the longer side of each scene; a strip is scored by a network trained on the others.

    Raises:
        InputError: none of the scenes of PAIRS is there.
    """
    root = _needed(data, "pairs")
    scenes = {name: before_is for name, before_is in PAIRS.items() if (root / name).is_dir()}
    if not scenes:
        raise InputError(f"{root}: found none of the scenes {', '.join(PAIRS)}; name the folder that holds them")
    folds: list[Fold] = []
    for name, before_is in scenes.items():
        files = [(path.name, path.stat()) for path in sorted((root / name).iterdir())]
        key = _digest(str(root), *(f"{file} {stat.st_size} {stat.st_mtime_ns}" for file, stat in files), _source(HERE))
        place = work / f"pairs-{sizes.folds}-{key}" / name
        once(place / "tiles", partial(cut_scene, root / name, strips=sizes.folds))
        tiles = find_tiles(place / "tiles", "")
        parts = [[tile for tile in tiles if tile.name.startswith(f"{k:02d}_")] for k in range(sizes.folds)]
        folds += _cross_validation(parts, place, name, {"before_is": before_is})
    return folds


def synthetic(data: Path | None, work: Path, sizes: Sizes) -> list[Fold]:
    """Train on synthetic scenes, score on others."""
    key = _digest(_source(HERE), *(_source(path) for path in sorted(Path(hetecd.__file__).parent.glob("synth*.py"))))
    root = work / f"synthetic-{sizes.train_scenes}-{sizes.test_scenes}-{sizes.scene_px}-{sizes.tile_px}-{key}"
    once(root, partial(_write_synthetic, sizes=sizes))
    tests = [ScoredSet(name, root, name) for name in ("plain", "unchanged", "season")]
    tests += [ScoredSet(f"{SHIFT}{px}", root, "registered", px) for px in SHIFTS_PX]
    # SAR is linear power there and optical reflectance in 16 bits, whatever a recipe says about 8-bit tiles.
    return [Fold("unseen", root, tuple(tests), {"sar_db": True, "normalise": "percentile"})]


PROTOCOLS: dict[str, Callable[[Path | None, Path, Sizes], list[Fold]]] = {
    "public": public,
    "blocks": blocks,
    "pairs": pairs,
    "synthetic": synthetic,
}


def _needed(data: Path | None, protocol: str) -> Path:
    if data is None:
        raise InputError(f"{protocol}: found no data folder, expected one; name it with --data")
    return data.resolve()


def _digest(*words: str) -> str:
    return hashlib.sha256("\n".join(words).encode()).hexdigest()[:8]


def _source(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def once(root: Path, make: Callable[[Path], None]) -> None:
    """Let ``make`` fill a folder, unless it is there: whole or not at all, as other runs may be reading it.

    Its name must tell what it is made of, or it is never made anew.
    """
    if root.is_dir():
        return
    root.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=f"{root.name}.", dir=root.parent) as part:
        make(Path(part) / "whole")
        try:
            (Path(part) / "whole").rename(root)
        except OSError:
            if not root.is_dir():  # another run was faster
                raise


def _cross_validation(
    parts: Sequence[Sequence[TileFiles]], place: Path, name: str, settings: dict[str, Any]
) -> list[Fold]:
    """A folder of links per fold: that part is its split "test", the others are its split "train"."""
    folds = []
    for k, held in enumerate(parts):
        root, rest = place / f"fold{k}", [tile for i, part in enumerate(parts) if i != k for tile in part]
        once(root, partial(link_tiles, splits={"train": rest, "test": held}))
        label = f"{name}-{k}" if settings else f"block-{k}"
        folds.append(Fold(label, root, (ScoredSet(name, root, "test"),), settings))
    return folds


def link_tiles(root: Path, splits: Mapping[str, Iterable[TileFiles]]) -> None:
    """Make ``root/SPLIT/{A,B,label}`` of links to the files of these tiles."""
    for split, tiles in splits.items():
        for tile in tiles:
            for folder, path in (("A", tile.before), ("B", tile.after), ("label", tile.label)):
                assert path is not None  # found with labels
                link = root / split / folder / path.name
                link.parent.mkdir(parents=True, exist_ok=True)
                link.symlink_to(path.resolve())


def cut_scene(scene: Path, out: Path, strips: int) -> None:
    """Cut a scene of ``pre.tif``, ``post.tif``, ``label.png`` into strips and these into tiles.

    Args:
        scene: its folder.
        out: folder for A, B and label. Names start with the number of the strip.
        strips: across the longer side.

    Raises:
        InputError: a pixel of an image is invalid, or one of the label does not count; a tile could not say so.
    """
    label = read_label(scene / "label.png")[None]
    if hidden := int((label == IGNORE).sum()):
        raise InputError(f"{scene / 'label.png'}: found {hidden} pixels that do not count, expected none")
    images = {"label": (label == 1) * np.uint8(255)}
    for folder, name in (("A", "pre.tif"), ("B", "post.tif")):
        raster = read_raster(scene / name)
        if invalid := int((~raster.valid).sum()):
            raise InputError(f"{scene / name}: found {invalid} invalid pixels, expected none")
        images[folder] = raster.array
    height, width = images["label"].shape[1:]
    down = height >= width
    across = _spans(0, min(height, width), max(1, round(min(height, width) / PAIR_TILE_PX)))
    for strip, (first, last) in enumerate(_spans(0, max(height, width), strips)):
        along = _spans(first, last, max(1, round((last - first) / PAIR_TILE_PX)))
        for (i, one), (j, other) in itertools.product(enumerate(along), enumerate(across)):
            rows, cols = (one, other) if down else (other, one)
            for folder, image in images.items():
                part = image[:, slice(*rows), slice(*cols)]
                grid = Grid(None, Affine.identity(), *part.shape[1:])
                write_raster(out / folder / f"{strip:02d}_{i:02d}_{j:02d}.tif", part, grid)


def _spans(first: int, last: int, count: int) -> list[tuple[int, int]]:
    """``count`` neighbouring intervals of about the same length."""
    edges = [first + (last - first) * i // count for i in range(count + 1)]
    return list(itertools.pairwise(edges))


def _write_synthetic(root: Path, sizes: Sizes) -> None:
    write = partial(write_tiles, root, tile_px=sizes.tile_px, scene_px=sizes.scene_px)
    tests = range(TEST_SEED, TEST_SEED + sizes.test_scenes)
    write("train", range(TRAIN_SEED, TRAIN_SEED + sizes.train_scenes))
    write("plain", tests)
    write("registered", tests, jitter_px=0.0)
    write("unchanged", tests, change=False)
    write("season", _season_seeds(sizes.test_scenes))


def _season_seeds(count: int) -> list[int]:
    """Scenes whose two dates are far apart in the year; when they are taken does not depend on a scene's size."""
    seeds: list[int] = []
    seed = SEASON_SEED
    while len(seeds) < count:
        view = make_scene(seed, 128, 128, "flood" if seed % 2 else "city").view
        days = abs(view.day_before - view.day_after)
        if min(days, 365 - days) >= SEASON_DAYS:
            seeds.append(seed)
        seed += 1
    return seeds
