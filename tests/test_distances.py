"""The distances are the textbook ones, and alignment brings the branches together."""

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import QUICK
from PIL import Image
from scipy import stats

import hetecd
from hetecd.config import ModelConfig, TrainConfig
from hetecd.data import TileDataset, collate, find_tiles
from hetecd.distances import compare, distances, table
from hetecd.errors import CheckpointError, InputError
from hetecd.losses import fca_loss
from hetecd.model import HeteCD
from hetecd.train import Hardware, fit
from hetecd.weights import fresh


def test_distances_by_hand() -> None:
    centres = np.array([0.0, 1.0, 2.0])
    d = distances(np.array([1.0, 1.0, 0.0]), np.array([0.0, 2.0, 2.0]), centres)
    assert d.euclidean == pytest.approx(math.sqrt(0.5))
    assert d.wasserstein == pytest.approx(1.0)
    assert d.hellinger == pytest.approx(math.sqrt(0.5))
    assert d.js == pytest.approx(0.5 * math.log(2))
    assert d.kl == pytest.approx(0.5 * math.log(0.5 / 1e-12))


def test_distances_of_samples_agree_with_scipy() -> None:
    rng = np.random.default_rng(0)
    edges = np.linspace(-6, 6, 201)
    centres = (edges[1:] + edges[:-1]) / 2
    p, q = (np.histogram(rng.normal(m, 1, 200_000), edges)[0].astype(float) for m in (0, 1))
    d = distances(p, q, centres)
    assert d.wasserstein == pytest.approx(1.0, abs=0.02)
    assert d.hellinger == pytest.approx(math.sqrt(1 - math.exp(-1 / 8)), abs=0.01)
    inside = (p > 0) & (q > 0)
    assert d.kl == pytest.approx(0.5, abs=0.1)
    assert stats.entropy(p[inside], q[inside]) == pytest.approx(0.5, abs=0.05)
    assert distances(p, p, centres) == distances(q, q, centres)


def _train(tiles: Path, out: Path, weight: float) -> HeteCD:
    config = TrainConfig(sar_db=True, epochs=4, batch=4, fca_weight=weight, fca_schedule="constant", lr=1e-3, clip=5)
    model = ModelConfig(**QUICK, deep_supervision=True)  # type: ignore[arg-type]
    fit(tiles, out, model, config, hardware=Hardware("cpu", 1))
    return hetecd.load(out / "last.safetensors")


@pytest.fixture(scope="module")
def aligned(tiles: Path, tmp_path_factory: pytest.TempPathFactory) -> HeteCD:
    """A network trained with next to nothing but the alignment."""
    return _train(tiles, tmp_path_factory.mktemp("aligned") / "run", 20.0)


def test_alignment_brings_the_branches_together(aligned: HeteCD, tiles: Path, tmp_path: Path) -> None:
    free = _train(tiles, tmp_path / "free", 0.0)
    assert aligned.info is not None
    data = TileDataset(find_tiles(tiles, "test"), TrainConfig(), aligned.info.optical, aligned.info.sar)
    batch = collate([data[i] for i in range(len(data))])
    with torch.no_grad():
        near, far = (fca_loss(net(batch["optical"], batch["sar"], features=True)[1]) for net in (aligned, free))
    assert near < 0.5 * far


def test_a_table_and_a_figure(aligned: HeteCD, tiles: Path, tmp_path: Path) -> None:
    results = compare(aligned, None, tiles, out=tmp_path)
    assert list(results) == ["stage 3, before", "stage 4, before", "stage 3, after", "stage 4, after"]
    assert results["stage 4, after"] != results["stage 4, before"]
    assert "wasserstein" in table(results)
    assert (tmp_path / "distances.csv").read_text().startswith("features,euclidean,kl,js,wasserstein,hellinger\n")
    with Image.open(tmp_path / "densities.png") as figure:
        assert figure.width > 1000


def test_a_network_compared_with_itself(aligned: HeteCD, tiles: Path) -> None:
    results = compare(aligned, aligned, tiles, most=3)
    assert results["stage 3, before"] == results["stage 3, after"]


def test_what_cannot_be_compared(aligned: HeteCD, tiles: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="carries no description"):
        compare(HeteCD(aligned.config), None, tiles)
    other = HeteCD(dataclasses.replace(aligned.config, sar_channels=2))
    with pytest.raises(CheckpointError, match="read different bands"):
        compare(aligned, other, tiles)
    with pytest.raises(InputError):
        compare(aligned, None, tmp_path / "nowhere")


@pytest.mark.parametrize("encoder", ["mit_b0", "residual_s"])
def test_an_untrained_network_is_measured_on_the_scale_of_its_batches(
    encoder: str, aligned: HeteCD, tiles: Path
) -> None:
    """As encoders with batch norms have none before they have seen data."""
    assert aligned.info is not None
    config = dataclasses.replace(aligned.config, encoder=encoder)  # type: ignore[arg-type]
    net = fresh(config, 0).eval()
    net.info = dataclasses.replace(aligned.info, model=config, recipe={"seed": 0})
    results = compare(net, None, tiles, most=3)
    before, after = (results[f"stage 3, {name}"].wasserstein for name in ("before", "after"))
    assert before > 1.5 * after if encoder == "residual_s" else before == after
