"""Results as tables and figures: ``scores.csv``, ``tables.md``, ``shift-*.png``, ``reliability-*.png``.

A score is that of the counts pooled over the folds of a seed; mean and standard deviation are those over the seeds or,
where there is one seed, over its folds. Seeds that lack folds which others of the row have are left out.
"""

import csv
import dataclasses
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from runs import Result, results
from scoring import SHIFT, Counts

from hetecd.figures import save_figure
from hetecd.files import replacing

SCORES = {
    # key of Counts.scores: heading
    "iou": "IoU",
    "f1": "F1",
    "precision": "precision",
    "recall": "recall",
    "boundary_f1": "boundary F1",
    "ece": "calibration error",
    "false_alarms": "false alarms",
}
QUIET_SCORES = ("ece", "false_alarms")  # what is defined on a set in which nothing changed
MIXED = "†"
Runs = Sequence[tuple[Result, Counts]]  # of one row on one set
T = TypeVar("T")
Groups = Mapping[tuple[str, str], Mapping[str, Runs]]  # (protocol, set) -> row -> runs


def write_tables(out: Path) -> str:
    """Write everything from the results in ``out`` and return the Markdown.

    Raises:
        InputError: a result cannot be read.
        OutputError: ``out`` cannot be written.
    """
    found = list(results(out))
    _write_csv(found, out / "scores.csv")
    grouped = groups(found)
    text = markdown(grouped)
    with replacing(out / "tables.md") as part:
        part.write_text(text, encoding="utf-8")
    for protocol in dict.fromkeys(protocol for protocol, _ in grouped):
        curves = _curves(grouped, protocol)
        if curves:
            _figure(_draw_shifts, curves, out / f"shift-{protocol}.png")
    for (protocol, name), rows in grouped.items():
        if not name.startswith(SHIFT):
            _figure(_draw_reliability, rows, out / f"reliability-{protocol}-{name.replace(' ', '-')}.png")
    return text


def groups(found: Iterable[Result]) -> dict[tuple[str, str], dict[str, list[tuple[Result, Counts]]]]:
    """Results by protocol and set, then by row."""
    grouped: dict[tuple[str, str], dict[str, list[tuple[Result, Counts]]]] = {}
    for result in found:
        for name, counts in result.sets.items():
            grouped.setdefault((result.protocol, name), {}).setdefault(result.row, []).append((result, counts))
    return grouped


def complete(runs: Runs) -> tuple[Runs, int]:
    """The runs of the seeds that have all folds of the row, and how many seeds are left out.

    Where no seed has all, those of the first seed that has the most.
    """
    folds: dict[int, set[str]] = {}
    for result, _ in runs:
        folds.setdefault(result.seed, set()).add(result.fold)
    whole = [seed for seed in folds if folds[seed] == set().union(*folds.values())]
    kept = whole or [max(sorted(folds), key=lambda seed: len(folds[seed]))]
    return [(result, counts) for result, counts in runs if result.seed in kept], len(folds) - len(kept)


def spread(runs: Runs) -> tuple[dict[str, list[float]], str]:
    """Scores (one per seed, or one per fold of the only seed) and what they are spread over, in words."""
    runs, left_out = complete(runs)
    seeds = sorted({result.seed for result, _ in runs})
    folds = len({result.fold for result, _ in runs})
    if len(seeds) > 1:
        samples = [sum((c for r, c in runs if r.seed == seed), Counts()) for seed in seeds]
        over = f"{len(seeds)} seeds" + (f" ({len(runs)} trainings)" if folds > 1 else "")
    else:
        samples, over = [counts for _, counts in runs], f"{folds} folds" if folds > 1 else "one training"
    if left_out:
        over += f", {left_out} incomplete seed{'s' if left_out > 1 else ''} left out"
    # A strip of a scene in which nothing changed has no IoU that could be compared with those of the others.
    changed = [counts for counts in samples if counts.confusion.tp + counts.confusion.fn]
    scored = {key: samples if key in QUIET_SCORES else changed for key in SCORES}
    return {key: [counts.scores()[key] for counts in parts] for key, parts in scored.items()}, over


def mean(runs: Runs, key: str) -> float:
    """The mean over seeds of a score pooled over folds."""
    runs, _ = complete(runs)
    seeds = sorted({result.seed for result, _ in runs})
    pooled = [sum((c for r, c in runs if r.seed == seed), Counts()).scores()[key] for seed in seeds]
    return statistics.fmean(pooled)


def cell(runs: Runs, key: str) -> str:
    """Mean and, of two samples or more, standard deviation, in %."""
    middle = mean(runs, key)
    samples = [value for value in spread(runs)[0][key] if not np.isnan(value)]
    if np.isnan(middle):
        return "–"
    return f"{100 * middle:.2f}" + (f" ± {100 * statistics.stdev(samples):.2f}" if len(samples) > 1 else "")


