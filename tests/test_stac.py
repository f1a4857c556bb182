"""The item against the STAC 1.1 schema, and pystac's reading of the extensions (their schemas are not at hand)."""

import hashlib
import json
from dataclasses import replace

import numpy as np
import pystac
import pytest
import rasterio
import shapely
from pystac.extensions.file import FileExtension
from pystac.extensions.mlm import AssetGeneralMLMExtension, MLMExtension
from pystac.extensions.projection import ProjectionExtension
from pystac.validation import validate_dict
from rasterio.crs import CRS
from rasterio.transform import Affine
from test_results import MERCATOR, pointwise, write_files

from hetecd.config import ModelConfig
from hetecd.info import ModelInfo
from hetecd.modality import Modality, uint8_modality
from hetecd.pair import open_pair
from hetecd.predict import predict_scene
from hetecd.raster import Grid
from hetecd.results import About, describe_weights
from hetecd.vector import PolygonSettings

OPTICAL = uint8_modality((1, 2))
SAR = Modality((1,), (-25.0,), (0.0,), db=True, unit="linear power")
MODEL = ModelInfo(ModelConfig(optical_channels=2, sar_channels=1), OPTICAL, SAR)


def made(folder, grid=MERCATOR, names=("optical.tif", "sar.tif"), about=None, settings=PolygonSettings()):  # noqa: B008
    folder.mkdir(exist_ok=True)
    files = [path.rename(folder / name) for path, name in zip(write_files(folder, grid), names, strict=True)]
    with open_pair(*files, "optical", OPTICAL, SAR) as pair:
        predict_scene(pair, pointwise, folder / "out", 0.6, 64, 16, about=about, polygons=settings)
    return pystac.Item.from_file(str(folder / "out" / "item.json"))


def check_core(item):
    """Against the schema of STAC itself, which pystac carries."""
    alone = item.to_dict(include_self_link=False)
    validate_dict(alone | {"stac_extensions": []}, stac_version="1.1.0")


@pytest.fixture
def weights(tmp_path):
    path = tmp_path / "net.safetensors"
    path.write_bytes(b"weights")
    return describe_weights(path, {"iou": 0.5})


def test_an_item_of_a_map(tmp_path, weights):
    item = made(tmp_path / "a", about=About(weights, model=MODEL))
    check_core(item)
    out = tmp_path / "a" / "out"
    summary = json.loads((out / "summary.json").read_text())
    assert item.bbox == summary["grid"]["bounds_wgs84"]
    footprint = shapely.geometry.shape(item.geometry)
    assert footprint.is_valid
    assert footprint.exterior.is_ccw
    np.testing.assert_allclose(footprint.bounds, item.bbox, atol=1e-9)
    assert set(item.assets) == {"change", "probability", "polygons", "summary", "before", "after", "model"}
    for name, asset in item.get_assets().items():
        content = (out / asset.href).read_bytes()  # relative to the item, or absolute
        if name != "summary":
            assert FileExtension.ext(asset).checksum == "1220" + hashlib.sha256(content).hexdigest()
    projection = ProjectionExtension.ext(item)
    assert (projection.epsg, projection.shape) == (3857, [130, 90])
    assert Affine(*projection.transform) == MERCATOR.transform
    assert item.properties["datetime"] == summary["created"].replace("+00:00", "Z")


def test_the_model_in_it(tmp_path, weights):
    item = made(tmp_path / "a", about=About(weights, tta=True, model=MODEL))
    model = MLMExtension.ext(item)
    assert (model.mlm_name, model.architecture, model.framework) == ("net.safetensors", "HeteCD", "PyTorch")
    assert model.tasks == ["semantic-segmentation"]
    optical, sar = model.input
    assert optical.input.shape == [-1, 2, 64, 64]
    scaling = [entry["value_scaling"] for entry in item.properties["mlm:input"]]  # pystac takes it for one object
    assert scaling[0] == [{"type": "min-max", "minimum": 0.0, "maximum": 255.0}] * 2
    assert sar.pre_processing_function.expression == "10 * log10(x)"
    assert scaling[1] == [{"type": "min-max", "minimum": -25.0, "maximum": 0.0}]
    (output,) = model.output
    assert [entry.value for entry in output.classes] == [0, 1]
    assert model.hyperparameters.to_dict()["tta"] is True


