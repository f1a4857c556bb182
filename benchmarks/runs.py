"""Train and score every (protocol, row, seed, fold) once; each that is finished is a JSON file that nothing repeats."""

import dataclasses
import hashlib
import json
import logging
import platform
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from protocols import PROTOCOLS, Fold, Sizes
from rows import Row, from_checkpoint, row_configs, train
from scoring import SHIFT, SHIFTS_PX, Counts, ScoredSet, Trained, score

import hetecd
from hetecd.config import ModelConfig, TrainConfig, deciding
from hetecd.data import find_tiles
from hetecd.errors import ConfigError, HetecdError, InputError
from hetecd.files import replacing
from hetecd.modality import mirrored

log = logging.getLogger("hetecd")


def _code() -> str:
    folders = Path(hetecd.__file__).parent, Path(__file__).parent
    source = b"".join(path.read_bytes() for folder in folders for path in sorted(folder.glob("*.py")))
    return hashlib.sha256(source).hexdigest()[:12]


CODE = _code()  # of what runs, whatever is edited meanwhile


@dataclass(frozen=True)
class Result:
    """One finished training and its scores.

    Attributes:
        protocol: a key of PROTOCOLS, or "checkpoint".
        row: name of the row.
        seed: of the training.
        fold: of the protocol.
        settings: everything that was set, to notice where it differs.
        sets: counts per test set.
        parameters: see :class:`scoring.Trained`, as the next three.
        multiply_adds: of 256 x 256 px.
        minutes: of training; None where they are not known.
        epochs: of training.
        device: what it was trained on; None where that is not known.
        code: hash of the source of package and bench, which tells results of different versions apart.
    """

    protocol: str
    row: str
    seed: int
    fold: str
    settings: dict[str, Any]
    sets: dict[str, Counts]
    parameters: int | None
    multiply_adds: int | None
    minutes: float | None
    epochs: int | None
    device: str | None
    code: str


def run(
    protocol: str, rows: Sequence[Row], seeds: Sequence[int], out: Path, data: Path | None = None,
    sizes: Sizes | None = None, epochs: int | None = None,
) -> list[str]:  # fmt: skip
    """Train and score what is not finished yet; seed after seed, so that early tables have every row.

    Args:
        protocol: a key of PROTOCOLS.
        rows: to train.
        seeds: to train each with.
        out: folder of results, trainings and cut data.
        data: what the protocol needs.
        sizes: of folds and synthetic sets.
        epochs: instead of those of the recipes.

    Returns:
        One line for every row that failed; the others were finished all the same.

    Raises:
        HetecdError: the protocol cannot use the data.
    """
    sizes = sizes or Sizes()
    folds = PROTOCOLS[protocol](data, out / "data", sizes)
    identities = {fold.name: _identity(data, sizes, fold) for fold in folds}
    problems: list[str] = []
    failed: set[str] = set()
    for seed in seeds:
        for row in rows:
            for fold in folds:
                if row.name in failed:
                    continue
                try:
                    _finish(protocol, row, seed, fold, out, epochs, identities[fold.name])
                except Exception as error:  # whatever it is, the other rows need not suffer from it
                    known = isinstance(error, HetecdError)
                    says = str(error) if known else f"row {row.name}: {type(error).__name__}: {error}"
                    failed.add(row.name)
                    problems.append(" ".join(says.split()))
                    log.error(problems[-1])
    return problems


def _identity(data: Path | None, sizes: Sizes, fold: Fold) -> dict[str, Any]:
    """What the fold is made of, without any path of this machine: for tiles of the user also their names and sizes."""
    identity: dict[str, Any] = {"data": "", "sizes": dataclasses.asdict(sizes)}
    if data is None:
        return identity
    splits = ["train", *(["val"] if (fold.data / "val").is_dir() else []), *(test.split for test in fold.tests)]
    tiles = [(split, tile) for split in splits for tile in find_tiles(fold.data, split)]
    files = [(split, path) for split, tile in tiles for path in (tile.before, tile.after, tile.label) if path]
    lines = [f"{split} {path.parent.name} {path.name} {path.stat().st_size}" for split, path in files]
    digest = hashlib.sha256("\n".join(lines).encode()).hexdigest()[:12]
    return identity | {"data": data.resolve().name, "tiles": digest}


def _before(result: Result, settings: dict[str, Any]) -> dict[str, Any]:
    """Settings of an earlier result; keys that did not exist then had what is their default now.

    Nor was it written down then which tiles there were; they pass for those of now.
    """
    defaults = json.loads(json.dumps(dataclasses.asdict(ModelConfig()) | dataclasses.asdict(TrainConfig())))
    tiles = {"tiles": settings["tiles"]} if "tiles" in settings else {}
    return deciding(defaults | tiles | result.settings)