def markdown(grouped: Groups) -> str:
    """A table per protocol and set; the sets of a shift curve are the columns of one table."""
    parts = []
    for protocol in dict.fromkeys(protocol for protocol, _ in grouped):
        for (other, name), rows in grouped.items():
            if other == protocol and not name.startswith(SHIFT):
                parts.append(_table(f"{protocol}: {name}", rows))
        if curves := _curves(grouped, protocol):
            parts.append(_shift_table(f"{protocol}: IoU by misregistration of SAR, px", curves))
    note = (
        "Scores in %, of the changed class, pooled over tiles and folds: mean ± standard deviation over the seeds or, "
        "where there is one seed, over its folds. Boundary F1 with a tolerance of 2 px; calibration error expected, 15 "
        "bins; false alarms: share of the unchanged pixels; multiply-adds of 256 x 256 px.\n"
    )
    return "\n".join([note, *parts])


def _table(title: str, rows: Mapping[str, Runs]) -> str:
    counts = [c.confusion for runs in rows.values() for _, c in runs]
    keys = tuple(SCORES) if any(c.tp + c.fn for c in counts) else QUIET_SCORES
    heads = [*(SCORES[key] for key in keys), "parameters, M", "multiply-adds, G", "minutes", "epochs", "over"]
    lines = [f"## {title}\n", f"| | {' | '.join(heads)} |", f"|---|{'---|' * len(heads)}"]
    for row, found in rows.items():
        runs, _ = complete(found)
        first = runs[0][0]
        known = [result.minutes for result, _ in runs if result.minutes is not None]
        minutes = statistics.fmean(known) if known else None
        costs = [
            _scaled(first.parameters, 1e6, 2), _scaled(first.multiply_adds, 1e9, 1), _scaled(minutes, 1, 1),
            _scaled(first.epochs, 1, 0), spread(found)[1],
        ]  # fmt: skip
        lines.append(f"| {row}{_mark(runs)} | {' | '.join([*(cell(runs, key) for key in keys), *costs])} |")
    return "\n".join(lines) + "\n" + _footnote(rows.values())


def _mark(runs: Runs) -> str:
    """A sign behind the name of a row whose results are of different versions of the code."""
    return MIXED if len({result.code for result, _ in complete(runs)[0]}) > 1 else ""


def _footnote(rows: Iterable[Runs]) -> str:
    return f"\n{MIXED} Pools results of different versions of the code.\n" if any(map(_mark, rows)) else ""


def _scaled(value: float | None, unit: float, digits: int) -> str:
    return "–" if value is None else f"{value / unit:.{digits}f}"


def _curves(grouped: Groups, protocol: str) -> dict[str, dict[int, Runs]]:
    """Row -> shift in px -> runs."""
    curves: dict[str, dict[int, Runs]] = {}
    for (other, name), rows in grouped.items():
        if other == protocol and name.startswith(SHIFT):
            for row, runs in rows.items():
                curves.setdefault(row, {})[int(name.removeprefix(SHIFT))] = runs
    return curves


def _shift_table(title: str, curves: Mapping[str, Mapping[int, Runs]]) -> str:
    shifts = sorted({px for curve in curves.values() for px in curve})
    lines = [f"## {title}\n", f"| | {' | '.join(str(px) for px in shifts)} |", f"|---|{'---|' * len(shifts)}"]
    pooled = {row: [run for runs in curve.values() for run in complete(runs)[0]] for row, curve in curves.items()}
    for row, curve in curves.items():
        cells = " | ".join(cell(curve[px], "iou") if px in curve else "–" for px in shifts)
        lines.append(f"| {row}{_mark(pooled[row])} | {cells} |")
    return "\n".join(lines) + "\n" + _footnote(pooled.values())


def _write_csv(found: Sequence[Result], path: Path) -> None:
    """One line per training and set."""
    about = [f.name for f in dataclasses.fields(Result) if f.name not in ("settings", "sets")]
    with replacing(path) as part, part.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [*about[:4], "set", *Counts().scores(), "pixels", *about[4:]])
        writer.writeheader()
        for result in found:
            values = {name: getattr(result, name) for name in about}
            for name, counts in result.sets.items():
                scores = {key: f"{value:.6f}" for key, value in counts.scores().items()}
                writer.writerow(values | scores | {"set": name, "pixels": counts.confusion.total})


def _figure(draw: Callable[[Axes, T], None], content: T, path: Path) -> None:
    figure = Figure(figsize=(5.2, 4), dpi=120, layout="constrained")
    axis = figure.subplots()
    draw(axis, content)
    axis.legend(fontsize=8)
    save_figure(figure, path)


def _draw_shifts(axis: Axes, curves: Mapping[str, Mapping[int, Runs]]) -> None:
    for i, (row, curve) in enumerate(curves.items()):
        shifts = sorted(curve)
        axis.plot(shifts, [100 * mean(curve[px], "iou") for px in shifts], "o-", color=f"C{i % 10}", label=row)
    axis.set_xlabel("SAR misregistered by, px")
    axis.set_ylabel("IoU, %")
    axis.set_ylim(bottom=0)


def _draw_reliability(axis: Axes, rows: Mapping[str, Runs]) -> None:
    axis.plot([0, 1], [0, 1], color="grey", linewidth=0.8)
    for i, (row, runs) in enumerate(rows.items()):
        bins = sum((counts for _, counts in complete(runs)[0]), Counts()).calibration
        points = [(p / n, k / n) for n, p, k in zip(bins.counts, bins.probs, bins.changed, strict=True) if n]
        axis.plot(*zip(*points, strict=True), "o-", markersize=3, color=f"C{i % 10}", label=row)
    axis.set_xlabel("probability of change")
    axis.set_ylabel("share that changed")
