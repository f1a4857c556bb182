"""Exported files give the numbers of torch and carry their description; others are not written."""

import dataclasses
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from hetecd import cli, export
from hetecd.config import Modalities, checked, configs, read_recipe
from hetecd.errors import CheckpointError, ConfigError, ExportError, InputError, OutputError
from hetecd.export import BOUNDS, Comparison, compare, export_file
from hetecd.info import to_metadata
from hetecd.modality import Floats, windows_of
from hetecd.model import HeteCD
from hetecd.runtime import KINDS, WINDOWS, open_graph
from hetecd.sources import files_beside
from hetecd.synth import write_pair
from hetecd.weights import load, predictor, save

Graphs = Callable[[str], Path]


def _raw(batch: int, height: int, width: int) -> tuple[Floats, Floats]:
    """Images with patches, some pixels invalid."""
    rng = np.random.default_rng(height)
    patches = rng.uniform(0, 3000, (batch, 4, 5, 5)).repeat(height // 5 + 1, 2).repeat(width // 5 + 1, 3)
    optical = patches[..., :height, :width].astype(np.float32)
    sar = rng.gamma(1.0, 0.05, (batch, 1, height, width)).astype(np.float32)
    optical[:, :, :4] = np.nan
    return optical, sar


def _copy(graph: Path, path: Path) -> None:
    for file in files_beside(graph):
        shutil.copy(file, path.with_suffix(Path(file).suffix))


@pytest.mark.parametrize("name", ["f32.onnx", "f32.xml", "bf16.xml", "int8.xml"])
def test_a_graph_is_its_checkpoint_at_any_size_and_batch(name: str, graphs: Graphs, decided: Path) -> None:
    path, net = graphs(name), load(decided)
    wanted = predictor(net, "cpu", "f32")
    for runtime in KINDS[path.suffix]:
        graph, info = open_graph(path, runtime)
        assert info == net.info
        # Other sizes and batches than the two that the export itself compares; OpenVINO takes a second for each.
        for shape in ((3, 41, 70), (1, 32, 32))[: 2 if name == "f32.onnx" else 1]:
            images = _raw(*shape)
            found, expected = graph(*images), wanted(*images)
            assert (found.shape, found.dtype) == (shape, np.float32)
            assert expected.std() > 0.01
            apart = np.abs(found - expected)
            assert apart.max() < {"f32": 1e-4, "bf16": 0.1, "int8": 0.3}[path.stem]
            assert apart.mean() < {"f32": 1e-5, "bf16": 0.01, "int8": 0.03}[path.stem]


def test_the_network_of_the_default_recipe_can_be_exported(decided: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    recipe = configs(checked(read_recipe("recipes/default.yaml"), "default"))[0]
    info = load(decided).info
    assert info is not None
    config = dataclasses.replace(recipe, optical_channels=4, sar_channels=1)
    checkpoint = tmp_path / "default.safetensors"
    save(checkpoint, HeteCD(config).eval(), dataclasses.replace(info, model=config))
    found = export_file(checkpoint, tmp_path / "default.xml", "openvino")  # compares, and refuses what differs
    assert found.difference < 1e-4
    assert found.pixels > 10_000
    # Bands that come standardised, as in scenes, stay as they are.
    graph, graph_info = open_graph(tmp_path / "default.xml")
    # So large that attention does not reach from one end to the other.
    images = tuple(torch.rand(1, 2 * n, 170, 330).numpy() for n in (4, 1))
    apart = graph.compute(*images) - predictor(load(checkpoint)).compute(*images)
    assert np.abs(apart).max() < 1e-4
    windows = windows_of(predictor(load(checkpoint)))
    assert windows_of(graph) == windows == (1536, 512)
    metadata = to_metadata(graph_info) | {WINDOWS: json.dumps(windows)}
    export.write_onnx(load(checkpoint), tmp_path / "a.onnx", metadata)
    assert [windows_of(open_graph(tmp_path / "a.onnx", runtime)[0]) for runtime in KINDS[".onnx"]] == [windows] * 2
    metadata[WINDOWS] = "wide"
    export.write_onnx(load(checkpoint), tmp_path / "b.onnx", metadata)
    with pytest.raises(CheckpointError, match=r"b.onnx: its description cannot be used"):
        open_graph(tmp_path / "b.onnx")


@pytest.mark.parametrize(("modalities", "name"), [("optical", "a.onnx"), ("optical", "a.xml"), ("sar", "a.onnx")])
def test_a_control_that_sees_one_date_can_be_exported(
    modalities: Modalities, name: str, decided: Path, tmp_path: Path
) -> None:
    net = load(decided)
    assert net.info is not None
    net.config = dataclasses.replace(net.config, modalities=modalities)
    save(tmp_path / "control.safetensors", net, dataclasses.replace(net.info, model=net.config))
    # Compares, ONNX in both runtimes, and refuses what differs.
    export_file(tmp_path / "control.safetensors", tmp_path / name, "onnx" if name == "a.onnx" else "openvino")


def test_lower_precision_makes_smaller_files(graphs: Graphs) -> None:
    sizes = {name: graphs(f"{name}.xml").with_suffix(".bin").stat().st_size for name in ("f32", "bf16", "int8")}
    assert sizes["bf16"] < 0.55 * sizes["f32"]
    assert sizes["int8"] < 0.35 * sizes["f32"]
    assert 'type="FakeQuantize"' in graphs("int8.xml").read_text()
    assert 'type="FakeQuantize"' not in graphs("bf16.xml").read_text()


@pytest.mark.parametrize(("name", "defect", "kept"), [("a.onnx", 0.01, ["a.onnx"]), ("a.xml", float("nan"), [])])
def test_other_numbers_are_refused(
    name: str, defect: float, kept: list[str], graphs: Graphs, decided: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """A graph that went wrong on its way is not written, and what was there stays."""

    def other(net: HeteCD, path: Path, *_: object) -> None:
        """Writes the graph of a network of other weights."""
        _copy(graphs(f"f32{path.suffix}"), path)
        net.decoder.head[3].bias.data[1] += defect

    monkeypatch.setattr(export, "write_onnx" if name == "a.onnx" else "write_openvino", other)
    for old in kept:
        (tmp_path / old).write_text("the good one")
    out = tmp_path / name if kept else tmp_path / "new" / name
    with pytest.raises(
        ExportError, match=r"a\.\w+: not written; probabilities differ from torch by at most "
    ) as caught:
        export_file(decided, out, "onnx" if name == "a.onnx" else "openvino")
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == kept
    assert all((tmp_path / old).read_text() == "the good one" for old in kept)


@pytest.mark.parametrize("precision", BOUNDS)
def test_each_bound_is_held(precision: export.Precision) -> None:
    bounds = BOUNDS[precision]
    good = Comparison(bounds.difference, bounds.mean_difference, bounds.agreement, 100)
    export._judge(good, bounds, Path("a"), precision)
    for worse in (
        Comparison(bounds.difference * 1.01, 0.0, 1.0, 100),
        Comparison(0.0, bounds.mean_difference * 1.01, 1.0, 100),
        Comparison(0.0, 0.0, bounds.agreement - 0.001, 100),
        Comparison(float("nan"), 0.0, 1.0, 100),
    ):
        with pytest.raises(ExportError, match=f"expected for {precision} at most"):
            export._judge(worse, bounds, Path("a"), precision)


def test_the_worst_graph_and_a_wrong_shape_count(decided: Path) -> None:
    net = load(decided)
    assert net.info is not None

    @torch.inference_mode()  # as `compare` does it: with gradients the last digits are others
    def exact(optical: Floats, sar: Floats) -> Floats:
        return net(torch.from_numpy(optical), torch.from_numpy(sar)).softmax(1)[:, 1].numpy()

    cases = list(export._cases(net.info, None))
    assert [images[0].shape for images in cases] == [(1, 4, 96, 128), (2, 4, 75, 110)]
    assert compare(net, [exact], cases) == Comparison(0.0, 0.0, 1.0, 96 * 128 + 2 * 75 * 110)
    flipped = compare(net, [exact, lambda optical, sar: 1 - exact(optical, sar)], cases)
    assert flipped.difference > 0.1
    assert flipped.agreement < 0.9
    cropped = compare(net, [lambda optical, sar: exact(optical, sar)[:, 1:]], cases)
    assert np.isnan(cropped.difference)
    assert cropped.agreement == 0


def test_what_does_not_fit_is_refused_before_any_work(
    decided: Path, tiles: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    for name, to, precision, message in (
        ("a.xml", "onnx", "f32", r"found ending '\.xml', expected '\.onnx' for --to onnx"),
        ("a.onnx", "onnx", "int8", "found int8 for ONNX, expected f32; int8 needs --to openvino"),
        ("a.onnx", "onnx", "bf16", "found bf16 for ONNX, expected f32"),
        ("a.xml", "openvino", "int8", "data: found none, expected a folder of tiles"),
    ):
        with pytest.raises(ConfigError, match=message):
            export_file(decided, out / name, to, precision)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="nonsense"):
        export_file(decided, out / "a.xml", "openvino", "int8", tiles, "nonsense")
    monkeypatch.setitem(sys.modules, "nncf", None)
    with pytest.raises(ConfigError, match=r"needs nncf, which is not installed; pip install 'hetecd\[export\]'"):
        export_file(decided, out / "a.xml", "openvino", "int8", tiles)
    assert not out.exists()


def test_export_predict_evaluate(
    decided: Path, graphs: Graphs, tiles: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """From the command line: any name will do, a graph is used wherever a checkpoint is, and scores alike."""
    made = tmp_path / "new" / "run[1].xml"
    assert cli.main(["export", str(decided), "-o", str(made), "--to", "openvino"]) == 0
    said = capsys.readouterr().out
    assert f"of {96 * 128 + 2 * 75 * 110} pixels" in said
    assert said.endswith(f"written: {made}\n")
    assert sorted(path.name for path in made.parent.iterdir()) == ["run[1].bin", "run[1].xml"]
    assert made.with_suffix(".bin").read_bytes() == graphs("f32.xml").with_suffix(".bin").read_bytes()
    out = graphs("f32.onnx")
    scores = []
    for weights, *words in ((decided, "--precision", "f32"), (out, "--runtime", "onnx"), (graphs("int8.xml"),)):
        assert cli.main(["evaluate", str(weights), "--data", str(tiles), "-o", str(tmp_path / "s"), *words]) == 0
        scores.append(json.loads((tmp_path / "s" / "metrics.json").read_text())["iou"])
    assert scores[1] == pytest.approx(scores[0], abs=1e-4)
    assert scores[2] == pytest.approx(scores[0], abs=0.02)
    write_pair(tmp_path / "scene", seed=5, height_px=80, width_px=80)
    pair = [str(tmp_path / "scene" / f"{name}.tif") for name in ("optical", "sar")]
    common = ["--weights", str(out), "--runtime"]
    assert cli.main(["predict", *pair, "-o", str(tmp_path / "map"), *common, "onnx"]) == 0
    assert "polygons" in capsys.readouterr().out
    assert json.loads((tmp_path / "map" / "summary.json").read_text())["settings"]["tile_px"] == 512
    assert cli.main(["predict", *pair, "-o", str(tmp_path / "m"), *common, "torch"]) == 1
    assert "found --runtime torch, expected openvino or onnx; leave --runtime out" in capsys.readouterr().err
    assert not (tmp_path / "m").exists()


def test_a_full_disk_leaves_nothing(
    decided: Path, graphs: Graphs, small_disk: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = small_disk(str(int(1.5 * graphs("f32.onnx").stat().st_size)))  # for the ONNX graph, not for what comes of it
    monkeypatch.setattr(export, "write_onnx", lambda _net, path, *_: _copy(graphs("f32.onnx"), path))
    with pytest.raises(OutputError, match=r"a\.xml"):
        export_file(decided, disk / "a.xml", "openvino")
    assert list(disk.iterdir()) == []


def test_onnx_needs_a_runtime_to_be_compared_in(decided: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "is_installed", lambda name: False)
    with pytest.raises(ConfigError, match="needs openvino or onnxruntime to compare with torch"):
        export_file(decided, tmp_path / "a.onnx", "onnx")
