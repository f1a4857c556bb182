"""How far a long run is: a bar on a terminal, a line now and then in a log file."""

import logging
import sys
import time
from types import TracebackType

from tqdm import tqdm

log = logging.getLogger("hetecd")

EVERY_S = 300  # between two lines in a log file


class Progress:
    """Counts pixels towards a total; a context manager.

    On a terminal a bar with speed and time left. Elsewhere a line every five minutes, so that a short run is silent
    and a night fills a page.

    Args:
        pixels: how many there are to do.
        show: False for silence.
    """

    def __init__(self, pixels: int, show: bool = True) -> None:
        self._total_mpx = pixels / 1e6
        self._is_terminal = sys.stderr.isatty()
        self._show = show
        self._done_mpx = 0.0
        self._started = self._told = time.monotonic()
        self._bar = tqdm(
            total=round(self._total_mpx, 3), disable=not (show and self._is_terminal),
            bar_format="{percentage:3.0f} % |{bar}| {n:.1f} of {total:.1f} Mpx{postfix} [{elapsed}<{remaining}]",
        )  # fmt: skip

    def __enter__(self) -> "Progress":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.close()

    def skip(self, pixels: int) -> None:
        """These were done by an earlier run; they tell nothing about the speed of this one."""
        self._total_mpx -= pixels / 1e6
        self._bar.reset(round(self._total_mpx, 3))

    def add(self, pixels: int) -> None:
        """These are done now."""
        self._done_mpx += pixels / 1e6
        now = time.monotonic()
        speed = self._done_mpx / max(now - self._started, 1e-9)
        self._bar.set_postfix_str(f"{speed:.2f} Mpx/s", refresh=False)
        self._bar.update(pixels / 1e6)
        if self._show and not self._is_terminal and now - self._told >= EVERY_S:
            self._told = now
            left_min = (self._total_mpx - self._done_mpx) / speed / 60
            log.info("%.0f of %.0f Mpx, %.2f Mpx/s, %.0f min left", self._done_mpx, self._total_mpx, speed, left_min)
