"""The mean of two checkpoints lies between them, whatever their calibration, and only of what belongs together."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import described

from hetecd import cli
from hetecd.average import average
from hetecd.config import ModelConfig
from hetecd.errors import CheckpointError, ConfigError
from hetecd.info import ModelInfo
from hetecd.modality import Modality
from hetecd.model import HeteCD
from hetecd.weights import folded, load, save, unfolded

INFO = ModelInfo(
    model=ModelConfig(encoder="mit_b0", width=8, optical_channels=1, sar_channels=1),
    optical=Modality((1,), (0.0,), (3000.0,)),
    sar=Modality((1,), (-25.0,), (0.0,), db=True),
    data="somewhere",
    licence="CC-BY-4.0",
    scores={"iou": 0.5},
)


@pytest.fixture
def net() -> HeteCD:
    return described(INFO)


@pytest.fixture
def other(net: HeteCD) -> HeteCD:
    """Trained on: every number 1 more, with less dropout."""
    other = HeteCD(INFO.model).eval()
    other.load_state_dict({key: value + 1 for key, value in net.state_dict().items()})
    model = replace(INFO.model, dropout=0.0, drop_path=0.0)
    other.info = replace(INFO, model=model, data="elsewhere", licence="CC0-1.0")
    return other


def write(path: Path, net: HeteCD) -> Path:
    assert net.info is not None
    save(path, net, net.info)
    return path


@pytest.mark.parametrize("calibrated", [False, True])
def test_the_mean_lies_between_them(net: HeteCD, other: HeteCD, calibrated: bool, tmp_path: Path) -> None:
    wanted = {k: v + (0.25 if v.is_floating_point() else 0) for k, v in net.state_dict().items()}
    if calibrated:  # which is no part of the mean, but the first one's ends up in it, once
        net, other = folded(net, 0.8, -0.6, 0.42), folded(other, 0.5, 0.1, 0.3)
    first, second = write(tmp_path / "first.safetensors", net), write(tmp_path / "second.safetensors", other)
    assert average(first, second, tmp_path / "mean.safetensors", 0.25) == load(tmp_path / "mean.safetensors").info
    mean = load(tmp_path / "mean.safetensors")
    assert mean.info is not None
    assert mean.info.calibration == pytest.approx((0.8, -0.6) if calibrated else (1, 0))
    assert mean.info.threshold == (0.42 if calibrated else 0.5)
    assert mean.info.data == "0.75 of: somewhere; 0.25 of: elsewhere"
    assert mean.info.licence == "CC-BY-4.0; CC0-1.0"
    assert not mean.info.scores
    for key, value in unfolded(mean).state_dict().items():
        torch.testing.assert_close(value, wanted[key], rtol=0, atol=1e-5)


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_at_the_ends_it_is_one_of_them(net: HeteCD, other: HeteCD, share: float, tmp_path: Path) -> None:
    first, second = write(tmp_path / "first.safetensors", net), write(tmp_path / "second.safetensors", other)
    out = tmp_path / "out.safetensors"
    assert cli.main(["average", str(first), str(second), "--share", str(share), "-o", str(out)]) == 0
    wanted = (other if share else net).state_dict()
    assert all(torch.equal(v, wanted[k]) for k, v in load(out).state_dict().items() if v.is_floating_point())


def test_only_what_belongs_together_is_averaged(net: HeteCD, tmp_path: Path) -> None:
    first = write(tmp_path / "first.safetensors", net)
    net.info = replace(INFO, sar=replace(INFO.sar, low=(-30.0,)))
    second, out = write(tmp_path / "second.safetensors", net), tmp_path / "out.safetensors"
    with pytest.raises(CheckpointError, match=r"second\.safetensors: found another SAR scaling than in .*first\.saf"):
        average(first, second, out)
    wide = HeteCD(replace(INFO.model, width=16))
    wide.info = replace(INFO, model=replace(INFO.model, width=16))
    with pytest.raises(CheckpointError, match="found another width than in"):
        average(first, write(tmp_path / "wide.safetensors", wide), out)
    with pytest.raises(ConfigError, match=r"share: found 1\.5, expected 0"):
        average(first, first, out, 1.5)
    with pytest.raises(CheckpointError, match=r"expected a name that ends in \.safetensors"):
        average(first, first, tmp_path / "out.pt")
    assert {path.stem for path in tmp_path.iterdir()} == {"first", "second", "wide"}
