"""Captions beside pictures: metadata.jsonl, CSV tables and sidecar text files, in that order."""

import csv
import io
import json
import posixpath
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedsd.data.problem import Problem, encodable, shown

_METADATA = "metadata.jsonl"
_FILE, _TEXT = "file_name", "text"
# Text files that people lay beside pictures and that are no captions.
_NOT_CAPTIONS = ("readme", "licen", "attribution", "credits", "notes", "requirements")
_WRITE_ONE = "write one, or the name of what is shown is used"


@dataclass(frozen=True)
class Caption:
    """A caption and the kind of file that it was found in."""

    text: str
    source: str


@dataclass(frozen=True)
class _Row:
    file: str
    text: str
    line: int


def clean(text: str) -> str:
    """Return text in Unicode NFC, with control characters (NUL too) and runs of white space as single spaces."""
    text = unicodedata.normalize("NFC", encodable(text))
    return " ".join("".join(" " if unicodedata.category(c) == "Cc" else c for c in text).split())


def keyed(relative: str) -> str:
    """Return a relative path as the key that pictures are found by: NFC, so that file systems' spellings agree."""
    return unicodedata.normalize("NFC", posixpath.normpath(relative))


def table(path: Path) -> tuple[tuple[str, ...], list[dict[str, str]]]:
    """Read a CSV file: the column names of its first line, and one dictionary per further line.

    Raises:
        ValueError: if it is not UTF-8, has no columns, names one twice, or is no CSV.
    """
    reader = csv.reader(io.StringIO(_decoded(path), newline=""), strict=True)
    try:
        lines = [line for line in reader if line]
    except csv.Error as error:
        fault = f"line {reader.line_num} is no CSV ({error})"
        raise ValueError(Problem(shown(path), fault, "mend or delete that line")) from error
    if not lines:
        raise ValueError(Problem(shown(path), "the table is empty", "give it a first line of column names"))
    names = tuple(name.strip() for name in lines[0])
    if len(set(names)) < len(names):
        remedy = f"rename one of {', '.join(names)}"
        raise ValueError(Problem(shown(path), "its first line names a column twice", remedy))
    return names, [dict(zip(names, line + [""] * len(names), strict=False)) for line in lines[1:]]


def gather(root: Path, files: Mapping[str, Path]) -> tuple[dict[str, Caption], list[Problem]]:
    """Find the captions of pictures.

    A picture's caption comes from the metadata.jsonl nearest to it, else from the nearest CSV with columns
    file_name and text, else from the text file of the same name. Empty captions are passed over.

    Args:
        root: the folder that holds everything.
        files: the pictures, by their path relative to root (keyed).

    Returns:
        Captions by the same keys, and what is wrong: captions without a picture, double rows, unreadable tables.
    """
    found: dict[str, Caption] = {}
    problems: list[Problem] = []
    for read in (_metadata, _csvs):
        for folder in _folders(files):
            for path, rows in read(root / folder, problems):
                for key, caption in _matched(rows, path, folder, files, problems):
                    found.setdefault(key, caption)
    for key, caption in _sidecars(files, problems):
        found.setdefault(key, caption)
    return found, problems + _orphans(files)


def _folders(files: Iterable[str]) -> list[str]:
    folders = {""}
    for key in files:
        parts = key.split("/")[:-1]
        folders.update("/".join(parts[: i + 1]) for i in range(len(parts)))
    return sorted(folders, key=lambda folder: (-len(folder.split("/")) if folder else 0, folder))


def _metadata(folder: Path, problems: list[Problem]) -> Iterator[tuple[Path, list[_Row]]]:
    path = folder / _METADATA
    if path.is_file():
        try:
            yield path, list(_jsonl(path))
        except ValueError as error:
            problems.append(error.args[0])


def _csvs(folder: Path, problems: list[Problem]) -> Iterator[tuple[Path, list[_Row]]]:
    for path in sorted(folder.glob("*.[cC][sS][vV]")):
        with path.open("rb") as stream:
            head = stream.readline(4096).decode("utf-8-sig", "replace")
        if not {_FILE, _TEXT} <= {cell.strip() for cell in head.split(",")}:
            continue
        try:
            _, rows = table(path)
        except ValueError as error:
            problems.append(error.args[0])
            continue
        yield path, [_Row(row[_FILE], row[_TEXT], number) for number, row in enumerate(rows, start=2)]


def _jsonl(path: Path) -> Iterator[_Row]:
    for number, line in enumerate(_decoded(path).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row: Any = json.loads(line)
        except (ValueError, RecursionError) as error:
            fault = f"line {number} is no JSON ({error})"
            raise ValueError(Problem(shown(path), fault, "write one object a line")) from error
        if not isinstance(row, dict) or not isinstance(row.get(_FILE), str):
            remedy = 'write {"file_name": "...", "text": "..."}'
            raise ValueError(Problem(shown(path), f"line {number} names no picture", remedy))
        text = row.get(_TEXT, "")
        if not isinstance(text, str):
            fault = f"line {number} has a caption that is no text ({text!r})"
            raise ValueError(Problem(shown(path), fault, 'put it in quotes under "text"'))
        yield _Row(row[_FILE], text, number)


def _matched(
    rows: Iterable[_Row], path: Path, folder: str, files: Mapping[str, Path], problems: list[Problem]
) -> Iterator[tuple[str, Caption]]:
    seen: dict[str, int] = {}
    for row in rows:
        key = keyed(posixpath.join(folder, row.file.replace("\\", "/")))
        picture = repr(shown(row.file))
        if key in seen:
            what = f"lines {seen[key]} and {row.line} both caption {picture}"
            problems.append(Problem(shown(path), what, "keep one of them"))
        elif key not in files:
            what = f"line {row.line} captions {picture}, which is not there"
            problems.append(Problem(shown(path), what, "add the picture or delete the line"))
        elif not clean(row.text):
            what = f"line {row.line} has an empty caption for {picture}"
            problems.append(Problem(shown(path), what, _WRITE_ONE, "warning"))
        else:
            yield key, Caption(clean(row.text), _METADATA if path.name == _METADATA else "CSV")
        seen.setdefault(key, row.line)


def _sidecars(files: Mapping[str, Path], problems: list[Problem]) -> Iterator[tuple[str, Caption]]:
    for key, picture in files.items():
        beside = picture.with_suffix(".txt")
        if not beside.is_file():
            continue
        try:
            text = clean(_decoded(beside))
        except ValueError as error:
            problems.append(error.args[0])
            continue
        if text:
            yield key, Caption(text, "sidecar .txt")
        else:
            problems.append(Problem(shown(beside), "the caption is empty", _WRITE_ONE, "warning"))


def _orphans(files: Mapping[str, Path]) -> list[Problem]:
    stems = {path.with_suffix("") for path in files.values()}
    folders = sorted({path.parent for path in files.values()})
    return [
        Problem(shown(text), "a caption without a picture of the same name", "add the picture or delete the caption")
        for folder in folders
        for text in sorted(folder.glob("*.txt"))
        if text.with_suffix("") not in stems and not text.name.lower().startswith(_NOT_CAPTIONS)
    ]


def _decoded(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(Problem(shown(path), f"not UTF-8 text (byte {error.start})", "save it as UTF-8")) from error
    except OSError as error:
        raise ValueError(Problem(shown(path), f"cannot be read ({error.strerror})", "check its permissions")) from error
