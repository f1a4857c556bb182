"""Orientation correlation: where two images of one place fit, whatever the sensors.

After Fitch, Kadyrov, Christmas and Kittler (Orientation Correlation, British Machine Vision Conference 2002): images
are replaced by the direction of their gradient, as complex numbers, and correlated by FFT. We double the angle, so that
a field that is bright in one image and dark in the other fits as well, and we weight instead of setting to unit length:
weak gradients, which are noise, count less, strong ones all the same. Bands add up.

What is high stands elsewhere in the two images although nothing is misplaced: in SAR it folds over towards the radar,
bright, and throws a radar shadow the other way; in the optical image the sun's shadow lies on yet another side. Hence
SAR is left out at what is bright and beside it, the rest is cut off above and below, and the optical image is
looked at without what shade changes: by colour alone. NumPy and SciPy only.
"""

from enum import Enum
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import fft, ndimage

from hetecd.modality import Floats
from hetecd.raster import Bools

GRADIENT_PX = 1.0  # width of the Gaussian whose derivative is the gradient
REACH_PX = 4  # of that Gaussian
AROUND_PX = 33  # edge of the square by which "usual around" is meant
CUT = -1.0, -0.2  # standard deviations from the mean around at which SAR's dark and bright are cut off
BRIGHT = 0.16  # share of a SAR image that is taken as bright
BESIDE_PX = 3  # so near to it nothing is believed
SPECKLE_PX = 0.7  # width of the Gaussian through which the bright is looked for
LEAST_COLOUR = 0.04  # power of the gradients of colour to that of brightness from which colour is clear enough
MARGIN_PX = AROUND_PX // 2 + 1  # pixels around a tile that should be known as well
LEAST_VARIETY = 0.1  # below it there is nothing to hold on to in some direction: plain, a slope, or stripes
LEAST = 0.1  # share of a tile's gradients that must meet valid ones for a correlation to count

Complex = NDArray[np.complex64]


class Sensor(Enum):
    """Which kind of image gradients are taken of."""

    ANY = 0
    OPTICAL = 1
    SAR = 2


class Field(NamedTuple):
    """Doubled gradient directions of an image.

    Attributes:
        values: (H, W) complex64, length up to 1, 0 where invalid.
        valid: (H, W) float32, 1 where a direction could be told and 0 beside nodata.
    """

    values: Complex
    valid: Floats

    @property
    def variety(self) -> float:
        """How much directions differ: 0 all the same (or none at all), 1 every direction as often as that across."""
        length = float(np.abs(self.values).sum())
        return 1 - float(np.abs(self.values.sum())) / length if length > 0 else 0.0

    @property
    def deviation(self) -> Complex:
        """The values less their mean over the valid: what is common everywhere says nothing about where."""
        return self.values - self.valid * (self.values.sum() / max(float(self.valid.sum()), 1.0))

    def inside(self, margin_px: int) -> "Field":
        """Without a margin."""
        inner = slice(margin_px, -margin_px or None)
        return Field(self.values[inner, inner], self.valid[inner, inner])


