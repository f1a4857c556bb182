"""What is typed: flags in one spelling, and one line for what is wrong."""

import pytest

from hetecd import cli
from hetecd.usage import spelled


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("nonsense", "VERB: found 'nonsense', expected train, evaluate, inspect,"),
        ("predict a b -o m --bounds {1}", "--bounds: found something else, expected numbers; see"),
        ("evaluate", "--data: missing; see `hetecd evaluate --help`"),
        ("predict a b", "--out: missing; see `hetecd predict --help`"),
        ("align a", "AFTER: missing; see `hetecd align --help`"),
        ("train recipes/quick.yaml --data a", "--out: missing"),
        ("train recipes/quick.yaml --data a -o b --epochs one", "--epochs: found 'one', expected a whole number"),
        ("predict a b -o m --threshold 0,5", "--threshold: found '0,5', expected a number; see"),
        ("predict a b -o m --before-is radar", "--before-is: found 'radar', expected optical or sar; see"),
        ("predict a b -o m --format shp", "--format: found 'shp', expected gpkg, fgb or geojson; see"),
        ("predict a b -o m --bounds 1 2 3", "--bounds: found '[1, 2, 3]', expected 4 numbers; see"),
        ("predict a b -o m --sar-bands a", "--sar-bands: found 'a', expected numbers; see"),
        ("predict a b -o m --treshold 1", "--treshold: no such flag; the nearest is --threshold; see"),
        ("predict a b -o m --thresh 1", "--thresh: no such flag; the nearest is --threshold; see"),
        ("predict a b c -o m", "found 'c' too many; see"),
        ("predict a b -o m --tile 1e3", "--tile: found '1e3', expected a whole number; see"),
        ("predict a b -o m --threshold=", "--threshold: found '', expected a number; see"),
        ("predict a b -o m --tta=1", "--tta: found '1', expected no value; see"),
        ("predict a b -o m c --treshold=1", "--treshold: no such flag; the nearest is --threshold; see"),
        ("predict a b -o m --debug --tile a", "--tile: found 'a', expected a whole number; see"),
        ("predict 1 2 -o m --bounds 1 2 3 4 5", "found '5' too many; see"),
        ("predict a b -o", "--out/-o: expected one argument; see"),
    ],
)
def test_what_is_typed_wrong_is_one_line(words: str, says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(words.split()) == 2
    out, err = capsys.readouterr()
    assert err.startswith(f"hetecd: error: {says}")
    assert err.count("\n") == 1
    assert not out


@pytest.mark.parametrize(
    ("words", "same"),
    [
        ("predict a b --before-is sar -o c", "predict a b --before_is sar -o c"),
        ("predict --sar-bands 2 1 2021 . b", "predict --sar_bands [2,1] 2021 . b"),
        ("predict --sar-bands . - e", "predict --sar_bands . - e"),
        ("predict --sar-bands=1 2 3", "predict --sar_bands=[1] 2 3"),
        ("predict --bounds 1 2 3 4 5 6", "predict --bounds [1,2,3,4] 5 6"),
        ("predict --sar-bands 2, 1, a", "predict --sar_bands [2,1] a"),
        ("predict --sar-bands 2 1 a b", "predict --sar_bands [2,1] a b"),
        ("predict --bounds=-1.5,2,3e5,4 --sar-bands 1 --tta", "predict --bounds=[-1.5,2,3e5,4] --sar_bands [1] --tta"),
        ("train r --ce-weights [1,2] --sar-db=true", "train r --ce_weights [1,2] --sar_db=true"),
        ("predict --optical-bands=a 2", "predict --optical_bands=a 2"),
        ("predict --optical-bands -o 2", "predict --optical_bands -o 2"),
    ],
)
def test_flags_have_one_spelling(words: str, same: str) -> None:
    assert spelled(words.split()) == same.split()


@pytest.mark.parametrize(
    ("words", "ends"),
    [
        ("predct a b", "or synth; the nearest is predict; see `hetecd --help`\n"),
        ("predict a b -o m --runtime onxn", "openvino or onnx; the nearest is onnx; see `hetecd predict --help`\n"),
        ("predict a b -o m --runtime gpu", "openvino or onnx; see `hetecd predict --help`\n"),
    ],
)
def test_a_mistyped_word_gets_the_nearest(words: str, ends: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(words.split()) == 2
    assert capsys.readouterr().err.endswith(ends)
