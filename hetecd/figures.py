"""Pictures: sheets of tiles and curves. The only module that imports matplotlib."""

import base64
import html
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from matplotlib.image import imsave
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from hetecd.config import IGNORE
from hetecd.data import Tile
from hetecd.files import replacing
from hetecd.info import ModelInfo
from hetecd.metrics import confusion
from hetecd.modality import Floats
from hetecd.preview import NODATA, picture

# Colours that stay apart for colour-blind readers (Okabe and Ito 2008).
HIT, MISS, FALSE_ALARM, QUIET = (255, 255, 255), (86, 180, 233), (230, 159, 0), (0, 0, 0)
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
PLAIN: Any = {"text.parse_math": False}  # a name with two dollars is no formula
VERDICT = "white hit, blue missed,\norange false alarm"  # title of what :func:`verdict` gives


def verdict(prob: Floats, label: NDArray[np.uint8], threshold: float) -> NDArray[np.uint8]:
    """(H, W, 3) uint8: hit white, missed blue, false alarm orange, rightly quiet black, ignored grey."""
    changed, true = prob >= threshold, label == 1
    out = np.empty((*label.shape, 3), np.uint8)
    for colour, where in ((HIT, changed & true), (MISS, ~changed & true), (FALSE_ALARM, changed & ~true),
                          (QUIET, ~changed & ~true), (NODATA, label == IGNORE)):  # fmt: skip
        out[where] = colour
    return out


def tile_sheet(rows: Sequence[tuple[Tile, Floats]], info: ModelInfo, path: Path) -> None:
    """Write a PNG with a row per tile: optical, SAR, label, probability, errors in colour.

    Args:
        rows: tiles with their probability (H, W).
        info: for the threshold.
        path: where to; appears when it is whole.
    """
    columns = ("optical", "SAR", "label", "probability", VERDICT)
    shown = []
    for tile, prob in rows:
        images = (*seen(tile), np.nan_to_num(prob), verdict(prob, tile.label, info.threshold))
        shown.append((f"{tile.name}\nIoU {iou(prob, tile.label, info.threshold)}", images))
    image_sheet(shown, columns, path)


def seen(tile: Tile) -> tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.uint8]]:
    """Both images and the label of a tile, (H, W, 3) uint8 each."""
    label = np.where(tile.label == IGNORE, 128, tile.label * 255).astype(np.uint8)
    return picture(tile.optical), picture(tile.sar), label[..., None].repeat(3, -1)


def iou(prob: Floats, label: NDArray[np.uint8], threshold: float) -> str:
    """IoU of the changed class in percent; a dash where nothing changed in either."""
    value = confusion(prob >= threshold, label).scores()["iou"]
    return "–" if np.isnan(value) else f"{100 * value:.0f} %"


@mpl.rc_context(PLAIN)
def image_sheet(rows: Sequence[tuple[str, Sequence[NDArray[Any]]]], columns: Sequence[str], path: Path) -> None:
    """Write a PNG of images in rows and columns, both with titles.

    Args:
        rows: title and images: (H, W, 3) uint8, or (H, W) from 0 to 1, shown in colours of their own.
        columns: titles.
        path: where to; appears when it is whole.
    """
    figure = Figure(figsize=(2.12 * len(columns), 2.15 * len(rows) + 0.5), dpi=110, layout="constrained")
    axes = figure.subplots(len(rows), len(columns), squeeze=False)
    for line, (title, images) in zip(axes, rows, strict=True):
        for axis, image in zip(line, images, strict=True):
            axis.imshow(image, interpolation="nearest", cmap="viridis", vmin=0.0, vmax=1.0)
            axis.set_xticks([])
            axis.set_yticks([])
        line[0].set_ylabel(title, fontsize=8)
    for axis, title in zip(axes[0], columns, strict=True):
        axis.set_title(title, fontsize=9)
    save_figure(figure, path)


