"""Which pictures a client has, from the run config: its share of one folder, or a folder of its own."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

from fedsd.config import DataConfig, split_list
from fedsd.data import drawn
from fedsd.data.example import Example, Layout
from fedsd.data.folder import read
from fedsd.data.partition import partition


def layout_of(config: DataConfig) -> Layout:
    """Return how the folder is to be read."""
    return Layout(
        index=config.index,
        path_column=config.path_column,
        style_column=config.style_column,
        caption_column=config.caption_column,
        label_column=config.label_column,
        where=config.where,
        template=config.template,
        styles=split_list(config.styles),
    )


def pool(config: DataConfig, clients: int, seed: int, cache: Path) -> tuple[Example, ...]:
    """Return all pictures of a simulation: those of data.root, or drawn ones, which are kept under `cache`.

    Drawn styles are cut to the number of clients where none are asked for by name.
    """
    if config.root:
        return read(Path(config.root).expanduser(), layout_of(config))
    styles = split_list(config.styles) or drawn.STYLES[: max(1, clients)]
    objects = split_list(config.objects) or drawn.OBJECTS
    key = hashlib.sha256(repr((styles, objects, config.per_style, seed)).encode()).hexdigest()[:12]
    drawn.write(cache / f"drawn-{key}", styles, config.per_style, seed, objects=objects)
    return read(cache / f"drawn-{key}", Layout(template=config.template))


def share(config: DataConfig, number: int, clients: int, seed: int, cache: Path) -> tuple[Example, ...]:
    """Return the pictures of client `number` of `clients`, the same in every process.

    Raises ValueError naming the folder, file or setting at fault.
    """
    examples = pool(config, clients, seed, cache)
    parts = partition(examples, config.partition, clients, seed, concentration=config.concentration)
    return tuple(examples[i] for i in parts[number])


def own(config: DataConfig, root: Path) -> tuple[Example, ...]:
    """Return the pictures of a node's own folder; the run config says how captions are read, not where."""
    return read(root, layout_of(config))


def fingerprint(examples: Sequence[Example], more: str) -> str:
    """Return a short hash of the pictures' paths, sizes and times, their captions, and `more`."""
    digest = hashlib.sha256(more.encode())
    for example in examples:
        stat = example.path.stat()
        digest.update(f"{example.path}\0{stat.st_size}\0{stat.st_mtime_ns}\0{example.caption}\n".encode())
    return digest.hexdigest()[:16]
