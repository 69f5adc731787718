"""What is wrong with a file of a data folder, and how its name is shown."""

import unicodedata
from dataclasses import dataclass
from pathlib import Path
from typing import Literal


@dataclass(frozen=True)
class Problem:
    """One thing wrong with a folder of pictures: the file, what is wrong, how to mend it, and how bad it is.

    A reader that meets an error raises ValueError(problem), so that the message is the problem's line and a caller
    that collects problems finds it whole in args[0].
    """

    file: str
    what: str
    remedy: str
    severity: Literal["error", "warning"] = "error"

    def __str__(self) -> str:
        """Return file, fault and remedy as one line."""
        return f"{self.file}: {self.what}: {self.remedy}"


def encodable(text: str) -> str:
    """Return text without lone surrogates, which stand for bytes that are not UTF-8 and crash terminals and JSON."""
    return text.encode("utf-8", "surrogatepass").decode("utf-8", "replace")


def shown(path: Path | str) -> str:
    """Return a path as one line of text that any terminal or JSON file can hold."""
    return "".join("?" if unicodedata.category(c) == "Cc" else c for c in encodable(str(path)))
