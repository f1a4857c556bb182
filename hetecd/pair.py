"""Two open images of two dates on one pixel grid, read window by window.

The grid is that of the optical image unless another is chosen; SAR is warped onto it as it is read.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import cached_property
from pathlib import Path

import numpy as np
from rasterio.transform import Affine

from hetecd.config import Role
from hetecd.errors import InputError
from hetecd.grids import GridChoice, choose_grid
from hetecd.image import Image, Read, open_image
from hetecd.modality import Floats, Modality
from hetecd.place import Place
from hetecd.raster import Bools, Grid
from hetecd.tiles import Window, sampled

SAMPLE, SAMPLE_PX = 6, 128  # windows of a sample along either axis, and their edge


class Pair:
    """Two open images on one pixel grid; made by :func:`open_pair`.

    Reading takes a lock, for GDAL's datasets serve one thread at a time.

    Attributes:
        grid: the common grid.
        optical_path: file or folder of the optical image.
        sar_path: file or folder of the SAR image.
        before_is: which of the two the earlier date is.
        aoi: file of the area of interest, if there is one.
        files: local files that the two are read from, also those behind a container or a virtual raster.
    """

    def __init__(
        self,
        grid: Grid,
        optical_path: Path | str,
        sar_path: Path | str,
        before_is: Role,
        files: Sequence[str],
        read_optical: Read,
        read_sar: Read,
        aoi: Path | str | None = None,
        wanted: Callable[[Window], Bools] | None = None,
    ) -> None:
        self.grid = grid
        self.optical_path = optical_path
        self.sar_path = sar_path
        self.before_is: Role = before_is
        self.aoi = aoi
        self.files = tuple(files)
        self._read_optical = read_optical
        self._read_sar = read_sar
        self._wanted = wanted
        self._lock = threading.Lock()

    def read(self, window: Window) -> tuple[Floats, Floats, Bools]:
        """Read a window inside the grid; it equals the same part of any larger window to the last bit.

        Returns:
            optical (Co, h, w) and sar (Cs, h, w), float32 in the units of the files, NaN where that image is invalid;
            valid (h, w), True where both are usable and, where there is one, inside the area of interest.

        Raises:
            InputError: a file turns out to be damaged.
        """
        with self._lock:
            optical, optical_valid = self._read_optical(window)
            sar, sar_valid = self._read_sar(window)
            valid = optical_valid & sar_valid
            if self._wanted is not None:
                valid &= self._wanted(window)
        return optical, sar, valid

    def read_usable(self, window: Window) -> tuple[Floats, Floats, Bools] | None:
        """As :meth:`read`, but None, and sooner, where no pixel is valid in both."""
        with self._lock:
            valid = np.ones((window.height, window.width), bool) if self._wanted is None else self._wanted(window)
            if not valid.any():
                return None
            optical, optical_valid = self._read_optical(window)
            valid &= optical_valid
            if not valid.any():
                return None
            sar, sar_valid = self._read_sar(window)
        valid &= sar_valid
        return (optical, sar, valid) if valid.any() else None

    @cached_property
    def sample(self) -> tuple[Floats, Floats]:
        """Optical (Co, n) and SAR (Cs, n) where both are valid, of windows spread over that; (0, 0) if nowhere."""
        parts, _ = sampled(self.grid.shape, self.read_usable, SAMPLE, SAMPLE_PX)
        if not parts:
            return np.empty((0, 0), np.float32), np.empty((0, 0), np.float32)
        optical, sar = (np.concatenate([part[date][:, part[2]] for part in parts], axis=1) for date in (0, 1))
        return optical, sar


@contextmanager
def open_pair(
    before: Path | str,
    after: Path | str,
    before_is: Role,
    optical: Modality,
    sar: Modality,
    sar_move: Affine | None = None,
    choice: GridChoice = GridChoice(),  # noqa: B008 - frozen
) -> Iterator[Pair]:
    """Open two images on one grid, by default the optical one's; what is of other pixels is warped as it is read.

    Two files without CRS and of equal size are used pixel by pixel.

    Args:
        before: file of the earlier date, or folder of its granules.
        after: the same of the later date.
        before_is: which of the two the earlier date is.
        optical: which bands are read from the optical image.
        sar: which bands are read from the SAR image.
        sar_move: corrects where the SAR image lies (see :mod:`hetecd.align`): what is at pixel (col, row) of the grid
            is found where the SAR image, by its georeference, would lie at pixel ``sar_move @ (col, row)``. It becomes
            part of the one warp.
        choice: what the grid is to be, where not the optical image's own.

    Raises:
        InputError: a file is missing, no raster or has too few bands; only one has a CRS; they do not overlap; the
            grid that is asked for is none.
    """
    optical_path, sar_path = (before, after) if before_is == "optical" else (after, before)
    with ExitStack() as stack:
        optical_image = stack.enter_context(open_image(optical_path, optical.bands))
        sar_image = stack.enter_context(open_image(sar_path, sar.bands))
        check_related(optical_image, sar_image)
        common = choose_grid([granule.place for granule in optical_image.granules], optical_path, choice)
        yield Pair(
            common.grid,
            optical_path,
            sar_path,
            before_is,
            [*optical_image.files, *sar_image.files],
            optical_image.on(stack, common.grid),
            sar_image.on(stack, common.grid, sar_move),
            choice.aoi,
            common.wanted,
        )


def check_related(optical: Image, sar: Image) -> None:
    """InputError where nothing says which pixel of one image is which of the other."""
    one, other = optical.place, sar.place
    if (one.crs is None) != (other.crs is None):
        without, with_crs = (optical.path, sar.path) if one.crs is None else (sar.path, optical.path)
        raise InputError(
            f"{without}: found no CRS while {with_crs} has one, expected both or neither; georeference it "
            "(rio edit-info --crs --transform)"
        )
    if one.crs is not None:
        return
    if (one.height, one.width) != (other.height, other.width):
        raise InputError(
            f"{sar.path}: found {other.height} x {other.width} pixels, expected {one.height} x {one.width} as "
            f"in {optical.path}, for neither has a CRS; georeference both or bring them to one size"
        )
    if not _same_transform(one, other):
        raise InputError(f"{sar.path}: found another transform than in {optical.path} but no CRS in either; assign it")


def _same_transform(one: Place, other: Place) -> bool:
    """Whether two of equal size lie alike, or one of them nowhere."""
    corners = [0, one.width, 0], [0, 0, one.height]
    offset = np.abs(one.ground(*corners) - other.ground(*corners)).max()
    size = np.hypot(*(one.ground([1], [0]) - one.ground([0], [0])))[0]
    return bool(offset < 1e-3 * size) or Affine.identity() in (one.transform, other.transform)
