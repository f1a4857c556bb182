"""The rows of the accuracy tables (rows.yaml): what each is, and how it is trained."""

import csv
import dataclasses
import difflib
import importlib.util
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import yaml
from boosting import Options, train_boosting
from scoring import Trained, multiply_adds, parameters

from hetecd.config import ModelConfig, TrainConfig, checked, configs, read_recipe, recipe_keys
from hetecd.errors import CheckpointError, ConfigError
from hetecd.train import LOG, STATE, fit
from hetecd.weights import load, predictor

HERE = Path(__file__).resolve().parent
ROWS, RECIPES = HERE / "rows.yaml", HERE.parent / "recipes"
Kind = Literal["hetecd", "boosting", "torchgeo"]
PACKAGES: dict[Kind, str] = {"boosting": "sklearn", "torchgeo": "torchgeo"}


@dataclass(frozen=True)
class Row:
    """One row.

    Attributes:
        name: in the tables.
        recipe: file in recipes/.
        kind: what is trained.
        network: class of torchgeo.models, for that kind.
        settings: recipe keys that differ from the recipe.
        options: fields of boosting.Options, for that kind.
    """

    name: str
    recipe: str
    kind: Kind = "hetecd"
    network: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise ConfigError(f"row {self.name}: found kind {self.kind!r}, expected one of {', '.join(get_args(Kind))}")
        if unknown := sorted(set(self.settings) - set(recipe_keys())):
            raise ConfigError(f"row {self.name}: unknown recipe keys {', '.join(unknown)} in its settings")
        known = [f.name for f in dataclasses.fields(Options)] if self.kind == "boosting" else []
        for name in self.options:
            if name not in known:
                near = difflib.get_close_matches(str(name), known, n=1, cutoff=0.0)
                hint = f"did you mean '{near[0]}'?" if near else f"kind {self.kind} has none"
                raise ConfigError(f"row {self.name}: unknown option '{name}'; {hint}")

    @property
    def missing(self) -> str:
        """The package that this row needs and that is not installed here; "" if it can be trained."""
        package = PACKAGES.get(self.kind, "")
        return package if package and importlib.util.find_spec(package) is None else ""


def read_rows(names: list[str] | None = None, path: Path = ROWS) -> list[Row]:
    """The rows of these names, in the order asked for; all of the file without any.

    Raises:
        ConfigError: the file is unreadable, a row has an unknown key or a name does not exist.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        rows = {name: Row(name, **values) for name, values in content.items()}
    except (OSError, yaml.YAMLError, AttributeError, TypeError) as error:
        raise ConfigError(f"{path}: cannot use these rows ({' '.join(str(error).split())})") from error
    if unknown := [name for name in names or () if name not in rows]:
        raise ConfigError(f"rows: found no {', '.join(unknown)} in {path.name}, expected some of {', '.join(rows)}")
    return [rows[name] for name in names or rows]


def row_configs(row: Row, seed: int, overrides: Mapping[str, Any]) -> tuple[ModelConfig, TrainConfig]:
    """Settings of a row: its recipe, then its own, then ``overrides``.

    Raises:
        ConfigError: a value has the wrong type or is out of range.
    """
    values = {**read_recipe(RECIPES / row.recipe), **row.settings, **overrides, "seed": seed}
    return configs(checked(values, f"row {row.name}"))


def train(row: Row, data: Path, seed: int, overrides: Mapping[str, Any], out: Path) -> Trained:
    """Train a row, or go on where a training of it in ``out`` was interrupted.

    Args:
        row: which one.
        data: folder with a split "train".
        seed: of everything random.
        overrides: recipe keys that the protocol or the command line decides.
        out: folder for checkpoints.

    Raises:
        ConfigError: the row needs a package that is not installed here, or asks for what its kind cannot do.
        CheckpointError: the interrupted training had other settings or tiles.
        HetecdError: whatever training raises.
    """
    if row.missing:
        hint = "make bench-accuracy-torchgeo" if row.kind == "torchgeo" else f"pip install {row.missing}"
        raise ConfigError(f"row {row.name}: needs {row.missing}, which is not installed here; see `{hint}`")
    model_config, config = row_configs(row, seed, overrides)
    if row.kind != "hetecd" and (model_config.modalities != "both" or config.encoder_weights or config.start_from):
        raise ConfigError(
            f"row {row.name}: kind {row.kind} knows neither modalities nor weights to start from; leave them out"
        )
    if row.kind == "boosting":
        return train_boosting(data, config, Options(**row.options))
    if row.kind == "torchgeo":
        from siamese import train_siamese

        return train_siamese(row.network, data, config, out)
    resume = (out / STATE).is_file()
    if not resume:  # nothing, or an interruption before the first epoch was written in full
        shutil.rmtree(out, ignore_errors=True)
    try:
        best = fit(data, out, model_config, config, resume)
    except CheckpointError as error:
        if not resume:
            raise
        raise CheckpointError(f"{error}; or remove {out}") from error
    with (out / LOG).open(newline="", encoding="utf-8") as file:
        seconds = sum(float(line["seconds"]) for line in csv.DictReader(file))
    return dataclasses.replace(from_checkpoint(best), minutes=seconds / 60, epochs=config.epochs)


def from_checkpoint(path: Path | str) -> Trained:
    """A finished checkpoint, as a row.

    Raises:
        CheckpointError: it cannot be used.
    """
    net = load(path)
    info = net.info
    assert info is not None  # load sets it
    return Trained(
        predictor(net), info.optical, info.sar, info.before_is, info.threshold,
        bool(info.recipe.get("ignore_255", False)), parameters(net),
        multiply_adds(net, info.optical.channels, info.sar.channels),
        epochs=int(info.recipe["epochs"]) if "epochs" in info.recipe else None,
    )  # fmt: skip
