"""The pictures that the embedded models are trained on: two emoji styles and the objects that fedsd draws."""

import csv
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fedsd.data import drawn

GROUPS = ("Animals & Nature", "Food & Drink", "Travel & Places", "Objects", "Activities")
EMOJI_STYLES = ("noto", "fluent_3d")  # Apache-2.0 and MIT: weights trained on them may be shipped
STYLE_WORDS = {"noto": "noto", "fluent_3d": "3d", "flat": "flat", "shaded": "shaded", "soft": "soft"}
TEMPLATES = ("{}", "a {}", "a picture of a {}")


class Picture(NamedTuple):
    """`pixels` uint8 (64, 64, 3); `name` is what it shows, `style` how it is drawn."""

    pixels: np.ndarray
    name: str
    style: str


def read_emoji(root: Path, styles: tuple[str, ...] = EMOJI_STYLES, groups: tuple[str, ...] = GROUPS) -> list[Picture]:
    """Return the pictures of split `train`; `root` holds `index.csv` and 64x64 PNGs."""
    rows = csv.DictReader((root / "index.csv").open(encoding="utf-8"))
    wanted = (r for r in rows if r["style"] in styles and r["split"] == "train" and r["group"] in groups)
    return [
        Picture(np.asarray(Image.open(root / r["path"]).convert("RGB")), r["cldr_short_name"], r["style"])
        for r in wanted
    ]


def draw_all(looks: tuple[str, ...], variations: int, seed: int = 0) -> list[Picture]:
    """Draw every object `variations` times in each of `looks`."""
    return [
        Picture(np.asarray(drawn.draw(name, look, seed=zlib.crc32(f"{seed}/{name}/{look}/{i}".encode()))), name, look)
        for look in looks
        for name in drawn.OBJECTS
        for i in range(variations)
    ]


def captions(picture: Picture, rng: np.random.Generator, drop: float = 0.1, named_style: float = 0.5) -> str:
    """One random caption: empty with probability `drop`, with its style word with probability `named_style`."""
    if rng.random() < drop:
        return ""
    text = TEMPLATES[rng.integers(len(TEMPLATES))].format(picture.name)
    return f"{text}, {STYLE_WORDS[picture.style]} style" if rng.random() < named_style else text


def to_pixels(pictures: list[Picture]) -> Tensor:
    """Return float32 (N, 3, 64, 64) in [-1, 1]."""
    stacked = np.stack([p.pixels for p in pictures])
    return torch.from_numpy(stacked).permute(0, 3, 1, 2).float() / 127.5 - 1
