"""Pictures listed by a CSV table with columns for path, style, caption and name."""

import unicodedata
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from fedsd.data.captions import clean, keyed, table
from fedsd.data.example import Example, Layout
from fedsd.data.problem import Problem, shown

_DEFAULT = "index.csv"


def find(root: Path, layout: Layout) -> Path | None:
    """Return the index of a folder: the one that the layout names, or index.csv where it lists paths and styles.

    Raises:
        ValueError: if the index that the layout names is not there, or the table cannot be read.
    """
    path = root / (layout.index or _DEFAULT)
    if not path.is_file():
        if layout.index:
            raise ValueError(Problem(shown(path), "there is no such index", "name a CSV file in the folder"))
        return None
    if layout.index or {layout.path_column, layout.style_column} <= set(table(path)[0]):
        return path
    return None


def read(path: Path, layout: Layout) -> tuple[tuple[Example, ...], tuple[Problem, ...]]:
    """Read the examples that an index lists.

    Args:
        path: the CSV file; pictures lie below its folder.
        layout: the columns to use, the rows to keep, and the template for rows without a caption.

    Returns:
        One example per row that is kept and whose picture exists, in the table's order, and what is wrong: rows
        without a picture, double rows, empty captions, rows without a style.

    Raises:
        ValueError: if a column is missing, no row is kept, or the table cannot be read.
    """
    names, rows = table(path)
    _columns(path, names, layout)
    kept = [(n, row) for n, row in enumerate(rows, start=2) if all(row[c] in v for c, v in layout.wanted().items())]
    if not kept:
        there = "; ".join(f"{c} has {_some({r[c] for r in rows})}" for c in layout.wanted())
        remedy = f"choose values that it has ({there})" if there else "list pictures in it"
        raise ValueError(Problem(shown(path), f"no row is left by where = {layout.where!r}", remedy))
    problems: list[Problem] = []
    return tuple(_examples(path, kept, layout, problems)), tuple(problems)


def _columns(path: Path, names: tuple[str, ...], layout: Layout) -> None:
    asked = {
        "path_column": layout.path_column,
        "style_column": layout.style_column,
        "caption_column": layout.caption_column,
        "label_column": layout.label_column,
    }
    for setting, column in [*asked.items(), *(("where", column) for column in layout.wanted())]:
        optional = setting in ("caption_column", "label_column") and not column
        if column not in names and not optional:
            remedy = f"set {setting} to one of {', '.join(names)}"
            raise ValueError(Problem(shown(path), f"there is no column {column!r}", remedy))
    if not layout.caption_column and not layout.label_column:
        raise ValueError(Problem(shown(path), "nothing says what is shown", "set caption_column or label_column"))


def _examples(
    path: Path, rows: list[tuple[int, dict[str, str]]], layout: Layout, problems: list[Problem]
) -> Iterator[Example]:
    seen: dict[str, int] = {}
    for number, row in rows:
        name = row[layout.path_column]
        earlier = seen.setdefault(keyed(name), number)
        if earlier != number:
            what = f"lines {earlier} and {number} both list {shown(name)!r}"
            problems.append(Problem(shown(path), what, "keep one of them"))
            continue
        picture = _located(path.parent, name)
        if picture is None:
            what = f"line {number} captions {shown(name)!r}, which is not there"
            problems.append(Problem(shown(path), what, "add the picture or delete the line"))
            continue
        text = clean(row[layout.caption_column]) if layout.caption_column else ""
        label = clean(row[layout.label_column]) if layout.label_column else text
        style = clean(row[layout.style_column])
        if not style or not (text or label):
            what = f"line {number} has no {'caption' if style else 'style'} for {shown(name)!r}"
            problems.append(Problem(shown(path), what, "write it in the table or delete the line"))
            continue
        if layout.caption_column and not text:
            what = f"line {number} has an empty caption for {shown(name)!r}"
            problems.append(Problem(shown(path), what, "write one, or the name of what is shown is used", "warning"))
        yield Example(picture, text or layout.caption(label), style, label or text)


def _located(folder: Path, name: str) -> Path | None:
    name = name.strip().replace("\\", "/")
    inside = bool(name) and not PurePosixPath(name).is_absolute() and ".." not in PurePosixPath(name).parts
    if not inside or "\0" in name:
        return None
    spellings = (name, unicodedata.normalize("NFC", name), unicodedata.normalize("NFD", name))
    return next((folder / s for s in spellings if (folder / s).is_file()), None)


def _some(values: set[str]) -> str:
    shown_first = sorted(values)[:8]
    return ", ".join(repr(shown(v)) for v in shown_first) + (" ..." if len(values) > 8 else "")