@mpl.rc_context(PLAIN)
def density_figure(
    curves: Mapping[str, Mapping[str, tuple[NDArray[np.floating], NDArray[np.floating]]]], path: Path, title: str
) -> None:
    """Write a PNG with a panel per entry, each with one density curve per name.

    Args:
        curves: panel -> name -> (values, density).
        path: where to; appears when it is whole.
        title: above everything.
    """
    figure = Figure(figsize=(3.4 * len(curves), 3.2), dpi=120, layout="constrained")
    axes = figure.subplots(1, len(curves), squeeze=False)[0]
    colours = mpl.color_sequences["tab10"]
    for axis, (panel, named) in zip(axes, curves.items(), strict=True):
        for colour, (name, (values, density)) in zip(colours, named.items(), strict=False):
            axis.plot(values, density, color=colour, label=name, linewidth=1.2)
            axis.fill_between(values, density, color=colour, alpha=0.2)
        axis.set_title(panel, fontsize=9)
        axis.set_xlabel("feature value", fontsize=8)
        axis.tick_params(labelsize=7)
        axis.legend(fontsize=8)
    axes[0].set_ylabel("density", fontsize=8)
    figure.suptitle(title, fontsize=10)
    save_figure(figure, path)


@dataclass(frozen=True)
class Line:
    """One line of a chart.

    Attributes:
        name: in the legend; "" = not there.
        x: (N,) places; where y is NaN the line has a gap.
        y: (N,) values.
        colour: as matplotlib takes it, see COLOURS.
        style: "-", "--", ":", and "o" or "o-" for points.
    """

    name: str
    x: Sequence[float] | NDArray[Any]
    y: Sequence[float] | NDArray[Any]
    colour: str = COLOURS[0]
    style: str = "-"


def line_chart(title: str, lines: Sequence[Line], x_label: str, y_label: str, square: bool = False) -> str:
    """A chart as one SVG element for an HTML page: sharp on paper, its words real text.

    Args:
        title: above it, and what a screen reader says.
        lines: from the back to the front.
        x_label: what x is, with its unit.
        y_label: what y is.
        square: both axes run from 0 to 1 at the same scale.
    """
    # The salt keeps the ids of several charts in one page apart and the same in every run.
    with mpl.rc_context(PLAIN | {"svg.fonttype": "none", "svg.hashsalt": title}):
        figure = Figure(figsize=(4.2, 4.0 if square else 2.9), layout="constrained")
        axis = figure.subplots()
        for line in lines:
            name = line.name or "_"  # which matplotlib leaves out of the legend
            axis.plot(line.x, line.y, line.style, color=line.colour, linewidth=1.5, markersize=4, label=name)
        axis.set(title=title, xlabel=x_label, ylabel=y_label)
        axis.grid(color="#dddddd", linewidth=0.6)
        axis.spines[["top", "right"]].set_visible(False)
        if square:
            axis.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), aspect="equal")
        elif lines:
            axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        if any(line.name for line in lines):
            axis.legend(fontsize=8, framealpha=0.8)
        file = io.StringIO()
        figure.savefig(file, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    _, _, svg = file.getvalue().partition("<svg ")
    return f'<svg role="img" aria-label="{html.escape(title)}" {svg}'


def data_uri(image: NDArray[np.uint8] | Floats, photo: bool = False) -> str:
    """An image as the address of an ``<img>`` in a page that needs no other file.

    Args:
        image: (H, W, 3) uint8, or (H, W) from 0 to 1, shown in colours of its own.
        photo: a tenth of the size, not exact to the pixel (JPEG instead of PNG).
    """
    kind, file = "jpeg" if photo else "png", io.BytesIO()
    imsave(file, image, vmin=0.0, vmax=1.0, cmap="viridis", format=kind)
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"


def save_figure(figure: Figure, path: Path) -> None:
    """Write a PNG, whole or not at all.

    Raises:
        OutputError: it cannot be written.
    """
    with replacing(path) as part:
        figure.savefig(part, format="png")
