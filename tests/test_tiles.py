from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hetecd.errors import InputError
from hetecd.modality import STRIDE_PX
from hetecd.tiles import (
    BLOCK_PX,
    Stitcher,
    Window,
    blend_weights,
    blocks,
    panels,
    sampled,
    shares,
    starts,
    window_rows,
    windows,
)


@st.composite
def layouts(draw):
    if draw(st.booleans()):  # steps of 32, with which the last window keeps
        tile_px = 32 * draw(st.integers(2, 4))
        return draw(st.integers(1, 400)), draw(st.integers(1, 400)), tile_px, tile_px - 32 * draw(st.integers(1, 2))
    tile_px = draw(st.integers(1, 40))
    return draw(st.integers(1, 120)), draw(st.integers(1, 120)), tile_px, draw(st.integers(0, tile_px - 1))


def part(image, window):
    return image[window.row : window.row + window.height, window.col : window.col + window.width]


def stitch(layout, value_of, keep=lambda window: True, area=None):
    """Run all windows through a Stitcher; every row must come exactly once, from top to bottom."""
    height, width, _, _ = layout
    area = area or Window(0, 0, height, width)
    stitcher = Stitcher(*layout, area)
    found = []
    rows = list(window_rows(*layout, area))
    ends = [*(row[0].row for row in rows[1:]), area.row + area.height]
    for row, end in zip(rows, ends, strict=True):
        for window in row:
            if keep(window):
                stitcher.add(window, value_of(window))
        found.append(stitcher.advance(end))
    image = np.concatenate(found)
    assert image.shape == (area.height, area.width)
    return image


@settings(deadline=None)
@given(layouts())
def test_windows_cover_the_scene_with_the_overlap(layout):
    height, width, tile_px, overlap_px = layout
    on_stride = (tile_px - overlap_px) % STRIDE_PX == 0 and tile_px >= 2 * STRIDE_PX
    found = windows(*layout)
    count = np.zeros((height, width), int)
    for window in found:
        for start, size, length in ((window.row, window.height, height), (window.col, window.width, width)):
            if on_stride:
                assert start % STRIDE_PX == 0
                assert size == min(tile_px, length - start) > min(tile_px - STRIDE_PX, length - 1)
            else:
                assert size == min(tile_px, length)
        assert window.row >= 0
        assert window.col >= 0
        part(count, window)[...] += 1
    assert count.min() >= 1
    assert count.shape == (height, width)
    assert found == sorted(found, key=lambda w: (w.row, w.col))
    assert len(set(found)) == len(found)
    for axis in ("row", "col"):
        positions = sorted({getattr(window, axis) for window in found})
        assert all(b - a <= tile_px - overlap_px for a, b in pairwise(positions))


@settings(deadline=None)
@given(layouts())
def test_every_pixel_is_taken_up_by_some_window(layout):
    length, _, tile_px, overlap_px = layout
    taken = np.zeros(length, bool)
    for start, share in shares(length, tile_px, overlap_px).items():
        assert ((share >= 0) & (share <= 1)).all()
        # What comes first must come whole: there is nothing yet to mix it with.
        assert (share[~taken[start : start + len(share)]] % 1 == 0).all()
        taken[start : start + len(share)] |= share > 0
    assert taken.all()


@settings(max_examples=40, deadline=None)
@given(layouts(), st.integers(0, 2**32 - 1))
def test_what_windows_agree_on_is_kept_to_the_last_bit(layout, seed):
    rng = np.random.default_rng(seed)
    image = rng.random(layout[:2]).astype(np.float32)
    image[rng.random(layout[:2]) < 0.1] = np.nan
    assert np.array_equal(stitch(layout, lambda window: part(image, window)), image, equal_nan=True)
    constant = np.float32(0.3)
    assert (stitch(layout, lambda w: np.full((w.height, w.width), constant)) == constant).all()


