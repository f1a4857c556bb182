"""Outlines against two other ways to get them: GDAL's polygons of the whole image, and scipy's labels."""

from itertools import pairwise

import numpy as np
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from rasterio.features import shapes
from scipy import ndimage

from hetecd.outline import STRIP_ROWS, trace


def traced(inside, values, cuts=()):
    """Polygons, areas and means of an image that comes in blocks which end at ``cuts``."""
    edges = [0, *sorted(cuts), len(inside)]
    blocks = ((inside[a:b], values[a:b]) for a, b in pairwise(edges))
    found = list(trace(blocks, inside.shape[1]))
    if not found:
        return np.empty(0, object), np.empty(0), np.empty(0)
    return tuple(np.concatenate([getattr(item, name) for item in found]) for name in ("polygons", "area_px", "mean"))


def whole(inside):
    """GDAL's polygons of the groups of the whole image."""
    groups = ndimage.label(inside, output=np.int32)[0]
    outlines = (outline["coordinates"] for outline, _ in shapes(groups, mask=groups > 0, connectivity=4))
    return [shapely.Polygon(shell, holes) for shell, *holes in outlines]


def canonical(polygons):
    return sorted(shapely.to_wkt(shapely.normalize(np.array(polygons, object))).tolist()) if len(polygons) else []


IMAGES = st.tuples(st.integers(1, 12), st.integers(1, 12)).flatmap(lambda shape: arrays(bool, shape))


@settings(max_examples=300, deadline=None)
@given(IMAGES, st.sets(st.integers(0, 12)), st.integers(0, 99))
def test_any_blocks_give_the_polygons_of_the_whole(inside, cuts, seed):
    values = np.random.default_rng(seed).random(inside.shape).astype(np.float32)
    polygons, area_px, mean = traced(inside, values, {cut for cut in cuts if cut <= len(inside)})
    assert canonical(polygons) == canonical(whole(inside))
    assert all(polygon.is_valid for polygon in polygons)
    assert [polygon.area for polygon in polygons] == area_px.tolist()
    at_once = traced(inside, values)
    assert shapely.to_wkb(polygons).tolist() == shapely.to_wkb(at_once[0]).tolist()  # the order too
    np.testing.assert_allclose(mean, at_once[2], rtol=1e-9)
    groups, count = ndimage.label(inside)
    expected = np.sort(ndimage.mean(values.astype(float), groups, range(1, count + 1))) if count else []
    np.testing.assert_allclose(np.sort(mean), expected, rtol=1e-9)


def test_groups_over_many_strips_of_rows():
    """Among them a comb, whose teeth are groups of their own for long, and spirals."""
    rng = np.random.default_rng(0)
    smooth = ndimage.gaussian_filter(rng.random((5 * STRIP_ROWS + 3, 150)), 4)
    inside = smooth < np.quantile(smooth, 0.5)
    inside[:300, :40:2], inside[:300, 1:40:2] = True, False
    inside[300, :40] = True
    polygons, area_px, _ = traced(inside, smooth.astype(np.float32), {100, 101, 250})
    assert canonical(polygons) == canonical(whole(inside))
    assert area_px.sum() == inside.sum()
    ends = [polygon.bounds[3] for polygon in polygons]
    assert ends == sorted(ends)


def test_holes_that_touch_at_a_point():
    """The ring of a hole must not run through the shell or another hole, nor touch itself."""
    inside = np.ones((7, 7), bool)
    for at in ((1, 1), (2, 2), (3, 3), (5, 5), (6, 6)):  # a chain of holes, and one that meets the outside at a corner
        inside[at] = False
    (polygon,), (area_px,), _ = traced(inside, inside.astype(np.float32), {2, 3})
    assert polygon.is_valid
    assert len(polygon.interiors) == 4
    assert polygon.area == area_px == 44
    assert canonical([polygon]) == canonical(whole(inside))


def test_nothing_and_everything():
    nothing, everything = np.zeros((70, 5), bool), np.ones((70, 5), bool)
    assert len(traced(nothing, nothing.astype(np.float32), {3})[0]) == 0
    (polygon,), (area_px,), (mean,) = traced(everything, everything.astype(np.float32), {3})
    assert polygon.equals(shapely.box(0, 0, 5, 70))
    assert len(polygon.exterior.coords) == 5
    assert (area_px, mean) == (350, 1)
