"""Labels, batches and their keys; bad files refused with one line."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from rasterio.crs import CRS
from torch.utils.data import DataLoader

from hetecd.augment import augment
from hetecd.config import TrainConfig
from hetecd.data import (
    REPEAT,
    EpochSampler,
    TileDataset,
    TileFiles,
    check_labels,
    collate,
    find_tiles,
    fit_modalities,
    known_modalities,
    read_label,
    read_tile,
    split_tiles,
)
from hetecd.errors import ConfigError, InputError
from hetecd.modality import Modality
from hetecd.raster import Grid, write_raster

RGB = Modality((1, 2, 3), (0.0,) * 3, (255.0,) * 3)
GREY = Modality((1,), (0.0,), (255.0,))


def save(path: Path, array: np.ndarray, nodata: float | None = None) -> Path:
    """(H, W) or (C, H, W) as GeoTIFF or, by pillow, as PNG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".tif":
        grid = Grid(CRS.from_epsg(32633), Affine(10, 0, 5e5, 0, -10, 5e6), *array.shape[-2:])
        write_raster(path, array, grid, nodata)
    else:
        Image.fromarray(array if array.ndim == 2 else np.moveaxis(array, 0, -1)).save(path)
    return path


def make_split(root: Path, count: int = 4, edge: int = 40, split: str = "train", seed: int = 0) -> list[TileFiles]:
    rng = np.random.default_rng(seed)
    for i in range(count):
        save(root / split / "A" / f"{i:02}.png", rng.integers(0, 256, (3, edge, edge), np.uint8))
        save(root / split / "B" / f"{i:02}.png", rng.integers(1, 256, (edge, edge), np.uint8))
        save(root / split / "label" / f"{i:02}.png", rng.integers(0, 2, (edge, edge), np.uint8) * 255)
    return find_tiles(root, split)


# --- labels ----------------------------------------------------------------------------------------------------------

TOP = np.array([[0, 1], [0, 0]], np.uint8)


@pytest.mark.parametrize("name", ["label.png", "label.tif"])
@pytest.mark.parametrize("factor", [1, 255])
def test_label_spellings(tmp_path: Path, name: str, factor: int) -> None:
    label = read_label(save(tmp_path / name, TOP * np.uint8(factor)))
    assert label.dtype == np.uint8
    assert np.array_equal(label, TOP)


@pytest.mark.parametrize("dtype", ["float32", "int16", "uint16"])
def test_label_of_any_number_type(tmp_path: Path, dtype: str) -> None:
    assert np.array_equal(read_label(save(tmp_path / "label.tif", (TOP * 255).astype(dtype))), TOP)


def test_label_of_one_bit_palette_and_equal_bands(tmp_path: Path) -> None:
    Image.fromarray(TOP.astype(bool)).save(tmp_path / "bit.png")
    palette = Image.fromarray(TOP, mode="P")
    palette.putpalette([0, 0, 0, 255, 255, 255])
    palette.save(tmp_path / "palette.png")
    save(tmp_path / "rgb.png", np.repeat(TOP[None] * np.uint8(255), 3, 0))
    for name in ("bit", "palette", "rgb"):
        assert np.array_equal(read_label(tmp_path / f"{name}.png"), TOP)


def test_255_ignores_only_when_declared(tmp_path: Path) -> None:
    three = save(tmp_path / "three.png", np.array([[0, 1, 255]], np.uint8))
    assert read_label(three, ignore_255=True).tolist() == [[0, 1, 255]]
    with pytest.raises(InputError, match=r"three.png: found label values \{0, 1, 255\}.*set ignore_255"):
        read_label(three)
    two = save(tmp_path / "two.png", np.array([[0, 255]], np.uint8))
    assert read_label(two).tolist() == [[0, 1]]
    assert read_label(two, ignore_255=True).tolist() == [[0, 255]]


def test_nan_and_nodata_in_labels(tmp_path: Path) -> None:
    nan = save(tmp_path / "nan.tif", np.array([[0, 1, np.nan]], np.float32))
    assert read_label(nan).tolist() == [[0, 1, 255]]
    nodata = save(tmp_path / "nodata.tif", np.array([[0, 1, 7]], np.uint8), nodata=7)
    assert read_label(nodata).tolist() == [[0, 1, 255]]
    declared = save(tmp_path / "declared.tif", np.array([[0, 1, 255]], np.uint8), nodata=255)
    assert read_label(declared).tolist() == [[0, 1, 255]]
    zero = save(tmp_path / "zero.tif", np.array([[0, 1, 1]], np.uint8), nodata=0)
    assert read_label(zero).tolist() == [[0, 1, 1]]


