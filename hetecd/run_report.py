"""One HTML page about a training, or several side by side, that needs no other file and no network.

Curves come from the log. The diagrams, the tiles and the confusion by tile need tiles to predict. What cannot be shown
is named on the page, and the rest is shown.
"""

import math
from collections.abc import Sequence
from html import escape
from pathlib import Path
from string import Template
from typing import Any

import numpy as np

import hetecd
from hetecd.errors import InputError
from hetecd.evaluate import telling
from hetecd.figures import COLOURS, VERDICT, Line, data_uri, iou, line_chart, seen, verdict
from hetecd.files import replacing
from hetecd.runs import LOG, OpenPredictor, Run, Scored, differing, gain, previous_run, read_run, score_runs, settings

TEMPLATE = Path(__file__).parent / "page" / "runs.html"
Shown = Sequence[tuple[str, str, Scored]]  # name, colour, counts of the trainings that could be scored
EACH = 2  # tiles of the best, of the median and of the worst
MOST_ROWS = 100  # of the table of tiles
SHOWN_PX = 256  # edge of a tile's picture


def write_report(
    folder: Path | str,
    out: Path | str | None = None,
    previous: Path | str | None = None,
    data: Path | str | None = None,
    split: str = "val",
    open_predictor: OpenPredictor | None = None,
    batch: int = 8,
) -> Path:
    """Write the page of a training, compared with the one before it, and return its path.

    Args:
        folder: of the training.
        out: the page; None = ``report.html`` in the folder.
        previous: training to compare with; None = the one beside it that ended last before it, if there is one.
        data: tiles to predict; None leaves out everything that needs predictions.
        split: which of them, see :func:`hetecd.runs.score_runs`.
        open_predictor: makes the predictor of a checkpoint; needed for ``data``.
        batch: tiles predicted at a time.

    Raises:
        InputError: no training there, or the split cannot be read.
        OutputError: the page cannot be written.
    """
    runs = [read_run(folder)]
    if other := previous or previous_run(folder):
        runs.append(read_run(other))
    title = f"Training {runs[0].name}" + (f", compared with {runs[1].name}" if other else "")
    return _write(title, runs, len(runs) - 1, out or Path(folder) / "report.html", data, split, open_predictor, batch)


def write_comparison(
    folders: Sequence[Path | str],
    out: Path | str,
    data: Path | str | None = None,
    split: str = "val",
    open_predictor: OpenPredictor | None = None,
    batch: int = 8,
) -> Path:
    """Write a page of several trainings side by side, each compared with the first; see :func:`write_report`."""
    if len(folders) < 2:
        raise InputError(f"compare: found {len(folders)} training, expected two or more; `report` shows a single one")
    runs = [read_run(folder) for folder in folders]
    title = "Trainings " + ", ".join(run.name for run in runs)
    return _write(title, runs, 0, out, data, split, open_predictor, batch)


def _write(
    title: str,
    runs: list[Run],
    base: int,
    out: Path | str,
    data: Path | str | None,
    split: str,
    open_predictor: OpenPredictor | None,
    batch: int,
) -> Path:
    """``base`` is the training that the others are compared with."""
    where = "no tiles to score on: --data names them, for diagrams, examples and the confusion by tile"
    if data is not None and open_predictor is not None:
        runs = score_runs(runs, open_predictor, data, split, batch)
        count = next((len(run.scored.confusions) for run in runs if run.scored), 0)
        where = f"{count} tiles, split {split} of {Path(data).resolve().name}"
    scored = [(run.name, COLOURS[i % len(COLOURS)], run.scored) for i, run in enumerate(runs) if run.scored is not None]
    parts = [
        _problems(runs), _scores(runs, base, where), _curves(runs), _diagrams(scored), _tiles(scored),
        _by_tile(scored), _settings(runs),
    ]  # fmt: skip
    page = Template(TEMPLATE.read_text(encoding="utf-8"))
    with replacing(out) as part:
        text = page.substitute(title=escape(title), body="\n".join(filter(None, parts)), version=hetecd.__version__)
        part.write_text(text, encoding="utf-8")
    return Path(out)


def _problems(runs: Sequence[Run]) -> str:
    found = [f"<li><b>{escape(run.name)}</b>: {escape(problem)}</li>" for run in runs for problem in run.problems]
    return f'<ul class="problems" aria-label="What is missing">{"".join(found)}</ul>' if found else ""


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], kind: str = "") -> str:
    """Cells are HTML; one that starts with a digit, a sign or a dash is set as a number, but for the first."""

    def cell(tag: str, text: str, column: int) -> str:
        numeric = column > 0 and all(row[column][:1] in "0123456789+−–" for row in rows)
        return f"<{tag}{' class=number' * numeric}>{text}</{tag}>"

    lines = ["".join(cell("td", text, i) for i, text in enumerate(row)) for row in rows]
    heads = "".join(cell("th", text, i) for i, text in enumerate(head))
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    return f'<div class="wide"><table class="{kind}"><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table></div>'


