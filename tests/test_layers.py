"""The shape of the package: who may import whom, and how large things may grow."""

import ast
import re
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "hetecd"

# A module imports only from rows above its own.
ROWS = [
    {"__init__"},
    {"errors", "usage"},
    {"config", "files", "modality", "flow", "progress", "memory", "vrt"},
    {"tiles", "metrics", "folders", "styles", "products"},
    {"info", "raster", "surroundings"},
    {"place", "ground", "outline", "synth_world", "ops", "cog"},
    {"image", "grids", "encoder", "difference", "vector", "work"},
    {"pair", "preview", "residual", "stac", "orientation", "sources"},
    {"align", "results", "stream", "batch", "scaling", "map_tiles", "jobs", "synth_render", "model", "runtime"},
    {"predict", "doubts", "wording", "survey", "synth", "losses", "weights", "graph"},
    {"convert", "average", "augment", "data", "resume", "report", "inspection"},
    {"figures", "gallery"},
    {"evaluate", "distances", "export", "serve"},
    {"calibrate"},
    {"train"},
    {"runs"},
    {"run_report"},
    {"flags"},
    {"scene_verbs", "network_verbs"},
    {"cli"},
    {"__main__"},
]
OWNERS = {
    "torch": {"ops", "encoder", "residual", "difference", "losses", "model", "weights", "convert", "augment", "data",
              "resume", "calibrate", "average", "train", "distances", "graph", "export"},
    "openvino": {"export", "runtime"},
    "onnxruntime": {"runtime"},
    "onnx": {"export"},
    "nncf": {"export"},
    "lightning": {"resume", "train"},
    "rasterio": {"products", "raster", "cog", "place", "image", "grids", "pair", "align", "ground", "preview", "vector",
                 "survey", "synth", "map_tiles", "gallery"},
    "affine": {"vrt", "raster", "place", "image", "grids", "pair", "vector", "synth"},
    "pyogrio": {"grids", "vector", "survey"},
    "shapely": {"grids", "ground", "outline", "vector", "survey"},
    "safetensors": {"weights"},
    "matplotlib": {"figures"},
    "scipy": {"synth_world", "synth_render", "synth", "distances", "outline", "orientation", "align"},
    "yaml": {"config"},
    "jsonargparse": {"config", "flags", "scene_verbs", "network_verbs", "cli"},
    "tqdm": {"progress", "predict", "evaluate", "runs"},
    "rio_tiler": {"map_tiles"},
    "fastapi": {"serve"},
    "starlette": {"serve"},
    "uvicorn": {"serve"},
    "numpy": None,
}  # fmt: skip
MODULES = sorted(path.stem for path in PACKAGE.glob("*.py"))


def _imports(module: str) -> set[str]:
    """Dotted names of everything a module imports, inside functions too."""
    found = set()
    for node in ast.walk(ast.parse((PACKAGE / f"{module}.py").read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            if node.module == "hetecd":
                found |= {f"hetecd.{alias.name}" for alias in node.names}
    return found


def test_every_module_has_a_row() -> None:
    assert sorted(module for row in ROWS for module in row) == MODULES


@pytest.mark.parametrize("module", [m for m in MODULES if m != "__init__"])
def test_imports_point_upwards(module: str) -> None:
    row = next(i for i, names in enumerate(ROWS) if module in names)
    above = set().union(*ROWS[:row])
    own = {name.split(".")[1] for name in _imports(module) if name.startswith("hetecd.")}
    assert own <= above, f"{module} imports {sorted(own - above)} from its own row or below"


@pytest.mark.parametrize("module", MODULES)
def test_third_parties_have_owners(module: str) -> None:
    for name in {name.split(".")[0] for name in _imports(module)} - set(sys.stdlib_module_names) - {"hetecd"}:
        assert name in OWNERS, f"{module} imports {name}, which nobody owns"
        owners = OWNERS[name]
        assert owners is None or module in owners, f"{module} imports {name}, which belongs to {sorted(owners)}"


def test_nothing_grows_too_long() -> None:
    for path in [
        *PACKAGE.glob("*.py"),
        *PACKAGE.parent.glob("tests/*.py"),
        *PACKAGE.parent.glob("examples/*.py"),
        *PACKAGE.parent.glob("benchmarks/*.py"),
    ]:
        text = path.read_text()
        assert len(text.splitlines()) <= 500, path.name
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                length = (
                    (node.end_lineno or node.lineno)
                    - node.lineno
                    + 1
                    - len((ast.get_docstring(node) or "").split("\n"))
                )
                assert length <= 60, f"{path.name}: {node.name} has {length} lines"


def test_no_pickle_in_our_own_files() -> None:
    """Only the converter reads pickles, and only with weights_only."""
    for module in MODULES:
        text = (PACKAGE / f"{module}.py").read_text()
        assert not re.search(r"torch\.save\b", text), module
        if module != "convert":
            assert not re.search(r"torch\.load\b", text), module
    assert "weights_only=True" in (PACKAGE / "convert.py").read_text()
