"""Which runtime computes what, and how it says that it cannot."""

import logging
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from hetecd import runtime
from hetecd.errors import CheckpointError, ConfigError
from hetecd.info import to_metadata
from hetecd.runtime import OpenVinoGraph, choose, open_graph
from hetecd.synth import write_pair
from hetecd.weights import load, predictor

Graphs = Callable[[str], Path]


@pytest.mark.parametrize(
    ("name", "asked", "chosen"),
    [
        ("a.safetensors", "auto", "torch"),
        ("a.safetensors", "torch", "torch"),
        ("a.pth", "auto", "torch"),
        ("a.xml", "auto", "openvino"),
        ("a.onnx", "auto", "openvino"),
        ("a.onnx", "openvino", "openvino"),
        ("a.ONNX", "onnx", "onnx"),
    ],
)
def test_the_kind_of_file_decides(name: str, asked: str, chosen: str) -> None:
    assert choose(name, asked, "cpu") == chosen  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "asked", "message"),
    [
        ("a.safetensors", "openvino", r"a\.safetensors: found --runtime openvino, expected torch; make a graph with"),
        ("a.xml", "onnx", r"a\.xml: found --runtime onnx, expected openvino; leave --runtime out"),
        ("a.onnx", "torch", r"a\.onnx: found --runtime torch, expected openvino or onnx"),
    ],
)
def test_an_impossible_combination(name: str, asked: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        choose(name, asked)  # type: ignore[arg-type]


def test_what_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert choose("a.onnx", device="cuda") == "onnx"
    monkeypatch.setitem(sys.modules, "openvino", None)
    assert choose("a.onnx", device="cpu") == "onnx"
    with pytest.raises(ConfigError, match=r"needs openvino, which is not installed; pip install 'hetecd\[openvino\]'"):
        choose("a.xml")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(
        ConfigError, match=r"needs openvino or onnxruntime, .*'hetecd\[openvino\]' or .*'hetecd\[onnx\]'"
    ):
        choose("a.onnx")


def test_the_choice_is_told(graphs: Graphs, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "hetecd"):
        open_graph(graphs("f32.onnx"))
        open_graph(graphs("f32.onnx"), "onnx", "cpu")
        open_graph(graphs("bf16.xml"))
        open_graph(graphs("bf16.xml"), precision="f32")
    assert [record.message.partition(": computed by ")[2].split()[0] for record in caplog.records] == [
        "OpenVINO", "ONNX", "OpenVINO", "OpenVINO",
    ]  # fmt: skip
    assert [record.message.rpartition("(")[2] for record in caplog.records] == [
        "f32 graph, f32)", "CPU, f32)", "bf16 graph, bf16)", "bf16 graph, f32)",
    ]  # fmt: skip


def test_precision_is_as_exported_or_as_asked_for(graphs: Graphs, decided: Path) -> None:
    with runtime.quiet():
        import openvino
    if "BF16" not in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        pytest.skip("needs a processor that computes in bf16")
    rng = np.random.default_rng(0)
    images = rng.uniform(0, 3000, (1, 4, 64, 64)).astype(np.float32), rng.gamma(1, 0.05, (1, 1, 64, 64)).astype("f4")
    wanted = predictor(load(decided), "cpu", "f32")(*images)

    def apart(name: str, precision: str = "auto") -> float:
        graph, _ = open_graph(graphs(name), "openvino", "cpu", precision)  # type: ignore[arg-type]
        return float(np.abs(graph(*images) - wanted).max())

    # That f32 graphs are computed in f32 is tested with their export.
    assert apart("f32.xml", "bf16") > 1e-4
    assert apart("bf16.xml") > 1e-4


def test_more_shapes_than_are_kept(graphs: Graphs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "SHAPES", 1)
    graph = OpenVinoGraph(graphs("f32.xml"))
    images = [np.linspace(0, 1, 5 * edge * 32, dtype=np.float32).reshape(1, 5, edge, 32) for edge in (64, 40, 32, 64)]
    results = [graph(image[:, :4], image[:, 4:]) for image in images[:2]]
    compiled = list(graph.compiled)
    results += [graph(image[:, :4], image[:, 4:]) for image in images[2:]]
    assert [result.shape[1] for result in results] == [64, 40, 32, 64]
    np.testing.assert_array_equal(results[0], results[3])
    assert compiled == [(1, 4, 64, 32)]  # which that of 40 rows is padded to
    assert list(graph.compiled) == [(1, 4, 64, 32)]


@pytest.mark.parametrize(
    ("name", "asked", "device", "precision", "message"),
    [
        ("f32.xml", "auto", "cuda", "auto", "device: found 'cuda', expected cpu for OpenVINO"),
        ("f32.onnx", "auto", "cuda", "auto", r"device: 'cuda' cannot be used by ONNX Runtime \(.*CPUExecutionProvider"),
        ("f32.onnx", "onnx", "cuda:x", "auto", "device: 'cuda:x' cannot be used"),
        ("f32.xml", "auto", "cpu", "f16", "found --precision f16, expected f32 or bf16 of a graph"),
        ("f32.onnx", "onnx", "cpu", "bf16", "computes it as exported, not in bf16; take --runtime openvino"),
    ],
)
def test_what_a_runtime_cannot(
    name: str, asked: str, device: str, precision: str, message: str, graphs: Graphs
) -> None:
    with pytest.raises(ConfigError, match=message):
        open_graph(graphs(name), asked, device, precision)  # type: ignore[arg-type]


@pytest.mark.parametrize("asked", ["openvino", "onnx"])
def test_files_of_others(asked: str, graphs: Graphs, tmp_path: Path) -> None:
    path = tmp_path / "a.onnx"
    with pytest.raises(CheckpointError, match="no such file; expected a graph written by `hetecd export`"):
        open_graph(path, asked)  # type: ignore[arg-type]
    path.write_bytes(b"nothing of the kind")
    with pytest.raises(CheckpointError, match=r"a\.onnx: not a graph that .* can read; export it again") as caught:
        open_graph(path, asked)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
    model = onnx.load(graphs("f32.onnx"))
    del model.metadata_props[:]
    onnx.save(model, path)
    with pytest.raises(CheckpointError, match="found format None, expected 'hetecd-1'"):
        open_graph(path, asked)  # type: ignore[arg-type]


def test_a_graph_without_its_weights(graphs: Graphs, tmp_path: Path) -> None:
    (tmp_path / "a.xml").write_bytes(graphs("f32.xml").read_bytes())
    with pytest.raises(CheckpointError, match=r"a\.xml: not a graph that OpenVINO can read"):
        open_graph(tmp_path / "a.xml")


@pytest.mark.parametrize("name", ["f32.xml", "f32.onnx"])
def test_a_map_from_a_graph_needs_no_torch_and_reports_to_nobody(name: str, graphs: Graphs, tmp_path: Path) -> None:
    write_pair(tmp_path, seed=5, height_px=48, width_px=48)
    words = ["predict", "optical.tif", "sar.tif", "-o", "map", "--weights", str(graphs(name))]
    words += ["--runtime", "onnx"] if name == "f32.onnx" else []
    code = (
        "import sys; from hetecd.cli import main\n"
        f"assert main({words!r}) == 0\n"
        "found = {'torch', 'lightning', 'openvino_telemetry'} & set(sys.modules)\n"
        "assert not found, found"
    )
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, capture_output=True, text=True)
    assert (tmp_path / "map" / "change.tif").exists()


@pytest.mark.parametrize("asked", ["openvino", "onnx"])
def test_a_graph_that_standardises_by_itself(asked: str, graphs: Graphs, tmp_path: Path) -> None:
    """As older versions wrote them: its windows would not fit together."""
    _, info = open_graph(graphs("f32.onnx"), "onnx")
    model = onnx.load(graphs("f32.onnx"))
    onnx.helper.set_model_props(model, to_metadata(replace(info, model=replace(info.model, standardise=True))))
    onnx.save(model, tmp_path / "old.onnx")
    message = r"old\.onnx: found a graph of 4 optical channels, expected 8; an older version wrote it, export it again"
    with pytest.raises(CheckpointError, match=message):
        open_graph(tmp_path / "old.onnx", asked, "cpu")  # type: ignore[arg-type]
