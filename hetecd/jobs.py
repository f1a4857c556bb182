"""Uploaded pairs and their prediction, one at a time, each in a process of its own.

A prediction is the command `hetecd predict`, so that a page gives what a terminal gives, and one that runs out of
memory takes nothing else with it. Its progress is the bar that it draws for a terminal.
"""

import asyncio
import os
import pty
import queue
import re
import secrets
import shutil
import subprocess
import sys
import termios
import threading
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from hetecd.config import Role
from hetecd.errors import AbsentError, InputError, OutputError
from hetecd.files import locked, replacing, writing
from hetecd.raster import open_raster

State = Literal["uploading", "waiting", "running", "done", "failed"]
Date = Literal["before", "after"]
DATES: tuple[Date, ...] = ("before", "after")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._-]{0,63}")
# What a file must begin with. Formats that can name other files, such as VRT, would read whatever they name; GDAL looks
# for their marks up to the first zero byte, which these have early.
KINDS = {b"II*\0": "TIFF", b"MM\0*": "TIFF", b"II+\0": "BigTIFF", b"MM\0+": "BigTIFF", b"\x89PNG\r\n\x1a\n\0": "PNG",
         b"\0\0\0\x0cjP  ": "JPEG 2000"}  # fmt: skip
MARK_BYTES = 16  # more than the longest of them
BAR = re.compile(r"(\d+) ?% ?\|")  # how a bar on a terminal begins
MOST_OPEN = 16
STAGE = ".hetecd-upload-"
RESULT = "result"  # within it: the name of the folder that is being made of it
PATIENCE_S = 3600  # without a byte, after which an upload is given up
SHOWN = 200  # jobs remembered


@dataclass
class Job:
    """An uploaded pair on its way to a result.

    Attributes:
        id: not to be guessed.
        name: of the result to be, a folder.
        before_is: modality of the earlier date; None = as the weights were trained.
        state: what happens to it.
        percent: of the prediction that is done; None = it has not begun.
        message: what went wrong.
        received: bytes of each date.
    """

    id: str
    name: str
    before_is: Role | None
    state: State = "uploading"
    percent: int | None = None
    message: str = ""
    received: dict[str, int] = field(default_factory=dict)


def check_kind(path: Path, kinds: Mapping[bytes, str] = KINDS) -> None:
    """Raise InputError unless a file begins like one of some formats, by default those that hold all their pixels."""
    try:
        with path.open("rb") as file:
            start = file.read(MARK_BYTES)
    except OSError as error:
        raise InputError(f"{path.name}: cannot be read ({error.strerror}); check its permissions") from None
    _check_start(path, start, kinds)


def _check_start(path: Path, start: bytes, kinds: Mapping[bytes, str] = KINDS) -> None:
    if not any(start.startswith(mark) for mark in kinds):
        raise InputError(f"{path.name}: found none of {', '.join(dict.fromkeys(kinds.values()))}; convert it to one")


