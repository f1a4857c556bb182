"""From folders of tiles to batches.

Files are found and paired in :mod:`hetecd.folders`; here labels are read into 0 / 1 / 255 (:func:`read_label`), and
:class:`TileDataset` hands out normalised tensors. Invalid pixels of either date travel as 255 in the label.
"""

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from hetecd.config import IGNORE, Role, TrainConfig
from hetecd.errors import ConfigError, InputError, some
from hetecd.folders import TileFiles, find_tiles, hold_out_blocks, match_tiles, split_tiles
from hetecd.modality import (
    EIGHT_BIT,
    MIN_PX,
    PERCENTILES,
    Floats,
    Modality,
    fit_modality,
    looks_like,
    to_db,
    uint8_modality,
)
from hetecd.raster import data_bands, open_raster, read_raster, to_float32

__all__ = [
    "REPEAT", "EpochSampler", "Tile", "TileDataset", "TileFiles", "check_labels", "collate", "find_tiles",
    "fit_modalities", "hold_out_blocks", "known_modalities", "match_tiles", "read_label", "read_tile", "split_tiles",
]  # fmt: skip

log = logging.getLogger("hetecd")

CACHE_BYTES = 2 << 30  # training holds two data sets
REPEAT = -1  # in place of the epoch: a tile that only fills up a process's share and must not count
HIDDEN = -IGNORE  # in a set of label values: 255, but declared as nodata
FIT_FILES, FIT_PIXELS = 256, 20_000  # enough for two percentiles, and flat in memory

Augment = Callable[
    [Tensor, Tensor, Tensor, TrainConfig, torch.Generator, Sequence[float]], tuple[Tensor, Tensor, Tensor]
]


@dataclass(frozen=True, eq=False)
class Tile:
    """One tile in memory.

    Attributes:
        name: of the files, without extension.
        optical: (Co, H, W) raw float32, NaN = invalid.
        sar: (Cs, H, W) the same for SAR.
        label: (H, W) uint8, 0 / 1 / 255; 255 wherever either date is invalid; 0 elsewhere if there is no label.
    """

    name: str
    optical: Floats
    sar: Floats
    label: NDArray[np.uint8]


# --- pixels ----------------------------------------------------------------------------------------------------------


def read_label(path: Path | str, ignore_255: bool = False) -> NDArray[np.uint8]:
    """Read a label as (H, W) uint8: 0 unchanged, 1 changed, 255 does not count.

    Args:
        path: one band (or several equal ones) of {0, 1} or {0, 255}; of {0, 1, 255} where ``ignore_255``.
        ignore_255: 255 means "does not count". Otherwise only NaN and nodata do not count.

    Raises:
        InputError: other values, bands that differ, or 255 declared as nodata where no 1 tells what it means.
    """
    label, spelt = _decode_label(path, ignore_255)
    _check_spelling(dict.fromkeys(spelt, path), ignore_255)
    return label


def check_labels(files: Sequence[TileFiles], ignore_255: bool = False) -> bool:
    """Raise InputError unless all labels of a split are readable and spell "changed" the same way.

    One file of {0, 255} among files of {0, 1} may mean "changed" or "ignore" by 255: nobody should guess.

    Returns:
        Whether any pixel means "changed".
    """
    seen: dict[int, Path | str] = {}
    for tile in files:
        if tile.label is not None:
            for value in _decode_label(tile.label, ignore_255)[1]:
                seen.setdefault(value, tile.label)
    _check_spelling(seen, ignore_255)
    return 1 in seen or (IGNORE in seen and not ignore_255)


def _check_spelling(seen: Mapping[int, Path | str], ignore_255: bool) -> None:
    """Refuse what has two readings; ``seen`` is which of 1, 255 and HIDDEN there are, and where."""
    if ignore_255:
        return
    if {1, IGNORE} <= seen.keys():
        raise InputError(
            f"labels: found 1 in {seen[1]} but 255 in {seen[IGNORE]}, expected {{0, 1}} or {{0, 255}} throughout; make "
            "them alike, or set ignore_255 where 255 means 'does not count'"
        )
    if HIDDEN in seen and 1 not in seen:
        raise InputError(
            f"{seen[HIDDEN]}: found 255 declared as nodata and no 1 in the labels, expected 1 or 255 for 'changed'; "
            "set ignore_255 where 255 means 'does not count', else remove the nodata value from the labels"
        )


