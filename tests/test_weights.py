"""A checkpoint carries its contract, holds no pickle, and says clearly what is wrong with it."""

import copy
import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import described
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import hetecd
from hetecd.config import ModelConfig
from hetecd.errors import CheckpointError, ConfigError, InputError, OutputError
from hetecd.info import ModelInfo
from hetecd.modality import Modality, ask
from hetecd.model import HeteCD
from hetecd.residual import LOOK_PX
from hetecd.weights import folded, fresh, load, normalised_predictor, predictor, save

INFO = ModelInfo(
    model=ModelConfig(encoder="mit_b0", width=8, optical_channels=4, sar_channels=1, attention="rescaled"),
    optical=Modality((4, 3, 2, 1), (0.0,) * 4, (3000.0,) * 4, unit="reflectance x 10000", gsd_m=10.0),
    sar=Modality((1,), (-25.0,), (0.0,), db=True, unit="linear power", gsd_m=10.0),
    threshold=0.42,
    recipe={"epochs": 3, "sar_bands": [1]},
    data="somewhere",
    licence="CC-BY-4.0",
    scores={"iou": 0.5, "kappa": None},
)


@pytest.fixture
def net() -> HeteCD:
    return described(INFO)


def test_round_trip_of_network_and_description(net: HeteCD, tmp_path: Path) -> None:
    save(tmp_path / "a.safetensors", net, INFO)
    again = load(tmp_path / "a.safetensors")
    assert again.info == INFO
    assert not again.training
    assert all(torch.equal(v, net.state_dict()[k]) for k, v in again.state_dict().items())
    with safe_open(tmp_path / "a.safetensors", "pt") as file:
        assert {"format", *(f.name for f in dataclasses.fields(ModelInfo))} == set(file.metadata())
    assert [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]
    (tmp_path / "plain").touch()
    assert (tmp_path / "a.safetensors").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_half_precision_halves_the_file_and_loads_as_float32(net: HeteCD, tmp_path: Path) -> None:
    save(tmp_path / "full.safetensors", net, INFO)
    save(tmp_path / "half.safetensors", net, INFO, half=True)
    sizes = [(tmp_path / f"{name}.safetensors").stat().st_size for name in ("half", "full")]
    assert sizes[0] < 0.52 * sizes[1]
    again = load(tmp_path / "half.safetensors")
    assert {v.dtype for v in again.parameters()} == {torch.float32}
    torch.testing.assert_close(again.decoder.fuse.weight, net.decoder.fuse.weight, atol=1e-3, rtol=1e-3)


def test_what_half_precision_cannot_hold_is_kept(net: HeteCD, tmp_path: Path) -> None:
    net = copy.deepcopy(net)
    norm = next(m for m in net.modules() if isinstance(m, torch.nn.BatchNorm2d))
    assert norm.running_var is not None
    norm.running_var.fill_(1e5)
    save(tmp_path / "half.safetensors", net, INFO, half=True)
    assert all(value.isfinite().all() for value in load(tmp_path / "half.safetensors").state_dict().values())


def _spoil(path: Path, how: str) -> None:
    tensors = load_file(path)
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    if how == "missing tensor":
        del tensors["decoder.fuse.bias"]
    elif how == "extra tensor":
        tensors["decoder.surprise"] = torch.zeros(1)
    elif how == "shape":
        tensors["decoder.fuse.bias"] = torch.zeros(9)
    elif how == "foreign":
        metadata = {"format": "pt"}
    elif how == "no model":
        del metadata["model"]
    elif how == "bad json":
        metadata["optical"] = "{"
    elif how == "unknown setting":
        metadata["model"] = '{"encoder": "mit_b0", "depth": 3}'
    elif how == "channels":
        metadata["sar"] = '{"bands": [1, 2], "low": [0, 0], "high": [1, 1]}'
    elif how == "encoder":
        metadata["model"] = '{"encoder": "mit_b9"}'
    elif how in ("threshold", "before_is"):
        metadata[how] = {"threshold": '"high"', "before_is": '"foo"'}[how]
    save_file(tensors, path, metadata)
    if how == "truncated":
        path.write_bytes(path.read_bytes()[:5000])


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("missing tensor", r"does not fit the network; 1 missing: decoder\.fuse\.bias"),
        ("extra tensor", r"1 unexpected: decoder\.surprise"),
        ("shape", r"decoder\.fuse\.bias \(9,\) instead of \(8,\)"),
        ("foreign", r"found format 'pt', expected 'hetecd-1'"),
        ("no model", "its description cannot be used"),
        ("bad json", "its description cannot be used"),
        ("unknown setting", "its description cannot be used"),
        ("channels", r"a\.safetensors: .*sar: the network reads 1 channels but its contract names 2"),
        ("encoder", r"a\.safetensors: .*encoder: found 'mit_b9', expected one of mit_b0"),
        ("threshold", r"threshold: found 'high', expected 0 to 1"),
        ("before_is", r"before_is: found 'foo'"),
        ("truncated", "not a .safetensors file"),
    ],
)
def test_what_cannot_be_used_is_refused_in_one_line(how: str, message: str, net: HeteCD, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save(path, net, INFO)
    _spoil(path, how)
    with pytest.raises(CheckpointError, match=message) as caught:
        load(path)
    assert "\n" not in str(caught.value)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="a folder; name the file in it"):
        load(tmp_path)
    with pytest.raises(CheckpointError, match=r"none\.safetensors: no such file"):
        load(tmp_path / "none.safetensors")