class Jobs:
    """Receives pairs and predicts them, one at a time."""

    def __init__(self, root: Path, options: Sequence[str] = (), limit_bytes: int = 2 << 30) -> None:
        """``options`` are those of `hetecd predict`; ``limit_bytes`` is of one file."""
        self.root, self.options, self.limit_bytes = root, tuple(options), limit_bytes
        self.all: dict[str, Job] = {}
        self._touched: dict[str, float] = {}
        self._held: dict[str, ExitStack] = {}
        self._queue: queue.Queue[Job | None] = queue.Queue()
        self._process: subprocess.Popen[bytes] | None = None
        self._current: Job | None = None
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()
        _remove_stale(root)

    def find(self, key: str) -> Job:
        """A job by its id; AbsentError where there is none."""
        if key not in self.all:
            raise AbsentError(f"job: found no {key!r}; the server was started anew, or it is long over")
        return self.all[key]

    def open(self, name: str, before_is: Role | None = None) -> Job:
        """Announce a pair.

        Raises:
            InputError: the name is no plain one or taken, or too many others wait.
        """
        if not NAME.fullmatch(name) or name.endswith((".", " ")):
            raise InputError(f"name: found {name!r}, expected 1 to 64 letters, digits, spaces or . _ -, a letter first")
        with self._lock:
            self._forget()
            going = [job for job in self.all.values() if job.state in ("uploading", "waiting", "running")]
            if (self.root / name).exists() or any(job.name == name for job in going):
                raise InputError(f"name: found {name!r}, which there is already; choose another")
            if len(going) >= MOST_OPEN:
                raise InputError(f"upload: found {len(going)} pairs on their way, expected fewer; wait for one to end")
            job = Job(secrets.token_urlsafe(12), name, before_is)
            self.all[job.id] = job
            self._touched[job.id] = time.monotonic()
            return job

    def _forget(self) -> None:
        for job in list(self.all.values()):
            if job.state == "uploading" and time.monotonic() - self._touched[job.id] > PATIENCE_S:
                self.fail(job, "the upload stopped")
        ended = [job.id for job in self.all.values() if job.state in ("done", "failed")]
        for key in ended[: max(0, len(self.all) - SHOWN)]:
            del self.all[key]

    def _stage(self, job: Job) -> Path:
        return self.root / f"{STAGE}{job.id}"

    def fail(self, job: Job, message: str) -> None:
        """End a job and remove what it left; why it ended first stays."""
        if job.state != "failed":
            job.state, job.message = "failed", message
        self._drop(job)

    async def receive(self, job: Job, date: Date, chunks: AsyncIterator[bytes], announced: int | None) -> None:
        """Take one file; when both are there, the job waits for its turn.

        Args:
            job: in state "uploading".
            date: which of the two.
            chunks: the file.
            announced: its bytes, where the browser says so.

        Raises:
            InputError: it is too large, empty, no image of a plain format, or the job is over.
            OutputError: there is no space.
        """
        if job.state != "uploading" or date in job.received:
            found = f"is {job.state} {job.message}".rstrip() if job.state != "uploading" else f"has {date} already"
            raise InputError(f"upload: {job.name} {found}; start anew")
        path, part = (self._stage(job) / f"{date}{suffix}" for suffix in (".tif", ".part"))
        job.received[date] = 0
        try:
            if (announced or 0) > self.limit_bytes:
                raise InputError(self._too_large(announced or 0))
            with writing(path):
                self._hold(job)
                _check_space(self.root, announced or 0)
                start, checked = b"", False
                with part.open("xb") as file:
                    async for chunk in chunks:
                        if job.state != "uploading":  # cancelled, or the other date could not be taken
                            raise InputError(f"upload: {job.name} has ended, {job.message}; start anew")
                        start += chunk[: MARK_BYTES - len(start)]
                        if not checked and len(start) == MARK_BYTES:
                            _check_start(path, start)
                            checked = True
                        file.write(chunk)
                        job.received[date] += len(chunk)
                        self._touched[job.id] = time.monotonic()
                        if job.received[date] > self.limit_bytes:
                            raise InputError(self._too_large(job.received[date]))
            if not checked:  # it is that small
                _check_start(path, start)
            await asyncio.to_thread(_check_image, part, path.name)
            with writing(path):
                part.rename(path)
        except BaseException as error:  # a browser that goes away, too
            self.fail(job, str(error) or "the upload was interrupted")
            raise
        if set(job.received) == set(DATES) and all((self._stage(job) / f"{d}.tif").is_file() for d in DATES):
            job.state = "waiting"
            self._queue.put(job)

    def _hold(self, job: Job) -> None:
        """Make the folder of an upload; servers that start leave it alone as long as this one lives."""
        if job.id not in self._held:
            self._held[job.id] = ExitStack()
            self._held[job.id].enter_context(locked(self._stage(job)))

    def _drop(self, job: Job) -> None:
        shutil.rmtree(self._stage(job), ignore_errors=True)
        self._held.pop(job.id, ExitStack()).close()

    def _too_large(self, found: int) -> str:
        return (
            f"upload: found {found / 1e6:.0f} MB or more, expected at most {self.limit_bytes / 1e6:.0f} MB; "
            "start the server with a larger --upload-mb"
        )

    def cancel(self, job: Job) -> None:
        """End a job that is not over."""
        with self._lock:
            if job.state in ("uploading", "waiting"):
                self.fail(job, "cancelled")
            elif job is self._current and self._process is not None:
                job.message = "cancelled"
                self._process.terminate()

    def close(self) -> None:
        """End everything; nothing unfinished is left."""
        for job in list(self.all.values()):
            self.cancel(job)
        self._queue.put(None)
        self._thread.join(timeout=20)

    def _work(self) -> None:
        while (job := self._queue.get()) is not None:
            if job.state != "waiting":
                continue
            folder = self.root / job.name
            try:
                folder.mkdir()  # fails where it has come to be in the meantime
                try:
                    with replacing(self._stage(job) / RESULT, durable=True) as marker:
                        marker.write_text(job.name)
                    for date in DATES:
                        (self._stage(job) / f"{date}.tif").rename(folder / f"{date}.tif")
                    self._predict(job, folder)
                except BaseException:
                    shutil.rmtree(folder, ignore_errors=True)
                    raise
            except (OSError, InputError, OutputError) as error:
                self.fail(job, job.message or str(error))
            else:
                job.state, job.percent = "done", 100
                self._drop(job)

    def _predict(self, job: Job, folder: Path) -> None:
        """Run the command and follow its bar; InputError with its message where it fails."""
        images = [str(folder / f"{date}.tif") for date in DATES]
        command = [sys.executable, "-m", "hetecd", "predict", *images]
        command += ["-o", str(folder), *self.options, *(["--before-is", job.before_is] if job.before_is else [])]
        text = ""
        with self._lock:
            if job.state != "waiting":  # cancelled since it was taken from the queue
                raise InputError(job.message)
            terminal, end = pty.openpty()
            termios.tcsetwinsize(end, (25, 120))  # no bar is drawn on a terminal without a size
            job.state, self._current = "running", job
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=end)
        os.close(end)
        try:
            while chunk := _read(terminal):
                text = (text + chunk)[-8000:]
                if bars := BAR.findall(text):
                    job.percent = int(bars[-1])
            code = self._process.wait()
        finally:
            os.close(terminal)
            with self._lock:
                self._process = self._current = None
        if code:
            said = re.findall(r"hetecd: error: (.*)", text)
            message = said[-1].strip() if said else f"the prediction ended with exit code {code}"
            raise InputError(message.replace(f"{folder}{os.sep}", ""))