def _decode_label(path: Path | str, ignore_255: bool) -> tuple[NDArray[np.uint8], set[int]]:
    """Label and which of 1, 255 and HIDDEN the file holds (HIDDEN only where 255 never appears as data)."""
    raster = read_raster(path)
    band, valid = raster.array[0], raster.valid
    if not (raster.array[1:] == band).all():
        raise InputError(
            f"{path}: found {len(raster.array)} bands that differ, expected a label of one band; convert it"
        )
    zero, one, many = band == 0, band == 1, band == IGNORE
    if zero.any() and np.array_equal(zero, ~valid):
        # Many programs declare 0 as nodata in whatever they write; in a label 0 is "unchanged".
        valid = np.ones_like(valid)
    hidden = many.any() and not (many & valid).any()
    one, many = one & valid, many & valid
    odd = valid & ~(zero | one | many)
    if odd.any() or (one.any() and many.any() and not ignore_255):
        listed = some([f"{v:g}" for v in np.unique(band[valid])], 6)
        hint = "set ignore_255 if 255 means 'does not count'" if not odd.any() else "convert it (JPEG spoils labels)"
        wanted = "{0, 1, 255}" if ignore_255 else "{0, 1} or {0, 255}"
        raise InputError(f"{path}: found label values {{{listed}}}, expected {wanted}; {hint}")
    label = (one if ignore_255 else one | many).astype(np.uint8)
    label[~valid | many if ignore_255 else ~valid] = IGNORE
    return label, {value for value, there in ((1, one.any()), (IGNORE, many.any()), (HIDDEN, hidden)) if there}


def read_tile(files: TileFiles, before_is: Role, optical: Modality, sar: Modality, ignore_255: bool = False) -> Tile:
    """Read one tile raw: the arrays a predictor takes, once stacked.

    Raises:
        InputError: a file is unreadable, lacks a band, the sizes differ, or the label is refused (:func:`read_label`).
    """
    check_labels([files], ignore_255)
    return _decode(files, before_is, optical, sar, ignore_255).crop(files.name)


@dataclass(frozen=True, eq=False)
class _Decoded:
    """A tile as cached: dtype of the files; ``*_valid`` is None where all pixels are."""

    optical: NDArray[Any]
    sar: NDArray[Any]
    label: NDArray[np.uint8]
    optical_valid: NDArray[np.bool_] | None
    sar_valid: NDArray[np.bool_] | None

    @property
    def nbytes(self) -> int:
        arrays = (self.optical, self.sar, self.label, self.optical_valid, self.sar_valid)
        return sum(a.nbytes for a in arrays if a is not None)

    def crop(self, name: str, rows: slice = slice(None), cols: slice = slice(None)) -> Tile:
        def floats(array: NDArray[Any], valid: NDArray[np.bool_] | None) -> Floats:
            part = array[:, rows, cols]
            return part.astype(np.float32) if valid is None else to_float32(part, valid[rows, cols])

        optical, sar = floats(self.optical, self.optical_valid), floats(self.sar, self.sar_valid)
        return Tile(name, optical, sar, self.label[rows, cols].copy())


def _decode(files: TileFiles, before_is: Role, optical: Modality, sar: Modality, ignore_255: bool) -> _Decoded:
    paths = (files.before, files.after) if before_is == "optical" else (files.after, files.before)
    images = [read_raster(path, modality.bands) for path, modality in zip(paths, (optical, sar), strict=True)]
    size = images[0].valid.shape
    label = np.zeros(size, np.uint8) if files.label is None else _decode_label(files.label, ignore_255)[0]
    for path, shape in ((paths[1], images[1].valid.shape), (files.label, label.shape)):
        if shape != size:
            raise InputError(
                f"{path}: found {shape[0]} x {shape[1]} pixels, expected {size[0]} x {size[1]} as in {paths[0]}; tiles "
                "of one name must have one size"
            )
    valid = images[0].valid & images[1].valid
    label[~valid] = IGNORE
    masks = [None if image.valid.all() else image.valid for image in images]
    return _Decoded(images[0].array, images[1].array, label, masks[0], masks[1])