def test_a_full_disk_leaves_the_old_file(net: HeteCD, small_disk: Callable[[str], Path]) -> None:
    folder = small_disk("64k")
    path = folder / "a.safetensors"
    path.write_bytes(b"the good one")
    with pytest.raises(OutputError, match="cannot write"):
        save(path, net, INFO)
    assert path.read_bytes() == b"the good one"
    assert [p.name for p in folder.iterdir()] == ["a.safetensors"]


@pytest.mark.parametrize("precision", ["f32", "bf16"])
def test_a_predictor_normalises_and_survives_nan(precision: str, net: HeteCD) -> None:
    predict = predictor(net, "cpu", precision)  # type: ignore[arg-type]
    rng = np.random.default_rng(0)
    optical = rng.uniform(0, 3000, (2, 4, 50, 70)).astype(np.float32)
    sar = rng.gamma(1.0, 0.05, (2, 1, 50, 70)).astype(np.float32)
    optical[:, :, :9] = np.nan
    prob = predict(optical, sar)
    assert prob.shape == (2, 50, 70)
    assert prob.dtype == np.float32
    assert np.isfinite(prob).all()
    with torch.no_grad():
        logits = net(torch.from_numpy(INFO.optical.normalise(optical)), torch.from_numpy(INFO.sar.normalise(sar)))
    assert np.abs(prob - logits.softmax(1)[:, 1].numpy()).max() < (1e-5 if precision == "f32" else 0.05)
    with pytest.raises(InputError, match="found 3 channels, expected 4"):
        predict(optical[:, :3], sar)


def test_a_near_sighted_network_is_shown_no_more_than_it_sees() -> None:
    """Far from what is wanted there may be anything; nothing comes back from there."""
    config = ModelConfig("residual_s", 2, 1, width=8, detail=True)
    compute = normalised_predictor(fresh(config, 0).eval(), "cpu", "f32")
    rng = np.random.default_rng(0)
    optical, sar = rng.random((1, 2, 700, 640), np.float32), rng.random((1, 1, 700, 640), np.float32)
    inner = slice(600, 700), slice(300, 310)
    wanted = compute(optical, sar)[:, *inner]
    for image in (optical, sar):
        image[..., : 600 - LOOK_PX - 32, :] = np.nan
        image[..., : 300 - LOOK_PX - 32] = np.nan
        image[..., 310 + LOOK_PX + 32 :] = np.nan
    found = ask(compute, optical, sar, inner)
    np.testing.assert_allclose(found[:, *inner], wanted, atol=1e-3)
    found[:, *inner] = 0
    assert not found.any()
    standardising = normalised_predictor(fresh(dataclasses.replace(config, standardise=True), 0).eval(), "cpu", "f32")
    assert np.isnan(ask(standardising, optical, sar, inner)[:, *inner]).all()  # its mean is that of all that is shown


def test_f16_is_for_a_gpu(net: HeteCD) -> None:
    with pytest.raises(ConfigError, match="precision: found f16 on the CPU, expected f32 or bf16"):
        predictor(net, "cpu", "f16")


def test_a_network_without_description_is_no_predictor() -> None:
    with pytest.raises(CheckpointError, match="carries no description"):
        predictor(HeteCD(INFO.model))


def test_public_names_are_loaded_on_first_use() -> None:
    assert hetecd.load is load
    assert set(hetecd.__all__) > {"HeteCD", "fit", "open_pair", "predict_scene"}
    import types

    for _ in range(2):  # loading one name must not turn another into its module
        found = {name: getattr(hetecd, name) for name in hetecd.__all__}
        assert not [name for name, value in found.items() if isinstance(value, types.ModuleType)]
    with pytest.raises(AttributeError, match="no attribute 'lod'"):
        _ = hetecd.lod


def test_training_goes_on_from_calibrated_weights_without_their_calibration(net: HeteCD, tmp_path: Path) -> None:
    calibrated = folded(net, 0.8, -0.6, 0.4)
    assert calibrated.info is not None
    save(tmp_path / "calibrated.safetensors", calibrated, calibrated.info)
    begun = fresh(INFO.model, 1, start_from=str(tmp_path / "calibrated.safetensors")).state_dict()
    assert not torch.equal(calibrated.decoder.head[-1].bias, net.decoder.head[-1].bias)
    for key, value in net.state_dict().items():
        torch.testing.assert_close(begun[key], value, rtol=0, atol=1e-6)
