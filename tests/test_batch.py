"""Many scenes from one CSV file."""

import csv
import logging

import numpy as np
import pytest
from jsonargparse import ArgumentParser
from rasterio.transform import Affine

from hetecd import cli, weights
from hetecd.batch import read_pairs, run_pairs
from hetecd.config import ModelConfig
from hetecd.errors import InputError
from hetecd.info import ModelInfo
from hetecd.modality import Modality, uint8_modality
from hetecd.raster import Grid, read_raster, write_raster
from hetecd.scene_verbs import _with_row, predict_arguments
from hetecd.weights import fresh, save


def statuses(out):
    with open(out / "status.csv", newline="") as file:
        return {row["name"]: (row["status"], row["message"]) for row in csv.DictReader(file)}


def test_rows_of_a_csv_file(tmp_path):
    text = (
        "before, after,name,threshold,aoi,weights\na.tif,b.tif,,0.3,in/city.gpkg,net.safetensors\n"
        "https://x.y/a.tif,/vsizip/c.zip/c.tif,third one,,,\n/abs/a.tif,sub/d.tif,,,/abs/aoi.gpkg,\n"
    )
    (tmp_path / "pairs.csv").write_text("\ufeff" + text, encoding="utf-8")
    assert read_pairs(tmp_path / "pairs.csv", ["threshold", "aoi", "weights"]) == {
        "b": {"before": f"{tmp_path}/a.tif", "after": f"{tmp_path}/b.tif", "threshold": "0.3",
              "aoi": f"{tmp_path}/in/city.gpkg", "weights": f"{tmp_path}/net.safetensors"},
        "third one": {"before": "https://x.y/a.tif", "after": "/vsizip/c.zip/c.tif"},
        "d": {"before": "/abs/a.tif", "after": f"{tmp_path}/sub/d.tif", "aoi": "/abs/aoi.gpkg"},
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected 'before'"),
        ("before,later\na,b\n", "expected 'after'"),
        ("before,after,thresold\na,b,1\n", "found column 'thresold'"),
        ("before,after\na\n", "line 2"),
        ("before,after\na,b\na,b,c\n", "line 3"),
        ("before,after\na,\n", "line 2"),
        ("before,after\n", "no pairs"),
        ("before,after\na,b.tif\nc,b.tif\n", "found 'b' as name of line 3"),
        ("before,after,name\na,b,../x\n", "found '../x'"),
        ("before,after,name\na,b,..\n", "found '..'"),
        ('before,after\n"a,b\n', "CSV"),
    ],
)
def test_a_csv_file_that_is_wrong(tmp_path, text, message):
    (tmp_path / "pairs.csv").write_text(text)
    with pytest.raises(InputError, match=message) as error:
        read_pairs(tmp_path / "pairs.csv", ["threshold"])
    assert str(error.value).startswith(f"{tmp_path}/pairs.csv: ")
    assert "\n" not in str(error.value)


def test_no_csv_file(tmp_path):
    with pytest.raises(InputError, match="cannot be read"):
        read_pairs(tmp_path / "pairs.csv")


def test_a_failure_does_not_stop_the_rest(tmp_path, caplog):
    caplog.set_level(logging.INFO, "hetecd")
    pairs = {name: {"before": f"{name}.tif", "after": "z.tif"} for name in ("one", "two", "three", "four")}
    seen = []

    def run(pair):
        name = pair["before"].removesuffix(".tif")
        assert pair["out"] == str(tmp_path / "out" / name)
        assert statuses(tmp_path / "out")[name] == ("running", "")
        seen.append(name)
        if name == "two":
            raise InputError("x.tif: found nothing,\nexpected something")
        if name == "three":
            raise ZeroDivisionError("a bug")

    assert run_pairs(pairs, tmp_path / "out", run) == ["two", "three"]
    assert seen == ["one", "two", "three", "four"]
    assert statuses(tmp_path / "out") == {
        "one": ("done", ""),
        "two": ("failed", "x.tif: found nothing, expected something"),
        "three": ("failed", "ZeroDivisionError: a bug"),
        "four": ("done", ""),
    }
    assert "two: failed: x.tif: found nothing, expected something" in caplog.messages

    def interrupted(pair):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_pairs(pairs, tmp_path / "out", interrupted)
    assert statuses(tmp_path / "out")["one"] == ("running", "")
    assert statuses(tmp_path / "out")["four"] == ("waiting", "")


