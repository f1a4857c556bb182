"""Published weights are converted completely or refused with names."""

import pickle
import re
from pathlib import Path

import numpy as np
import parity
import pytest
import torch
from torch import Tensor

import hetecd
from hetecd.config import ModelConfig
from hetecd.convert import UNUSED, convert_encoder, convert_file, convert_hetecd, read_published
from hetecd.encoder import ENCODERS, Encoder
from hetecd.errors import CheckpointError, OutputError
from hetecd.weights import adapt_channels, fresh, load_encoder

ENCODER_CASES = ["timm/pvt_v2_b0", "timm/pvt_v2_b2", "huggingface/mit-b0", "huggingface/mit-b2"]


@pytest.fixture
def released(shared: Path) -> dict[str, Tensor]:
    return parity.state_dict(shared / "parity", "keys_e64.json")


def _old_spelling(key: str) -> str:
    """What Hugging Face called a tensor before version 5 of its library."""
    for pattern, name in (
        (r"stages\.(\d)\.patch_embeddings\.", r"encoder.patch_embeddings.\1."),
        (r"stages\.(\d)\.layer_norm", r"encoder.layer_norm.\1"),
        (r"stages\.(\d)\.blocks\.(\d+)\.", r"encoder.block.\1.\2."),
        (r"layernorm_before", "layer_norm_1"),
        (r"layernorm_after", "layer_norm_2"),
        (r"attention\.([qkv])_proj", lambda m: "attention.self." + {"q": "query", "k": "key", "v": "value"}[m[1]]),
        (r"attention\.o_proj", "attention.output.dense"),
        (r"attention\.sequence_reduction\.sequence_reduction", "attention.self.sr"),
        (r"attention\.sequence_reduction\.layer_norm", "attention.self.layer_norm"),
        (r"mlp\.fc([12])", r"mlp.dense\1"),
    ):
        key = re.sub(pattern, name, key)
    return "segformer." + key


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_released_checkpoint_becomes_ours(
    prefix: str, suffix: str, released: dict[str, Tensor], shared: Path, tmp_path: Path
) -> None:
    path = tmp_path / f"published{suffix}"
    state = {prefix + key: value for key, value in released.items()}
    if suffix == ".pth":
        torch.save({"state_dict": state} if prefix else state, path)
    else:
        from safetensors.torch import save_file

        save_file(state, path)
    assert "HeteCD, mit_b2, width 64" in convert_file(path, tmp_path / "ours.safetensors")
    net = hetecd.load(tmp_path / "ours.safetensors")
    assert not net.training
    optical, sar, _ = parity.inputs(shared / "parity", "C_e64_1x64")
    with torch.no_grad():
        logits = net(optical, sar)
    assert np.abs(logits.numpy() - parity.case(shared / "parity", "C_e64_1x64")[0]["logits"]).max() < 1e-4


def test_every_published_key_is_accounted_for(released: dict[str, Tensor]) -> None:
    assert len(released) == 859
    assert released.keys() >= UNUSED
    net = convert_hetecd(released)
    used = {key: value for key, value in released.items() if key not in UNUSED}
    assert len(net.state_dict()) == len(used)
    # Every value arrives: the multiset of sums is the same.
    ours = sorted(float(v.double().sum()) for v in net.state_dict().values())
    assert ours == pytest.approx(sorted(float(v.double().sum()) for v in used.values()))


def test_the_unused_list_is_the_published_one(shared: Path) -> None:
    import json

    assert set(json.loads((shared / "parity" / "keys_unused_e256.json").read_text())) == UNUSED