@pytest.mark.parametrize(
    ("name", "framework", "artifact"),
    [
        ("best", "PyTorch", "safetensors.torch.save_file"),
        ("NET.SAFETENSORS", "PyTorch", "safetensors.torch.save_file"),
        ("a.ONNX", "ONNX", "onnx.save_model"), ("b.xml", "OpenVINO", "openvino.save_model"),
    ],
)  # fmt: skip
def test_weights_may_have_any_name(tmp_path, weights, name, framework, artifact):
    item = made(tmp_path / "a", about=About(weights | {"name": name}, model=MODEL))
    assert MLMExtension.ext(item).framework == framework
    assert AssetGeneralMLMExtension.ext(item.assets["model"]).artifact_type == artifact


def test_without_weights_there_is_no_model(tmp_path):
    item = made(tmp_path / "a", settings=PolygonSettings("geojson"))
    check_core(item)
    assert not MLMExtension.has_extension(item)
    assert "model" not in item.assets
    assert item.assets["polygons"].media_type == "application/geo+json"


def test_the_time_is_that_of_the_images_if_they_tell(tmp_path):
    names = ("S2B_MSIL2A_20230714T103629_N0509.tif", "S1A_IW_GRDH_1SDV_20230716T053531_20230716T053556.tif")
    item = made(tmp_path / "a", names=names)
    check_core(item)
    assert item.properties["datetime"] == "2023-07-16T05:35:31Z"
    assert item.properties["start_datetime"] == "2023-07-14T10:36:29Z"
    assert item.properties["end_datetime"] == "2023-07-16T05:35:31Z"
    # Then all but the summary depends on nothing but the inputs.
    first = (tmp_path / "a" / "out" / "item.json").read_bytes()
    made(tmp_path / "a", names=names)
    assert (tmp_path / "a" / "out" / "item.json").read_bytes() == first
    made(tmp_path / "c", names=names)  # the same files elsewhere
    assert json.loads((tmp_path / "c" / "out" / "item.json").read_text())["id"] == json.loads(first)["id"]
    day = made(tmp_path / "d", names=("a_2023-07-14.tif", names[1])).properties
    assert (day["start_datetime"], day["datetime"]) == ("2023-07-14T00:00:00Z", "2023-07-16T05:35:31Z")
    day = made(tmp_path / "e", names=(names[0], "b 2023_07_16.tif")).properties
    assert (day["datetime"], day["end_datetime"]) == ("2023-07-16T00:00:00Z", "2023-07-16T23:59:59Z")
    no_date = ("a_20231399T103629.tif", "b_20230714T103629.tif")
    assert "start_datetime" not in made(tmp_path / "b", names=no_date).properties


def test_maps_of_other_values_have_another_name(tmp_path):
    """The same files, weights and settings, but the values scaled otherwise; and the GeoTIFF tells which."""
    ids, told = set(), set()
    for number, high in enumerate((255.0, 100.0)):
        model = replace(MODEL, sar=replace(MODEL.sar, high=(high,)))
        ids.add(made(tmp_path / str(number), about=About(model=model)).id)
        with rasterio.open(tmp_path / str(number) / "out" / "change.tif") as dataset:
            told.add(json.loads(dataset.tags()["scaling"])["sar"]["high"][0])
    assert len(ids) == 2
    assert told == {255.0, 100.0}


def test_across_the_antimeridian(tmp_path):
    grid = Grid(CRS.from_epsg(32760), Affine(400, 0, 800_000, 0, -400, 8_000_000), 70, 120)
    item = made(tmp_path / "a", grid)
    check_core(item)
    west, _, east, _ = item.bbox
    assert west > 0 > east
    parts = shapely.geometry.shape(item.geometry).geoms
    assert len(parts) == 2
    assert all(part.is_valid and part.bounds[2] - part.bounds[0] < 2 for part in parts)


@pytest.mark.parametrize("crs", [None, CRS.from_wkt('LOCAL_CS["site",UNIT["metre",1]]')], ids=["none", "local"])
def test_nowhere_on_earth(tmp_path, crs):
    item = made(tmp_path / "a", Grid(crs, Affine(2, 0, 1, 0, -2, 5), 70, 80))
    check_core(item)
    assert item.geometry is None
    assert item.bbox is None
    assert item.properties["proj:code"] is None
    assert ("proj:wkt2" in item.properties) == (crs is not None)
