"""Contact sheets of generated pictures, and how they change from round to round."""

import io
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont, PngImagePlugin

from fedsd import store

Picture = Image.Image | np.ndarray[Any, np.dtype[np.uint8]]

INK, PAPER = (30, 33, 40), (244, 245, 247)
GAP, MARGIN, FONT_SIZE, LEAST_TILE = 4, 12, 15, 112
FRAME_MS, LAST_FRAME_MS = 900, 2700


def grid(rows: Sequence[tuple[str, Sequence[Picture]]], columns: Sequence[str]) -> Image.Image:
    """Return a labelled sheet, one row of pictures for each label and one column for each title.

    rows: (label, pictures); a picture is a PIL image or uint8 (H, W, 3). All have one size; small ones are enlarged
    by whole pixels, so that nothing is smoothed away. Raises ValueError when a row or a size does not fit.
    """
    sheet = [(label, [_picture(value) for value in pictures]) for label, pictures in rows]
    size = _common_size(sheet, columns)
    factor = max(1, -(-LEAST_TILE // max(size)))
    wide, high = size[0] * factor, size[1] * factor
    titles = [_wrapped(title, wide - 2 * GAP) for title in columns]
    labels = [_wrapped(label, 150) for label, _ in sheet]
    left = 2 * MARGIN + max([_width(line) for lines in labels for line in lines] + [_width("round 00")])
    top = MARGIN + max(len(lines) for lines in titles) * _line() + MARGIN // 2
    canvas = Image.new(
        "RGB",
        (left + len(columns) * (wide + GAP) - GAP + MARGIN, top + len(sheet) * (high + GAP) - GAP + MARGIN),
        PAPER,
    )
    pen = ImageDraw.Draw(canvas)
    for column, lines in enumerate(titles):
        _text(pen, lines, left + column * (wide + GAP) + wide / 2, top - MARGIN // 2 - len(lines) * _line(), "ma")
    for row, (lines, (_, pictures)) in enumerate(zip(labels, sheet, strict=True)):
        y = top + row * (high + GAP)
        _text(pen, lines, left - MARGIN, y + (high - len(lines) * _line()) / 2, "ra")
        for column, picture in enumerate(pictures):
            canvas.paste(picture.resize((wide, high), Image.Resampling.NEAREST), (left + column * (wide + GAP), y))
    return canvas


def save_grid(picture: Image.Image, file: Path, parameters: str) -> None:
    """Write a PNG, whole or not at all, with the text chunk `parameters` that A1111's PNG info shows."""
    chunks = PngImagePlugin.PngInfo()
    chunks.add_text("parameters", parameters)
    content = io.BytesIO()
    picture.save(content, "PNG", pnginfo=chunks, optimize=True)
    store.write_file(file, content.getvalue())


def parameters_text(prompt: str, settings: Mapping[str, object], negative: str = "") -> str:
    """Return A1111's infotext: the prompt, the negative prompt if any, then `Steps: 25, Seed: 0, ...` in one line."""
    lines = [prompt, f"Negative prompt: {negative}"] if negative else [prompt]
    return "\n".join([*lines, ", ".join(f"{key}: {value}" for key, value in settings.items())])


def timeline(folder: Path) -> Path:
    """Write timeline.gif from the sheets rNN.png of a folder, in order of round; ValueError when there is none."""
    sheets = round_grids(folder)
    if not sheets:
        raise ValueError(f"{folder} holds no sheet named rNN.png; sample a round first")
    pictures = [(server_round, Image.open(file).convert("RGB")) for server_round, file in sheets.items()]
    size = max(p.width for _, p in pictures), max(p.height for _, p in pictures)
    frames = [_frame(server_round, picture, size) for server_round, picture in pictures]
    times = [FRAME_MS] * (len(frames) - 1) + [LAST_FRAME_MS]
    content = io.BytesIO()
    frames[0].save(content, "GIF", save_all=True, append_images=frames[1:], duration=times, loop=0)
    store.write_file(folder / "timeline.gif", content.getvalue())
    return folder / "timeline.gif"


def round_grids(folder: Path) -> dict[int, Path]:
    """Return the sheets rNN.png of a folder by round, ascending."""
    found = {file: re.fullmatch(r"r(\d+)\.png", file.name) for file in folder.glob("r*.png")}
    return dict(sorted((int(match[1]), file) for file, match in found.items() if match))


def _frame(server_round: int, picture: Image.Image, size: tuple[int, int]) -> Image.Image:
    """A sheet on the common canvas, its round in the empty corner above the row labels."""
    canvas = Image.new("RGB", size, PAPER)
    canvas.paste(picture)
    _text(ImageDraw.Draw(canvas), [f"round {server_round}"], MARGIN, MARGIN, "la")
    return canvas.quantize(256, dither=Image.Dither.NONE)


def _picture(value: Picture) -> Image.Image:
    if isinstance(value, Image.Image):
        return value.convert("RGB")
    if value.dtype != np.uint8 or value.ndim != 3 or value.shape[2] != 3:
        raise ValueError(f"a picture is a PIL image or uint8 (H, W, 3); got {value.dtype} {value.shape}")
    return Image.fromarray(value)


def _common_size(sheet: Sequence[tuple[str, Sequence[Image.Image]]], columns: Sequence[str]) -> tuple[int, int]:
    if not sheet or not columns:
        raise ValueError(f"a sheet needs at least one row and one column, got {len(sheet)} and {len(columns)}")
    for label, pictures in sheet:
        if len(pictures) != len(columns):
            raise ValueError(f"row {label!r} has {len(pictures)} pictures for {len(columns)} columns; give one each")
    sizes = {picture.size for _, pictures in sheet for picture in pictures}
    if len(sizes) > 1:
        raise ValueError(f"pictures of one sheet must have one size, got {sorted(sizes)}; resize them first")
    return sizes.pop()


@lru_cache(maxsize=1)
def _font() -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which comes with matplotlib and has more letters than Pillow's own font."""
    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf", FONT_SIZE)


def _line() -> int:
    return round(FONT_SIZE * 1.25)


def _width(text: str) -> int:
    return round(_font().getlength(text))


def _text(pen: ImageDraw.ImageDraw, lines: Sequence[str], x: float, y: float, anchor: str) -> None:
    for number, line in enumerate(lines):
        pen.text((x, y + number * _line()), line, INK, _font(), anchor)


def _wrapped(text: str, width: int) -> list[str]:
    """The text in lines of at most `width` pixels, at most three, the last cut with an ellipsis."""
    lines: list[str] = []
    for word in text.split() or [""]:
        if lines and _width(f"{lines[-1]} {word}") <= width:
            lines[-1] = f"{lines[-1]} {word}"
        else:
            lines.append(word)
    if len(lines) > 3:
        lines = [*lines[:2], f"{lines[2]}…"]
    return [_fitted(line, width) for line in lines]


def _fitted(line: str, width: int) -> str:
    while _width(line) > width and len(line) > 2:
        line = line.rstrip("…")[:-1] + "…"
    return line
