"""The mean of two networks, one of which was trained on from the other.

Trained on with other data, a network forgets some of what it knew. Half way back it has often learned what was new and
lost little (WiSE-FT, Wortsman et al. 2022). The mean of two trainings that began apart is of no use.
"""

import logging
from dataclasses import replace
from pathlib import Path

import torch

from hetecd.errors import CheckpointError, ConfigError
from hetecd.info import ModelInfo
from hetecd.weights import check_name, folded, load, save, unfolded

log = logging.getLogger("hetecd")


def average(first: Path | str, second: Path | str, out: Path | str, share: float = 0.5) -> ModelInfo:
    """Write the mean of two checkpoints, tensor by tensor.

    Calibration is taken out of both before; that of the first, and its threshold, are put into the mean.

    Args:
        first: a checkpoint, whose description the mean takes over, but for data, licence and scores.
        second: one that was trained on from it: the same network and scaling of the images.
        out: file to write, .safetensors.
        share: of the second, 0 to 1.

    Returns:
        What the new file says about itself.

    Raises:
        ConfigError: a share out of range.
        CheckpointError: one of the two is none, they differ in network or scaling, or ``out`` is no name for one.
        OutputError: ``out`` cannot be written.
    """
    check_name(out)
    if not 0 <= share <= 1:
        raise ConfigError(f"share: found {share}, expected 0 (the first) to 1 (the second)")
    one, two = load(first), load(second)
    known, other = one.info, two.info
    assert known is not None
    assert other is not None
    odd = known.model.unlike(other.model)
    odd += [name for name, value in _reads(known).items() if value != _reads(other)[name]]
    if odd:
        raise CheckpointError(
            f"{second}: found another {', '.join(odd)} than in {first}, expected what was trained on from that; "
            "take a training with --start-from"
        )
    for role in ("optical", "sar"):
        bands, others = (getattr(info, role).bands for info in (known, other))
        if bands != others:
            log.warning(
                "%s: the mean reads bands %s as the first, not %s; --%s-bands names others", role, bands, others, role
            )
    mean, tensors = unfolded(one), unfolded(two).state_dict()
    for key, value in mean.state_dict().items():
        tensors[key] = torch.lerp(value, tensors[key], share) if value.is_floating_point() else value
    mean.load_state_dict(tensors)
    info = replace(
        known,
        data=f"{1 - share:g} of: {known.data}; {share:g} of: {other.data}",
        licence="; ".join(dict.fromkeys((known.licence, other.licence))),
        scores={},
    )
    save(out, folded(mean, *known.calibration, known.threshold), info)
    return info


def _reads(info: ModelInfo) -> dict[str, object]:
    """What two networks must read alike, by name, wherever the bands lie in the files."""
    scaling = [(m.low, m.high, m.db, m.unit) for m in (info.optical, info.sar)]
    return {"optical scaling": scaling[0], "SAR scaling": scaling[1], "before_is": info.before_is}