def _percent(value: float, digits: int = 2) -> str:
    return "–" if math.isnan(value) else f"{100 * value:.{digits}f}"


def _signed(value: float) -> str:
    return "–" if math.isnan(value) else f"{100 * value:+.2f}".replace("-", "−")


# --- sections --------------------------------------------------------------------------------------------------------


def _scores(runs: Sequence[Run], base: int, where: str) -> str:
    head = ["training", "epochs", "best epoch", "minutes", "validation IoU"]
    columns = ("iou", "f1", "precision", "recall")
    on_tiles = any(run.scored for run in runs)
    if on_tiles:
        head += [*("IoU", "F1", "precision", "recall"), "calibration error", f"IoU against {escape(runs[base].name)}"]
    rows = []
    for i, run in enumerate(runs):
        best = run.info.scores if run.info else {}
        minutes = sum(run.column("seconds")) / 60
        epoch = best.get("epoch")
        row = [
            escape(run.name), str(len(run.epochs) or "–"), "–" if epoch is None else f"{epoch + 1:.0f}",
            f"{minutes:.1f}" if minutes > 0 else "–", _percent(_or_nan(best.get("iou"))),
        ]  # fmt: skip
        if on_tiles and run.scored:
            scores, reference = run.scored.pooled.scores(), runs[base].scored
            row += [_percent(value) for value in (*(scores[c] for c in columns), run.scored.calibration.coarse().error)]
            row.append(
                "–"
                if i == base or reference is None
                else "{} ({} to {})".format(*map(_signed, gain(run.scored, reference)))
            )
        else:
            row += ["–"] * (len(head) - len(row))
        rows.append(row)
    note = f"In %. Scored on {escape(where)}." if on_tiles else f"In %. Given {escape(where)}."
    if on_tiles and len(runs) > 1:
        note += (
            " In brackets the 95 % interval from drawing tiles anew, which takes neighbouring tiles for independent: "
            "the true interval is wider."
        )
    return f"<h2>Scores</h2>{_table(head, rows)}<p class=note>{note}</p>"


def _or_nan(value: float | None) -> float:
    return math.nan if value is None else value


def _curves(runs: Sequence[Run]) -> str:
    drawn = [(run, COLOURS[i % len(COLOURS)]) for i, run in enumerate(runs) if run.epochs]
    if not drawn:
        return ""

    def lines(column: str, style: str = "-", what: str = "") -> list[Line]:
        return [Line(f"{run.name}{what}", _epochs(run), run.column(column), colour, style) for run, colour in drawn]

    best = [
        Line("", [_or_nan(run.info.scores.get("epoch")) + 1], [_or_nan(run.info.scores.get("iou"))], colour, "o")
        for run, colour in drawn
        if run.info
    ]
    first = drawn[0][0]
    names = [name for name in first.epochs[-1] if name.startswith("loss_")]
    terms = [
        Line(name.removeprefix("loss_"), _epochs(first), first.column(name), COLOURS[i % len(COLOURS)])
        for i, name in enumerate(names)
    ]
    entropies = [*lines("loss_ce", ":", ", training"), *lines("val_loss", "-", ", validation")]
    charts = [
        line_chart("Training loss", lines("loss"), "epoch", "sum of its terms"),
        line_chart(f"Terms of the loss, {first.name}", terms, "epoch", "weighted"),
        line_chart("Cross entropy", entropies, "epoch", "with the recipe's class weights"),
        line_chart("Validation IoU", [*lines("val_iou"), *best], "epoch", "changed class; dot: kept"),
        line_chart("Learning rate", lines("lr"), "epoch", "after the epoch"),
    ]
    return f'<h2>Curves</h2><div class="charts">{"".join(charts)}</div><p class=note>From {LOG}.</p>'


def _epochs(run: Run) -> list[float]:
    return [epoch + 1 for epoch in run.column("epoch")]