def test_other_labels_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"found label values \{0, 1, 2\}, expected \{0, 1\} or \{0, 255\}"):
        read_label(save(tmp_path / "classes.png", np.array([[0, 1, 2]], np.uint8)))
    with pytest.raises(InputError, match=r"\{0, 0.5\}"):
        read_label(save(tmp_path / "half.tif", np.array([[0, 0.5]], np.float32)))
    with pytest.raises(InputError, match="3 bands that differ"):
        read_label(save(tmp_path / "colour.png", np.array([[[0]], [[1]], [[0]]], np.uint8)))
    (tmp_path / "text.png").write_text("no image")
    with pytest.raises(InputError, match=r"text\.png"):
        read_label(tmp_path / "text.png")


def labels(folder: Path, *rows: list[int], nodata: float | None = None) -> list[TileFiles]:
    """Label files of one row of pixels."""
    start = len(list(folder.iterdir()))
    paths = [save(folder / f"{start + i}.tif", np.array([r], np.uint8), nodata) for i, r in enumerate(rows)]
    return [TileFiles(p.stem, p, p, p) for p in paths]


def test_a_split_must_spell_changed_one_way(tmp_path: Path) -> None:
    assert check_labels(labels(tmp_path, [0, 0], [0, 1], [1, 1]))
    assert check_labels(labels(tmp_path, [0, 0], [0, 255]))
    assert check_labels(labels(tmp_path, [0, 1], [0, 255]), ignore_255=True)
    one, many = labels(tmp_path, [0, 1], [0, 255])
    with pytest.raises(InputError, match=rf"found 1 in .*{one.label.name} but 255 in .*{many.label.name}"):
        check_labels([one, many])


def test_a_split_may_hold_no_change(tmp_path: Path) -> None:
    nothing, ignored, change = labels(tmp_path, [0, 0], [0, 255], [0, 1])
    assert not check_labels([nothing])
    assert not check_labels([nothing, ignored], ignore_255=True)
    for files, ignore_255, has_change in (
        ([nothing], False, False),
        ([nothing, ignored], True, False),
        ([nothing, ignored], False, True),
        ([ignored, change], True, True),
    ):
        data = TileDataset(files, TrainConfig(ignore_255=ignore_255), RGB, GREY)
        assert data.has_change is has_change
    assert not TileDataset([replace(change, label=None)], TrainConfig(), RGB, GREY).has_change


def test_255_declared_as_nodata_needs_a_1_to_be_understood(tmp_path: Path) -> None:
    doubtful, plain = labels(tmp_path, [0, 255], [0, 1, 255], nodata=255)
    assert read_label(plain.label).tolist() == [[0, 1, 255]]
    assert read_label(doubtful.label, ignore_255=True).tolist() == [[0, 255]]
    for ask in (
        lambda: read_label(doubtful.label),
        lambda: check_labels([doubtful]),
        # What 255 means elsewhere in the split does not help: here it may be a slip of the program that wrote it.
        lambda: check_labels([*labels(tmp_path, [0, 255]), doubtful]),
        lambda: read_tile(doubtful, "optical", GREY, GREY),
    ):
        with pytest.raises(InputError, match=rf"{doubtful.label.name}: found 255 declared as nodata and no 1") as e:
            ask()
        assert "\n" not in str(e.value)
        assert "set ignore_255" in str(e.value)
    # Another tile of the split tells that 1 is the spelling.
    files = [doubtful, plain]
    assert check_labels(files)
    assert (TileDataset(files, TrainConfig(tile_px=32), GREY, GREY, augment).tile(0).label != 1).all()
    assert not check_labels([doubtful], ignore_255=True)


# --- tiles -----------------------------------------------------------------------------------------------------------


