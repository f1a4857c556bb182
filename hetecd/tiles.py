"""Windows over a scene, and how their results are blended back into one. NumPy only."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Window:
    """A rectangle of pixels: rows ``row`` to ``row + height``, columns ``col`` to ``col + width`` (exclusive)."""

    row: int
    col: int
    height: int
    width: int