def _diagrams(scored: Shown) -> str:
    if not scored:
        return ""
    curves: list[Line] = []
    points: list[Line] = []
    bins = [Line("", (0, 1), (0, 1), "#888888", ":")]
    said = []
    for name, colour, counts in scored:
        limits, parts = counts.calibration.at_least()
        scores, ours = [part.scores() for part in parts], counts.pooled.scores()
        curves.append(Line(name, [s["recall"] for s in scores], [s["precision"] for s in scores], colour))
        points.append(Line("", [ours["recall"]], [ours["precision"]], colour, "o"))
        coarse = counts.calibration.coarse()
        full = [(p / n, k / n) for n, p, k in zip(coarse.counts, coarse.probs, coarse.changed, strict=True) if n]
        bins.append(Line(name, [p for p, _ in full], [k for _, k in full], colour, "o-"))
        ious = [s["iou"] for s in scores]
        top = int(np.nanargmax(ious))
        said.append(
            f"{escape(name)}: threshold {counts.threshold:.2f} gives IoU {_percent(ours['iou'])} %; the highest on "
            f"these very tiles, {_percent(ious[top])} %, is at {limits[top]:.2f}."
        )
    charts = [
        line_chart("Precision and recall", [*curves, *points], "recall", "precision; dot: at the threshold", True),
        line_chart("Reliability", bins, "probability of change", "share that changed", True),
    ]
    return f'<h2>Diagrams</h2><div class="charts">{"".join(charts)}</div><p class=note>{"<br>".join(said)}</p>'


def _tiles(scored: Shown) -> str:
    if not scored or not (chosen := telling(scored[0][2].ious(), EACH)):
        return ""
    rows = []
    looks = [counts.look(chosen) for _, _, counts in scored]
    for found in zip(*looks, strict=True):
        tile, prob = found[0]
        step = max(1, math.ceil(max(tile.label.shape) / SHOWN_PX))
        optical, sar, label = seen(tile)
        images = [("optical", optical, True), ("SAR", sar, True), ("label", label, False)]
        images.append(("probability", np.nan_to_num(prob), True))
        marks = []
        for (name, _, counts), (_, other) in zip(scored, found, strict=True):
            images.append((f"errors of {name}", verdict(other, tile.label, counts.threshold), False))
            marks.append(iou(other, tile.label, counts.threshold))
        cells = [
            f'<img src="{data_uri(image[::step, ::step], photo)}" alt="{escape(what)}, tile {escape(tile.name)}">'
            for what, image, photo in images
        ]
        rows.append([f"{escape(tile.name)}<br>IoU {' / '.join(marks)}", *cells])
    head = ["tile", "optical", "SAR", "label", "probability", *(f"errors, {escape(name)}" for name, _, _ in scored)]
    note = f"By IoU of {escape(scored[0][0])}, so that nobody picks them. Errors: {' '.join(VERDICT.split())}."
    return f"<h2>The best, the median and the worst tiles</h2>{_table(head, rows, 'tiles')}<p class=note>{note}</p>"


def _by_tile(scored: Shown) -> str:
    if not scored:
        return ""
    name, _, first = scored[0]
    wrong = [part.fp + part.fn for part in first.confusions]
    order = sorted(range(len(wrong)), key=lambda i: -wrong[i])[:MOST_ROWS]
    ious = [counts.ious() for _, _, counts in scored]
    rows = []
    for i in order:
        part = first.confusions[i]
        shares = [count / max(1, part.tp + part.fn + part.fp) for count in (part.tp, part.fn, part.fp)]
        kinds = zip(("hit", "miss", "alarm"), shares, strict=True)
        bar = "".join(f'<i class="{kind}" style="width:{100 * share:.1f}%"></i>' for kind, share in kinds)
        counts = [f"{count:,}" for count in (part.tp, part.fn, part.fp, part.tn)]
        scores = [_percent(values[i], 1) for values in ious]
        rows.append([escape(first.tiles.files[i].name), f'<div class="bar">{bar}</div>', *counts, *scores])
    key = ("hit", "hits"), ("miss", "misses"), ("alarm", "false alarms")
    heads = [f'<span class="key {kind}"></span> {what}' for kind, what in key]
    head = ["tile", "", *heads, "rightly quiet", *(f"IoU, {escape(name)}" for name, _, _ in scored)]
    note = f"Pixels of {escape(name)}; most errors first" + (
        f"; {MOST_ROWS} of {len(wrong)} tiles." if len(wrong) > MOST_ROWS else "."
    )
    return f"<h2>Confusion by tile</h2>{_table(head, rows)}<p class=note>{note}</p>"


def _settings(runs: Sequence[Run]) -> str:
    def table(named: dict[str, list[Any]]) -> str:
        rows = [[escape(key), *(escape("–" if value is None else str(value)) for value in values)]
                for key, values in named.items()]  # fmt: skip
        return _table(["setting", *(escape(run.name) for run in runs)], rows)

    parts = ["<h2>Settings</h2>"]
    if len(runs) > 1:
        others = differing(runs)
        parts.append(table(others) if others else "<p>The same in all of them.</p>")
    about = [
        [escape(run.name), escape(run.info.data), f"hetecd {escape(run.info.version)}"] for run in runs if run.info
    ]
    if about:
        parts.append(_table(["training", "data", "made by"], about))
    parts.append(f"<details><summary>All settings</summary>{table(settings(runs))}</details>")
    return "".join(parts)
