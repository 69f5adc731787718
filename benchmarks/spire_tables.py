"""Tables and grid of `benchmarks/spire.py`, from its lines: one for each model that was judged."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from PIL import Image
from section import table

from fedsd.cli import grids

Line = Mapping[str, Any]
SHOWN = ("population", "embedding", "full", "local")


def least(found: Sequence[Line], style: str, name: str) -> Line:
    """Return the line of a model, its best where there are several."""
    lines = [line for line in found if (line["style"], line["model"]) == (style, name)]
    return min(lines, key=lambda line: line["kid_x1000"])


def report(found: Sequence[Line], unseen: Sequence[str], old: Sequence[Sequence[str]]) -> str:
    """Return the tables: all models, the sweep, and the old styles' KID before and after."""
    rows = []
    for name in dict.fromkeys(line["model"] for line in found if line["model"] != "sweep"):
        mine = [least(found, style, name) for style in unseen]
        rows.append([name, mine[0]["trained"], *(f"{line['kid_x1000']:.0f} ± {line['kid_std']:.0f}" for line in mine)])
    text = [table(["model", "numbers fitted", *unseen], rows)]
    for style in unseen:
        cells = [line for line in found if (line["style"], line["model"]) == (style, "sweep")]
        kid = {(line["lr"], line["steps"]): line["kid_x1000"] for line in cells}
        rates, lengths = (sorted(set(values)) for values in zip(*kid, strict=True))
        half = sum(value <= least(found, style, "population")["kid_x1000"] / 2 for value in kid.values())
        text.append(
            f"{style}, {cells[0]['n']} pictures a cell; {half} of {len(kid)} cells at most half of the population's"
        )
        rows = [[f"{lr:g}", *(f"{kid[lr, steps]:.0f}" for steps in lengths)] for lr in rates]
        text.append(table(["rate, steps", *lengths], rows))
    return "\n\n".join([*text, table(["old style", "KID before", "after"], old)]) + "\n"


def write_sheet(found: Sequence[Line], names: Sequence[str], real: Mapping[str, torch.Tensor], file: Path) -> None:
    """Write the grid of the first pictures of each unseen style's models, of these names; real: uint8 (N, 3, H, W)."""
    rows: list[tuple[str, Sequence[Any]]] = []
    for style, pictures in real.items():
        for name in SHOWN:
            files = sorted(Path(least(found, style, name)["folder"]).glob("*.png"))[: len(names)]
            rows.append((f"{style}: {name}", [Image.open(one) for one in files]))
        rows.append((f"{style}: real", list(pictures.permute(0, 2, 3, 1).numpy())))
    grids.save_grid(grids.grid(rows, names), file, " | ".join(names))


def sd15_share() -> str:
    """Return SPIRE's share of Stable Diffusion 1.5's U-Net, from its shapes."""
    with torch.device("meta"):
        unet = UNet2DConditionModel(cross_attention_dim=768)
    trained, weights = unet.time_embedding.linear_2.out_features, sum(p.numel() for p in unet.parameters())
    return f"{trained} of {weights} ({100 * trained / weights:.2g} %)"
