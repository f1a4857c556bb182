"""Unfinished scenes: what was finished is found again, whatever cut the run off."""

import json
import logging
import os
import shutil

import numpy as np
import pytest

from hetecd.cog import read_part
from hetecd.errors import InputError, OutputError
from hetecd.tiles import Window
from hetecd.work import FOLDER, Block, work_in

MADE_FROM = {"weights": {"sha256": "12"}, "settings": {"tile_px": 256, "tta": False}}
BLOCKS = [Block(Window(512 * i, 0, 512, 40), valid) for i, valid in enumerate((100, 0, 200))]


def image(block):
    return np.full((512, 40), block.window.row / 1000, np.float32)


def cut_off(out, blocks=BLOCKS, made_from=MADE_FROM, batch=4, error=KeyboardInterrupt):
    """A run that finishes some blocks and is then interrupted; gives the blocks that it found finished."""
    found = set()

    def run():
        with work_in(out, made_from, batch) as work:
            found.update(work.done)
            for block in blocks:
                work.add(block, {"probability": image(block)})
            raise error

    with pytest.raises(error):
        run()
    return found


def test_finished_blocks_are_found_again(tmp_path):
    out = tmp_path / "new" / "out"
    assert cut_off(out, BLOCKS[:2]) == set()
    assert cut_off(out, BLOCKS[2:]) == {block.window for block in BLOCKS[:2]}
    with work_in(out, MADE_FROM, 4) as work:
        assert list(work.done.values()) == BLOCKS
        assert work.valid_pixels == 300
        parts = work.parts("probability")
        assert list(parts) == [BLOCKS[0].window, BLOCKS[2].window]  # nothing is stored of the empty one
        assert np.array_equal(read_part(parts[BLOCKS[2].window]), image(BLOCKS[2]))
    assert os.listdir(out) == []


@pytest.mark.parametrize("tail", ['{"window": {"row"', '{"window": {"row": 1}}', "\0\0\0\0\0\0\n", "7"])
def test_a_line_cut_off_does_not_count(tmp_path, tail):
    cut_off(tmp_path, BLOCKS[:2])
    with open(tmp_path / FOLDER / "journal", "a") as file:
        file.write(tail)
    assert cut_off(tmp_path, BLOCKS[2:]) == {block.window for block in BLOCKS[:2]}
    assert cut_off(tmp_path, []) == {block.window for block in BLOCKS}


@pytest.mark.parametrize("content", ["", '{"made_fr', "rubbish\n", "[1, 2]\n", '{"batch": 1}\n'])
def test_a_journal_that_never_began(tmp_path, content):
    (tmp_path / FOLDER / ".hetecd-left").mkdir(parents=True)
    (tmp_path / FOLDER / "journal").write_text(content)
    (tmp_path / FOLDER / "probability_0_0.tif").write_text("left over")
    with work_in(tmp_path, MADE_FROM, 4) as work:
        assert not work.done
        assert os.listdir(work.folder) == ["journal"]


@pytest.mark.parametrize("what", ["gone", "truncated", "another"])
def test_a_block_whose_file_is_not_what_was_written_is_done_again(tmp_path, what, caplog):
    caplog.set_level(logging.WARNING, "hetecd")  # whatever a command before has set
    cut_off(tmp_path)
    file, other = (tmp_path / FOLDER / f"probability_{row}_0.tif" for row in (0, 1024))
    if what == "gone":
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[:-1] if what == "truncated" else other.read_bytes())
    assert cut_off(tmp_path, BLOCKS[:1]) == {block.window for block in BLOCKS[1:]}
    assert "probability_0_0.tif: found this finished part gone or damaged; it is done again" in caplog.text
    caplog.clear()
    assert cut_off(tmp_path, []) == {block.window for block in BLOCKS}  # the line of before no longer counts
    assert not caplog.text


@pytest.mark.parametrize(
    ("written", "damaged"),
    [
        ('"window"', '"wincow"'),
        ('"row"', '"rov"'),
        ('"valid_pixels"', '"valid_pixelr"'),
        ('"valid_pixels": 100', '"valid_pixels": 0'),
        ('"files"', '"giles"'),
        ('{"probability": ', '{"probabiliti": '),
        ('"files": {', '"files": 7, "x": {'),
    ],
)
def test_a_line_that_was_damaged_does_not_count(tmp_path, written, damaged):
    cut_off(tmp_path)
    journal = tmp_path / FOLDER / "journal"
    assert written in journal.read_text()
    journal.write_text(journal.read_text().replace(written, damaged, 1))
    assert cut_off(tmp_path, BLOCKS[:1]) == {block.window for block in BLOCKS[1:]}
    assert cut_off(tmp_path, []) == {block.window for block in BLOCKS}


def test_a_part_that_cannot_be_read_is_done_again(tmp_path):
    cut_off(tmp_path)
    file = tmp_path / FOLDER / "probability_0_0.tif"
    file.unlink()
    file.mkdir()
    assert cut_off(tmp_path, []) == {block.window for block in BLOCKS[1:]}