def fit_modalities(files: Sequence[TileFiles], config: TrainConfig) -> tuple[Modality, Modality]:
    """Input contracts of optical and SAR from the training split, on at most 256 tiles spread over it.

    Raises:
        InputError: no tiles, unreadable files, bands that are missing, empty or of one value.
        ConfigError: normalise "uint8" on other than uint8 files or together with sar_db.
    """
    if not files:
        raise InputError("training split: found no tiles, expected some; check the data folder")
    paths = _sampled(files, config.before_is)
    optical = _fit(paths[0], config.optical_bands, config, False)
    sar = _fit(paths[1], config.sar_bands, config, config.sar_db)
    return _in_unit(optical, config.optical_unit), _in_unit(sar, config.sar_unit)


def known_modalities(
    files: Sequence[TileFiles], config: TrainConfig, optical: Modality, sar: Modality
) -> tuple[Modality, Modality]:
    """Input contracts of weights to start from, for the bands that the settings name; warns of images they do not know.

    Raises:
        InputError: unreadable files, bands that are missing.
        ConfigError: another number of bands than the weights read; sar_db, where they know no power.
    """
    if config.sar_db and not sar.db:
        raise ConfigError(f"sar_db: found true, but the weights to start from know SAR in another unit ({sar.unit})")
    contracts = optical.reading(config.optical_bands, "optical_bands"), sar.reading(config.sar_bands, "sar_bands")
    for role, modality, paths in zip(("optical", "sar"), contracts, _sampled(files, config.before_is), strict=True):
        images, _ = _thinned(paths, modality.bands)
        values = np.concatenate([image.reshape(len(image), -1) for image in images], axis=1)[..., None]
        if modality.is_foreign(values):
            log.warning(
                "%s: found %.4g to %.4g in the tiles, expected what the weights to start from know (%s to %s, %s); "
                "convert the tiles, or train without start_from",
                role, *np.nanpercentile(to_db(values) if modality.db else values, PERCENTILES), modality.low,
                modality.high, f"dB of {modality.unit}" if modality.db else modality.unit,
            )  # fmt: skip
    return contracts


def _sampled(files: Sequence[TileFiles], before_is: Role) -> tuple[list[Path], list[Path]]:
    """Optical and SAR files of at most 256 tiles spread over a split."""
    sample = [files[int(i)] for i in np.linspace(0, len(files) - 1, min(len(files), FIT_FILES)).round()]
    dates = [f.before for f in sample], [f.after for f in sample]
    return dates if before_is == "optical" else dates[::-1]


def _thinned(paths: Sequence[Path], bands: tuple[int, ...]) -> tuple[list[Floats], set[str]]:
    """Some pixels of each image (C, h, w), NaN = invalid, and the types of the files."""
    images, dtypes = [], set()
    for path in paths:
        raster = read_raster(path, bands)
        dtypes.add(raster.array.dtype.name)
        step = max(1, math.ceil(math.sqrt(raster.valid.size / FIT_PIXELS)))
        images.append(to_float32(raster.array[:, ::step, ::step], raster.valid[::step, ::step]))
    return images, dtypes


def _in_unit(modality: Modality, unit: str) -> Modality:
    """As the settings say, unless the files say more."""
    return modality if modality.unit == EIGHT_BIT and unit == Modality.unit else replace(modality, unit=unit)


