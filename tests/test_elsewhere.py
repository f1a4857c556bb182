"""What the bench says of weights at places they do not know."""

from pathlib import Path

import elsewhere
import numpy as np
import pytest

from hetecd.flags import DEFAULT_WEIGHTS
from hetecd.raster import read_raster


@pytest.mark.parametrize("place", [elsewhere.PLACES[0], elsewhere.PLACES[2]], ids=["flood", "unchanged"])
def test_a_place_is_made_and_scored(place: elsewhere.Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(elsewhere, "EDGE_PX", 96)
    pair = elsewhere.write_scene(tmp_path / "scene", elsewhere.SEED, place, (3, 2, 1))
    assert pair.label is not None
    optical, label = read_raster(pair.before), read_raster(pair.label)
    assert optical.array.shape == (3, 96, 96)
    assert optical.array.dtype == np.uint16
    assert optical.grid.transform.a == pytest.approx(10)
    assert label.array.any() == place.change
    cell = elsewhere.score(str(DEFAULT_WEIGHTS), [pair], tmp_path / "map")
    change = read_raster(tmp_path / "map" / "change.tif").array[0] == 1
    truth = label.array[0] == 1
    if place.change:
        assert float(cell) == pytest.approx(100 * (change & truth).sum() / (change | truth).sum(), abs=0.05)
    else:
        assert cell == f"{100 * change.mean():.1f} % called"


def test_what_cannot_be_mapped_ends_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        elsewhere.score(str(DEFAULT_WEIGHTS), [elsewhere.Pair(tmp_path / "none.tif", tmp_path / "x.tif")], tmp_path)
    assert "none.tif" in capsys.readouterr().err
    assert elsewhere.main(["--data", str(tmp_path)]) == 1
    assert "gloucester2/pre.tif: no such file; expected pairs/ and scene_la/ in --data" in capsys.readouterr().err
