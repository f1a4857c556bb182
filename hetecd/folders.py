"""Tiles on disk: which files belong together, and which of them validate.

Reads names only, no pixels; imports neither torch nor rasterio.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hetecd.config import TrainConfig
from hetecd.errors import InputError, some

EXTENSIONS = (".png", ".jpg", ".jpeg", ".tif", ".tiff")
# Names of the folders of the earlier and the later date, and of the label, in any case of letters.
DATES = (("a", "b"), ("t1", "t2"), ("pre-event", "post-event"), ("im1", "im2"))
LABELS = ("label", "gt", "target", "labels")


@dataclass(frozen=True, order=True)
class TileFiles:
    """The files of one tile; ``before`` is the earlier date, whichever modality that is."""

    name: str
    before: Path
    after: Path
    label: Path | None = None


def find_tiles(root: Path | str, split: str, labels: bool = True) -> list[TileFiles]:
    """Find the tiles of a split.

    Looked for in this order, with A, B, label also spelt T1, T2, GT or pre-event, post-event, target or im1, im2,
    label: ``root/SPLIT/A/*``, ``root/A/SPLIT/*``, ``root/A/*`` with the names in ``root/list/SPLIT.txt`` (or
    ``root/SPLIT.txt``), one name per line, extension optional. ``split=""`` means ``root/A/*``, all of it.

    Args:
        root: the data folder.
        split: name of the split: "train", "val", "test", ...
        labels: False = label folders need not be there and are not looked at.

    Returns:
        Sorted by name.

    Raises:
        InputError: a folder is missing, the split is empty, or a tile lacks a partner (the names are given).
    """
    root = Path(root)
    if not root.is_dir():
        raise InputError(f"{root}: found no such folder, expected a data set; check the path")
    place = _locate(root, split, labels)
    if place is None:
        found = ", ".join(sorted(p.name for p in root.iterdir())[:8]) or "nothing"
        raise InputError(
            f"{root}: found {found}, expected split '{split}' as {split or '.'}/{{A,B,label}}, {{A,B,label}}/{split} "
            f"or list/{split}.txt; see the README for the layouts"
        )
    before, after, label, listing = place
    return match_tiles(before, after, label, listing)


def match_tiles(
    before: Path | str, after: Path | str, label: Path | str | None = None, listing: Path | None = None
) -> list[TileFiles]:
    """Pair the files of two or three folders by name without extension.

    Args:
        before: folder of the earlier date.
        after: folder of the later date.
        label: folder of the labels, None = without.
        listing: text file with the names to take; None takes every name, and none may lack a partner.

    Raises:
        InputError: a folder is missing or empty, one name twice, or a name without partner.
    """
    folders = [Path(before), Path(after), *([] if label is None else [Path(label)])]
    images = [_images(folder) for folder in folders]
    names = _listed(listing) if listing else set().union(*images)
    for folder, files in zip(folders, images, strict=True):
        missing = sorted(names - files.keys())
        if missing:
            others = listing or " and ".join(str(f) for f in folders if f != folder)
            raise InputError(
                f"{folder}: found no file for {len(missing)} of {len(names)} tiles ({some(missing)}), expected the "
                f"names of {others}; add or remove files"
            )
    if not names:
        raise InputError(f"{listing or before}: found no tiles, expected {', '.join(EXTENSIONS)} files; check the path")
    return [TileFiles(name, *(files[name] for files in images)) for name in sorted(names)]


def _locate(root: Path, split: str, labels: bool) -> tuple[Path, Path, Path | None, Path | None] | None:
    """Folders before, after, label and the list file of a split; None if there is no such split."""
    listing = next((p for p in (root / "list" / f"{split}.txt", root / f"{split}.txt") if p.is_file()), None)
    inside = [(root / split, "", None), (root, split, None)] if split else []
    for base, below, names in [*inside, *([(root, "", listing)] if listing or not split else [])]:
        folders = {p.name.lower(): p for p in base.iterdir() if p.is_dir()} if base.is_dir() else {}
        for first, second in DATES:
            pair = [folders.get(name, base / name) / below for name in (first, second)]
            if not all(folder.is_dir() for folder in pair):
                continue
            label = next((folders[n] / below for n in LABELS if n in folders and (folders[n] / below).is_dir()), None)
            if labels and label is None:
                raise InputError(
                    f"{base}: found {pair[0].relative_to(base)} and {pair[1].relative_to(base)} but no labels for "
                    f"split '{split}', expected a folder {' or '.join(LABELS[:3])}; add it"
                )
            return pair[0], pair[1], label if labels else None, names
    return None


def _images(folder: Path) -> dict[str, Path]:
    if not folder.is_dir():
        raise InputError(f"{folder}: found no such folder, expected one of image files; check the path")
    files: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() not in EXTENSIONS or path.name.startswith("."):
            continue
        if path.stem in files:
            raise InputError(
                f"{folder}: found {files[path.stem].name} and {path.name}, expected one file per tile; remove one"
            )
        files[path.stem] = path
    return files


def _listed(listing: Path) -> set[str]:
    try:
        lines = [Path(line.strip()) for line in listing.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{listing}: cannot read this list of names ({error}); write one name per line") from error
    # Only an image extension is cut off: a name may hold dots.
    return {path.stem if path.suffix.lower() in EXTENSIONS else path.name for path in lines}


def has_split(root: Path | str, split: str) -> bool:
    """Whether a data folder has a split of this name, with labels or without."""
    return _locate(Path(root), split, labels=False) is not None


def split_tiles(root: Path | str, config: TrainConfig) -> tuple[list[TileFiles], list[TileFiles], str]:
    """Training and validation tiles: the val split where there is one, else blocks held out of the training split.

    With ``val_fraction`` 0 there are no validation tiles, and a val split is left alone.

    Returns:
        Training tiles, validation tiles, and a line for the log that says where the latter come from.
    """
    train = find_tiles(root, "train")
    if config.val_fraction == 0:
        return train, [], f"validation: none (val_fraction 0), all {len(train)} training tiles are trained on"
    if has_split(root, "val"):
        val = find_tiles(root, "val")
        return train, val, f"validation: the val split of {root}, {len(val)} tiles ({len(train)} for training)"
    rest, val = hold_out_blocks(train, config.val_fraction, config.seed)
    note = (
        f"validation: {root} has no val split, so {len(val)} of {len(train)} training tiles are held out, in blocks of "
        f"consecutive names (neighbours in name are often neighbours on the ground): {_blocks(train, val)}"
    )
    return rest, val, note


def hold_out_blocks(tiles: Sequence[TileFiles], fraction: float, seed: int) -> tuple[list[TileFiles], list[TileFiles]]:
    """Hold out blocks of consecutive tiles, one at a random place in each part of the list.

    Consecutive names usually show the same place or event, so random single tiles would be known from training.

    Args:
        tiles: sorted by name.
        fraction: share to hold out; at least one tile is, and one is left.
        seed: of the places.

    Returns:
        The rest and the held-out tiles, both in the given order.

    Raises:
        InputError: fewer than two tiles.
    """
    n = len(tiles)
    if n < 2:
        raise InputError(f"training split: found {n} tile{'s'[: n != 1]}, expected 2 or more to hold one out; add some")
    held = min(n - 1, max(1, round(n * fraction)))
    parts = max(1, min(6, held // 4))  # fewer than four tiles are hardly a block
    rng = np.random.default_rng(seed)
    chosen: set[int] = set()
    for part in range(parts):
        first, last = n * part // parts, n * (part + 1) // parts
        length = held * (part + 1) // parts - held * part // parts
        start = first + int(rng.integers(0, last - first - length + 1))
        chosen.update(range(start, start + length))
    return [t for i, t in enumerate(tiles) if i not in chosen], [t for i, t in enumerate(tiles) if i in chosen]


def _blocks(tiles: Sequence[TileFiles], held: Sequence[TileFiles]) -> str:
    names = {tile.name for tile in held}
    ends: list[list[str]] = []
    for previous, tile in zip([None, *tiles], tiles, strict=False):
        if tile.name in names:
            if previous is None or previous.name not in names:
                ends.append([tile.name, tile.name])
            ends[-1][1] = tile.name
    return ", ".join(first if first == last else f"{first}..{last}" for first, last in ends)
