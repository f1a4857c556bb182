"""A scene in the making: its finished blocks on disk, where neither a kill nor a power cut harms them.

They lie in ``OUT/.hetecd-work`` until the scene is finished. A block counts once its line stands in the journal, which
is written after the block is on disk; so whatever happens, every line is true, and only the block at work is lost.
The first line says what the scene is made from: blocks are used again for the very same only.
"""

import json
import logging
import os
import shutil
import threading
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hetecd.cog import write_part
from hetecd.errors import InputError
from hetecd.files import locked, replacing, writing
from hetecd.tiles import Window

log = logging.getLogger("hetecd")

FOLDER = ".hetecd-work"
MEASURED = 1e-5  # how far two measurements of one alignment may be apart, px or as a share


@dataclass(frozen=True)
class Block:
    """A finished part of a scene.

    Attributes:
        window: where it belongs.
        valid_pixels: those valid in both images; without one there is no file.
    """

    window: Window
    valid_pixels: int


@contextmanager
def work_in(
    out_dir: Path, made_from: Mapping[str, Any] | None, batch: int, redo: bool = False, keep_batch: bool = False
) -> Iterator["Work"]:
    """The unfinished scene of a folder, or a new one; one process at a time. Gone when the body is done.

    After a failure the finished blocks are kept for the next run, if it can be known that it is the same.

    Args:
        out_dir: folder of the results, made if need be.
        made_from: all that decides on the pixels, as JSON can hold it; None where that is not known.
        batch: windows given to the predictor at a time. A resumed run takes no more than the one before: rounding
            depends on it.
        redo: drop what is there.
        keep_batch: a resumed run takes as many as the one before, also where ``batch`` is less.

    Raises:
        InputError: there is unfinished work of something else, or another process is at work.
        OutputError: the folder is not writable.
    """
    with locked(out_dir):
        folder = out_dir / FOLDER
        if made_from is None and not redo and _is_known(folder / "journal"):
            raise InputError(f"{out_dir}: found unfinished work of a known run; finish that, or choose another folder")
        if redo or made_from is None:
            _remove(folder)
        work = Work(folder, made_from, batch, keep_batch)
        try:
            yield work
        except BaseException:
            if made_from is None or not work.valid_pixels:
                _remove(folder)
            raise
        _remove(folder)


