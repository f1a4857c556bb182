"""What the README tells a newcomer to type works, in the order in which it tells it."""

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from plain import PlainHeteCD

from hetecd import cli
from hetecd.convert import _TIMM
from hetecd.encoder import ENCODERS, Encoder
from hetecd.synth import write_pair, write_tiles

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
# `make demo` is its own proof; the others run this very test.
MAKE = {"install", "demo", "test", "check", "test-slow"}
# What makes a command of hours one of seconds; nothing else about it is changed.
SHORT = {
    "train": ["--epochs", "1", "--width", "8", "--batch", "8"],
    "synth": ["--scenes", "1", "--size", "128"],
}


def _blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def _commands() -> list[str]:
    text = "\n".join(_blocks("bash")).replace("\\\n", " ")
    return [line.split("  #")[0].strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder like that of a reader: the recipes, a pair of rasters, a folder of tiles, what the demo leaves."""
    folder = tmp_path_factory.mktemp("desk")
    shutil.copytree(ROOT / "recipes", folder / "recipes")
    write_pair(folder / "demo" / "scene", 2001, 128, 128)
    for name, file in (("before", "optical"), ("after", "sar")):
        shutil.copy(folder / "demo" / "scene" / f"{file}.tif", folder / f"{name}.tif")
    for name, file in (("sar_before", "sar"), ("optical_after", "optical")):
        shutil.copy(folder / "demo" / "scene" / f"{file}.tif", folder / f"{name}.tif")
    write_tiles(folder / "demo" / "tiles", "test", (10,), tile_px=64, scene_px=128)
    write_tiles(folder / "data", "train", range(2), tile_px=64, scene_px=128)
    write_tiles(folder / "data", "test", (9,), tile_px=64, scene_px=128)
    torch.save(PlainHeteCD(8).state_dict(), folder / "published.pth")
    encoder = Encoder(ENCODERS["pvt_v2_b0"], 3).state_dict()
    torch.save({_TIMM.names(key)[0]: value for key, value in encoder.items()}, folder / "pvt_v2_b0.pth")
    words = ["train", "recipes/quick.yaml", "--data", "data", "--out", "demo/run_both", "--sar-db", "true"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert cli.main([*words, *SHORT["train"]]) == 0
    return folder


def test_every_command_runs(desk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(desk)
    commands = _commands()
    verbs = set()
    for command in commands:
        words = shlex.split(command)
        if words[0] in ("git", "cd", "source"):
            continue
        if words[0] == "make":
            assert set(words[1:]) <= MAKE, command
            assert all(re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE) for target in words[1:])
            continue
        assert words[0] == "hetecd", command
        verbs.add(words[1])
        if words[1] == "serve":  # until Ctrl-C: tests/test_serve.py
            continue
        assert cli.main([*words[1:], *SHORT.get(words[1], [])]) == 0, command
    assert verbs == set(cli.VERBS)


def test_the_python_example_runs_and_prints_what_it_says(desk: Path) -> None:
    (code,) = _blocks("python")
    done = subprocess.run([sys.executable, "-c", code], cwd=desk, capture_output=True, text=True, check=True)
    (said,) = _blocks("text")[:1]
    shape = re.sub(r"[\d.]+", "N", said.strip())
    assert re.sub(r"[\d.]+", "N", done.stdout.strip()) == shape


def test_the_file_tree_is_complete() -> None:
    tree = README.split("## Files")[1]
    for path in (ROOT / "hetecd").glob("*.py"):
        assert path.name == "__init__.py" or re.search(rf"^  {path.name} +\w", tree, re.MULTILINE), path.name
    for path in ROOT.iterdir():
        if not path.name.startswith(".") and path.name in _tracked():
            assert re.search(rf"^{path.name}\b", tree, re.MULTILINE), path.name


def _tracked() -> set[str]:
    """Names at the top of the repository that git knows."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return {line.split("/")[0] for line in listed.splitlines()}


def test_links_and_pictures_exist() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        if not target.startswith("http"):
            assert (ROOT / target).exists(), target
