"""Pages of docs/results that several benchmarks write: each renews its own section and leaves the others."""

import re
from collections.abc import Sequence
from pathlib import Path

from points import FILE

RESULTS = FILE.parent


def write_section(page: str, head: str, name: str, text: str) -> Path:
    """Write `text` between the marks of `name` in docs/results/`page`, which begins with `head` when it is new."""
    file = RESULTS / page
    old = file.read_text(encoding="utf-8") if file.exists() else f"{head.strip()}\n"
    section = f"<!-- {name} -->\n{text.strip()}\n<!-- end of {name} -->\n"
    found = re.compile(rf"<!-- {name} -->\n.*<!-- end of {name} -->\n", re.DOTALL)
    new = found.sub(lambda _: section, old) if found.search(old) else f"{old}\n{section}"
    file.write_text(new, encoding="utf-8")
    return file


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Return a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)