def test_invalid_pixels_of_either_date_become_255(tmp_path: Path) -> None:
    optical = np.full((4, 33, 34), 500, np.uint16)
    optical[1, 0, 0] = 0
    sar = np.full((2, 33, 34), 0.1, np.float32)
    sar[0, 1, 1] = np.nan
    files = TileFiles(
        "x",
        save(tmp_path / "a.tif", optical, nodata=0),
        save(tmp_path / "b.tif", sar),
        save(tmp_path / "l.png", np.ones((33, 34), np.uint8)),
    )
    optical_in = Modality((3, 2), (0.0, 0.0), (1000.0, 1000.0))
    sar_in = Modality((2, 1), (-30.0, -30.0), (0.0, 0.0), db=True)
    tile = read_tile(files, "optical", optical_in, sar_in)
    assert tile.optical.dtype == tile.sar.dtype == np.float32
    assert tile.optical.shape == (2, 33, 34)
    assert np.isnan(tile.optical[:, 0, 0]).all()
    assert np.isnan(tile.sar[:, 1, 1]).all()
    assert sorted(zip(*np.nonzero(tile.label == 255), strict=True)) == [(0, 0), (1, 1)]

    item = TileDataset([files], TrainConfig(), optical_in, sar_in)[0]
    assert {k: (tuple(v.shape), v.dtype) for k, v in item.items() if k != "index"} == {
        "optical": ((2, 33, 34), torch.float32),
        "sar": ((2, 33, 34), torch.float32),
        "label": ((33, 34), torch.uint8),
    }
    assert item["optical"][:, 0, 0].tolist() == [0, 0]
    assert item["sar"][:, 1, 1].tolist() == [0, 0]
    assert float(item["optical"][0, 5, 5]) == pytest.approx(0.5)
    assert float(item["sar"][0, 5, 5]) == pytest.approx(20 / 30)


def test_roles_follow_before_is(tmp_path: Path) -> None:
    files = make_split(tmp_path, 1)[0]
    swapped = replace(files, before=files.after, after=files.before)
    one, two = read_tile(files, "optical", RGB, GREY), read_tile(swapped, "sar", RGB, GREY)
    assert np.array_equal(one.optical, two.optical)
    assert np.array_equal(one.sar, two.sar)


def test_bands_may_repeat_and_must_exist(tmp_path: Path) -> None:
    files = make_split(tmp_path, 1)[0]
    tile = read_tile(files, "optical", RGB, Modality((1, 1, 1), (0.0,) * 3, (255.0,) * 3))
    assert np.array_equal(tile.sar[0], tile.sar[2])
    with pytest.raises(InputError, match=r"00\.png: found 1 band, expected bands \[1, 2\]"):
        read_tile(files, "optical", RGB, Modality((1, 2), (0.0,) * 2, (1.0,) * 2))


@pytest.mark.parametrize("folder", ["B", "label"])
def test_sizes_must_agree(tmp_path: Path, folder: str) -> None:
    files = make_split(tmp_path, 1)
    save(tmp_path / "train" / folder / "00.png", np.zeros((40, 41), np.uint8))
    with pytest.raises(InputError, match=rf"{folder}.00.png: found 40 x 41 pixels, expected 40 x 40") as caught:
        TileDataset(files, TrainConfig(), RGB, GREY)[0]
    assert "\n" not in str(caught.value)


def test_tile_without_label(tmp_path: Path) -> None:
    make_split(tmp_path, 1)
    files = find_tiles(tmp_path, "train", labels=False)
    assert files[0].label is None
    assert (TileDataset(files, TrainConfig(), RGB, GREY).tile(0).label == 0).all()


# --- fitting ---------------------------------------------------------------------------------------------------------


def test_images_of_one_value_are_named_by_their_folder(tmp_path: Path) -> None:
    files = make_split(tmp_path, 2)
    for file in files:
        save(file.after, np.full((40, 40), 7, np.uint8))
    with pytest.raises(InputError, match=r"train.B: band 1: found 7 everywhere"):
        fit_modalities(files, TrainConfig())


