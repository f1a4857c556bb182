"""Which files make a tile, in every layout; which tiles are held out."""

import itertools
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hetecd.config import TrainConfig
from hetecd.errors import InputError
from hetecd.folders import TileFiles, find_tiles, hold_out_blocks, match_tiles, split_tiles


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def names(tiles: list[TileFiles]) -> list[str]:
    return [tile.name for tile in tiles]


@pytest.mark.parametrize(
    "spelling",
    [("A", "B", "label"), ("T1", "T2", "GT"), ("pre-event", "post-event", "target"), ("im1", "im2", "label")],
)
@pytest.mark.parametrize("layout", ["{split}/{folder}", "{folder}/{split}", "{folder}"])
def test_layouts(tmp_path: Path, spelling: tuple[str, str, str], layout: str) -> None:
    for folder, extension in zip(spelling, (".tif", ".JPG", ".png"), strict=True):
        base = tmp_path / layout.format(split="train", folder=folder)
        touch(*(base / f"{name}{extension}" for name in ("b.2", "a", "c")))
        touch(base / "Thumbs.db", base / "a.tif.aux.xml", base / "._a.png")
    listed = layout == "{folder}"
    if listed:
        (tmp_path / "list").mkdir()
        (tmp_path / "list" / "train.txt").write_text("c.png\nb.2\n\n", encoding="utf-8")
    tiles = find_tiles(tmp_path, "train")
    assert names(tiles) == (["b.2", "c"] if listed else ["a", "b.2", "c"])
    last = tiles[-1]
    assert (last.before.name, last.after.name) == ("c.tif", "c.JPG")
    assert last.label is not None
    assert last.label.name == "c.png"
    for path, folder in zip((last.before, last.after, last.label), spelling, strict=True):
        assert folder in path.parts
    with pytest.raises(InputError, match=r"expected split 'test' as test/\{A,B,label\}"):
        find_tiles(tmp_path, "test")


def test_no_split_folder_at_all(tmp_path: Path) -> None:
    touch(tmp_path / "A" / "1.png", tmp_path / "B" / "1.png")
    tile = find_tiles(tmp_path, "", labels=False)[0]
    assert tile == TileFiles("1", tmp_path / "A" / "1.png", tmp_path / "B" / "1.png", None)
    with pytest.raises(InputError, match="found A and B but no labels"):
        find_tiles(tmp_path, "")


def test_list_beside_the_folders(tmp_path: Path) -> None:
    for folder in ("A", "B", "label"):
        touch(*(tmp_path / folder / f"{i}.png" for i in range(3)))
    (tmp_path / "val.txt").write_text("A/1.png\n", encoding="utf-8-sig")
    assert names(find_tiles(tmp_path, "val")) == ["1"]
    (tmp_path / "val.txt").write_text("1\n7\n")
    with pytest.raises(InputError, match=r"A: found no file for 1 of 2 tiles \(7\), expected the names of .*val\.txt"):
        find_tiles(tmp_path, "val")
    (tmp_path / "val.txt").write_text("\n")
    with pytest.raises(InputError, match=r"val\.txt: found no tiles"):
        find_tiles(tmp_path, "val")
    (tmp_path / "val.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match=r"val\.txt: cannot read"):
        find_tiles(tmp_path, "val")


def test_missing_partners_are_named(tmp_path: Path) -> None:
    for folder in ("A", "B", "label"):
        touch(*(tmp_path / "train" / folder / f"{i}.png" for i in range(9)))
    for i in range(7):
        (tmp_path / "train" / "B" / f"{i}.png").unlink()
    with pytest.raises(InputError, match=r"B: found no file for 7 of 9 tiles \(0, 1, 2, 3, 4, \.\.\.\)") as caught:
        find_tiles(tmp_path, "train")
    assert "\n" not in str(caught.value)


def test_bad_folders(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such folder"):
        find_tiles(tmp_path / "absent", "train")
    for folder in ("A", "B", "label"):
        (tmp_path / "train" / folder).mkdir(parents=True)
    with pytest.raises(InputError, match="found no tiles"):
        find_tiles(tmp_path, "train")
    touch(tmp_path / "train" / "A" / "1.png", tmp_path / "train" / "A" / "1.tif")
    with pytest.raises(InputError, match=r"found 1\.png and 1\.tif, expected one file per tile"):
        find_tiles(tmp_path, "train")
    with pytest.raises(InputError, match="no such folder"):
        match_tiles(tmp_path / "x", tmp_path / "y")
    with pytest.raises(InputError, match="found train, expected split"):
        find_tiles(tmp_path, "test")


def numbered(n: int) -> list[TileFiles]:
    return [TileFiles(f"{i:04}", Path("a"), Path("b")) for i in range(n)]


@given(n=st.integers(2, 300), fraction=st.floats(0.01, 0.9), seed=st.integers(0, 99))
def test_held_out_blocks(n: int, fraction: float, seed: int) -> None:
    tiles = numbered(n)
    train, val = hold_out_blocks(tiles, fraction, seed)
    assert sorted(train + val) == tiles
    assert train == sorted(train)
    assert val == sorted(val)
    assert train
    assert val
    assert abs(len(val) - n * fraction) <= 1
    assert (train, val) == hold_out_blocks(tiles, fraction, seed)
    numbers = [int(t.name) for t in val]
    blocks = 1 + sum(b - a > 1 for a, b in itertools.pairwise(numbers))
    assert blocks <= max(1, min(6, len(val) // 4))


def test_blocks_are_spread_and_follow_the_seed() -> None:
    val = {seed: names(hold_out_blocks(numbered(600), 0.15, seed)[1]) for seed in (0, 1)}
    assert val[0] != val[1]
    for held in val.values():
        assert {int(name) // 100 for name in held} == set(range(6))
    with pytest.raises(InputError, match="found 1 tile, expected 2 or more"):
        hold_out_blocks(numbered(1), 0.5, 0)


def test_validation_split_or_blocks(tmp_path: Path) -> None:
    for folder in ("A", "B", "label"):
        touch(*(tmp_path / "train" / folder / f"{i:02}.png" for i in range(20)))
    train, val, note = split_tiles(tmp_path, TrainConfig(val_fraction=0.2))
    assert (len(train), len(val)) == (16, 4)
    assert f"{val[0].name}..{val[-1].name}" in note
    assert "4 of 20 training tiles" in note
    for folder in ("A", "B", "label"):
        touch(tmp_path / "val" / folder / "x.png")
    train, val, note = split_tiles(tmp_path, TrainConfig())
    assert (len(train), names(val)) == (20, ["x"])
    assert "the val split" in note
    train, val, note = split_tiles(tmp_path, TrainConfig(val_fraction=0))
    assert (len(train), val) == (20, [])
    assert "all 20 training tiles" in note