def _fit(paths: list[Path], bands: tuple[int, ...], config: TrainConfig, db: bool) -> Modality:
    if not bands:
        with open_raster(paths[0]) as dataset:
            bands = data_bands(dataset)
    gsd_m = config.gsd_m or None
    images, dtypes = _thinned(paths, bands)
    if config.normalise == "uint8":
        if dtypes != {"uint8"} or db:
            found = "sar_db" if db else f"{', '.join(sorted(dtypes - {'uint8'}))} pixels"
            raise ConfigError(
                f"normalise: found uint8 with {found} in {paths[0].parent}, expected 0..255; use normalise: percentile"
            )
        return replace(uint8_modality(bands), gsd_m=gsd_m)
    if db and looks_like(np.concatenate([image.ravel() for image in images])) == "decibels":
        raise ConfigError(f"sar_db: found true, but {paths[0].parent} holds decibels already; leave it out")
    try:
        fitted = fit_modality(images, bands, db=db, gsd_m=gsd_m)
    except InputError as error:
        raise InputError(f"{paths[0].parent}: {error}") from error
    return replace(fitted, unit=EIGHT_BIT) if dtypes == {"uint8"} and not db else fitted


# --- batches ---------------------------------------------------------------------------------------------------------


class TileDataset(Dataset[dict[str, Any]]):
    """Tiles as normalised tensors; decoded files stay in memory up to a budget.

    Args:
        files: tiles of one split.
        config: training settings (roles, crop, augmentation, seed).
        optical: input contract of optical.
        sar: input contract of SAR.
        augment: :func:`hetecd.augment.augment` or the like for training: crops and augments items asked for as
            ``(epoch, index)``. None (validation, test): every item is the whole tile, as it is.
        cache_bytes: memory for decoded tiles, over all workers; 2 GiB by default, so 4 GiB for a training split and
            its validation split together.

    Attributes:
        has_change: some label holds a pixel that means "changed". A small held-out split may well lack one, but
            nothing can be learned from a training split without.

    Raises:
        InputError: labels of the split are unreadable, hold wrong values or disagree about what 255 means.
    """

    def __init__(
        self,
        files: Sequence[TileFiles],
        config: TrainConfig,
        optical: Modality,
        sar: Modality,
        augment: Augment | None = None,
        cache_bytes: int = CACHE_BYTES,
    ) -> None:
        self.has_change = check_labels(files, config.ignore_255)
        self.files = list(files)
        self.config, self.optical, self.sar, self.augment = config, optical, sar, augment
        self._varied = _of_contracts(config, optical, sar)
        in_db = sar.db or sar.unit.lower() == "db"
        self._sar_span_db = tuple(hi - lo for lo, hi in zip(sar.low, sar.high, strict=True)) if in_db else ()
        self._cache: dict[int, _Decoded] = {}
        self._cache_left = cache_bytes // max(1, config.workers)

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, key: int | tuple[int, int]) -> dict[str, Any]:
        """One item.

        Args:
            key: ``(epoch, index)`` as :class:`EpochSampler` gives it, or a plain index: whole tile, not augmented.
                ``(REPEAT, index)`` is the same with a label of 255 throughout, so that no pixel counts.

        Returns:
            ``optical`` (Co, H, W) float32, ``sar`` (Cs, H, W) float32, both normalised, invalid pixels 0; ``label``
            (H, W) uint8, 0 / 1 / 255, invalid pixels of either date 255; ``index``. Augmented items are a function
            of (seed, epoch, index) alone, in whatever worker and order they are made.
        """
        epoch, index = key if isinstance(key, tuple) else (0, key)
        decoded = self._decoded(index)
        name, config = self.files[index].name, self.config
        if self.augment is None or not isinstance(key, tuple) or epoch == REPEAT:
            item = self._tensors(decoded.crop(name))
            if epoch == REPEAT:
                item["label"].fill_(IGNORE)
            return {**item, "index": index}
        rng = torch.Generator()
        rng.manual_seed(int(np.random.SeedSequence((config.seed, epoch, index)).generate_state(1, np.uint64)[0] >> 1))
        rows, cols = (_cut(edge, config.tile_px, rng) for edge in decoded.label.shape)
        item = self._tensors(decoded.crop(name, rows, cols))
        if config.tile_px:
            item = _pad(item, config.tile_px, config.tile_px)
        images = item["optical"], item["sar"], item["label"]
        optical, sar, label = self.augment(*images, self._varied, rng, self._sar_span_db)
        return {"optical": optical, "sar": sar, "label": label, "index": index}

    def tile(self, index: int) -> Tile:
        """The raw tile, for evaluation and pictures."""
        return self._decoded(index).crop(self.files[index].name)

    def _decoded(self, index: int) -> _Decoded:
        decoded = self._cache.get(index)
        if decoded is None:
            config = self.config
            files = self.files[index]
            decoded = _decode(files, config.before_is, self.optical, self.sar, config.ignore_255)
            if min(decoded.label.shape) < MIN_PX and not (self.augment and config.tile_px):  # which pads
                height, width = decoded.label.shape
                raise InputError(
                    f"{files.before}: found {height} x {width} pixels, expected at least {MIN_PX} x {MIN_PX}; leave "
                    "such tiles out"
                )
            if decoded.nbytes <= self._cache_left:
                self._cache_left -= decoded.nbytes
                self._cache[index] = decoded
        return decoded

    def _tensors(self, tile: Tile) -> dict[str, Tensor]:
        return {
            "optical": torch.from_numpy(self.optical.normalise(tile.optical)),
            "sar": torch.from_numpy(self.sar.normalise(tile.sar)),
            "label": torch.from_numpy(tile.label),
        }