def test_what_a_kill_left_half_made_is_removed(tmp_path):
    cut_off(tmp_path)
    (tmp_path / FOLDER / ".hetecd-left").mkdir()
    (tmp_path / FOLDER / ".hetecd-left" / "change.tif").write_text("half")
    with work_in(tmp_path, MADE_FROM, 4) as work:
        assert not (work.folder / ".hetecd-left").exists()
        assert len(work.done) == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weights": {"sha256": "34"}}, "weights.sha256 12, expected 34"),
        ({"settings": {"tile_px": 128, "tta": False}}, "settings.tile_px 256, expected 128"),
        ({"alignment": [1, 2]}, r"alignment None, expected \[1, 2\]"),
    ],
)
def test_work_of_something_else_is_not_mixed_in(tmp_path, change, message):
    cut_off(tmp_path)
    with pytest.raises(InputError, match=message) as error, work_in(tmp_path, MADE_FROM | change, 4):
        pass
    assert "--redo" in str(error.value)
    assert "\n" not in str(error.value)
    assert cut_off(tmp_path, []) == {block.window for block in BLOCKS}  # it is still there
    with work_in(tmp_path, MADE_FROM | change, 4, redo=True) as work:
        assert not work.done
    assert os.listdir(tmp_path) == []


def test_what_cannot_be_used_again_is_not_kept(tmp_path):
    cut_off(tmp_path / "unknown", made_from=None)
    cut_off(tmp_path / "nothing valid", BLOCKS[1:2], error=InputError)
    cut_off(tmp_path / "nothing", [])
    assert os.listdir(tmp_path) == []
    cut_off(tmp_path)
    done = cut_off(tmp_path, [])
    with pytest.raises(InputError, match="found unfinished work of a known run"), work_in(tmp_path, None, 4):
        pass
    assert cut_off(tmp_path, []) == done  # it is still there
    with work_in(tmp_path, None, 4, redo=True) as work:
        assert not work.done


@pytest.mark.parametrize(("apart_px", "same"), [(3e-7, True), (1e-3, False)])
def test_an_alignment_may_differ_in_its_last_digits(tmp_path, apart_px, same):
    """As processors do, on which one and the same run may go on."""
    shifts = [-5.0216462 + by for by in (0, apart_px)]
    moved = [{"sar_move": [1.0, 0.0, x, 0.0, 1.0, 3.0], "shift_m": [250 * x, 3.0], "note": "moved"} for x in shifts]
    first, second = (MADE_FROM | {"alignment": alignment} for alignment in moved)
    cut_off(tmp_path, made_from=first)
    if same:
        assert len(cut_off(tmp_path, [], made_from=second)) == len(BLOCKS)
    else:
        with pytest.raises(InputError, match=r"alignment\.s"), work_in(tmp_path, second, 4):
            pass


@pytest.mark.parametrize(("first", "second", "expected"), [(4, 8, 4), (4, 2, 2)])
def test_a_resumed_run_takes_no_larger_batch(tmp_path, first, second, expected):
    cut_off(tmp_path, batch=first)
    with work_in(tmp_path, MADE_FROM, second) as work:
        assert work.batch == expected


def test_a_resumed_run_keeps_its_batch_unless_a_smaller_one_is_asked_for(tmp_path):
    cut_off(tmp_path, batch=8)

    def resumed(batch, keep_batch):
        with work_in(tmp_path, MADE_FROM, batch, keep_batch=keep_batch) as work:
            taken.append(work.batch)
            raise KeyboardInterrupt

    taken = []
    for batch, keep_batch in ((4, True), (6, False), (2, False), (4, False), (8, True), (1, True)):
        with pytest.raises(KeyboardInterrupt):
            resumed(batch, keep_batch)
    assert taken == [8, 6, 2, 2, 2, 2]
    assert cut_off(tmp_path, []) == {block.window for block in BLOCKS}


def test_one_at_a_time(tmp_path):
    with work_in(tmp_path, MADE_FROM, 4) as work:
        work.add(BLOCKS[0], {"probability": image(BLOCKS[0])})
        with pytest.raises(InputError, match="another run of hetecd") as error, work_in(tmp_path, MADE_FROM, 4):
            pass
        assert "\n" not in str(error.value)
        assert len((work.folder / "journal").read_text().splitlines()) == 2


def test_a_folder_that_is_gone(tmp_path):
    def run():
        with work_in(tmp_path, MADE_FROM, 4) as work:
            shutil.rmtree(work.folder)
            work.add(BLOCKS[0], {"probability": image(BLOCKS[0])})

    with pytest.raises(OutputError, match="cannot write"):
        run()


def test_the_journal_says_what_was_made(tmp_path):
    cut_off(tmp_path)
    lines = [json.loads(line) for line in (tmp_path / FOLDER / "journal").read_text().splitlines()]
    assert lines[0] == {"made_from": MADE_FROM, "batch": 4}
    assert lines[1]["window"] == {"row": 0, "col": 0, "height": 512, "width": 40}