def field(image: Floats, sensor: Sensor = Sensor.ANY, factor: int = 1) -> Field:
    """Doubled gradient directions of an image.

    Args:
        image: (C, H, W) float32, NaN where invalid. Bands that are nowhere negative are taken as power or reflectance.
        sensor: says what is left out; with ANY nothing is.
        factor: pixels to one of the image, where it was :func:`thinned`.
    """
    valid: Bools = np.asarray(np.isfinite(image).all(0))
    # Gradients are taken where no invalid pixel takes part in them; so what is filled in there does not matter.
    known: Bools = ndimage.minimum_filter(valid, 2 * REACH_PX + 1, mode="nearest")
    values = np.zeros(valid.shape, np.complex64)
    if known.any():
        bands = [_logarithm(band, valid) for band in image]
        if sensor is Sensor.SAR:
            known = known & ~_beside_bright(np.mean(bands, 0), valid, BESIDE_PX // factor)
            bands = [_middle(band, valid) for band in bands]
        gradients = np.stack([_gradient(band) for band in bands])
        if sensor is Sensor.OPTICAL:
            gradients = _without_shade(gradients, known)
        if known.any():
            values = np.mean([_directions(gradient, known) for gradient in gradients], 0, np.complex64)
    return Field(np.where(known, values, 0), known.astype(np.float32))


def _logarithm(band: Floats, valid: Bools) -> Floats:
    """The band with invalid pixels 0, as a logarithm unless it has negative values, that is: already is one."""
    plain = np.where(valid, band, 0)
    if plain.min() < 0:
        return plain
    floor = max(0.02 * float(plain[valid].mean()), 1e-30)
    return np.where(valid, np.log(plain + np.float32(floor)), 0)


def _beside_bright(band: Floats, valid: Bools, beside_px: int) -> Bools:
    """The brightest pixels of SAR and what is beside them: houses, trees, and their shadows."""
    smooth = ndimage.gaussian_filter(band, SPECKLE_PX)
    bright = valid & (smooth > np.quantile(smooth[valid], 1 - BRIGHT))
    return np.asarray(ndimage.maximum_filter(bright, 2 * beside_px + 1))


def _middle(band: Floats, valid: Bools) -> Floats:
    """The band without what is brighter or darker than usual around."""
    share, mean, square = (
        ndimage.uniform_filter(image, AROUND_PX, mode="constant")
        for image in (valid.astype(np.float32), band, band * band)
    )
    share = np.maximum(share, 1e-6)
    deviation = np.sqrt(np.maximum(square / share - (mean / share) ** 2, 0))
    dark, bright = (mean / share + cut * deviation for cut in CUT)
    return np.clip(band, dark, bright)


def _gradient(band: Floats) -> Complex:
    """Along the rows + i down the columns."""
    along, down = (
        ndimage.gaussian_filter(band, GRADIENT_PX, order=order, radius=REACH_PX) for order in ((0, 1), (1, 0))
    )
    return np.asarray(along + 1j * down, np.complex64)


def _without_shade(gradients: Complex, known: Bools) -> Complex:
    """Gradients of colour alone: without the mixture of bands that varies most, which is what shade changes."""
    samples = gradients[:, known]
    power, mixtures = np.linalg.eigh((samples @ samples.conj().T).real)
    if power[:-1].sum() <= LEAST_COLOUR * power[-1]:
        return gradients
    return np.asarray(np.tensordot(mixtures[:, :-1].T, gradients, 1), np.complex64)


def _directions(gradient: Complex, known: Bools) -> Complex:
    """Doubled directions, of length below 1: 0.7 where the gradient is as strong as the median is."""
    power = np.abs(gradient) ** 2
    usual = float(np.median(power[known]))
    return np.asarray(gradient**2 / np.maximum(np.sqrt(power * (power + usual)), 1e-30), np.complex64)


def thinned(image: Floats, factor: int) -> Floats:
    """Means over squares of ``factor`` pixels (C, H // factor, W // factor); NaN where a pixel of it is."""
    height, width = (size // factor for size in image.shape[1:])
    squares = image[:, : height * factor, : width * factor].reshape(-1, height, factor, width, factor)
    return np.asarray(squares.mean((2, 4)), np.float32)


def likeness(tile: Field, around: Field) -> Floats:
    """How well a tile fits at every place of a larger image, in standard deviations of what does not fit.

    Args:
        tile: (h, w).
        around: (H, W), the same place and more.

    Returns:
        (H - h + 1, W - w + 1); where the tile's upper left pixel lies at [row, col] of ``around``, 0 where too little
        is valid in both, and everywhere where one of the two has no texture.
    """
    size = [fft.next_fast_len(n) for n in around.values.shape]
    out = tuple(b - a + 1 for a, b in zip(tile.values.shape, around.values.shape, strict=True))
    if min(tile.variety, around.variety) < LEAST_VARIETY:
        return np.zeros(out, np.float32)
    one, other = tile.deviation, around.deviation

    def slide(one: Complex | Floats, other: Complex | Floats) -> Floats:
        product = fft.fft2(one, size).conj() * fft.fft2(other, size)
        return np.asarray(fft.ifft2(product).real[: out[0], : out[1]], np.float32)

    met = slide(tile.valid, around.valid)
    # Variance of the sum of products whose directions have nothing to do with each other.
    variance = slide(np.abs(one) ** 2, np.abs(other) ** 2) / 2
    enough = (met > LEAST * tile.valid.size) & (variance > 1e-3)
    score = np.where(enough, slide(one, other) / np.sqrt(np.where(enough, variance, 1)), 0)
    # Neighbouring directions are alike, which makes chance stronger than that variance says, by as much everywhere.
    spread = np.sqrt(np.mean(score[enough] ** 2)) if enough.any() else 1.0
    return (score / max(float(spread), 1e-6)).astype(np.float32)


def peak(surface: Floats) -> tuple[float, float]:
    """(row, col) of the highest place of a surface, between the pixels: the top of a parabola along either axis."""
    row, col = np.unravel_index(surface.argmax(), surface.shape)
    return _top(surface[:, col], int(row)), _top(surface[row], int(col))


def _top(line: Floats, at: int) -> float:
    if not 0 < at < len(line) - 1:
        return float(at)
    before, here, after = (float(line[at + step]) for step in (-1, 0, 1))
    bend = 2 * here - before - after
    return at + (after - before) / 2 / bend if bend > 0 else float(at)


def peaks(surface: Floats, count: int, apart_px: int) -> list[tuple[int, int]]:
    """(row, col) of the ``count`` highest places of a surface that stand apart from each other."""
    top = ndimage.maximum_filter(surface, 2 * apart_px + 1)
    rows, cols = np.nonzero((surface == top) & (surface > 0))
    order = np.argsort(surface[rows, cols])[::-1][:count]
    return [(int(rows[i]), int(cols[i])) for i in order]
