"""Folders of pictures as examples: a folder per style, per style and class, one style alone, or an index table."""

import os
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from fedsd.data import index
from fedsd.data.captions import clean, gather, keyed
from fedsd.data.example import Example, Layout
from fedsd.data.problem import Problem, shown

_PICTURES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp"})
_OTHER_PICTURES = frozenset({".gif", ".tif", ".tiff", ".heic", ".heif", ".avif", ".svg", ".psd", ".jxl", ".ico"})
_REPEATS = re.compile(r"^\d+_(?=.)")


@dataclass(frozen=True)
class Scan:
    """What a folder holds: examples, where each caption came from (by picture), and what is wrong."""

    examples: tuple[Example, ...]
    sources: dict[Path, str]
    problems: tuple[Problem, ...]


def read(root: Path, layout: Layout | None = None) -> tuple[Example, ...]:
    """Read a folder of pictures as examples.

    Folders may be laid out as style/picture, style/class/picture, or pictures alone (one style, named after the
    folder); a style's folder may be named in kohya's way, as 10_name. A caption comes from the index that the layout
    names, else metadata.jsonl, else a CSV with columns file_name and text, else the text file beside the picture,
    else the class (or the style's folder) through the layout's template. Pictures are not opened.

    Args:
        root: the folder.
        layout: how to read it; the defaults where None.

    Returns:
        The examples, sorted by path, or in the index's order.

    Raises:
        ValueError: if the folder is missing or has no pictures, a caption has no picture, a row comes twice, or a table
            is damaged; the message names the file, the fault and the remedy.
    """
    found = scan(root, layout)
    errors = [problem for problem in found.problems if problem.severity == "error"]
    if errors:
        more = f" (and {len(errors) - 1} more: see `fedsd data check`)" if len(errors) > 1 else ""
        raise ValueError(f"{errors[0]}{more}")
    return found.examples


def scan(root: Path, layout: Layout | None = None) -> Scan:
    """Read a folder as `read` does, but collect the faults of single files instead of raising the first.

    Raises:
        ValueError: if the folder is missing, or the layout does not fit it (no such index, column, row or style).
    """
    layout = layout or Layout()
    if not root.is_dir():
        raise ValueError(Problem(shown(root), "there is no such folder of pictures", "check the path"))
    table = index.find(root, layout)
    if table is not None:
        examples, problems = index.read(table, layout)
        sources = {e.path: table.name if layout.caption_column else "label column" for e in examples}
        found = Scan(examples, sources, problems)
    elif layout.where:
        raise ValueError(Problem(shown(root), f"where = {layout.where!r} needs an index", "set index to a CSV file"))
    else:
        found = _scan_folders(root, layout)
    if not found.examples and not any(problem.severity == "error" for problem in found.problems):
        remedy = "put PNG, JPEG, WebP or BMP files in it, in one folder per style"
        return Scan((), {}, (*found.problems, Problem(shown(root), "there are no pictures in this folder", remedy)))
    return _chosen(found, layout, root)


def _scan_folders(root: Path, layout: Layout) -> Scan:
    paths, problems = _walk(root)
    files = {keyed(path.relative_to(root).as_posix()): path for path in paths}
    captions, faults = gather(root, files)
    examples = []
    for key in sorted(files):
        style, label = _place(key, root)
        named = label or style.replace("_", " ")
        caption = captions.get(key)
        text = caption.text if caption else layout.caption(named)
        examples.append(Example(files[key], text, style, label or (text if caption else named)))
    sources = {files[k]: captions[k].source if k in captions else "folder name" for k in files}
    return Scan(tuple(examples), sources, (*problems, *faults, *_nesting(files, root)))


def _place(key: str, root: Path) -> tuple[str, str]:
    folders = key.split("/")[:-1]
    style = clean(_REPEATS.sub("", folders[0] if folders else root.resolve().name)) or "pictures"
    label = clean(folders[1].replace("_", " ")) if len(folders) > 1 else ""
    return style, label


def _walk(root: Path) -> tuple[list[Path], list[Problem]]:
    paths, problems = [], []
    for path in _files(root, set()):
        suffix = path.suffix.lower()
        if suffix in _PICTURES:
            paths.append(path)
        elif suffix in _OTHER_PICTURES:
            what = f"a picture in a format that is not read ({suffix})"
            problems.append(Problem(shown(path), what, "convert it to PNG, JPEG, WebP or BMP", "warning"))
    return paths, problems


def _files(folder: Path, seen: set[str]) -> Iterator[Path]:
    # Linked folders are followed, but no folder twice, or a link to a parent would never end.
    real = os.path.realpath(folder)
    if real in seen:
        return
    seen.add(real)
    for path in sorted(folder.iterdir()):
        if path.name.startswith((".", "__MACOSX")):
            continue
        if path.is_dir():
            yield from _files(path, seen)
        elif path.is_file():
            yield path


def _nesting(files: dict[str, Path], root: Path) -> list[Problem]:
    depths = Counter(key.count("/") for key in files)
    deep = next((path for key, path in files.items() if key.count("/") > 2), None)
    problems = []
    if deep is not None:
        what = f"folders lie deeper than style/class ({sum(n for d, n in depths.items() if d > 2)} pictures)"
        problems.append(Problem(shown(deep), what, "move its pictures up, or their style may be wrong", "warning"))
    if depths[0] and len(depths) > 1:
        what = f"{depths[0]} pictures lie beside the folders of styles"
        problems.append(Problem(shown(root), what, "move them into the folder of their style", "warning"))
    if depths[1] and depths[2]:
        what = f"{depths[1]} pictures lie beside folders of classes"
        problems.append(Problem(shown(root), what, "move them into the folder of their class", "warning"))
    return problems


def _chosen(found: Scan, layout: Layout, root: Path) -> Scan:
    if not layout.styles:
        return found
    wanted = {clean(style) for style in layout.styles}
    there = {example.style for example in found.examples}
    for style in sorted(wanted - there):
        what = f"there is no style {style!r}"
        raise ValueError(Problem(shown(root), what, f"choose from {', '.join(sorted(there))}"))
    kept = tuple(example for example in found.examples if example.style in wanted)
    return Scan(kept, {example.path: found.sources[example.path] for example in kept}, found.problems)