def _check_image(path: Path, name: str) -> None:
    """InputError unless GDAL can open an upload, and it names no other file; it is called by its name to be."""
    try:
        with open_raster(path):
            pass
    except InputError as error:
        raise InputError(str(error).replace(str(path), name)) from None


def _remove_stale(root: Path) -> None:
    """Remove what servers that were killed left; what others that serve the same folder are at is locked."""
    for folder in root.glob(f"{STAGE}*"):
        with suppress(InputError, OutputError, OSError), locked(folder):
            if result := _half_made(root, folder):
                shutil.rmtree(result, ignore_errors=True)
            shutil.rmtree(folder, ignore_errors=True)


def _half_made(root: Path, stage: Path) -> Path | None:
    """The folder without a summary that was being made of an upload: one right in the served folder, or none."""
    marker = stage / RESULT
    name = marker.read_text(errors="replace") if marker.is_file() else ""
    return root / name if NAME.fullmatch(name) and not (root / name / "summary.json").is_file() else None


def _check_space(folder: Path, size_bytes: int) -> None:
    """OutputError where a file would fill the disk; its result wants some space, too."""
    free_bytes = shutil.disk_usage(folder).free
    if free_bytes < 3 * size_bytes:
        raise OutputError(
            f"upload: found {free_bytes / 1e6:.0f} MB free, expected {3 * size_bytes / 1e6:.0f} MB; free some space"
        )


def _read(terminal: int) -> str:
    """What a process has written since; "" at its end, which Linux reports as an error."""
    try:
        return os.read(terminal, 4096).decode(errors="replace")
    except OSError:
        return ""