def neighbours(start, positions, tile_px):
    """What a window shares with the one before and the one after."""
    k = positions.index(start)
    before = positions[k - 1] + tile_px - start if k else None
    after = start + tile_px - positions[k + 1] if k + 1 < len(positions) else None
    return before, after


@settings(max_examples=40, deadline=None)
@given(layouts(), st.integers(0, 2**32 - 1))
def test_a_blend_is_the_weighted_mean(layout, seed):
    height, width, tile_px, overlap_px = layout
    rng = np.random.default_rng(seed)
    values = {window: rng.random((window.height, window.width)).astype(np.float32) for window in windows(*layout)}
    total, weight = np.zeros((height, width)), np.zeros((height, width))
    for window, value in values.items():
        edges = [
            blend_weights(size, *neighbours(start, starts(length, tile_px, overlap_px), tile_px))
            for start, size, length in ((window.row, window.height, height), (window.col, window.width, width))
        ]
        part(total, window)[...] += np.outer(*edges) * value
        part(weight, window)[...] += np.outer(*edges)
    assert weight.min() > 0
    np.testing.assert_allclose(stitch(layout, values.get), total / weight, atol=1e-5)


def test_neighbours_add_up_to_one_and_the_outer_quarter_counts_nothing():
    before = blend_weights(64, None, 16)
    after = blend_weights(64, 16, None)
    np.testing.assert_allclose(before[-16:] + after[:16], 1, atol=1e-12)
    assert (after[:4] == 0).all()
    assert (after[12:] == 1).all()
    assert (before[:-12] == 1).all()


def test_a_wide_overlap_is_blended_in_its_middle_alone():
    ramp = blend_weights(1536, 512, None)
    assert (ramp[:224] == 0).all()
    assert (np.diff(ramp[224:288]) > 0).all()
    assert (ramp[288:] == 1).all()


def test_rubbish_near_window_borders_does_not_show():
    layout = (150, 210, 64, 24)  # 24 / 4 = 6 pixels of every inner border count nothing

    def bad_near_borders(window):
        value = np.full((window.height, window.width), 0.25, np.float32)
        rows, cols = np.indices(value.shape)
        near = np.zeros(value.shape, bool)
        near |= (rows < 6) & (window.row > 0)
        near |= (rows >= window.height - 6) & (window.row + window.height < 150)
        near |= (cols < 6) & (window.col > 0)
        near |= (cols >= window.width - 6) & (window.col + window.width < 210)
        value[near] = np.nan
        return value

    assert (stitch(layout, bad_near_borders) == np.float32(0.25)).all()


def test_a_seam_is_no_step():
    layout = (64, 200, 64, 32)
    image = stitch(layout, lambda w: np.full((w.height, w.width), float(w.col > 60), np.float32))
    assert np.abs(np.diff(image, axis=1)).max() < 0.11  # the values differ by 1 over a ramp of 16 pixels
    assert (np.diff(image[0]) >= 0).all()


def test_windows_left_out_are_nan():
    layout = (300, 90, 32, 8)
    valid = np.zeros((300, 90), bool)
    valid[130:140, 10:70] = True
    valid[20, 5] = True
    image = np.where(valid, np.float32(0.5), np.float32(np.nan))
    found = stitch(layout, lambda w: part(image, w), keep=lambda w: part(valid, w).any())
    assert np.array_equal(found, image, equal_nan=True)
    assert np.isnan(stitch(layout, None, keep=lambda w: False)).all()


