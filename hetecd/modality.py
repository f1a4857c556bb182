"""What a network expects of one date: which bands, in which unit, scaled how.

A :class:`Modality` travels inside every checkpoint, so that a network never meets numbers it was not trained on.
NumPy only. Everywhere in hetecd a raw image is ``(C, H, W)`` float32 with NaN where a pixel is invalid.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from hetecd.errors import ConfigError, InputError

log = logging.getLogger("hetecd")

Floats = NDArray[np.float32]
# The seam between networks and everything around them: raw optical (B, Co, H, W) and SAR (B, Cs, H, W), float32 with
# NaN = invalid, give the probability of change (B, H, W), float32. Any H and W from MIN_PX. One with an attribute
# ``windows`` says in which a scene is best mapped, see :func:`windows_of`.
Predictor = Callable[[Floats, Floats], Floats]
Inner = tuple[slice, slice]  # rows and columns of an image, from where to where
MIN_PX = 32
STRIDE_PX = 32  # coarsest step of a network: what begins at multiples of it shows the same place alike

# Outside its usual range a value still means something (a ship in SAR, a cloud in optical), but not a hundred times
# as much. In units of the range between `low` and `high`.
CLIP = (-1.0, 2.0)
PERCENTILES = (1.0, 99.0)  # become 0 and 1
DB_FLOOR = 1e-6  # -60 dB, below the noise floor of every spaceborne SAR
FLAT = 0.02  # added to the deviation of a band: noise of an image without content is not blown up
# Share of values outside the range of training from which an image is of another kind. In OMBRIA a tile of 256 px has
# at most 0.35, twelve neighbours together 0.11.
FOREIGN = 0.4
MOST = 0.6  # the same of a few windows, which may be of snow or of a lake; from here on there is a warning
EIGHT_BIT = "8-bit"  # unit of pictures that have been stretched to 0 ... 255
BRIGHT = 1e-4  # share of values above 255 from which an image is no such picture, whatever the others are


@dataclass(frozen=True)
class Modality:
    """Input contract of one date.

    Attributes:
        bands: band numbers in the file, from 1, in the order the network reads them. A band may be repeated.
        low: value per band that becomes 0 (after the change to dB, where ``db``).
        high: value per band that becomes 1.
        db: True where the network wants ``10 log10`` of the raw value, which is linear power, or counts of a sensor.
        unit: what the raw numbers are: "8-bit", "digital number", "reflectance", "dB", "linear power".
        gsd_m: ground sampling distance of the training data in metres, None where it was unknown.
    """

    bands: tuple[int, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    db: bool = False
    unit: str = "digital number"
    gsd_m: float | None = None

    def __post_init__(self) -> None:
        if not self.bands or min(self.bands) < 1:
            raise ConfigError(f"bands: found {self.bands}, expected band numbers from 1")
        if not len(self.bands) == len(self.low) == len(self.high):
            raise ConfigError(
                f"modality: found {len(self.bands)} bands, {len(self.low)} low and {len(self.high)} high values, "
                "expected as many of each"
            )
        if not all(np.isfinite(lo) and np.isfinite(hi) and hi > lo for lo, hi in zip(self.low, self.high, strict=True)):
            raise ConfigError(f"modality: low {self.low} must be finite and below high {self.high}")

    @property
    def channels(self) -> int:
        """Number of channels the network reads."""
        return len(self.bands)

    def reading(self, bands: Sequence[int], name: str = "bands") -> "Modality":
        """The same for an image with these bands in other places; none = as they are. An error calls them ``name``."""
        if not bands:
            return self
        if len(bands) != self.channels:
            raise ConfigError(
                f"{name}: found {list(bands)}, expected {self.channels}: one for each that the weights read, in order"
            )
        return replace(self, bands=tuple(bands))

    def in_unit(self, kind: str) -> "Modality":
        """The same range for an image in "decibels" where power is wanted, or of "linear" power where decibels are."""
        if self.db and kind == "decibels":
            return replace(self, db=False, unit="dB")
        if not self.db and kind == "linear" and looks_like(np.array([self.low, self.high], np.float32)) == "decibels":
            return replace(self, db=True, unit="linear power")
        return self

    def normalise(self, raw: Floats) -> Floats:
        """Scale raw values to about [0, 1]; invalid (NaN, infinite) pixels become 0.

        Args:
            raw: (..., C, H, W) float32 in the unit of the file, already in the order of ``bands``, NaN = invalid.

        Returns:
            A new array of the same shape, float32, without NaN.
        """
        if raw.shape[-3] != self.channels:
            raise InputError(f"image: found {raw.shape[-3]} channels, expected {self.channels} (bands {self.bands})")
        x = to_db(raw) if self.db else raw
        low = np.asarray(self.low, np.float32)[:, None, None]
        span = np.asarray(self.high, np.float32)[:, None, None] - low
        with np.errstate(over="ignore"):  # an undeclared nodata of -3.4e38; it is clipped
            x = (x - low).astype(np.float32, copy=False)
            x /= span
        np.clip(x, *CLIP, out=x)
        valid = np.isfinite(raw)  # of the raw values, as the floor of dB hides minus infinity
        if not valid.all():
            x[~valid] = 0
        return x

    def outlying(self, raw: Floats) -> float:
        """Share of the valid values outside ``low`` to ``high``; about 0.02 where the image is like those of training.

        Args:
            raw: (..., C, H, W) float32 in the unit of the file, NaN = invalid.
        """
        x = to_db(raw) if self.db else raw
        low, high = (np.asarray(v, np.float32)[:, None, None] for v in (self.low, self.high))
        valid = np.isfinite(x).sum()
        return float(((x < low) | (x > high)).sum() / valid) if valid else 0.0

    def is_foreign(self, raw: Floats) -> bool:
        """Whether an image, as for :meth:`outlying`, is of another kind than those of training: of another range, or
        counts, reflectance or power where those were 8-bit pictures, with which they share a part of it."""
        return self.outlying(raw) > FOREIGN or (self.unit == EIGHT_BIT and (is_above_8_bits(raw) or is_share(raw)))


class Windows(NamedTuple):
    """Windows in which a scene is mapped; docs/scenes.md compares some.

    Attributes:
        tile_px: edge of a window.
        overlap_px: pixels that neighbours share.
    """

    tile_px: int = 512
    overlap_px: int = 128

    def asked(self, tile_px: int | None, overlap_px: int | None) -> "Windows":
        """What is asked for; None: the edge of these, and the overlap of these or, of smaller ones, that share."""
        if tile_px is None:
            tile_px = self.tile_px
        if overlap_px is None:
            share_px = min(self.overlap_px, self.overlap_px * tile_px // self.tile_px)
            overlap_px = -(-share_px // STRIDE_PX) * STRIDE_PX
            overlap_px = overlap_px if overlap_px < tile_px else 0
        return Windows(tile_px, overlap_px)


@dataclass(frozen=True)
class Focusing:
    """A :data:`Predictor` that can spare itself what nobody wants.

    Attributes:
        compute: ``(optical, sar, inner) -> probability``, which outside of ``inner``, if that is given, means nothing.
        windows: that suit it, of a scene.
    """

    compute: Callable[[Floats, Floats, Inner | None], Floats]
    windows: Windows = Windows()  # noqa: RUF009 - a tuple

    def __call__(self, optical: Floats, sar: Floats, inner: Inner | None = None) -> Floats:
        """Two images to probability."""
        return self.compute(optical, sar, inner)


def windows_of(predictor: Predictor) -> Windows:
    """The windows that suit a predictor: its ``windows``, if it has any."""
    network = predictor.compute if isinstance(predictor, Scaled) else predictor
    return getattr(network, "windows", Windows())


def ask(predictor: Predictor, optical: Floats, sar: Floats, inner: Inner | None) -> Floats:
    """What a predictor says within ``inner``; what comes back from around it means nothing."""
    if isinstance(predictor, Scaled):
        return ask(predictor.compute, *predictor.normalise(optical, sar), inner)
    return predictor(optical, sar, inner) if isinstance(predictor, Focusing) else predictor(optical, sar)


@dataclass(frozen=True)
class Scaled:
    """A network behind the scaling of its inputs, whichever runtime it is in: a :data:`Predictor` of raw images.

    It warns, once, where most values are unlike those of training.

    Attributes:
        compute: ``(optical, sar) -> probability`` of normalised images.
        optical: what the optical image must look like.
        sar: what the SAR image must look like.
        standardises: ``compute`` standardises the bands over the images that it gets, unless they come with their
            standardised bands, as (B, 2C, H, W); see :mod:`hetecd.surroundings`.
    """

    compute: Predictor
    optical: Modality
    sar: Modality
    standardises: bool = False
    _warned: set[str] = field(default_factory=set, init=False, repr=False, compare=False)

    def __call__(self, raw_optical: Floats, raw_sar: Floats) -> Floats:
        """Raw images to probability."""
        return self.compute(*self.normalise(raw_optical, raw_sar))

    def normalise(self, raw_optical: Floats, raw_sar: Floats) -> tuple[Floats, Floats]:
        """Raw images (..., C, H, W), NaN = invalid, to what ``compute`` reads, 0 = invalid."""
        images = self.optical.normalise(raw_optical), self.sar.normalise(raw_sar)
        for name, modality, raw in (("optical", self.optical, raw_optical), ("sar", self.sar, raw_sar)):
            if name not in self._warned and (share := modality.outlying(raw)) > MOST:
                self._warned.add(name)
                log.warning(
                    "%s: %.0f %% of the values lie outside those of training (%s to %s, %s); do not trust the map: "
                    "rescale the image or use other weights",
                    name, 100 * share, modality.low, modality.high, "dB" if modality.db else modality.unit,
                )  # fmt: skip
        return images


def standardised(images: Floats) -> Floats:
    """Each band, and each once more with mean 0 and deviation 1 over its image: (B, C, H, W) -> (B, 2C, H, W).

    What :func:`hetecd.model.standardised` does, without torch: invalid pixels are 0 in all bands, and stay it.
    """
    valid = (images != 0).any(1, keepdims=True)
    count = np.maximum(valid.sum((2, 3), keepdims=True), 1)
    even = (images - images.sum((2, 3), keepdims=True, dtype=np.float64) / count) * valid
    deviation = np.sqrt(np.square(even).sum((2, 3), keepdims=True) / count)
    return np.concatenate((images, (even / (deviation + FLAT)).astype(np.float32)), 1)


def padded(images: Floats) -> Floats:
    """Mirrored at the right and lower edge up to a multiple of the stride, as networks do it: (..., H, W)."""
    grow = [(0, 0)] * (images.ndim - 2) + [(0, -edge % STRIDE_PX) for edge in images.shape[-2:]]
    return np.pad(images, grow, mode="reflect")


def mirrored(compute: Predictor) -> Predictor:
    """A predictor that gives the mean over its input and its mirror image at the rising diagonal.

    Test-time augmentation for twice the work. That mirror image turns each of the directions in which a network reads,
    left and up, into the other's opposite, so that the two views do what the four of both flips do (docs/accuracy.md).
    """
    if isinstance(compute, Scaled):
        return replace(compute, compute=mirrored(compute.compute))

    def flipped(image: Floats) -> Floats:
        return np.ascontiguousarray(np.flip(image, (-2, -1)).swapaxes(-2, -1))

    def predict(optical: Floats, sar: Floats, inner: Inner | None) -> Floats:
        H, W = sar.shape[-2:]
        # So the mirror image of every window of a scene begins at a multiple of the stride.
        others = [flipped(padded(image)) for image in (optical, sar)]
        last_col, last_row = others[1].shape[-2:]  # what was the last is the first there
        there = inner and (
            slice(last_col - inner[1].stop, last_col - inner[1].start),
            slice(last_row - inner[0].stop, last_row - inner[0].start),
        )
        other = flipped(ask(compute, others[0], others[1], there))[..., :H, :W]
        return (ask(compute, optical, sar, inner) + other) / np.float32(2)

    return Focusing(predict, windows_of(compute))


def to_db(power: Floats) -> Floats:
    """Linear power to decibel, floored at -60 dB; NaN stays NaN."""
    return (10.0 * np.log10(np.maximum(power, DB_FLOOR))).astype(np.float32)


def is_above_8_bits(raw: Floats) -> bool:
    """Whether more than a few stray values are above 255; NaN = invalid."""
    return bool((raw > 255).sum() > BRIGHT * np.isfinite(raw).sum())


def is_share(raw: Floats) -> bool:
    """Whether the values are fractions, hardly any of them above 2, as of reflectance and power; NaN = invalid."""
    values = raw[np.isfinite(raw)]
    return looks_like(raw) == "linear" and bool(np.percentile(values, PERCENTILES[1]) <= 2)


def looks_like(sample: Floats) -> str:
    """What the numbers of an image seem to be: "decibels", "linear" (power or reflectance) or "digital numbers".

    Args:
        sample: (C, ...) float32, NaN = invalid.
    """
    values = sample[np.isfinite(sample)]
    if not values.size:
        return "digital numbers"
    low, high = np.percentile(values, PERCENTILES)
    if low < -1 and low > -90 and high < 40:
        return "decibels"
    if low >= 0 and high < 50 and (values % 1 != 0).any():
        return "linear"
    return "digital numbers"


def uint8_modality(bands: tuple[int, ...]) -> Modality:
    """Pixel / 255, the scaling of the published network."""
    n = len(bands)
    return Modality(bands=bands, low=(0.0,) * n, high=(255.0,) * n, unit=EIGHT_BIT)


def fit_modality(
    images: list[Floats], bands: tuple[int, ...], db: bool = False, gsd_m: float | None = None
) -> Modality:
    """Robust range per band over a sample of training images: the 1st and 99th percentile become 0 and 1.

    Args:
        images: raw (C, H, W) float32 arrays, NaN = invalid, channels already in the order of ``bands``. Every pixel is
            looked at, so thin out large images before.
        bands: band numbers in the file, kept in the contract.
        db: the values are linear power; the range is taken in dB, of those above 0.
        gsd_m: ground sampling distance in metres, if known.

    Raises:
        InputError: a band has no valid pixel in any image, or a single value throughout.
    """
    low, high = [], []
    for channel, band in enumerate(bands):
        values = np.concatenate([image[channel].ravel() for image in images])
        values = values[np.isfinite(values)]
        if db:
            values = to_db(values[values > 0])  # others are at its floor, and as undeclared nodata can be many
        if values.size == 0:
            raise InputError(f"band {band}: found no valid pixel, expected some; check its nodata, or read another")
        lo, hi = (float(v) for v in np.percentile(values, PERCENTILES))
        if hi <= lo:
            lo, hi = float(values.min()), float(values.max())
        if hi <= lo:
            raise InputError(f"band {band}: found {lo:g} everywhere, expected an image; check it, or read another")
        low.append(lo)
        high.append(hi)
    return Modality(bands=bands, low=tuple(low), high=tuple(high), db=db, gsd_m=gsd_m)
