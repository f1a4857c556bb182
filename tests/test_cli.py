"""What a person types, and what it answers: results, one clear line, exit codes."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import rasterio
from conftest import QUICK
from rasterio.crs import CRS
from rasterio.transform import from_origin
from rasterio.vrt import WarpedVRT
from scipy import ndimage

import hetecd
from hetecd import cli, network_verbs, scene_verbs
from hetecd.config import ModelConfig, TrainConfig, checked, configs, read_recipe, recipe_keys
from hetecd.errors import ConfigError
from hetecd.flags import DEFAULT_WEIGHTS, Network, open_network
from hetecd.raster import Grid, read_raster, write_raster
from hetecd.synth import write_pair
from hetecd.train import Hardware, fit

RECIPES = sorted((Path(__file__).parents[1] / "recipes").glob("*.yaml"))


@pytest.fixture(scope="module")
def checkpoint(tiles: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network trained for one epoch; what it knows does not matter here."""
    out = tmp_path_factory.mktemp("checkpoint") / "run"
    config = TrainConfig(sar_db=True, epochs=1, batch=8)
    return fit(tiles, out, ModelConfig(**QUICK), config, hardware=Hardware("cpu", 1))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A georeferenced pair of 160 px; SAR in geographic coordinates."""
    folder = tmp_path_factory.mktemp("scene")
    write_pair(folder, seed=5, height_px=160, width_px=160)
    return folder


def _error(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    """Run a command that must fail with code 1, and return the one line it says."""
    assert cli.main([str(word) for word in words]) == 1
    captured = capsys.readouterr()
    lines = [line for line in captured.err.splitlines() if line.startswith("hetecd: error: ")]
    assert len(lines) == 1
    assert captured.err.rstrip().endswith(lines[0])
    assert captured.out == ""
    return lines[0]


def test_help_names_every_verb_and_needs_no_heavy_import() -> None:
    code = (
        "import sys; from hetecd.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'lightning', 'rasterio', 'matplotlib', 'scipy', 'numpy'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert all(f"    {verb} " in done.stdout for verb in cli.VERBS)


def test_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 2
    assert "usage: hetecd" in capsys.readouterr().out
    with pytest.raises(SystemExit) as stop:
        cli.main(["--version"])
    assert stop.value.code == 0
    assert hetecd.__version__ in capsys.readouterr().out


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipes_are_valid_and_say_how_they_are_run(path: Path) -> None:
    configs(checked(read_recipe(path), path.name))
    head = path.read_text()
    assert f"hetecd train recipes/{path.name}" in head
    assert "# Hardware:" in head
    assert "# Result:" in head


def test_the_paper_recipe_is_the_published_one() -> None:
    values = read_recipe(RECIPES[[p.stem for p in RECIPES].index("paper")])
    network = ModelConfig()
    assert all(values[key] == getattr(network, key) for key in values if hasattr(network, key))
    assert (values["lr"], values["weight_decay"], values["lr_power"], values["seed"]) == (5e-4, 0.01, 1.5, 222)
    assert (values["dice"], values["fca_weight"], values["fca_schedule"]) == ("released", 2, "decay")
    assert path_defects() >= 5


def path_defects() -> int:
    """How many lines of the paper recipe are marked as defects."""
    return next(p for p in RECIPES if p.stem == "paper").read_text().count("DEFECT")


def test_train_evaluate_predict_distances(
    tiles: Path, scene: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, scores, out = tmp_path / "run", tmp_path / "scores", tmp_path / "map"
    words = f"train recipes/quick.yaml --data {tiles} -o {run} --epochs 1 --width 8 --sar-db true --batch 8"
    assert cli.main([*words.split(), "--precision=f32", "--accelerator", "cpu"]) == 0
    info = hetecd.load(run / "best.safetensors").info
    assert info is not None
    assert (info.model.width, info.recipe["epochs"], info.recipe["fca_weight"]) == (8, 1, 0.05)
    weights = str(run / "best.safetensors")
    assert cli.main(["evaluate", weights, "--data", str(tiles), "--out", str(scores)]) == 0
    assert "iou" in capsys.readouterr().out
    assert 0 <= json.loads((scores / "metrics.json").read_text())["accuracy"] <= 1
    pair = [str(scene / "optical.tif"), str(scene / "sar.tif")]
    assert cli.main(["predict", *pair, "-o", str(out), "--weights", weights, "--tile", "96", "--overlap", "32"]) == 0
    assert "polygons" in capsys.readouterr().out
    assert {path.name for path in out.iterdir()} >= {"change.tif", "probability.tif", "change.gpkg", "summary.json"}
    with rasterio.open(out / "change.tif") as change, rasterio.open(pair[0]) as optical:
        assert (change.crs, change.transform, change.shape) == (optical.crs, optical.transform, optical.shape)
        assert change.nodata == 255
        invalid = optical.read_masks(1) == 0
        assert (change.read(1)[invalid] == 255).all()
    assert cli.main(["distances", weights, "--data", str(tiles), "--out", str(tmp_path / "d")]) == 0
    assert (tmp_path / "d" / "densities.png").exists()
    folders = [str(tiles / "test" / name) for name in "AB"]
    assert cli.main(["predict", *folders, "-o", str(tmp_path / "tiles"), "--weights", weights]) == 0
    assert len(list((tmp_path / "tiles").glob("*.png"))) == 8


def test_the_other_order_of_dates_gives_the_same_map(checkpoint: Path, scene: Path, tmp_path: Path) -> None:
    optical, sar = str(scene / "optical.tif"), str(scene / "sar.tif")
    common = ["--weights", str(checkpoint), "-o"]
    assert cli.main(["predict", optical, sar, *common, str(tmp_path / "a")]) == 0
    assert cli.main(["predict", sar, optical, *common, str(tmp_path / "b"), "--before-is", "sar"]) == 0
    maps = [read_raster(tmp_path / name / "probability.tif").array for name in "ab"]
    np.testing.assert_array_equal(maps[0], maps[1])


def test_synth_writes_scenes_and_tiles(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(f"synth scene -o {tmp_path / 's'} --size 64 --kind city".split()) == 0
    assert {path.name for path in (tmp_path / "s").iterdir()} == {"optical.tif", "sar.tif", "label.tif"}
    assert cli.main(f"synth tiles -o {tmp_path / 't'} --scenes 1 --tile 256".split()) == 0
    assert "4 tiles" in capsys.readouterr().out


@pytest.mark.slow
def test_a_real_scene_with_the_weights_that_come_along(shared: Path, tmp_path: Path) -> None:
    """Sentinel-2 and Sentinel-1 on different grids: the map lies on the optical one, nodata where either has none."""
    pair = [shared / "data" / "scene_la" / f"{name}.tif" for name in ("optical", "sar")]
    words = [*map(str, pair), "-o", str(tmp_path / "map"), "--precision", "bf16", "--align", "off"]
    assert cli.main(["predict", *words]) == 0
    with rasterio.open(tmp_path / "map" / "change.tif") as change, rasterio.open(pair[0]) as optical:
        assert (change.crs, change.transform, change.shape) == (optical.crs, optical.transform, optical.shape)
        with rasterio.open(pair[1]) as sar, WarpedVRT(
            sar, crs=optical.crs, transform=optical.transform, height=optical.height, width=optical.width
        ) as warped:  # fmt: skip
            outside = warped.read(1) == 0
        mapped = change.read(1)
    assert (mapped[ndimage.binary_erosion(outside, iterations=3)] == 255).all()
    assert (mapped[ndimage.binary_erosion(~outside, iterations=3)] != 255).all()
    probability = read_raster(tmp_path / "map" / "probability.tif").array[0]
    np.testing.assert_array_equal(np.isnan(probability), mapped == 255)
    assert (mapped == 1).sum() < 0.05 * (mapped != 255).sum()  # nothing changed there; docs/model-card.md has 2.5 %


def test_a_grid_of_ones_own(checkpoint: Path, scene: Path, tmp_path: Path) -> None:
    pair = [str(scene / f"{name}.tif") for name in ("optical", "sar")]
    west, _, _, north = read_raster(scene / "optical.tif").grid.bounds
    words = ["predict", *pair, "--weights", str(checkpoint), "--resolution", "4", "-o", str(tmp_path)]
    corner = (west, north - 200, west + 240, north)
    assert cli.main([*words, "--bounds", *map(str, corner)]) == 0
    grid = read_raster(tmp_path / "change.tif").grid
    assert (grid.bounds, grid.shape) == (pytest.approx(corner), (50, 60))


# --- bad input: one line, exit code 1, nothing half-written ----------------------------------------------------------


def _raster(path: Path, array: np.ndarray, crs: int | None = 32611, left: float = 500_000.0, **extra: object) -> Path:
    grid = Grid(CRS.from_epsg(crs) if crs else None, from_origin(left, 4_000_000, 10, 10) if crs else None,
                *array.shape[1:])  # fmt: skip
    write_raster(path, array, grid, **extra)  # type: ignore[arg-type]
    return path


OPTICAL = np.full((4, 64, 64), 900, np.uint16)
SAR = np.full((1, 64, 64), 0.1, np.float32)


def _bad_pair(case: str, folder: Path) -> tuple[Path, Path]:
    """Two rasters that are wrong in one way."""
    optical, sar = folder / "optical.tif", folder / "sar.tif"
    _raster(optical, OPTICAL[:1] if case == "bands" else OPTICAL, nodata=900 if case == "no valid pixel" else None)
    _raster(
        sar, SAR * np.nan if case == "all NaN" else SAR, crs=None if case == "one CRS" else 32611,
        left=900_000.0 if case == "no overlap" else 500_000.0,
    )  # fmt: skip
    if case == "missing":
        sar = folder / "nowhere.tif"
    elif case == "not a raster":
        sar.write_text("hello")
    elif case == "truncated":
        sar.write_bytes(sar.read_bytes()[: sar.stat().st_size // 2])
    elif case == "folder of both dates":
        sar = folder
    return optical, sar


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("missing", "nowhere.tif: "),
        ("not a raster", "sar.tif: "),
        ("truncated", "sar.tif: "),
        ("one CRS", "CRS"),
        ("no overlap", "overlap"),
        ("no valid pixel", "no pixel that is valid in both"),
        ("all NaN", "no pixel that is valid in both"),
        ("bands", "optical.tif: found 1 band, expected bands [1, 2, 3, 4]"),
        ("folder of both dates", "found optical.tif and sar.tif of the same grid"),
    ],
)
def test_a_bad_pair(
    case: str, message: str, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pair = _bad_pair(case, tmp_path)
    said = _error(capsys, "predict", *pair, "-o", tmp_path / "out", "--weights", checkpoint)
    assert message in said
    assert not (tmp_path / "out").exists()


def _bad_tiles(case: str, root: Path) -> None:
    """A data set that is wrong in one way."""
    label = np.zeros((1, 64, 64), np.uint8)
    label[0, :9] = 1
    if case == "values":
        label[0, 20:30] = 2
    elif case == "mixture":
        label[0, 20:30] = 255
    elif case == "size":
        label = label[:, :40]
    for folder, image in (("A", OPTICAL), ("B", SAR), ("label", label)):
        grid = Grid(None, None, *image.shape[1:])
        if case != "empty":
            write_raster(root / "test" / folder / "x.tif", image, grid)
        else:
            (root / "test" / folder).mkdir(parents=True)


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("values", "found label values {0, 1, 2}"),
        ("mixture", "found label values {0, 1, 255}"),
        ("size", "label/x.tif: found 40 x 64 pixels, expected"),
        ("empty", "found no"),
    ],
)
def test_bad_tiles(
    case: str, message: str, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _bad_tiles(case, tmp_path)
    assert message in _error(capsys, "evaluate", checkpoint, "--data", tmp_path, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("epochz: 3", "unknown key 'epochz'; did you mean 'epochs'?"),
        ("epochs: many", "epochs: found 'many', expected a whole number"),
        ("epochs: 0", "epochs: found 0, expected 1 to 100000"),
        ("encoder: resnet", "encoder: found 'resnet', expected mit_b0,"),
        ("- a\n- b", "found list, expected lines of `key: value`"),
        ("a: [", "not YAML"),
        (None, "cannot read this recipe"),
    ],
)
def test_a_bad_recipe(
    content: str | None, message: str, tiles: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tmp_path / "mine.yaml"
    if content is not None:
        recipe.write_text(content)
    assert message in _error(capsys, "train", recipe, "--data", tiles, "-o", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_every_recipe_key_has_a_nearest_one() -> None:
    assert {"encoder", "lr", "encoder_weights"} <= set(recipe_keys())
    assert "optical_channels" not in recipe_keys()


def test_bad_checkpoints_and_places(
    checkpoint: Path, scene: Path, tiles: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pair = (scene / "optical.tif", scene / "sar.tif")
    foreign = tmp_path / "foreign.safetensors"
    foreign.write_bytes(b"nothing of the kind")
    said = _error(capsys, "predict", *pair, "-o", tmp_path / "out", "--weights", foreign)
    assert "not a .safetensors file" in said
    (tmp_path / "file").touch()
    for out in (tmp_path / "file", tmp_path / "file" / "out"):
        said = _error(capsys, "predict", *pair, "-o", out, "--weights", checkpoint)
        assert f"{tmp_path / 'file'}: found no folder that may be written to" in said
    (tmp_path / "map" / "change.tif").mkdir(parents=True)
    said = _error(capsys, "predict", *pair, "-o", tmp_path / "map", "--weights", checkpoint)
    assert "change.tif: found a folder in place of a result" in said
    said = _error(capsys, "evaluate", checkpoint, "--data", tiles, "--split", "nonsense")
    assert "nonsense" in said
    for device in ("cuda:99", "toaster"):
        said = _error(capsys, "evaluate", checkpoint, "--data", tiles, "--device", device)
        assert f"device: '{device}' cannot be used" in said
    said = _error(capsys, "train", RECIPES[0], "--data", tiles, "-o", tmp_path / "run", "--accelerator", "tpu")
    assert "hardware: " in said


def test_a_pair_without_crs_is_mapped_without_an_area(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pair = [_raster(tmp_path / "o.tif", OPTICAL, crs=None), _raster(tmp_path / "s.tif", SAR, crs=None)]
    words = ["predict", *map(str, pair), "-o", str(tmp_path / "out"), "--weights", str(checkpoint)]
    assert cli.main(words) == 0
    said = capsys.readouterr().out
    assert "valid pixels changed" in said
    assert "ha" not in said.split("written")[0].replace("changed", "")


@pytest.mark.parametrize(("registers", "precision", "told"), [(True, "auto", 1), (True, "f32", 0), (False, "auto", 0)])
def test_predict_tells_what_a_processor_with_matrix_registers_could_save(
    registers: bool,
    precision: str,
    told: int,
    scene: Path,
    checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr("hetecd.ops.MATRIX_REGISTERS", registers)
    words = ["-o", str(tmp_path / "map"), "--weights", str(checkpoint), "--device", "cpu", "--precision", precision]
    assert cli.main(["predict", str(scene / "optical.tif"), str(scene / "sar.tif"), *words]) == 0
    assert sum("half the time" in line for line in caplog.messages) == told


def test_a_finished_scene_is_known_before_anything_is_read(
    checkpoint: Path,
    scene: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    def run(*more: str) -> None:
        opened.clear()
        assert cli.main([*words, *more]) == 0

    def seen(*args: object) -> Network:
        opened.append(args)
        return open_network(*args)  # type: ignore[arg-type]

    opened: list[tuple[object, ...]] = []
    monkeypatch.setattr(scene_verbs, "open_network", seen)
    pair = [shutil.copy(scene / f"{name}.tif", tmp_path) for name in ("optical", "sar")]
    out = tmp_path / "out"
    words = ["predict", *map(str, pair), "-o", str(out), "--weights", str(checkpoint), "--align", "off"]
    run()
    first = capsys.readouterr().out
    for path in (out / "change.tif", tmp_path / "optical.tif"):
        assert path.is_file()
    run("--report")
    assert (not opened, (out / "report.html").is_file()) == (True, True)
    assert caplog.messages[-1] == f"{out}: finished already; --redo does it again"
    assert capsys.readouterr().out.startswith(first)
    run("--batch", "3")
    assert not opened
    for more in (["--threshold", "0.9"], ["--format", "fgb"], ["--redo"]):  # each is asked for something else
        run(*more)
        assert opened
        assert f"{out}: holds a map already, which this one replaces" in caplog.messages
        caplog.clear()
    os.utime(tmp_path / "sar.tif")  # which may be another image now
    run()
    assert opened
    (out / "item.json").unlink()
    run()
    assert opened
    run()
    assert not opened


def test_the_weights_that_come_along_are_the_default(
    tiles: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    info = hetecd.load(DEFAULT_WEIGHTS).info
    assert info is not None
    assert (info.optical.bands, info.sar.bands) == ((1, 2, 3), (1,))
    assert cli.main(["evaluate", "--data", str(tiles), "--out", str(tmp_path)]) == 0
    assert (tmp_path / "metrics.json").exists()
    assert "weights: none named, so those that come with hetecd" in caplog.text
    assert "default.safetensors: computed by torch (cpu, f32)" in caplog.text


@pytest.mark.parametrize(
    ("flags", "windows"),
    [
        ([], (1536, 512)), (["--tile", "512"], (512, 192)), (["--weights", "mit"], (512, 128)),
    ],
)  # fmt: skip
def test_windows_suit_the_weights(
    flags: list[str], windows: tuple[int, int], checkpoint: Path, scene: Path, tmp_path: Path
) -> None:
    """And what is asked for."""
    words = ["--optical-bands", "3", "4", "2", *flags]
    if "mit" in flags:
        words = ["--weights", str(checkpoint)]
    pair = [str(scene / "optical.tif"), str(scene / "sar.tif")]
    assert cli.main(["predict", *pair, "-o", str(tmp_path), *words]) == 0
    settings = json.loads((tmp_path / "summary.json").read_text())["settings"]
    assert (settings["tile_px"], settings["overlap_px"]) == windows


def test_tta_changes_a_few_decisions(decided: Path, tiles: Path, tmp_path: Path) -> None:
    changed = []
    for flags in ([], ["--tta"]):
        assert cli.main(["evaluate", str(decided), "--data", str(tiles), "--out", str(tmp_path), *flags]) == 0
        counts = json.loads((tmp_path / "metrics.json").read_text())
        changed.append(counts["tp"] + counts["fp"])
    assert 0 < abs(changed[0] - changed[1]) < 0.2 * counts["pixels"]


def test_numbers_out_of_range(
    checkpoint: Path, tiles: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert "batch: found 0" in _error(capsys, "evaluate", checkpoint, "--data", tiles, "--batch", 0)
    assert "expected at least 32 x 32" in _error(capsys, "synth", "scene", "-o", out, "--size", 0)
    assert "scenes: found 0" in _error(capsys, "synth", "tiles", "-o", out, "--scenes", 0)
    assert "seed: found -3" in _error(capsys, "synth", "tiles", "-o", out, "--seed", -3)
    assert not out.exists()
    assert "is the input" in _error(capsys, "convert", checkpoint, "-o", checkpoint)
    assert "ends in .safetensors" in _error(capsys, "convert", checkpoint, "-o", tmp_path / "x.pth")
    fitted = ["calibrate", checkpoint, "-o", tmp_path / "x.xml", "--split", "test"]
    assert "ends in .safetensors" in _error(capsys, *fitted, "--data", tiles)
    assert "ends in .safetensors" in _error(capsys, *fitted, "--like", checkpoint)
    assert "'meta' cannot be used" in _error(capsys, "evaluate", checkpoint, "--data", tiles, "--device", "meta")
    state = checkpoint.with_name("state.safetensors")
    assert "take the best.safetensors" in _error(capsys, "evaluate", state, "--data", tiles)
    assert not out.exists()


def test_a_training_that_cannot_start_leaves_no_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _bad_tiles("values", tmp_path)
    (tmp_path / "test").rename(tmp_path / "train")
    _error(capsys, "train", RECIPES[0], "--data", tmp_path, "-o", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_an_image_unlike_those_of_training_is_called_out(
    scene: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The weights that come along want 8-bit images of 10 m; these are reflectance and linear power, of 3 m."""
    words = ["predict", str(scene / "optical.tif"), str(scene / "sar.tif"), "-o", str(tmp_path / "map")]
    for scaling, says in (("weights", "100 % of the values lie outside those of training"), ("auto", "of this scene")):
        caplog.clear()
        assert cli.main([*words, "--scaling", scaling, "--redo"]) == 0
        assert f"sar: {says}" in caplog.text.replace("scaled by the range ", "")
        assert caplog.text.count("sar: ") == 1
        assert "grid: pixels of 3 x 3 m, the weights were trained on 10 m" in caplog.text


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    words = ["train", str(tmp_path / "x.yaml"), "--data", "d", "-o", str(tmp_path / "r")]
    for spelled in (["--debug", *words], [*words, "--debug"]):
        with pytest.raises(ConfigError):
            cli.main(spelled)


def test_ctrl_c_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(_args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setitem(cli.VERBS, "synth", (interrupted, network_verbs.synth_arguments))
    assert cli.main(["synth", "scene", "-o", "x"]) == 130
    assert "interrupted" in capsys.readouterr().err


def test_a_full_disk_inside_a_library(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def full(_args: object) -> None:
        raise OSError(28, "No space left on device", "events.out")

    monkeypatch.setitem(cli.VERBS, "synth", (full, network_verbs.synth_arguments))
    assert "events.out: No space left on device" in _error(capsys, "synth", "scene", "-o", "x")