@settings(max_examples=60, deadline=None)
@given(layouts(), st.data())
def test_a_part_is_the_same_part_of_the_whole(layout, data):
    """To the last bit: a run that goes on in the middle, or is cut into panels, gives what one in one piece gives."""
    height, width = layout[:2]
    row, col = data.draw(st.integers(0, height - 1)), data.draw(st.integers(0, width - 1))
    area = Window(row, col, data.draw(st.integers(1, height - row)), data.draw(st.integers(1, width - col)))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    valid = np.kron(rng.random((4, 4)) < 0.3, np.ones((-(-height // 4), -(-width // 4))))[:height, :width] > 0
    values = {
        window: np.where(part(valid, window), rng.random((window.height, window.width)), np.nan)
        for window in windows(*layout)
    }
    whole, cut = (stitch(layout, values.get, lambda w: part(valid, w).any(), where) for where in (None, area))
    assert np.array_equal(part(whole, area), cut, equal_nan=True)


@settings(deadline=None)
@given(st.integers(1, 60_000), st.integers(1, 60_000))
def test_panels_and_blocks_cover_a_scene_once(height, width):
    found = panels(height, width)
    assert [panel.col for panel in found] == np.cumsum([0, *(panel.width for panel in found)])[:-1].tolist()
    assert sum(panel.width for panel in found) == width
    assert all(panel.col % BLOCK_PX == 0 for panel in found)
    assert max(panel.width for panel in found) <= 16384
    for panel in (found[0], found[-1]):
        rows = blocks(panel)
        assert all((block.col, block.width, block.row % BLOCK_PX) == (panel.col, panel.width, 0) for block in rows)
        assert sum(block.height for block in rows) == height
        assert 0 < min(block.height for block in rows) <= max(block.height for block in rows) <= BLOCK_PX


def test_stitcher_keeps_two_strips_only():
    stitcher = Stitcher(100_000, 100, 64, 16)
    assert stitcher._strip.nbytes + stitcher._joined.nbytes == 2 * 64 * 100 * 4


@pytest.mark.parametrize(("tile_px", "overlap_px"), [(0, 0), (-3, 0), (32, 32), (32, 40), (32, -1)])
def test_bad_layout_is_refused(tile_px, overlap_px):
    with pytest.raises(InputError, match="expected"):
        windows(100, 100, tile_px, overlap_px)
    with pytest.raises(InputError, match="expected"):
        Stitcher(100, 100, tile_px, overlap_px)


def test_stitcher_refuses_foreign_windows():
    stitcher = Stitcher(100, 100, 32, 8)
    with pytest.raises(ValueError, match="not one of"):
        stitcher.add(Window(0, 1, 32, 32), np.zeros((32, 32), np.float32))
    with pytest.raises(ValueError, match="shape"):
        stitcher.add(Window(0, 0, 32, 32), np.zeros((32, 31), np.float32))
    with pytest.raises(ValueError, match="out of order"):
        stitcher.add(Window(24, 0, 32, 32), np.zeros((32, 32), np.float32))
    stitcher.advance(24)
    with pytest.raises(ValueError, match="out of order"):
        stitcher.add(Window(0, 24, 32, 32), np.zeros((32, 32), np.float32))
    for row in (0, 57):
        with pytest.raises(ValueError, match="leaves out rows"):
            stitcher.advance(row)


@pytest.mark.parametrize(
    ("row", "col", "edge"), [(0, 0, 9000), (6000, 7100, 700), (100, 8900, 100), (3676, 3676, 1654), (3, 5, 0)]
)
def test_a_sample_is_of_where_there_is_something(row, col, edge):
    """In a scene of 9000 px; nothing at all in the last case."""
    looked = []

    def look(window):
        looked.append(window)
        inside = [
            min(at + edge, first + size) - max(at, first)
            for at, first, size in ((row, window.row, window.height), (col, window.col, window.width))
        ]
        return window if edge and min(inside) > 0 else None

    seen, around = sampled((9000, 9000), look, 6, 128)
    assert len(set(looked)) < 6**2 + 24**2 + 71**2 + 3 * 6**2
    if not edge:
        assert (seen, around) == ([], Window(0, 0, 9000, 9000))
        return
    assert len(seen) >= 8
    assert around.row <= row <= row + edge <= around.row + around.height
    assert around.col <= col <= col + edge <= around.col + around.width
    assert edge == 9000 or max(around.height, around.width) < 1.5 * edge + 600


def test_no_sample_looks_more_often_than_there_are_pixels_to_see():
    looked = []
    assert sampled((300, 300), looked.append, 6, 128)[0] == []
    assert len(looked) == 36
