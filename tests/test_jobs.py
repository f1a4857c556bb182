"""Uploads are limited and checked, predictions run one at a time, and nothing unfinished is left."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import rasterio
from starlette.requests import ClientDisconnect

from hetecd.errors import AbsentError, InputError
from hetecd.jobs import Job, Jobs, check_kind
from hetecd.synth import write_pair


@pytest.fixture(scope="session")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    optical, sar, *_ = write_pair(tmp_path_factory.mktemp("pair"), 2001, 160, 160)
    return optical, sar


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "served").mkdir()
    return tmp_path / "served"


@pytest.fixture
def jobs(root: Path, decided: Path) -> Iterator[Jobs]:
    made = Jobs(root, ["--weights", str(decided), "--tile", "64", "--overlap", "16", "--device", "cpu"], 10_000_000)
    yield made
    made.close()


def give(jobs: Jobs, job: Job, date: str, content: bytes, announced: int | None = None) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        for start in range(0, len(content), 4096):
            yield content[start : start + 4096]

    asyncio.run(jobs.receive(job, date, chunks(), announced))  # type: ignore[arg-type]


def ended(job: Job) -> Job:
    until = time.monotonic() + 300  # for a machine that is busy
    while job.state not in ("done", "failed"):
        assert time.monotonic() < until, job
        time.sleep(0.05)
    return job


def test_pairs_are_mapped_one_after_the_other(jobs: Jobs, root: Path, pair: tuple[Path, Path]) -> None:
    """The second is truncated, which only its prediction finds out."""
    first, second = jobs.open("first map"), jobs.open("second", "sar")
    optical, sar = (path.read_bytes() for path in pair)
    for job, contents in ((first, [optical, sar]), (second, [sar[: len(sar) // 2], optical])):
        for date, content in zip(("before", "after"), contents, strict=True):
            give(jobs, job, date, content, len(content))
    assert {first.state, second.state} <= {"waiting", "running"}
    assert ended(first).state == "done", first.message
    assert first.percent == 100
    assert second.state in ("waiting", "running")
    found = {path.name for path in (root / first.name).iterdir()}
    assert {"before.tif", "after.tif", "probability.tif", "change.gpkg", "summary.json"} <= found
    assert (root / "first map" / "before.tif").read_bytes() == pair[0].read_bytes()
    assert ended(second).state == "failed"
    assert second.message.startswith("before.tif: cannot read its pixels")  # not where it is on the server
    assert [path.name for path in root.iterdir()] == ["first map"]


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b'<VRTDataset rasterXSize="1"><!-- names other files -->', "found none of TIFF"),
        (b"", "found none of TIFF"),
        (b"II*\0" + bytes(11_000_000), "found 1[01] MB or more, expected at most 10 MB"),
    ],
)
def test_uploads_are_checked(jobs: Jobs, root: Path, content: bytes, problem: str) -> None:
    job = jobs.open("odd")
    with pytest.raises(InputError, match=problem):
        give(jobs, job, "before", content)
    assert (job.state, list(root.iterdir())) == ("failed", [])
    with pytest.raises(InputError, match="odd is failed"):
        give(jobs, job, "after", b"II*\0")


def test_what_cannot_be_opened_or_names_another_file_is_refused_at_once(
    jobs: Jobs, root: Path, pair: tuple[Path, Path], tmp_path: Path
) -> None:
    named = tmp_path / "named.tif"
    named.write_bytes(pair[1].read_bytes())
    with rasterio.open(named, "r+") as dataset:
        dataset.update_tags(ns="OVERVIEWS", OVERVIEW_FILE="/etc/passwd")
    for content, problem in (
        (b"II*\0" + bytes(100), "not a raster"),
        (named.read_bytes(), "overviews in another file"),
    ):
        job = jobs.open("refused")
        with pytest.raises(InputError, match=problem):
            give(jobs, job, "after", content)
        assert job.message.startswith("after.tif: ")
        assert str(root) not in job.message
        assert list(root.iterdir()) == []


def test_what_a_killed_server_left_is_removed_and_what_another_receives_is_not(
    jobs: Jobs, root: Path, pair: tuple[Path, Path]
) -> None:
    going = jobs.open("going")
    give(jobs, going, "before", pair[0].read_bytes())
    (stage,) = root.iterdir()
    (root / ".hetecd-upload-stale").mkdir()
    (root / ".hetecd-upload-stale" / "before.part").write_bytes(b"II*")
    for name, made in (("half-made", "before.tif"), ("whole", "summary.json"), ("unrelated", "before.tif")):
        (root / name).mkdir()
        (root / name / made).touch()
        if name != "unrelated":
            (root / f".hetecd-upload-{name}").mkdir()
            (root / f".hetecd-upload-{name}" / "result").write_text(name)
    for i, text in enumerate((b"", b".", b"..", b"whole/..", b"\0", b"\xff")):  # such as a power cut leaves
        (root / f".hetecd-upload-damaged{i}").mkdir()
        (root / f".hetecd-upload-damaged{i}" / "result").write_bytes(text)
    Jobs(root).close()
    assert {path.name for path in root.iterdir()} == {stage.name, "whole", "unrelated"}
    assert (stage / "before.tif").read_bytes() == pair[0].read_bytes()


def test_too_large_is_known_before_it_is_sent(jobs: Jobs) -> None:
    job = jobs.open("large")
    with pytest.raises(InputError, match="found 20 MB or more"):
        give(jobs, job, "before", b"", announced=20_000_000)
    assert job.received == {"before": 0}


def test_an_interrupted_upload_leaves_nothing(jobs: Jobs, root: Path) -> None:
    async def broken() -> AsyncIterator[bytes]:
        yield b"II*\0"
        raise ClientDisconnect

    job = jobs.open("gone")
    with pytest.raises(ClientDisconnect):
        asyncio.run(jobs.receive(job, "before", broken(), None))
    assert (job.state, job.message, list(root.iterdir())) == ("failed", "the upload was interrupted", [])


@pytest.mark.parametrize(
    "name", ["", "..", ".hidden", "a/b", "a\\b", "/etc", "x" * 65, "ü", "a\0", "a\n", "dot.", "-x"]
)
def test_names_are_plain(jobs: Jobs, root: Path, name: str) -> None:
    with pytest.raises(InputError, match="name: found"):
        jobs.open(name)
    assert list(root.iterdir()) == []


def test_names_are_free_and_few_are_open(jobs: Jobs, root: Path) -> None:
    (root / "there").mkdir()
    with pytest.raises(InputError, match="which there is already"):
        jobs.open("there")
    for number in range(16):
        jobs.open(f"n{number}")
    with pytest.raises(InputError, match="found 16 pairs on their way"):
        jobs.open("one more")
    with pytest.raises(InputError, match="which there is already"):
        jobs.open("n3")
    with pytest.raises(AbsentError, match="found no 'nothing'"):
        jobs.find("nothing")


def test_cancelling_ends_uploads_and_predictions(jobs: Jobs, root: Path, pair: tuple[Path, Path]) -> None:
    idle, running = jobs.open("idle"), jobs.open("running")
    give(jobs, idle, "before", pair[0].read_bytes())
    for date, path in zip(("before", "after"), pair, strict=True):
        give(jobs, running, date, path.read_bytes())
    jobs.cancel(idle)
    assert (idle.state, idle.message) == ("failed", "cancelled")
    while running.state == "waiting":
        time.sleep(0.01)
    jobs.cancel(running)
    assert (ended(running).state, running.message) == ("failed", "cancelled")
    assert list(root.iterdir()) == []


def test_what_ends_an_upload_is_what_it_says(jobs: Jobs, root: Path) -> None:
    """Its first bytes are looked at first, and nothing more is taken once it is cancelled."""
    sent = []

    async def cancelled(job: Job) -> AsyncIterator[bytes]:
        for number in range(3):
            sent.append(number)
            yield b"II*\0" + bytes(20)
            jobs.cancel(job)

    async def text() -> AsyncIterator[bytes]:
        yield b"<VRT"
        yield b"Dataset rasterXSize"
        sent.append(9)
        yield b"more"

    first, second = jobs.open("first"), jobs.open("second")
    with pytest.raises(InputError, match="first has ended, cancelled"):
        asyncio.run(jobs.receive(first, "before", cancelled(first), None))
    with pytest.raises(InputError, match="found none of TIFF"):
        asyncio.run(jobs.receive(second, "before", text(), None))
    assert (sent, first.message, list(root.iterdir())) == ([0, 1], "cancelled", [])


def test_cancelled_while_its_turn_begins(jobs: Jobs, root: Path, pair: tuple[Path, Path]) -> None:
    job, until = jobs.open("late"), time.monotonic() + 60
    with jobs._lock:
        for date, path in zip(("before", "after"), pair, strict=True):
            give(jobs, job, date, path.read_bytes())
        while not (root / "late").exists():
            assert time.monotonic() < until
            time.sleep(0.01)
        jobs.fail(job, "cancelled")
    while list(root.iterdir()):
        assert time.monotonic() < until, job
        time.sleep(0.01)
    assert (job.state, job.message, jobs._process) == ("failed", "cancelled", None)


@pytest.mark.parametrize("mark", [b"II*\0", b"MM\0*", b"II+\0", b"\x89PNG\r\n\x1a\n\0", b"\0\0\0\x0cjP  \r\n"])
def test_kinds_that_hold_their_pixels(tmp_path: Path, mark: bytes) -> None:
    (tmp_path / "x").write_bytes(mark + b"rest")
    check_kind(tmp_path / "x")
