from itertools import pairwise
from xml.etree import ElementTree

from hetecd.styles import COLOURS, STYLES, write_styles


def test_styles_cover_every_value_once(tmp_path):
    """They were also loaded and drawn by QGIS 3.22, by hand: by the name of the file, for all formats."""
    write_styles(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(STYLES)
    change = ElementTree.parse(tmp_path / "change.qml").getroot()
    assert change.tag == "qgis"
    entries = {int(entry.get("value")): entry for entry in change.iter("paletteEntry")}
    assert set(entries) == {0, 1}
    assert entries[0].get("alpha") == "0"
    for value, entry in entries.items():  # the colour table of the file says the same
        assert entry.get("color") == "#{:02x}{:02x}{:02x}".format(*COLOURS[value])
    renderer = change.find("renderer-v2")
    assert renderer.get("attr") == "mean_prob"
    ranges = [(float(item.get("lower")), float(item.get("upper"))) for item in renderer.iter("range")]
    assert ranges[0][0] == 0
    assert ranges[-1][1] == 1
    assert all(one[1] == two[0] for one, two in pairwise(ranges))
    assert {item.get("symbol") for item in renderer.iter("range")} == {
        item.get("name") for item in renderer.iter("symbol")
    }
    probability = ElementTree.parse(tmp_path / "probability.qml").getroot()
    values = [float(item.get("value")) for item in probability.iter("item")]
    assert (values[0], values[-1]) == (0, 1)
    assert values == sorted(values)
