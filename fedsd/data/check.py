"""A report on a folder of pictures: what it holds, what is wrong with it, and how to mend it."""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fedsd.data.example import Example, Layout
from fedsd.data.folder import Scan, scan
from fedsd.data.images import open_image
from fedsd.data.problem import Problem, shown


@dataclass(frozen=True)
class Report:
    """What a folder of pictures holds.

    Attributes:
        root: the folder.
        pictures: number of pictures that can be read.
        styles: style -> name of what is shown -> number of pictures.
        sizes: "width x height" -> number of pictures, the most frequent first.
        captions: kind of source -> number of captions from it.
        problems: what is wrong, errors first.
    """

    root: str
    pictures: int
    styles: dict[str, dict[str, int]]
    sizes: dict[str, int]
    captions: dict[str, int]
    problems: tuple[Problem, ...]

    @property
    def ok(self) -> bool:
        """Return whether the folder can be trained on: pictures, and no problem that is an error."""
        return self.pictures > 0 and all(problem.severity != "error" for problem in self.problems)

    def as_dict(self) -> dict[str, Any]:
        """Return the report as plain dictionaries, lists, texts and numbers, for JSON."""
        return {**asdict(self), "problems": [asdict(problem) for problem in self.problems], "ok": self.ok}


def check(
    root: Path,
    layout: Layout | None = None,
    *,
    min_side: int = 32,
    max_pixels: int = 40_000_000,
    max_tokens: int = 77,
    count_tokens: Callable[[str], int] | None = None,
) -> Report:
    """Look at every picture and caption of a folder, one at a time.

    Args:
        root: the folder.
        layout: how to read it; the defaults where None.
        min_side: shorter side, in pixels, below which a picture is called small.
        max_pixels: width times height above which a picture is refused unread.
        max_tokens: longest caption that the text encoder reads, in tokens, the two end marks included.
        count_tokens: gives a caption's number of tokens, end marks included; None checks no lengths.

    Returns:
        The report; faults of files are in it, never raised.

    Raises:
        ValueError: if the folder is missing, or the layout does not fit it.
    """
    found = scan(root, layout)
    problems = list(found.problems)
    sizes: dict[Path, tuple[int, int]] = {}
    copies: dict[str, list[Path]] = defaultdict(list)
    for example in found.examples:
        try:
            image = open_image(example.path, max_pixels)
        except ValueError as error:
            problems.append(error.args[0])
            continue
        sizes[example.path] = image.size
        copies[hashlib.sha256(repr(image.size).encode() + image.tobytes()).hexdigest()].append(example.path)
    problems += _small(sizes, min_side) + _copies(copies.values())
    problems += _single_pictures(found, sizes, root) + _uncaptioned(found, root)
    if count_tokens is not None:
        problems += _long(found.examples, max_tokens, count_tokens)
    return _report(root, found, sizes, problems)


def _report(root: Path, found: Scan, sizes: dict[Path, tuple[int, int]], problems: Iterable[Problem]) -> Report:
    styles: dict[str, Counter[str]] = defaultdict(Counter)
    for example in found.examples:
        if example.path in sizes:
            styles[example.style][example.label] += 1
    return Report(
        root=shown(root),
        pictures=len(sizes),
        styles={style: dict(sorted(labels.items())) for style, labels in sorted(styles.items())},
        sizes={f"{w} x {h}": n for (w, h), n in Counter(sizes.values()).most_common()},
        captions=dict(Counter(source for path, source in found.sources.items() if path in sizes).most_common()),
        problems=tuple(sorted(problems, key=lambda problem: (problem.severity, problem.file))),
    )


def _small(sizes: dict[Path, tuple[int, int]], min_side: int) -> list[Problem]:
    return [
        Problem(shown(path), f"only {w} x {h} pixels", f"use a picture of at least {min_side} on each side", "warning")
        for path, (w, h) in sizes.items()
        if min(w, h) < min_side
    ]


def _copies(groups: Iterable[list[Path]]) -> list[Problem]:
    return [
        Problem(shown(path), f"the same picture as {shown(group[0])}", "delete one of them", "warning")
        for group in groups
        for path in group[1:]
    ]


def _single_pictures(found: Scan, sizes: dict[Path, tuple[int, int]], root: Path) -> list[Problem]:
    counts = Counter(example.style for example in found.examples if example.path in sizes)
    return [
        Problem(shown(root), f"style {style!r} has only 1 picture", "add more: about 10 show a style", "warning")
        for style, count in sorted(counts.items())
        if count == 1
    ]


def _uncaptioned(found: Scan, root: Path) -> list[Problem]:
    bare: dict[str, list[Example]] = defaultdict(list)
    for example in found.examples:
        if found.sources[example.path] == "folder name":
            bare[example.style].append(example)
    return [problem for style, examples in sorted(bare.items()) for problem in _bare(style, examples, found, root)]


def _bare(style: str, examples: list[Example], found: Scan, root: Path) -> list[Problem]:
    remedy = "add a .txt of the same name, or a line in metadata.jsonl"
    if len(examples) < sum(example.style == style for example in found.examples):
        return [Problem(shown(e.path), f"no caption, so {e.caption!r} is used", remedy, "warning") for e in examples]
    if any(example.label != style.replace("_", " ") for example in examples):
        return []
    what = f"every picture of style {style!r} is captioned {examples[0].caption!r}"
    return [Problem(shown(root), what, "add captions, or a folder per class", "warning")]


def _long(examples: Iterable[Example], limit: int, count: Callable[[str], int]) -> list[Problem]:
    return [
        Problem(shown(e.path), f"its caption has {n} tokens, and those after {limit} are lost", "shorten it", "warning")
        for e, n in ((e, count(e.caption)) for e in examples)
        if n > limit
    ]