def test_the_command(tmp_path, capsys, caplog, monkeypatch):
    config = ModelConfig("residual_s", 1, 1, width=8)
    info = ModelInfo(model=config, optical=uint8_modality((1,)), sar=Modality((1,), (0.0,), (1.0,)))
    save(tmp_path / "net.safetensors", fresh(config, 0), info)
    rng = np.random.default_rng(0)
    for name in ("a", "b", "c"):
        image = rng.integers(1, 255, (60, 70)).astype(np.uint8)
        write_raster(tmp_path / f"{name}.tif", image, Grid(None, Affine.identity(), 60, 70))
    (tmp_path / "pairs.csv").write_text(
        "before,after,threshold,min-area\na.tif,b.tif,,1\na.tif,gone.tif,,\nb.tif,c.tif,0,\n"
    )
    command = ["predict", "--pairs", str(tmp_path / "pairs.csv"), "-o", str(tmp_path / "out"), "--threshold", "1"]
    command += ["--weights", str(tmp_path / "net.safetensors")]
    opened = []
    load = weights.load
    monkeypatch.setattr(weights, "load", lambda path: opened.append(path) or load(path))
    assert cli.main(command) == 1
    assert len(opened) == 1  # for all rows
    assert caplog.text.count("sar: ") == 2  # but each scene hears of values that are not those of training
    said = capsys.readouterr().err
    assert "1 of 3 scenes failed" in said
    assert {name: status for name, (status, _) in statuses(tmp_path / "out").items()} == {
        "b": "done", "gone": "failed", "c": "done",
    }  # fmt: skip
    maps = {name: tmp_path / "out" / name / "change.tif" for name in ("b", "c")}
    assert (read_raster(maps["b"]).array == 0).all()  # threshold 1 of the command line
    assert (read_raster(maps["c"]).array == 1).all()  # threshold 0 of its row
    times = {name: path.stat().st_mtime_ns for name, path in maps.items()}
    (tmp_path / "gone.tif").write_bytes((tmp_path / "b.tif").read_bytes())
    assert cli.main(command) == 0
    assert len(opened) == 2
    assert cli.main(command) == 0
    assert len(opened) == 2  # all was there
    assert times == {name: path.stat().st_mtime_ns for name, path in maps.items()}  # only what was missing was done
    assert {status for status, _ in statuses(tmp_path / "out").values()} == {"done"}
    for column, cell in (("threshold", "often"), ("tta", "perhaps"), ("sar_bands", "1;x")):
        (tmp_path / "pairs.csv").write_text(f"before,after,{column}\na.tif,b.tif,{cell}\n")
        assert cli.main(command) == 1
        assert column in statuses(tmp_path / "out")["b"][1]


def test_cells_are_read_as_the_flags_of_their_columns():
    given = predict_parser().parse_args(["--pairs", "x.csv", "--out", "o", "--tta", "--optical_bands", "[3]"])
    row = {"before": "a", "after": "b", "out": "o/b"}
    plain = _with_row(given, row)
    assert (plain.tta, plain.report, plain.optical_bands, plain.bounds) == (True, False, (3,), None)
    cells = {"tta": "false", "report": "Yes", "sar_bands": "1", "optical_bands": "[4, 3, 2]", "bounds": "-1e5 0,1 2.5"}
    read = _with_row(given, row | cells)
    assert (read.tta, read.report, read.sar_bands, read.optical_bands) == (False, True, (1,), (4, 3, 2))
    assert read.bounds == (-1e5, 0, 1, 2.5)


@pytest.mark.parametrize(
    ("key", "cell", "expected"),
    [
        ("bounds", "1 2 3", "four numbers"), ("sar_bands", "VV", "numbers"), ("tta", "maybe", "one of true, false"),
        ("tile", "wide", "a whole number"), ("scaling", "own", "auto"),
    ],
)  # fmt: skip
def test_cells_that_say_nothing(key, cell, expected):
    given = predict_parser().parse_args(["--pairs", "x.csv", "--out", "o"])
    with pytest.raises(InputError, match=r"^\w+: found .*in the table") as error:
        _with_row(given, {"before": "a", "after": "b", "out": "o/b", key: cell})
    assert all(word in str(error.value) for word in (key, cell, expected))
    assert "\n" not in str(error.value)


def predict_parser():
    parser = ArgumentParser(exit_on_error=False)
    predict_arguments(parser)
    return parser


@pytest.mark.parametrize("words", [[], ["a.tif"], ["a.tif", "b.tif", "--pairs", "pairs.csv"]])
def test_one_pair_or_a_list(words, tmp_path, capsys):
    assert cli.main(["predict", *words, "-o", str(tmp_path)]) == 2
    assert "--pairs" in capsys.readouterr().err
