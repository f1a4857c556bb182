"""Results are whole under their names, or not there."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from hetecd.errors import InputError, OutputError
from hetecd.files import locked, publish, replacing, staging, writing


def fail(manager, error: BaseException) -> None:
    """Write half a file inside one of the context managers, then fail."""
    with manager as path:
        (path / "x" if path.is_dir() else path).write_text("half")
        raise error


def refused(error: pytest.ExceptionInfo[OutputError], path: Path) -> str:
    text = str(error.value)
    assert text.startswith(f"{path}: cannot write it (")
    assert text.endswith("); free space or choose another folder")
    assert "\n" not in text
    return text


@pytest.mark.parametrize("error", [KeyboardInterrupt(), InputError("no"), OSError("from elsewhere")])
def test_staging_leaves_nothing_behind(tmp_path: Path, error: BaseException) -> None:
    with pytest.raises(type(error)) as caught:
        fail(staging(tmp_path / "a" / "b"), error)
    assert caught.value is error
    assert os.listdir(tmp_path) == []


def test_only_folders_made_for_a_failed_result_are_removed(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    with pytest.raises(InputError):
        fail(staging(tmp_path / "a" / "b" / "c" / "d"), InputError("no"))
    assert [path.name for path in tmp_path.rglob("*")] == ["a", "b"]


def test_published_files_keep_their_names(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b"
    with staging(folder) as stage:
        for name in ("x", "y"):
            (stage / name).write_text(name)
        (stage / "scratch").write_text("not a result")
        assert all(path.name.startswith(".") for path in folder.iterdir())
        publish([stage / "x", stage / "y"], folder)
    assert sorted(os.listdir(folder)) == ["x", "y"]


def test_replacing(tmp_path: Path) -> None:
    path = tmp_path / "new" / "x.json"
    for content in ("first", "second"):
        with replacing(path) as part:
            part.write_text(content)
            assert not path.exists() or path.read_text() == "first"
        assert path.read_text() == content
        assert os.listdir(path.parent) == ["x.json"]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), InputError("no")])
def test_a_failure_keeps_the_older_file(tmp_path: Path, error: BaseException) -> None:
    (tmp_path / "x").write_text("old")
    with pytest.raises(type(error)):
        fail(replacing(tmp_path / "x"), error)
    assert (tmp_path / "x").read_text() == "old"
    with pytest.raises(type(error)):
        fail(replacing(tmp_path / "new" / "x"), error)
    assert os.listdir(tmp_path) == ["x"]


def test_what_the_system_says_names_the_result(tmp_path: Path) -> None:
    path = tmp_path / "new" / "x"
    with pytest.raises(OutputError) as error:
        fail(replacing(path), OSError(28, "No space left on device"))
    assert "No space left" in refused(error, path)
    with pytest.raises(OutputError) as error, replacing(path):
        pass  # nothing was written
    refused(error, path)
    assert os.listdir(tmp_path) == []


def test_places_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "file" / "x", tmp_path / "file" / "below" / "x", tmp_path / ("x" * 300) / "x"):
        with pytest.raises(OutputError) as error, replacing(path):
            pass
        refused(error, path)
        with pytest.raises(OutputError) as error, staging(path.parent):
            pass
        refused(error, path.parent)
    with pytest.raises(OutputError) as error, replacing(tmp_path / "folder") as part:
        part.write_text("a file cannot replace a folder")
    refused(error, tmp_path / "folder")
    assert sorted(os.listdir(tmp_path)) == ["file", "folder"]


def test_an_error_is_worded_once(tmp_path: Path) -> None:
    with pytest.raises(OutputError) as error, writing(tmp_path / "outer"), writing(tmp_path / "inner"):
        raise OSError("two\nlines")
    assert "(two lines)" in refused(error, tmp_path / "inner")
    with pytest.raises(InputError), writing(tmp_path / "x"):
        raise InputError("not about writing")


def test_one_at_a_time(tmp_path: Path) -> None:
    with locked(tmp_path / "new"):
        with pytest.raises(InputError, match="another run") as error, locked(tmp_path / "new"):
            pass
        assert str(tmp_path / "new") in str(error.value)
        # It ends with the process, however that ends: here its lock is held by another.
        code = f"from hetecd.files import locked; locked({str(tmp_path / 'new')!r}).__enter__()"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert "another run" in done.stderr
    killed = (
        f"import os; from hetecd.files import locked; locked({str(tmp_path)!r}).__enter__(); os.kill(os.getpid(), 9)"
    )
    assert subprocess.run([sys.executable, "-c", killed], check=False).returncode == -9
    with locked(tmp_path):
        pass
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OutputError), locked(tmp_path / "file" / "below"):
        pass


def test_after_a_power_cut_the_last_file_is_there_with_all_others(tmp_path: Path, monkeypatch) -> None:
    """Nothing gets its name before it is on the disk, and no name is followed by another before it is there itself."""
    steps, names = [], {}
    sync, move = os.fsync, Path.replace

    def seen_sync(handle: int) -> None:
        steps.append(names[os.fstat(handle).st_ino])
        sync(handle)

    def seen_move(self: Path, target: Path) -> Path:
        steps.append(f"move {self.name}")
        return move(self, target)

    monkeypatch.setattr(os, "fsync", seen_sync)
    monkeypatch.setattr(Path, "replace", seen_move)
    with staging(tmp_path) as stage:
        for name in "xy":
            (stage / name).write_text(name)
        names |= {path.stat().st_ino: f"sync {path.name}" for path in (stage / "x", stage / "y")}
        names[tmp_path.stat().st_ino] = "sync folder"
        publish([stage / "x", stage / "y"], tmp_path, durable=True)
    assert steps == ["sync x", "sync y", "move x", "sync folder", "move y", "sync folder"]


def test_durable(tmp_path: Path) -> None:
    with replacing(tmp_path / "x", durable=True) as part:
        part.write_text("whole")
    assert (tmp_path / "x").read_text() == "whole"
    with pytest.raises(OutputError), replacing(tmp_path / "x", durable=True):
        pass  # nothing was written
    assert (tmp_path / "x").read_text() == "whole"