def test_fit_uses_all_bands_and_skips_nodata(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    optical = rng.uniform(200, 1200, (4, 200, 200)).astype(np.uint16)
    optical[:, :100] = 0
    sar = np.float32(10) ** rng.uniform(-2.5, 0, (1, 200, 200)).astype(np.float32)
    files = [TileFiles("x", save(tmp_path / "a.tif", optical, nodata=0), save(tmp_path / "b.tif", sar))]
    config = TrainConfig(sar_db=True, optical_unit="reflectance x 10000", sar_unit="linear power", gsd_m=3)
    o, s = fit_modalities(files, config)
    assert o.bands == (1, 2, 3, 4)
    assert all(200 <= low < 230 and 1170 < high <= 1200 for low, high in zip(o.low, o.high, strict=True))
    assert (o.unit, o.gsd_m, o.db) == ("reflectance x 10000", 3, False)
    assert s.db
    assert -25 <= s.low[0] < -24
    assert -1 < s.high[0] <= 0
    o, s = fit_modalities(
        [replace(files[0], before=files[0].after, after=files[0].before)],
        replace(config, before_is="sar", optical_bands=(3, 1), sar_bands=(1, 1)),
    )
    assert (o.bands, s.bands) == ((3, 1), (1, 1))


def test_fit_uint8(tmp_path: Path) -> None:
    files = make_split(tmp_path, 2)
    config = TrainConfig(normalise="uint8")
    assert [m.high for m in fit_modalities(files, config)] == [(255.0,) * 3, (255.0,)]
    with pytest.raises(ConfigError, match="found uint8 with sar_db in"):
        fit_modalities(files, replace(config, sar_db=True))
    save(tmp_path / "a.tif", np.zeros((3, 40, 40), np.uint16))
    with pytest.raises(ConfigError, match="uint16 pixels in"):
        fit_modalities([files[0], replace(files[1], before=tmp_path / "a.tif")], config)
    with pytest.raises(InputError, match="no tiles"):
        fit_modalities([], config)


def test_power_that_is_none(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    optical = save(tmp_path / "a.tif", rng.integers(200, 1201, (3, 100, 100)).astype(np.uint16))
    sar = rng.uniform(0.01, 1, (1, 100, 100)).astype(np.float32)
    sar[:, :10] = 0  # nodata that nobody declared does not decide the range
    files = [TileFiles("x", optical, save(tmp_path / "b.tif", sar))]
    assert fit_modalities(files, TrainConfig(sar_db=True))[1].low[0] > -20
    save(tmp_path / "b.tif", rng.uniform(-20, 2, (1, 100, 100)).astype(np.float32))
    with pytest.raises(ConfigError, match="holds decibels already"):
        fit_modalities(files, TrainConfig(sar_db=True))


def test_tiles_for_weights_that_are_there(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    files = make_split(tmp_path, 2)
    optical, sar = fit_modalities(files, TrainConfig())
    assert known_modalities(files, TrainConfig(), optical, sar) == (optical, sar)
    config = TrainConfig(optical_bands=(3, 1, 2))
    assert known_modalities(files, config, optical, sar) == (replace(optical, bands=(3, 1, 2)), sar)
    assert caplog.messages == []
    with pytest.raises(ConfigError, match=r"optical_bands: found \[1\], expected 3"):
        known_modalities(files, TrainConfig(optical_bands=(1,)), optical, sar)
    with pytest.raises(ConfigError, match="sar_db: found true, but the weights"):
        known_modalities(files, TrainConfig(sar_db=True), optical, sar)
    foreign = [replace(file, before=save(tmp_path / "a.tif", np.full((3, 64, 64), 900, np.uint16))) for file in files]
    known_modalities(foreign, TrainConfig(), optical, sar)
    assert caplog.messages[0].startswith("optical: found 900 to 900 in the tiles, expected what the weights")


# --- batches ---------------------------------------------------------------------------------------------------------


def test_plain_index_is_the_whole_tile_untouched(tmp_path: Path) -> None:
    files = make_split(tmp_path)
    data = TileDataset(files, TrainConfig(tile_px=32), RGB, GREY, augment)
    raw = data.tile(2)
    assert torch.equal(data[2]["optical"], torch.from_numpy(raw.optical / np.float32(255)))
    assert torch.equal(data[2]["label"], torch.from_numpy(raw.label))
    # Without augmentation the key's epoch changes nothing: validation sees whole tiles.
    plain = TileDataset(files, TrainConfig(tile_px=32), RGB, GREY)
    assert torch.equal(plain[(3, 2)]["optical"], data[2]["optical"])


def test_items_depend_on_seed_epoch_and_index_alone(tmp_path: Path) -> None:
    files = make_split(tmp_path)
    config = TrainConfig(tile_px=32)
    one, two = (TileDataset(files, config, RGB, GREY, augment) for _ in range(2))
    first = one[(1, 2)]
    two[(0, 0)], two[(7, 3)]  # what came before does not matter
    torch.manual_seed(1)
    for key in ("optical", "sar", "label"):
        assert torch.equal(first[key], two[(1, 2)][key])
    other_seed = TileDataset(files, replace(config, seed=1), RGB, GREY, augment)
    assert not torch.equal(first["optical"], one[(2, 2)]["optical"])
    assert not torch.equal(first["optical"], other_seed[(1, 2)]["optical"])
    twice = TileDataset([files[0], files[0]], config, RGB, GREY, augment)
    assert not torch.equal(twice[(0, 0)]["optical"], twice[(0, 1)]["optical"])


def test_variants_follow_the_contracts_of_the_weights_to_start_from(tmp_path: Path) -> None:
    files = make_split(tmp_path, 1)
    config = TrainConfig(start_from="x", optical_jitter=0.9, sar_jitter=0.9)
    copies, wider = (Modality((1, 1, 1), (0.0,) * 3, (high,) * 3) for high in (255.0, 200.0))
    item = TileDataset(files, config, RGB, copies, augment)[(0, 0)]
    assert torch.equal(item["sar"][0], item["sar"][2])  # one speckle
    assert max(item["optical"].max(), item["sar"].max()) <= 1  # pixel / 255 has no more
    assert TileDataset(files, config, RGB, wider, augment)[(0, 0)]["sar"].max() > 1
    assert TileDataset(files, replace(config, start_from=""), RGB, copies, augment)[(0, 0)]["sar"].max() > 1


def test_tiles_below_the_smallest_a_network_reads_train_where_they_are_padded(tmp_path: Path) -> None:
    files = make_split(tmp_path, 1, edge=20)
    assert TileDataset(files, TrainConfig(tile_px=32), RGB, GREY, augment)[(0, 0)]["label"].shape == (32, 32)
    for data in (TileDataset(files, TrainConfig(tile_px=32), RGB, GREY), TileDataset(files, TrainConfig(), RGB, GREY)):
        with pytest.raises(InputError, match=r"A.00\.png: found 20 x 20 pixels, expected at least 32 x 32"):
            data[(0, 0)]


@pytest.mark.parametrize("workers", [0, 2])
def test_through_a_loader_with_and_without_workers(tmp_path: Path, workers: int) -> None:
    files = make_split(tmp_path, 6)
    data = TileDataset(files, TrainConfig(workers=workers), RGB, GREY, augment)
    sampler = EpochSampler(len(data), seed=3)
    sampler.set_epoch(2)
    loader = DataLoader(data, batch_size=2, sampler=sampler, num_workers=workers, collate_fn=collate)
    batches = list(loader)
    assert [tuple(b["optical"].shape) for b in batches] == [(2, 3, 40, 40)] * 3
    order = torch.cat([b["index"] for b in batches]).tolist()
    assert sorted(order) == list(range(6))
    assert torch.equal(batches[0]["optical"][0], data[(2, order[0])]["optical"])


def test_crop_shows_the_same_place_and_pads_small_tiles(tmp_path: Path) -> None:
    rows, cols = np.meshgrid(np.arange(60), np.arange(70), indexing="ij")
    place = np.stack([rows, cols, rows]).astype(np.uint8)
    files = TileFiles(
        "x",
        save(tmp_path / "a.png", place),
        save(tmp_path / "b.png", rows.astype(np.uint8)),
        save(tmp_path / "l.png", ((rows // 8 + cols // 8) % 2).astype(np.uint8)),
    )
    still = TrainConfig(
        tile_px=32, flip=0, rotate90=False, scale=1, optical_jitter=0, sar_jitter=0, sar_speckle=0
    )  # fmt: skip
    data = TileDataset([files], still, RGB, GREY, augment)
    corners = set()
    for epoch in range(30):
        item = data[(epoch, 0)]
        row, col = (255 * item["optical"][:2]).round().int()
        assert item["label"].shape == (32, 32)
        assert torch.equal(item["label"], ((row // 8 + col // 8) % 2).to(torch.uint8))
        assert torch.equal(item["sar"][0], item["optical"][0])
        corners.add((int(row[0, 0]), int(col[0, 0])))
    assert len(corners) > 20
    assert max(r for r, _ in corners) <= 28
    nearly_whole = TileDataset([files], replace(still, tile_px=59), RGB, GREY, augment)
    assert {int((255 * nearly_whole[(e, 0)]["optical"][0, 0, 0]).round()) for e in range(20)} == {0, 1}
    padded = TileDataset([files], replace(still, tile_px=64), RGB, GREY, augment)[(0, 0)]
    assert padded["label"].shape == (64, 64)
    assert (padded["label"][60:] == 255).all()
    assert (padded["optical"][:, 60:] == 0).all()
    assert (padded["label"][:60] != 255).all()


def test_collate_pads_to_the_largest(tmp_path: Path) -> None:
    small, large = (
        TileDataset(make_split(tmp_path / str(edge), 1, edge), TrainConfig(), RGB, GREY)[0] for edge in (33, 40)
    )
    batch = collate([small, large])
    assert batch["optical"].shape == (2, 3, 40, 40)
    assert (batch["label"][0, 33:] == 255).all()
    assert torch.equal(batch["sar"][1], large["sar"])
    assert batch["index"].dtype == torch.int64


@pytest.mark.parametrize("workers", [1, 2])
def test_cache_keeps_to_its_budget(tmp_path: Path, workers: int) -> None:
    files = make_split(tmp_path, 3)
    one = 40 * 40 * 5
    config = TrainConfig(workers=workers)  # the budget is shared by the workers
    data = TileDataset(files, config, RGB, GREY, cache_bytes=workers * (2 * one + 1))
    first = [data[i]["optical"] for i in range(3)]
    for path in (files[0].before, files[2].before):
        path.unlink()
    assert torch.equal(data[0]["optical"], first[0])
    with pytest.raises(InputError, match=r"02\.png"):
        data[2]


# --- sampler ---------------------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(count=st.integers(1, 40), world=st.integers(1, 50), epoch=st.integers(0, 3), shuffle=st.booleans())
def test_sampler_shares_out_every_tile(count: int, world: int, epoch: int, shuffle: bool) -> None:
    samplers = [EpochSampler(count, 7, shuffle, rank, world) for rank in range(world)]
    for sampler in samplers:
        sampler.set_epoch(epoch)
    keys = [list(s) for s in samplers]
    lengths = {len(k) for k in keys}
    assert lengths == {len(s) for s in samplers}
    assert len(lengths) == 1, "a process with fewer steps would wait for ever"
    assert min(lengths) >= 1
    flat = [key for k in keys for key in k]
    assert len(flat) < count + world
    counted = [i for e, i in flat if e != REPEAT]
    assert {e for e, _ in flat} <= {epoch, REPEAT}
    assert set(counted) == set(range(count))
    assert len(counted) == (len(flat) if shuffle else count)


def test_one_process_gets_every_tile_once_and_nothing_repeated() -> None:
    assert list(EpochSampler(4, shuffle=False)) == [(0, 0), (0, 1), (0, 2), (0, 3)]
    assert sorted(EpochSampler(4)) == [(0, 0), (0, 1), (0, 2), (0, 3)]


def test_a_repeated_tile_is_whole_plain_and_does_not_count(tmp_path: Path) -> None:
    for augmentation in (augment, None):
        data = TileDataset(make_split(tmp_path), TrainConfig(tile_px=32), RGB, GREY, augmentation)
        plain, repeated = data[1], data[(REPEAT, 1)]
        assert torch.equal(repeated["optical"], plain["optical"])
        assert torch.equal(repeated["sar"], plain["sar"])
        assert (repeated["label"] == 255).all()
        assert repeated["index"] == 1
        assert torch.equal(data[1]["label"], plain["label"]), "the cached label was overwritten"
        assert not (plain["label"] == 255).any()


def test_sampler_order_changes_with_epoch_and_seed() -> None:
    def order(seed: int, epoch: int) -> list[int]:
        sampler = EpochSampler(50, seed)
        sampler.set_epoch(epoch)
        return [i for _, i in sampler]

    assert order(0, 0) == order(0, 0)
    assert len({tuple(order(s, e)) for s in (0, 1) for e in (0, 1)}) == 4
    assert [i for _, i in EpochSampler(4, shuffle=False)] == [0, 1, 2, 3]


# --- real data -------------------------------------------------------------------------------------------------------


def test_ombria(shared: Path) -> None:
    root = shared / "data" / "ombria"
    config = TrainConfig()
    train, val, note = split_tiles(root, config)
    assert (len(train), len(val)) == (530, 94)
    assert "no val split" in note
    assert len(find_tiles(root, "test")) == 70
    optical, sar = fit_modalities(train[::20], config)
    assert (optical.bands, sar.bands) == ((1, 2, 3), (1,))
    data = TileDataset(val[:8], config, optical, sar, augment)
    item = data[(0, 3)]
    assert item["optical"].shape == (3, 256, 256)
    assert item["sar"].shape == (1, 256, 256)
    assert set(item["label"].unique().tolist()) <= {0, 1}
