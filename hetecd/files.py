"""Results that appear under their final name only when they are whole."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from hetecd.errors import OutputError


@contextmanager
def replacing(path: Path | str) -> Iterator[Path]:
    """Hand out a temporary name beside ``path``; what was written there takes the place of ``path`` at the end.

    Folders are made as needed. After a failure ``path`` is as it was before.

    Raises:
        OutputError: any OSError of the body or of the move (not writable, disk full).
    """
    path = Path(path)
    part = path.with_name(f".{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield part
        part.replace(path)
    except OSError as error:
        if isinstance(error, OutputError):
            raise
        reason = error.strerror or " ".join(str(error).split())
        raise OutputError(f"{path}: cannot write it ({reason}); free space or choose another folder") from error
    finally:
        with suppress(OSError):
            part.unlink()