def _of_contracts(config: TrainConfig, optical: Modality, sar: Modality) -> TrainConfig:
    """The settings for augmentation: bands and range are those of the weights to start from, if there are some."""
    config = replace(config, sar_bands=sar.bands)
    if not config.start_from:
        return config
    eight_bits = all({*m.low} == {0.0} and {*m.high} == {255.0} for m in (optical, sar))
    return replace(config, normalise="uint8" if eight_bits else "percentile")


def _cut(edge_px: int, tile_px: int, rng: torch.Generator) -> slice:
    if not tile_px or edge_px <= tile_px:
        return slice(None)
    start = int(torch.randint(edge_px - tile_px + 1, (1,), generator=rng))
    return slice(start, start + tile_px)


def _pad(item: dict[str, Tensor], height: int, width: int) -> dict[str, Tensor]:
    """Grow to at least this size below and to the right: images by 0, as invalid pixels are; label by 255."""
    h, w = item["label"].shape
    if h >= height and w >= width:
        return item
    grow = (0, max(0, width - w), 0, max(0, height - h))
    return {key: F.pad(x, grow, value=IGNORE if key == "label" else 0) for key, x in item.items()}


def collate(items: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
    """Stack items of a :class:`TileDataset`; smaller tiles are padded to the largest of the batch (label 255).

    Returns:
        ``optical`` (B, Co, H, W), ``sar`` (B, Cs, H, W), ``label`` (B, H, W), ``index`` (B,) int64.
    """
    height, width = (max(item["label"].shape[axis] for item in items) for axis in (0, 1))
    tensors = [_pad({k: item[k] for k in ("optical", "sar", "label")}, height, width) for item in items]
    batch = {key: torch.stack([t[key] for t in tensors]) for key in tensors[0]}
    return {**batch, "index": torch.tensor([item["index"] for item in items])}


class EpochSampler(Sampler[tuple[int, int]]):
    """Keys ``(epoch, index)`` of one epoch, for one of several processes.

    All processes get the same number of keys, as otherwise one of them would wait for the others for ever. Where the
    tiles do not share out evenly, some are handed out twice.

    Args:
        count: tiles in the data set.
        seed: of the order.
        shuffle: a new order every epoch, and what comes twice is trained on twice. False: in order, and what comes
            twice does so as ``(REPEAT, index)``, so that every tile counts exactly once over all processes.
        rank: of this process.
        world: number of processes.
    """

    def __init__(self, count: int, seed: int = 0, shuffle: bool = True, rank: int = 0, world: int = 1) -> None:
        self.count, self.seed, self.shuffle, self.rank, self.world = count, seed, shuffle, rank, world
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that the next iteration hands out; Lightning calls it."""
        self.epoch = epoch

    def __len__(self) -> int:
        return math.ceil(self.count / self.world)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        order = np.arange(self.count)
        if self.shuffle:
            order = np.random.default_rng((self.seed, self.epoch)).permutation(self.count)
        for place in range(self.rank, len(self) * self.world, self.world):
            repeated = place >= self.count and not self.shuffle
            yield REPEAT if repeated else self.epoch, int(order[place % self.count])
