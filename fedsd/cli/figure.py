"""How fedsd's plots look, and how they are saved: a PNG and the numbers in it as CSV."""

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from fedsd import store

# Okabe and Ito (2008): told apart with every common colour blindness; their yellow is too pale on white
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#5D3A9B", "#7F7F7F")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
INK, FAINT, ALONE = "#1f2430", "#d9dce3", "#9aa0ac"


def colours(clusters: Iterable[str]) -> dict[str, str]:
    """Cluster id -> colour; the ninth cluster has the first colour again, and another marker."""
    return {key: PALETTE[index % len(PALETTE)] for index, key in enumerate(_ordered(clusters))}


def markers(clusters: Iterable[str]) -> dict[str, str]:
    """Cluster id -> marker; no two of the first 64 clusters share colour and marker."""
    step = len(PALETTE)
    return {key: MARKERS[(index + index // step) % len(MARKERS)] for index, key in enumerate(_ordered(clusters))}


def canvas(width: float, height: float) -> Figure:
    """Return an empty figure of that size in inches, drawn by Agg, without a display."""
    layout = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.1)
    figure = Figure(figsize=(width, height), dpi=150, layout=layout, facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def headline(figure: Figure, title: str, detail: str = "") -> None:
    """Write what is seen, in one sentence, and how it is to be read below it."""
    figure.suptitle(title, x=0.012, ha="left", fontsize=14, fontweight="bold", color=INK)
    if detail:
        figure.supxlabel(detail, x=0.012, ha="left", fontsize=10, color="#555c6b")


def plain(axes: Axes, x: str = "", y: str = "", title: str = "") -> None:
    """Give axes their words, a faint grid behind the data, and no box."""
    axes.set_xlabel(x, fontsize=11, color=INK)
    axes.set_ylabel(y, fontsize=11, color=INK)
    if title:
        axes.set_title(title, loc="left", fontsize=11.5, color=INK)
    axes.tick_params(labelsize=10, colors=INK, length=3)
    axes.grid(color=FAINT, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(FAINT)


def legend(axes: Axes, title: str = "") -> None:
    """Put the legend to the right of the axes."""
    axes.legend(
        loc="upper left", bbox_to_anchor=(1.01, 1), frameon=False, fontsize=10, title=title or None, title_fontsize=10,
        alignment="left", borderaxespad=0,
    )  # fmt: skip


def save(figure: Figure, file: Path, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> Path:
    """Write `file` (.png) and, beside it, the numbers that it shows (.csv), each whole or not at all."""
    picture, table = io.BytesIO(), io.StringIO()
    title = figure.get_suptitle()
    figure.savefig(picture, format="png", metadata={"Title": title, "Software": "fedsd"})
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    store.write_file(file.with_suffix(".csv"), table.getvalue().encode())
    store.write_file(file, picture.getvalue())
    return file


def _ordered(clusters: Iterable[str]) -> list[str]:
    return sorted(set(clusters), key=int)
