"""The page about trainings holds its numbers, needs nothing else, and shows the rest where something is missing."""

import dataclasses
import re
import shutil
from pathlib import Path
from xml.etree import ElementTree

import pytest
from test_runs import LOG, open_predictor

from hetecd import cli
from hetecd.errors import InputError, OutputError
from hetecd.evaluate import score
from hetecd.figures import Line, line_chart
from hetecd.run_report import write_comparison, write_report
from hetecd.weights import load, save


@pytest.fixture(scope="module")
def runs(decided: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two trainings: `mine` and `<other> & more`, of another learning rate and a stricter threshold."""
    root = tmp_path_factory.mktemp("runs")
    net = load(decided)
    assert net.info is not None
    for name, lr, threshold in (("mine", 0.1, net.info.threshold), ("<other> & more", 0.2, 0.99)):
        (root / name).mkdir()
        (root / name / "log.csv").write_text(LOG)
        info = dataclasses.replace(
            net.info, recipe={"lr": lr, "seed": 3, "<img>": 1}, threshold=threshold, scores={"iou": 0.2, "epoch": 0}
        )
        save(root / name / "best.safetensors", net, info)
    return root


def _headings(page: Path) -> list[str]:
    return re.findall("<h2>(.*?)</h2>", page.read_text())


def test_the_report_of_a_training(runs: Path, tiles: Path, tmp_path: Path) -> None:
    other, out = runs / "<other> & more", tmp_path / "report.html"
    assert write_report(runs / "mine", out, other, tiles, "test", open_predictor) == out
    text = out.read_text()
    assert _headings(out) == [
        "Scores", "Curves", "Diagrams", "The best, the median and the worst tiles", "Confusion by tile", "Settings",
    ]  # fmt: skip
    wanted = score(*open_predictor(runs / "mine" / "best.safetensors"), tiles, "test")
    assert all(f">{100 * wanted[name]:.2f}<" in text for name in ("iou", "f1", "precision", "recall"))
    assert (
        f"threshold 0.99 gives IoU {100 * score(*open_predictor(other / 'best.safetensors'), tiles)['iou']:.2f}" in text
    )
    assert ">lr</td><td class=number>0.1</td><td class=number>0.2</td>" in text
    assert ">seed</td>" not in text.split("<details>")[0]
    assert "<other>" not in text
    assert "<img>" not in text
    assert text.count("<svg ") == 7
    assert text.count("<img ") == 6 * 6  # tiles x (optical, SAR, label, probability, errors of both)
    assert f">{wanted['tp'] + 0:,}<" in text or text.count('class="bar"') == 8
    assert set(re.findall(r'(?:src|href)="(?!data:|#)([^"]*)"', text)) == set()  # nothing to fetch


def test_without_tiles_the_curves_remain(runs: Path, tmp_path: Path) -> None:
    copy = tmp_path / "alone" / "mine"
    shutil.copytree(runs / "mine", copy)
    page = write_report(copy)
    assert page == copy / "report.html"
    assert _headings(page) == ["Scores", "Curves", "Settings"]
    assert "--data names them" in page.read_text()
    assert "problems" not in page.read_text().split("</style>")[1]


def test_what_is_missing_is_said_and_the_rest_is_shown(runs: Path, tiles: Path, tmp_path: Path) -> None:
    for name in ("whole", "no log", "truncated"):
        shutil.copytree(runs / "mine", tmp_path / name)
    (tmp_path / "no log" / "log.csv").unlink()
    weights = tmp_path / "truncated" / "best.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    folders = [tmp_path / name for name in ("truncated", "whole", "no log")]
    page = write_comparison(folders, tmp_path / "c.html", tiles, "test", open_predictor)
    text = page.read_text()
    assert "<b>no log</b>" in text
    assert "<b>truncated</b>" in text
    assert len(_headings(page)) == 6
    for folder in folders:
        shutil.rmtree(folder)
    (tmp_path / "whole").mkdir()
    (tmp_path / "whole" / "log.csv").write_text(LOG)
    assert _headings(write_report(tmp_path / "whole")) == ["Scores", "Curves", "Settings"]
    (tmp_path / "whole" / "log.csv").unlink()
    shutil.copy(runs / "mine" / "best.safetensors", tmp_path / "whole")
    assert _headings(write_report(tmp_path / "whole")) == ["Scores", "Settings"]


def test_refusals(runs: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="expected two or more"):
        write_comparison([runs / "mine"], tmp_path / "c.html")
    with pytest.raises(InputError, match="expected the folder of a training"):
        write_report(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot write"):
        write_report(runs / "mine", tmp_path / "file" / "c.html")


def test_the_verbs(runs: Path, tiles: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders = [str(runs / name) for name in ("mine", "<other> & more")]
    data = ["--data", str(tiles), "--split", "test", "--device", "cpu"]
    assert cli.main(["compare", *folders, "-o", str(tmp_path / "c.html"), *data]) == 0
    assert cli.main(["report", folders[0], "-o", str(tmp_path / "r.html")]) == 0
    assert f"written: {tmp_path / 'r.html'}" in capsys.readouterr().out
    assert len(_headings(tmp_path / "c.html")) == 6
    assert cli.main(["report", str(tmp_path)]) == 1


def test_a_chart_is_svg_with_real_text() -> None:
    assert "a$_$b" in line_chart("a$_$b", [Line("$_$", [1, 2], [1, 2])], "$_$", "loss")
    chart = line_chart("A & B", [Line("<name>", [1, 2, 3], [1.0, float("nan"), 2.0])], "epoch", "loss")
    root = ElementTree.fromstring(chart)
    words = {element.text for element in root.iter() if element.text and element.text.strip()}
    assert {"A & B", "epoch", "loss", "<name>"} <= words
    assert root.get("aria-label") == "A & B"
    assert line_chart("A & B", [Line("<name>", [1, 2, 3], [1.0, float("nan"), 2.0])], "epoch", "loss") == chart
