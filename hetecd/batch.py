"""Many scenes, one row of a CSV file each: what fails does not stop the rest, and a rerun does what is missing."""

import csv
import logging
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from hetecd.errors import HetecdError, InputError
from hetecd.files import replacing
from hetecd.raster import FOR_GDAL

log = logging.getLogger("hetecd")

REQUIRED = ("before", "after")
FILES = (*REQUIRED, "aoi", "weights")
STATUS = ("name", "status", "message", *REQUIRED)


def read_pairs(path: Path | str, settings: Iterable[str] = ()) -> dict[str, dict[str, str]]:
    """Rows of a CSV file with a header: columns ``before`` and ``after``, optional ``name`` and any of the settings.

    Args:
        path: the file. Relative names of files in it (columns ``FILES``) are relative to its folder.
        settings: columns that may be there; an empty cell says nothing.

    Returns:
        Settings of each scene, ``before`` and ``after`` among them, by its name; unless given that of the later file.

    Raises:
        InputError: unreadable, a column is missing or unknown, a cell is empty, a name is no name or comes twice.
    """
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, skipinitialspace=True, strict=True)
            # As flags, in either way of writing them.
            reader.fieldnames = columns = [name.replace("-", "_") for name in reader.fieldnames or ()]
            rows = list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: cannot be read as CSV ({error}); check the file") from error
    allowed = {*REQUIRED, "name", *settings}
    if missing := [name for name in REQUIRED if name not in columns]:
        raise InputError(f"{path}: found columns {columns}, expected {missing[0]!r} among them; add a header line")
    if unknown := [name for name in columns if name not in allowed]:
        raise InputError(
            f"{path}: found column {unknown[0]!r}, expected some of {sorted(allowed)}; rename or remove it"
        )
    if len({*columns}) < len(columns):
        raise InputError(f"{path}: found columns {columns}, expected each once; remove one")
    pairs: dict[str, dict[str, str]] = {}
    for number, row in enumerate(rows, 2):
        if None in row or None in row.values() or not all(row[name] for name in REQUIRED):
            raise InputError(f"{path}: found a wrong number of cells or an empty name in line {number}; mend it")
        pair = {key: value for key, value in row.items() if value}
        pair |= {key: _place(Path(path).parent, pair[key]) for key in FILES if key in pair}
        name = pair.pop("name", Path(pair["after"]).stem)
        if name in pairs or name != Path(name).name or name in (".", ".."):
            raise InputError(
                f"{path}: found {name!r} as name of line {number}, expected a folder name that comes once; "
                "add a column 'name'"
            )
        pairs[name] = pair
    if not pairs:
        raise InputError(f"{path}: found no pairs, expected at least one line after the header")
    return pairs


def run_pairs(
    pairs: Mapping[str, Mapping[str, str]], out_dir: Path | str, run: Callable[[Mapping[str, str]], object]
) -> list[str]:
    """Do every scene in a folder of its own and keep ``status.csv`` up to date: waiting, running, done or failed.

    Args:
        pairs: from :func:`read_pairs`.
        out_dir: where the folders are.
        run: does one scene: takes its settings and ``out``, its folder. What is finished there it should leave alone.

    Returns:
        Names of the scenes that failed.

    Raises:
        OutputError: the status cannot be written.
    """
    out_dir = Path(out_dir)
    states = dict.fromkeys(pairs, ("waiting", ""))
    for number, (name, pair) in enumerate(pairs.items(), 1):
        states[name] = ("running", "")
        _write_status(out_dir, pairs, states)
        log.info("%s: scene %d of %d", name, number, len(pairs))
        try:
            run({**pair, "out": os.path.join(out_dir, name)})
            states[name] = ("done", "")
        except Exception as error:  # whatever it is, the other scenes shall be done
            text = " ".join(str(error).split())
            states[name] = ("failed", text if isinstance(error, HetecdError) else f"{type(error).__name__}: {text}")
            log.error("%s: failed: %s", name, states[name][1])
        _write_status(out_dir, pairs, states)
    return [name for name, (state, _) in states.items() if state == "failed"]


def _place(folder: Path, name: str) -> str:
    """A name in the CSV file as seen from here; URLs and whatever else only GDAL understands stay as they are."""
    return name if FOR_GDAL.match(name) else str(folder / name)


def _write_status(out_dir: Path, pairs: Mapping[str, Mapping[str, str]], states: Mapping[str, Sequence[str]]) -> None:
    with replacing(out_dir / "status.csv") as part, open(part, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(STATUS)
        writer.writerows([name, *states[name], *(pair[key] for key in REQUIRED)] for name, pair in pairs.items())