class Work:
    """The finished blocks of a scene; see :func:`work_in`.

    Attributes:
        folder: for files on the way.
        batch: windows to give to the predictor at a time.
        done: the finished blocks.
        warnings: what this run and those that were cut off warned of.
    """

    def __init__(self, folder: Path, made_from: Mapping[str, Any] | None, batch: int, keep_batch: bool) -> None:
        self.folder = folder
        self.batch = batch
        self.done: dict[Window, Block] = {}
        self.warnings: list[str] = []
        self._lock = threading.Lock()
        self._journal = folder / "journal"
        made_from = json.loads(json.dumps(made_from))
        if not self._read(made_from, keep_batch):
            _remove(folder)
            with replacing(self._journal, durable=True) as part:
                part.write_text(json.dumps({"made_from": made_from, "batch": batch}) + "\n", encoding="utf-8")

    @property
    def valid_pixels(self) -> int:
        """Of all finished blocks."""
        return sum(block.valid_pixels for block in self.done.values())

    def parts(self, name: str) -> dict[Window, Path]:
        """Files of one image of the finished blocks that have any valid pixel, row by row."""
        windows = sorted((b.window for b in self.done.values() if b.valid_pixels), key=lambda w: (w.row, w.col))
        return {window: self._path(name, window) for window in windows}

    def add(self, block: Block, images: Mapping[str, NDArray[Any]]) -> None:
        """Store a finished block: its images (H, W) by name.

        Raises:
            OutputError: the disk is full, the folder is gone.
        """
        files = images if block.valid_pixels else {}
        sums = {name: write_part(self._path(name, block.window), image) for name, image in files.items()}
        self._note({"files": sums, **asdict(block)})
        self.done[block.window] = block

    def warn(self, text: str) -> None:
        """Keep a warning, each once, also for a run that goes on."""
        if text not in self.warnings:
            self.warnings.append(text)
            self._note({"warning": text})

    def _note(self, entry: Mapping[str, Any]) -> None:
        """Add a line to the journal; from any thread."""
        with self._lock, writing(self._journal), open(self._journal, "r+b") as file:
            file.seek(0, os.SEEK_END)
            file.write(json.dumps(entry).encode() + b"\n")

    def _path(self, name: str, window: Window) -> Path:
        return self.folder / f"{name}_{window.row}_{window.col}.tif"

    def _read(self, made_from: Any, keep_batch: bool) -> bool:
        """Take up the work of an earlier run; False where there is none."""
        if not self._journal.is_file():
            return False
        with writing(self._journal):
            lines = self._journal.read_bytes().splitlines(keepends=True)
        size, least, finished = 0, self.batch, dict[Window, Any]()
        for number, line in enumerate(lines):
            try:
                entry = json.loads(line) if line.endswith(b"\n") else None
            except ValueError:
                entry = None
            if not isinstance(entry, dict) or (number == 0 and "made_from" not in entry):  # cut off as it was written
                break
            size += len(line)
            if number == 0:
                self._check(entry["made_from"], made_from)
            if "batch" in entry:
                least = entry["batch"]
            elif "warning" in entry:
                self.warnings.append(entry["warning"])
            elif (window := _window_of(entry)) is not None:
                finished[window] = entry
        with writing(self._journal):
            os.truncate(self._journal, size)
        self._take(finished)
        for half_made in self.folder.glob(".hetecd-*"):
            shutil.rmtree(half_made, ignore_errors=True)
        self.batch = least if keep_batch else min(least, self.batch)
        if self.batch < least:
            self._note({"batch": self.batch})
        if self.done:
            log.info("%s: goes on after %d finished blocks", self.folder.parent, len(self.done))
        return size > 0

    def _take(self, finished: Mapping[Window, Mapping[str, Any]]) -> None:
        """Count blocks as finished whose files are what was written; the others are done again."""
        for window, entry in finished.items():
            sums = {self._path(name, window): crc for name, crc in entry["files"].items()}
            damaged = [path for path, crc in sums.items() if _checksum(path) != crc]
            if damaged:
                log.warning("%s: found this finished part gone or damaged; it is done again", damaged[0])
            else:
                self.done[window] = Block(window, entry["valid_pixels"])

    def _check(self, found: Any, expected: Any) -> None:
        before, now = _flat(found), _flat(expected)
        key = next((key for key in [*now, *before] if not _same(key, before.get(key), now.get(key))), None)
        if key is not None:
            raise InputError(
                f"{self.folder.parent}: found unfinished work with {key} {before.get(key)}, expected {now.get(key)}; "
                "repeat that run, choose another folder, or drop the work with --redo"
            )


def _window_of(entry: Mapping[str, Any]) -> Window | None:
    """Where the block of a line of the journal belongs; None for a line that is damaged."""
    try:
        whole = bool(entry["files"].items()) == bool(entry["valid_pixels"])
        return Window(**entry["window"]) if whole else None
    except (KeyError, TypeError, AttributeError):
        return None


def _checksum(path: Path) -> int | None:
    """CRC-32 of a file; None if it cannot be read."""
    try:
        return zlib.crc32(path.read_bytes())
    except OSError:
        return None


def _is_known(journal: Path) -> bool:
    """Whether a journal says what its work is of."""
    try:
        with journal.open("rb") as file:
            return json.loads(file.readline())["made_from"] is not None
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _remove(folder: Path) -> None:
    """Remove work. The journal goes first: without it nothing else there counts."""
    (folder / "journal").unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)


def _same(key: str, one: Any, other: Any) -> bool:
    """Whether two values are the same; an alignment is measured, and differs in its last digits between processors."""
    if key.startswith("alignment.") and isinstance(one, float | list) and isinstance(other, float | list):
        return np.shape(one) == np.shape(other) and np.allclose(one, other, rtol=MEASURED, atol=MEASURED)
    return bool(one == other)


def _flat(values: Any, name: str = "") -> dict[str, Any]:
    """Nested dictionaries as one, with dotted keys."""
    if not isinstance(values, dict):
        return {name: values}
    return {k: v for key, value in values.items() for k, v in _flat(value, f"{name}.{key}".lstrip(".")).items()}
