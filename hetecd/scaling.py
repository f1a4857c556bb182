"""Images whose numbers are not those of training: reflectance or decibels, where the weights know 8-bit pictures.

A checkpoint says which values become 0 and 1 (:class:`hetecd.modality.Modality`). An image in another unit would come
out of that range as one value. So it gets a range of its own: by arithmetic where only the change between power and
decibels lies between the two, otherwise the one in which its 1st and 99th percentile are what those of the training
images were. The latter is a guess, as a scene need not be as bright as the average of others, and is said aloud.
"""

import logging
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np

from hetecd.config import Role
from hetecd.errors import InputError
from hetecd.modality import Floats, Modality, fit_modality, is_above_8_bits, looks_like
from hetecd.pair import Pair

log = logging.getLogger("hetecd")

Scaling = Literal["auto", "weights", "scene"]


def scale_to_pair(pair: Pair, optical: Modality, sar: Modality, how: Scaling = "auto") -> tuple[Modality, Modality]:
    """What the images of a pair must be scaled by, from a sample of windows spread over it.

    Args:
        pair: opened with the bands of ``optical`` and ``sar``.
        optical: how the weights scale optical images.
        sar: how they scale SAR images.
        how: "weights" leaves it at that; "auto" does so where the image is in the range of training; "scene" takes the
            range of the scene in any case.

    Returns:
        optical, sar: those given, or others to scale by, with the same bands.

    Raises:
        InputError: a band is of one value throughout.
    """
    if how == "weights":
        return optical, sar
    if not pair.sample[0].size:
        return optical, sar
    values = [sample[..., None] for sample in pair.sample]
    return (
        _scale_to(values[0], "optical", pair.optical_path, optical, how),
        _scale_to(values[1], "sar", pair.sar_path, sar, how),
    )


def _scale_to(sample: Floats, role: Role, path: Path | str, modality: Modality, how: Scaling) -> Modality:
    kind = looks_like(sample)
    if how == "auto":
        if not modality.is_foreign(sample):
            return modality
        other = modality.in_unit(kind)
        if other != modality and not other.is_foreign(sample):
            log.info("%s: found %s, converted: the weights know %s", role, kind, modality.unit)
            return other
    power = role == "sar" and kind == "linear"
    # Counts of a SAR sensor are power or amplitude: in decibels, stretched to the range of the scene, the same.
    counts = role == "sar" and kind == "digital numbers" and is_above_8_bits(sample) and bool(np.nanmin(sample) >= 0)
    try:
        own = fit_modality([sample], modality.bands, power or counts, modality.gsd_m)
    except InputError as error:
        raise InputError(f"{path}: {error}, with --{role}-bands") from error
    log.warning(
        "%s: scaled by the range of this scene, %s (%s), in place of that of training, %s (%s); check the map",
        role, _range(own), kind, _range(modality), modality.unit,
    )  # fmt: skip
    return replace(own, unit="dB" if kind == "decibels" else "linear power" if power else "digital number")


def _range(modality: Modality) -> str:
    return f"{min(modality.low):.4g} to {max(modality.high):.4g}{' dB' if modality.db else ''}"