def _finish(
    protocol: str, row: Row, seed: int, fold: Fold, out: Path, epochs: int | None, identity: dict[str, Any]
) -> None:
    """One training and its scores, unless it is there.

    Raises:
        ConfigError: it is there, but with other settings.
    """
    overrides = {**fold.settings, **({} if epochs is None else {"epochs": epochs})}
    model, config = row_configs(row, seed, overrides)
    settings = json.loads(
        json.dumps(
            identity
            | {"kind": row.kind, "network": row.network, "options": dict(row.options)}
            | dataclasses.asdict(model)
            | deciding(dataclasses.asdict(config))
        )
    )
    name = f"{protocol}/{row.name}/seed{seed}-{fold.name}"
    path, work = out / "results" / f"{name}.json", out / "trainings" / name
    if path.is_file():
        before = _before(read_result(path), settings)
        if before != settings:
            other = [key for key in sorted(before.keys() | settings) if before.get(key) != settings.get(key)]
            raise ConfigError(
                f"{path}: found a result with other settings ({', '.join(other)}); choose another --out, give the row "
                "another name, or remove that file"
            )
        return
    log.info(f"{protocol}: {row.name}, seed {seed}, {fold.name}")
    trained = train(row, fold.data, seed, overrides, work)
    sets = {test.name: score(trained, test) for test in fold.tests}
    save(Result(protocol, row.name, seed, fold.name, settings, sets, **_costs(trained)), path)
    for state in ("state.safetensors", "state.pt", "last.safetensors"):  # of use only for going on
        (work / state).unlink(missing_ok=True)


def score_checkpoint(
    weights: Path, data: Path, split: str, out: Path, name: str = "", shifts: bool = False, tta: bool = False
) -> Result:
    """Score a finished checkpoint on a folder of tiles, without training.

    Args:
        weights: a .safetensors file.
        data: folder of tiles.
        split: part of it.
        out: folder of results.
        name: of the row; by default that of the file, and "+tta" where ``tta``.
        shifts: also the shift curve.
        tta: score the mean with a mirror image, see :func:`hetecd.modality.mirrored`.

    Raises:
        ConfigError: a row of this name holds results of another checkpoint.
        HetecdError: checkpoint or tiles cannot be used.
    """
    trained = from_checkpoint(weights)
    settings = {"weights": weights.name, "sha256": hashlib.sha256(weights.read_bytes()).hexdigest(), "tta": tta}
    settings["data"] = str(data.resolve())
    row = name or weights.stem + ("+tta" if tta else "")
    folder = out / "results" / "checkpoint" / row
    title = f"{data.resolve().name} {split}".strip()
    fold = title.replace(" ", "-")
    for path in sorted(folder.glob("*.json")):
        before = {"tta": False, "data": settings["data"]} | read_result(path).settings
        same = ("sha256", "tta", "data") if path.stem == f"seed0-{fold}" else ("sha256", "tta")
        if other := [key for key in same if before.get(key) != settings[key]]:
            raise ConfigError(f"{path}: found a result of another {', '.join(other)}; choose another name with --name")
        if shifts and path.stem != f"seed0-{fold}" and any(name.startswith(SHIFT) for name in read_result(path).sets):
            raise ConfigError(f"{path}: found a shift curve over other tiles; choose another name with --name")
    if tta:
        adds = None if trained.multiply_adds is None else 2 * trained.multiply_adds
        trained = dataclasses.replace(trained, predictor=mirrored(trained.predictor), multiply_adds=adds)
    tests = [ScoredSet(title, data, split)]
    tests += [ScoredSet(f"{SHIFT}{px}", data, split, px) for px in SHIFTS_PX if shifts]
    sets = {test.name: score(trained, test) for test in tests}
    result = Result("checkpoint", row, 0, fold, settings, sets, **_costs(trained))
    save(result, folder / f"seed0-{fold}.json")
    return result


def _costs(trained: Trained) -> dict[str, Any]:
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{platform.machine()} CPU"
    return {
        "parameters": trained.parameters,
        "multiply_adds": trained.multiply_adds,
        "minutes": None if trained.minutes is None else round(trained.minutes, 2),
        "epochs": trained.epochs,
        "device": None if trained.minutes is None else device,
        "code": CODE,
    }


def save(result: Result, path: Path) -> None:
    """Write a result, whole or not at all.

    Raises:
        OutputError: it cannot be written.
    """
    with replacing(path) as part:
        part.write_text(json.dumps(dataclasses.asdict(result), indent=1) + "\n", encoding="utf-8")


def read_result(path: Path) -> Result:
    """Read what :func:`save` wrote.

    Raises:
        InputError: the file is something else.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        sets = {name: Counts.from_dict(counts) for name, counts in values["sets"].items()}
        return Result(**{**values, "sets": sets})
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: not a result of this program ({error}); remove it") from error


def results(out: Path) -> Iterator[Result]:
    """All finished ones, sorted by file name."""
    for path in sorted((out / "results").glob("*/*/*.json")):
        yield read_result(path)
