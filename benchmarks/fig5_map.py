"""Heat maps over mixLoras and local scale, a row of panels per style: KID and FID at either split."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
import numpy as np

mpl.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes


@dataclass(frozen=True)
class Cell:
    """`count` pictures of a style at a split, mixLoras (0: the plain base) and local scale."""

    style: str
    count: int
    split: float
    mix: float
    local: float


@dataclass(frozen=True)
class Score:
    """A cell's KID x 1000 and FID."""

    cell: Cell
    kid: float
    fid: float


def draw_maps(found: Sequence[Score], file: Path) -> None:
    """Write the heat maps of one count as a PNG; the lowest row of each is the plain base, * marks cells below it."""
    styles, splits = (sorted({getattr(s.cell, axis) for s in found}) for axis in ("style", "split"))
    panels = [(metric, split) for metric in ("kid", "fid") for split in splits]
    size = (3.1 * len(panels), 2.3 * len(styles) + 0.6)
    figure, axes = plt.subplots(len(styles), len(panels), figsize=size, squeeze=False, layout="constrained")
    for row, style in enumerate(styles):
        for column, (metric, split) in enumerate(panels):
            mine = [s for s in found if (s.cell.style, s.cell.split) == (style, split)]
            _panel(axes[row, column], mine, metric)
            axes[row, column].set_title(
                f"{style}\n{'KID x 1000' if metric == 'kid' else 'FID'}, split {split}", fontsize=8
            )
    figure.suptitle(
        f"{found[0].cell.count} pictures a cell, features of MobileNetV2; * below the plain base", fontsize=9
    )
    figure.savefig(file, dpi=110)
    plt.close(figure)


def _panel(axes: Axes, mine: Sequence[Score], metric: str) -> None:
    mixes, locals_ = (sorted({getattr(s.cell, axis) for s in mine}) for axis in ("mix", "local"))
    values = np.full((len(mixes), len(locals_)), np.nan)
    for score in mine:
        values[mixes.index(score.cell.mix), locals_.index(score.cell.local)] = getattr(score, metric)
    axes.imshow(values, origin="lower", cmap="viridis_r", aspect="auto")
    middle = (values.min() + values.max()) / 2
    for i, j in np.ndindex(*values.shape):
        mark = "*" if i > 0 and values[i, j] < values[0, j] else ""
        colour = "white" if values[i, j] > middle else "black"
        axes.text(j, i, f"{values[i, j]:.0f}{mark}", ha="center", va="center", fontsize=8, color=colour)
    axes.set_xticks(range(len(locals_)), [f"{x:g}" for x in locals_], fontsize=7)
    axes.set_yticks(range(len(mixes)), ["plain base" if x == 0 else f"{x:g}" for x in mixes], fontsize=7)
    axes.set_xlabel("local scale", fontsize=7)
    axes.set_ylabel("mixLoras", fontsize=7)
