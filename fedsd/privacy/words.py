"""The words that a node keeps to itself: registered in its private folder, never sent in a prompt."""

import re
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path

from fedsd.store import PrivateFolder

NAME = "words"


def register(private: PrivateFolder, words: Sequence[str]) -> tuple[str, ...]:
    """Add words to those that never leave the node, and return all of them, sorted; ValueError for an empty one."""
    if not all(_plain(word) for word in words):
        raise ValueError("a private word needs at least one letter or digit; register the word itself")
    known = tuple(sorted({*registered(private), *words}))
    private.save(NAME, {}, {"words": known})
    return known


def registered(private: PrivateFolder) -> tuple[str, ...]:
    """Return the private words of a node, sorted."""
    kept = private.load(NAME)
    return tuple(kept[1]["words"]) if kept else ()


def registered_below(root: Path) -> tuple[str, ...]:
    """Return the private words of all nodes that keep their folders below `root`, sorted."""
    folders = sorted(folder for folder in root.glob("*") if (folder / f"{NAME}.safetensors").exists())
    return tuple(sorted({word for folder in folders for word in registered(PrivateFolder(root, folder.name))}))


def held_in(text: str, words: Iterable[str]) -> str | None:
    """Return the first private word that stands in a text, or None.

    Case, accents, width and what separates letters from other letters do not matter: "Sketch-like" and "SKETCH" hold
    "sketch". A longer word that merely contains it does not.
    """
    plain = f" {_plain(text)} "
    return next((word for word in words if f" {_plain(word)} " in plain), None)


def _plain(text: str) -> str:
    """Return the words of a text in lower case without accents, one space between them."""
    letters = "".join(c for c in unicodedata.normalize("NFKD", text.casefold()) if not unicodedata.combining(c))
    return " ".join(re.findall(r"[^\W_]+", letters))