def test_a_file_stripped_of_the_unused_tensors_is_fine(released: dict[str, Tensor]) -> None:
    convert_hetecd({key: value for key, value in released.items() if key not in UNUSED})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("CD_Decoder.make_pred_bcd.3.bias"), r"1 missing: CD_Decoder\.make_pred_bcd\.3\.bias"),
        (lambda s: s.pop("backbone2.block3.5.mlp.fc2.weight"), r"1 missing: backbone2\.block3\.5\.mlp\.fc2\.weight"),
        (lambda s: s.pop("vae1.initial_conv.weight"), r"1 missing: vae1\.initial_conv\.weight"),
        (lambda s: s.update({"CD_Decoder.surprise": torch.zeros(1)}), r"1 extra: CD_Decoder\.surprise"),
        (
            lambda s: s.update({"backbone1.norm1.weight": torch.zeros(65)}),
            r"1 of another shape: optical_encoder\.stages\.0\.norm\.weight \(65,\) instead of \(64,\)",
        ),
        (lambda s: s.pop("backbone1.patch_embed1.proj.weight"), r"1 missing: backbone1\.patch_embed1\.proj\.weight"),
        (lambda s: s.pop("CD_Decoder.linear_fuse_bcd.0.bias"), r"1 missing: CD_Decoder\.linear_fuse_bcd\.0\.bias"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(change: object, message: str, released: dict[str, Tensor]) -> None:
    change(released)  # type: ignore[operator]
    with pytest.raises(CheckpointError, match=message):
        convert_hetecd(released)


@pytest.mark.parametrize("entry", ENCODER_CASES)
def test_parity_of_encoders_alone(entry: str, shared: Path) -> None:
    folder = shared / "parity"
    state = parity.state_dict(folder, "encoder_keys.json", entry)
    name, tensors = convert_encoder(state)
    assert name == entry.split("/")[1].replace("-", "_")
    encoder = Encoder(ENCODERS[name], 3)
    encoder.load_state_dict(tensors)
    image = torch.from_numpy(parity.fill_module(folder).fill_image("optical", 1, 96, 160))
    with torch.no_grad():
        maps = encoder.eval()(image)
    with np.load(folder / f"encoder_{entry.replace('/', '_')}_1x96x160.npz") as wanted:
        assert len(wanted.files) == 4
        for found, key in zip(maps, sorted(wanted.files), strict=True):
            assert np.abs(found.numpy() - wanted[key]).max() < 1e-4, key


def test_the_other_spellings_of_mit_give_the_same_encoder(shared: Path, released: dict[str, Tensor]) -> None:
    state = parity.state_dict(shared / "parity", "encoder_keys.json", "huggingface/mit-b0")
    name, tensors = convert_encoder(state)
    old = {_old_spelling(key): value for key, value in state.items()} | {"decode_head.classifier.bias": torch.zeros(5)}
    for other in (old, {key.removeprefix("segformer."): value for key, value in old.items()}):
        found, renamed = convert_encoder(other)
        assert found == name
        assert all(torch.equal(renamed[key], tensors[key]) for key in tensors)
    segformer = {"backbone." + k.removeprefix("backbone1."): v for k, v in released.items() if "backbone1." in k}
    for other in (segformer, {key.removeprefix("backbone."): value for key, value in segformer.items()}):
        found, renamed = convert_encoder(other)
        assert found == "mit_b2"
        assert len(renamed) == len(segformer)


def test_an_encoder_file_fills_both_branches_and_adapts_channels(shared: Path, tmp_path: Path) -> None:
    state = parity.state_dict(shared / "parity", "encoder_keys.json", "timm/pvt_v2_b0")
    torch.save(state, tmp_path / "pvt.pth")
    assert "encoder pvt_v2_b0" in convert_file(tmp_path / "pvt.pth", tmp_path / "pvt.safetensors")
    grey = torch.rand(1, 1, 64, 64)
    with torch.no_grad():
        outputs = []
        for channels in (1, 3, 4, 13):
            encoder = Encoder(ENCODERS["pvt_v2_b0"], channels).eval()
            load_encoder(tmp_path / "pvt.safetensors", encoder, "pvt_v2_b0")
            outputs.append(encoder(grey.expand(1, channels, 64, 64))[3])
    torch.testing.assert_close(outputs[0], outputs[1], atol=1e-4, rtol=1e-3)  # a grey image means the same
    with pytest.raises(CheckpointError, match="found encoder pvt_v2_b0, expected mit_b0"):
        load_encoder(tmp_path / "pvt.safetensors", Encoder(ENCODERS["mit_b0"], 3), "mit_b0")


def test_adapted_channels_keep_the_answer_to_a_constant() -> None:
    weight = torch.rand(2, 3, 7, 7)
    for channels in (1, 6, 9):
        adapted = adapt_channels(weight, channels)
        assert adapted.shape == (2, channels, 7, 7)
        torch.testing.assert_close(adapted.sum(1), weight.sum(1))


class _Hostile:
    """Unpickling this would create a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return open, (str(self.path), "w")


@pytest.mark.parametrize("how", ["torch", "pickle"])
def test_a_hostile_pickle_is_refused_and_not_run(how: str, tmp_path: Path) -> None:
    bomb, trace = tmp_path / "weights.pth", tmp_path / "executed"
    if how == "torch":
        torch.save({"a": torch.zeros(1), "b": _Hostile(trace)}, bomb)
    else:
        bomb.write_bytes(pickle.dumps(_Hostile(trace)))
    with pytest.raises(CheckpointError, match=r"weights\.pth: refused, this pickle .* asks to run code") as caught:
        read_published(bomb)
    assert "\n" not in str(caught.value)
    assert not trace.exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such file"),
        (b"", "damaged or not a file of weights"),
        (b"not a checkpoint at all", "damaged or not a file of weights"),
        (b"PK\x03\x04" + b"\0" * 100, "damaged or not a file of weights"),
    ],
)
def test_what_is_no_file_of_weights_is_refused(content: bytes | None, message: str, tmp_path: Path) -> None:
    path = tmp_path / "x.pth"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(CheckpointError, match=message) as caught:
        convert_file(path, tmp_path / "out.safetensors")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out.safetensors").exists()


def test_other_contents_are_refused(tmp_path: Path) -> None:
    torch.save([torch.zeros(3)], tmp_path / "list.pth")
    with pytest.raises(CheckpointError, match="expected a mapping of names to tensors"):
        read_published(tmp_path / "list.pth")
    torch.save({"fc.weight": torch.zeros(3, 3)}, tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match=r"unknown weights, found keys like fc\.weight"):
        convert_file(tmp_path / "other.pth", tmp_path / "out.safetensors")


def test_a_folder_that_cannot_be_written(released: dict[str, Tensor], tmp_path: Path) -> None:
    torch.save(released, tmp_path / "published.pth")
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot write"):
        convert_file(tmp_path / "published.pth", tmp_path / "file" / "ours.safetensors")


def test_a_fresh_network_depends_on_its_seed_alone() -> None:
    config = ModelConfig(encoder="mit_b0", width=8)
    a, b, c = (fresh(config, seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(a[key], b[key]) for key in a)
    assert not torch.equal(a["decoder.fuse.weight"], c["decoder.fuse.weight"])


def test_our_own_checkpoint_is_written_again_at_half_the_size(released: dict[str, Tensor], tmp_path: Path) -> None:
    torch.save(released, tmp_path / "published.pth")
    whole, half = tmp_path / "whole.safetensors", tmp_path / "half.safetensors"
    convert_file(tmp_path / "published.pth", whole)
    assert "written again" in convert_file(whole, half, half=True)
    assert half.stat().st_size < 0.51 * whole.stat().st_size
    assert hetecd.load(half).info == hetecd.load(whole).info


def test_damaged_pickles_are_one_clear_line(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(3, 3)}, tmp_path / "good.pth")
    content = bytearray((tmp_path / "good.pth").read_bytes())
    rng = np.random.default_rng(0)
    said: list[str] = []
    for _ in range(60):
        spoiled = bytearray(content)
        for place in rng.integers(len(content), size=20):
            spoiled[place] = rng.integers(256)
        (tmp_path / "bad.pth").write_bytes(spoiled)
        try:
            read_published(tmp_path / "bad.pth")
        except CheckpointError as error:
            said.append(str(error))
    assert said
    assert not [message for message in said if "\n" in message]
