"""Results that appear under their final name only when they are whole.

They are made in a hidden folder beside the final name, on the same disk, and moved when they are complete.
"""

import hashlib
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from hetecd.errors import InputError, OutputError

try:
    import fcntl
    import resource
except ImportError:  # Windows; nothing keeps two runs apart there
    fcntl = resource = None  # type: ignore[assignment]

MOST_OPEN = 1 << 16


def allow_many_files() -> None:
    """Let this process have as many files open as its system allows: by default a thousand, fewer than some mosaics."""
    if resource is not None:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        most = MOST_OPEN if hard == resource.RLIM_INFINITY else min(hard, MOST_OPEN)
        if soft != resource.RLIM_INFINITY and soft < most:
            with suppress(OSError, ValueError):
                resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


@contextmanager
def replacing(path: Path | str, durable: bool = False) -> Iterator[Path]:
    """Hand out a temporary name near ``path``; what was written there takes the place of ``path`` at the end.

    Folders are made as needed. After a failure ``path`` is as it was before, and folders made here are gone again.

    Args:
        path: final name.
        durable: the file is on the disk itself before it gets its name, so that a power cut cannot empty it.

    Raises:
        OutputError: any OSError of the body or of the move (not writable, disk full).
    """
    path = Path(path)
    with writing(path), staging(path.parent, path) as folder:
        yield folder / path.name
        publish([folder / path.name], path.parent, durable)


@contextmanager
def staging(folder: Path | str, result: Path | str | None = None) -> Iterator[Path]:
    """A hidden folder inside ``folder`` (made if need be) for unfinished results; gone afterwards, whatever happens.

    Finished files are moved out of it with :func:`publish`. Where the body fails, ``folder`` is removed again if it
    was made here.

    Args:
        folder: where the results will be.
        result: what the error is about, by default ``folder``.

    Raises:
        OutputError: the folder cannot be made or is not writable. What the body raises is left as it is.
    """
    with _making(folder, result or folder):
        with writing(result or folder):
            stage = tempfile.TemporaryDirectory(
                prefix=".hetecd-", dir=Path(folder).absolute(), ignore_cleanup_errors=True
            )
        with stage as name:
            yield Path(name)


@contextmanager
def locked(folder: Path | str) -> Iterator[None]:
    """Keep a folder (made if need be) from other runs of hetecd; the lock ends with the process, however it ends.

    Raises:
        InputError: another run works there.
        OutputError: the folder cannot be made.
    """
    with _making(folder, folder):
        if fcntl is None:
            yield
            return
        with writing(folder):
            handle = os.open(folder, os.O_RDONLY)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
            raise InputError(
                f"{folder}: found another run of hetecd at work there, expected none; wait for it or choose another "
                "folder"
            ) from None
        except OSError:  # some network file systems have no locks
            pass
        try:
            yield
        finally:
            os.close(handle)


@contextmanager
def _making(folder: Path | str, result: Path | str) -> Iterator[None]:
    """Make a folder for the body; where the body fails, remove what was made here and is empty."""
    folder, made = Path(folder).absolute(), []
    try:
        with writing(result):
            made = [path for path in (folder, *folder.parents) if not path.exists()]
            folder.mkdir(parents=True, exist_ok=True)
        yield
    except BaseException:
        for path in made:
            try:
                path.rmdir()
            except OSError:  # not empty, or never made
                break
        raise


def publish(staged: Sequence[Path], folder: Path | str, durable: bool = False) -> None:
    """Move finished files into ``folder`` under their own names, each in one step that cannot be seen half done.

    Args:
        staged: the files, in this order.
        folder: where to, on the same disk.
        durable: all are on the disk itself before the first is moved, and each is there under its name before the
            next: after a power cut what has its name is whole, and where the last one is there, all are.

    Raises:
        OutputError: a file cannot be moved.
    """
    targets = [Path(folder) / path.name for path in staged]
    if durable:
        for path, target in zip(staged, targets, strict=True):
            with writing(target):
                _sync(path)
    for path, target in zip(staged, targets, strict=True):
        with writing(target):
            path.replace(target)
        if durable:
            with suppress(OSError):  # not every system can do that with a folder
                _sync(folder)


def _sync(path: Path | str) -> None:
    """Wait until a file, or the names in a folder, are on the disk itself."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def writing(path: Path | str) -> Iterator[None]:
    """Turn any OSError of the body into an OutputError about ``path``. Other libraries' errors: make them OSError."""
    try:
        yield
    except OutputError:
        raise
    except OSError as error:
        reason = error.strerror or " ".join(str(error).split()) or type(error).__name__
        raise OutputError(f"{path}: cannot write it ({reason}); free space or choose another folder") from error


def sha256(path: Path | str) -> str:
    """Checksum of a file, read in pieces."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
