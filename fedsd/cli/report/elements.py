"""Pieces of HTML. Whatever text comes in is escaped here."""

import base64
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path

from PIL import Image


def table(columns: Sequence[str], rows: Iterable[Sequence[str]], *, marked: bool = False) -> str:
    """Return a table of ready cells; a column whose title begins with # holds numbers. marked: cells may be `best`."""
    titles = "".join(_column_title(column) for column in columns)
    body = "".join(f"<tr>{''.join(row)}</tr>" for row in rows)
    kind = ' class="marked"' if marked else ""
    return f'<div class="table"><table{kind}><thead><tr>{titles}</tr></thead><tbody>{body}</tbody></table></div>'


def _column_title(column: str) -> str:
    kind = ' class="number"' if column.startswith("#") else ""
    return f'<th scope="col"{kind}>{escape(column.removeprefix("#"))}</th>'


def cell(value: object) -> str:
    """Return a table cell with escaped text."""
    return f"<td>{escape(str(value))}</td>"


def number(value: object, *, best: bool = False) -> str:
    """Return a right-aligned table cell."""
    return f'<td class="number{" best" if best else ""}">{escape(str(value))}</td>'


def figure(file: Path, note: str, *, sheet: bool = False) -> str:
    """Return a PNG as a figure that carries its own bytes; its title is what a screen reader says.

    sheet: a sheet of small pictures, shown half as large again where the page is wide enough.
    """
    with Image.open(file) as picture:
        words, (width, height) = str(picture.info.get("Title", note or file.stem)), picture.size
    data = base64.b64encode(file.read_bytes()).decode()
    caption = f"<figcaption>{escape(note)}</figcaption>" if note else ""
    kind, style = (' class="sheet"', f' style="width: {1.5 * width:.0f}px"') if sheet else ("", "")
    return (
        f'<figure{kind}><img alt="{escape(words)}" width="{width}" height="{height}"{style} '
        f'src="data:image/png;base64,{data}">{caption}</figure>'
    )


def pairs(values: Mapping[str, object]) -> list[list[str]]:
    """Return table rows of names and values."""
    return [[row_title(key), cell(value)] for key, value in values.items()]


def row_title(text: str, colour: str = "") -> str:
    """Return the first cell of a table row, with a swatch of `colour`."""
    swatch = f'<span class="swatch" style="background:{colour}"></span>' if colour else ""
    return f'<th scope="row">{swatch}{escape(text)}</th>'


def folded(title: str, body: str) -> str:
    """Return a part that opens at a click."""
    return f"<details><summary>{escape(title)}</summary>{body}</details>"


def megabytes(count: float) -> str:
    """Return bytes as words: 2_340_000 -> "2.34 MB"."""
    return f"{count / 1e6:.2f} MB" if count < 1e8 else f"{count / 1e6:.0f} MB"
